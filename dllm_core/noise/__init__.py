"""Noise: schedules (how much is masked at a time), corruption (what gets masked), counter-based uniform draws."""

from dllm_core.noise.corruption import Corruption, apply_mask, mask_tokens, masked_where, sample_time
from dllm_core.noise.counter import fold, key_from, uniform
from dllm_core.noise.schedules import (
    CosineSchedule,
    LinearSchedule,
    Schedule,
    get_schedule,
    register_schedule,
    schedule_names,
)

__all__ = [
    "Corruption",
    "CosineSchedule",
    "LinearSchedule",
    "Schedule",
    "apply_mask",
    "fold",
    "get_schedule",
    "key_from",
    "mask_tokens",
    "masked_where",
    "register_schedule",
    "sample_time",
    "schedule_names",
    "uniform",
]
