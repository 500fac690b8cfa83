"""What a sampler's way of decoding asks of the model, the commit rule and the cache policy it is put together with."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_core.errors import OptionError
from dllm_core.models import Denoiser
from dllm_core.samplers.cache import CachePolicy
from dllm_core.samplers.commit import CommitRule


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a sampler needs, and what it cannot serve.

    Args:
        capabilities: what a family's adapter must declare, such as ``supports_block_causal``.
        shifted_logits: serves models whose logits are right-shifted.
        history: serves rules that need a history of the block: its steps follow one canvas, from which nothing is taken
            back.
    """

    capabilities: tuple[str, ...] = ()
    shifted_logits: bool = True
    history: bool = True


def check_family(sampler: str, demands: Demands, denoiser: Denoiser) -> None:
    """Raise where a model cannot be decoded like this.

    Raises:
        OptionError: its family lacks a capability, or its logits are shifted.
    """
    family = type(denoiser.adapter).__name__
    for capability in demands.capabilities:
        if not getattr(denoiser.adapter, capability):
            raise OptionError(f"{sampler} needs {capability}, which {family} does not declare; use sampler 'mdlm'")
    if denoiser.logits_are_shifted and not demands.shifted_logits:
        raise OptionError(f"{sampler} is not defined where logits are right-shifted ({family}); use sampler 'mdlm'")


def check_history(
    sampler: str, demands: Demands, commit: str, rule: CommitRule, policy: str, cache: CachePolicy
) -> None:
    """Raise where a rule compares steps that cannot be compared.

    Args:
        commit, policy: the names of the rule and of the cache policy, for messages.

    Raises:
        OptionError: a rule that needs a history, and a sampler or a cache policy that has none.
    """
    if "history" not in rule.needs:
        return
    if not cache.computes_anew:
        raise OptionError(
            f"commit={commit!r} compares each step with the one before, and cache={policy!r} gives the same scores "
            "again; use another commit rule, or cache='none'"
        )
    if not demands.history:
        raise OptionError(
            f"commit={commit!r} needs a history of the block, and {sampler} has none; use another commit rule, such as "
            "'threshold', or sampler 'mdlm'"
        )
