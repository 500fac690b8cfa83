"""Put a sampler together: its options, its commit rule and cache policy, and the model they must fit."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from dllm_core import registry
from dllm_core.config import from_mapping
from dllm_core.errors import ComponentLoadError, OptionError, did_you_mean
from dllm_core.models import Denoiser, ModelAdapter
from dllm_core.noise.schedules import get_schedule
from dllm_core.samplers.cache import CachePolicy
from dllm_core.samplers.commit import CommitRule
from dllm_core.samplers.options import MaskedOptions
from dllm_core.samplers.view import BLOCK_CAUSAL, FULL

if TYPE_CHECKING:
    from dllm_core.samplers.base import Sampler

OptionsT = TypeVar("OptionsT", bound=MaskedOptions)
KINDS = {"commit": "commit rule", "cache": "cache policy"}


def build(
    options_class: type[OptionsT], options: Mapping[str, object]
) -> tuple[OptionsT, CommitRule | None, CachePolicy | None]:
    """Sort the options among sampler, commit rule and cache policy.

    A sampler whose options name no ``commit`` or no ``cache`` has no such part: None stands for it.

    Raises:
        OptionError: an option that none of the three has.
    """
    shared = from_mapping(options_class, _pick(options, options_class), what="sampler")
    if hasattr(shared, "schedule"):
        get_schedule(shared.schedule)
    known = option_names(options_class, options)
    for name in options:
        if name not in known:
            hint = _brought_by(name) or did_you_mean(name, known)
            raise OptionError(f"unknown sampler option {name!r}.{hint} {_allowed(known)}")
    made = {
        axis: from_mapping(part, _pick(options, part), what=f"{KINDS[axis]} {getattr(shared, axis)}")
        for axis, part in _classes(options_class, options).items()
    }
    return shared, made.get("commit"), made.get("cache")


def in_force(sampler: Sampler) -> dict[str, object]:
    """Every option of a sampler, those of its commit rule and cache policy included."""
    parts = [part for part in (sampler.options, sampler.rule, sampler.cache) if part is not None]
    return {field.name: getattr(part, field.name) for part in parts for field in fields(part)}


def with_fitting_cache(
    options_class: type[MaskedOptions], options: Mapping[str, object], adapter: ModelAdapter
) -> Mapping[str, object]:
    """The options, with ``cache="none"`` where none is chosen and the sampler's own needs keys that the family lacks.

    A sampler's own policy saves time; without it the text is the same, or nearer to the model's where the policy
    approximates. One that is chosen is never exchanged.
    """
    own = registry.load("cache policy", options_class.cache)
    if "cache" in options or adapter.supports_kv_cache or not own.needs_kv_cache:
        return options
    return {**options, "cache": "none"}


def with_preset(
    options_class: type[MaskedOptions], defaults: Mapping[str, object], options: Mapping[str, object]
) -> dict[str, object]:
    """The options over a preset's own; what belongs to a rule or policy that they exchange is left out."""
    known = option_names(options_class, {**defaults, **options})
    return {name: value for name, value in defaults.items() if name in known} | dict(options)


def option_names(options_class: type[MaskedOptions], options: Mapping[str, object]) -> set[str]:
    """The options that a sampler has with the commit rule and the cache policy that `options` choose."""
    return {name for part in (options_class, *_classes(options_class, options).values()) for name in _names(part)}


def _classes(
    options_class: type[MaskedOptions], options: Mapping[str, object]
) -> dict[str, type[CommitRule] | type[CachePolicy]]:
    """The parts that the options choose, by the option that names them."""
    axes = [axis for axis in KINDS if hasattr(options_class, axis)]
    return {axis: registry.load(KINDS[axis], str(options.get(axis, getattr(options_class, axis)))) for axis in axes}


_LACKS = {
    "supports_kv_cache": "declares no KV cache; use cache='none'",
    "supports_block_causal": "takes no attention pattern, so blocks cannot look back only; use sampler 'mdlm'",
}


def needs(cache: CachePolicy | type[CachePolicy], attention: str) -> tuple[str, ...]:
    """What a family's adapter must declare for this cache policy and this kind of attention."""
    wanted = {"supports_kv_cache": cache.needs_kv_cache, "supports_block_causal": attention == BLOCK_CAUSAL}
    return tuple(capability for capability, is_needed in wanted.items() if is_needed)


def check_against_model(options: MaskedOptions, cache: CachePolicy, denoiser: Denoiser, attention: str = FULL) -> None:
    """Raise where the options ask for what this model or this kind of attention cannot do.

    Args:
        attention: the sampler's, ``"full"`` or ``"block_causal"``.

    Raises:
        OptionError: a cache policy for a family without a cache or for another kind of attention, block-causal
            attention for a family that takes no pattern, a window where nothing behind the block is seen, token ids
            outside the vocabulary, or no token left.
    """
    for capability in needs(cache, attention):
        if not getattr(denoiser.adapter, capability):
            raise OptionError(f"{type(denoiser.adapter).__name__} {_LACKS[capability]}")
    if attention not in cache.serves:
        fitting = "block" if attention == BLOCK_CAUSAL and denoiser.adapter.supports_kv_cache else "none"
        raise OptionError(
            f"cache={options.cache!r} is for {' or '.join(cache.serves)} attention, this sampler's is {attention}; "
            f"use cache={fitting!r}"
        )
    if attention == BLOCK_CAUSAL and options.suffix_window is not None:
        raise OptionError("blocks that look back only see no masks behind them; leave suffix_window out")
    for name in ("guidance_keep_tokens", "suppress_tokens", "suppress_confidence_tokens"):
        for token in getattr(options, name):
            if not isinstance(token, int) or not 0 <= token < denoiser.vocab_size:
                raise OptionError(f"{name} holds {token!r}; token ids run from 0 to {denoiser.vocab_size - 1}")
    if len({*options.suppress_tokens, denoiser.mask_token_id}) == denoiser.vocab_size:
        raise OptionError("suppress_tokens leaves no token to choose; leave some out")


def _brought_by(name: str) -> str:
    """A sentence that says which rules or cache policies bring an option; empty where none does."""
    owners = []
    for axis, kind in KINDS.items():
        for component in registry.components(kind):
            with suppress(ComponentLoadError):  # whoever is broken is not asked for here
                if name in _names(registry.load(kind, component.full_id)):
                    owners.append(f"{axis}={component.spec.name}")
    return f" It goes with {', '.join(owners[:-1])}{' or ' * (len(owners) > 1)}{owners[-1]}." if owners else ""


def _names(options_class: type) -> set[str]:
    return {field.name for field in fields(options_class)}


def _pick(options: Mapping[str, object], options_class: type) -> dict[str, object]:
    return {name: value for name, value in options.items() if name in _names(options_class)}


def _allowed(known: set[str]) -> str:
    return f"Allowed are {', '.join(sorted(known))}."
