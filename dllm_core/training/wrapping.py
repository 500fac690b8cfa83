"""The collators that a recipe lists: from names and options to one collator inside wrappers.

A name is one of `WRAPPERS`, or an import string ``package.module:Class`` of a `CollatorWrapper`: a plugin or a script
brings its own without being registered. The options are the arguments of the class behind ``collator``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dllm_core.config import coerce, one_of
from dllm_core.errors import OptionError
from dllm_core.plugins import import_string
from dllm_core.training.wrappers import (
    AppendEOSBlockWrapper,
    Collator,
    CollatorWrapper,
    NoAttentionMaskWrapper,
    PrependBOSWrapper,
    RandomTruncateWrapper,
)

if TYPE_CHECKING:
    from dllm_core.models.denoiser import Denoiser

WRAPPERS: dict[str, type[CollatorWrapper]] = {
    "no_attention_mask": NoAttentionMaskWrapper,
    "prepend_bos": PrependBOSWrapper,
    "random_truncate": RandomTruncateWrapper,
    "append_eos_block": AppendEOSBlockWrapper,
}


def check_wrappers(entries: Sequence[object]) -> None:
    """Raise where a recipe's list of collators cannot be built, as far as that shows without a model.

    Raises:
        OptionError: an entry that is neither a name nor ``{name: ..., option: ...}``, no such name or option, a value
            that the wrapper refuses, or an import string of something else than a wrapper.
        ComponentLoadError: an import string that leads nowhere.
    """
    for wrapper, options in map(_read, entries):
        wrapper(_nothing, **dict.fromkeys(wrapper.model_tokens, 0) | options)


def wrap(collator: Collator, entries: Sequence[object], denoiser: Denoiser) -> Collator:
    """`collator` with the wrappers of a recipe around it; the first of the list acts on the examples first.

    Raises:
        OptionError, ComponentLoadError: as `check_wrappers`; or the model has not the token that a wrapper needs.
    """
    for wrapper, options in reversed([_read(entry) for entry in entries]):
        tokens = {name: getattr(denoiser, name) for name in wrapper.model_tokens}
        collator = wrapper(collator, **tokens | options)
    return collator


def wrapped_length(length: int, entries: Sequence[object]) -> int:
    """The longest that an example of `length` tokens becomes inside these wrappers."""
    for wrapper, options in map(_read, entries):
        length = wrapper.longest(length, options)
    return length


def _read(entry: object) -> tuple[type[CollatorWrapper], dict[str, object]]:
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise OptionError(f"data.collators: give a name or {{name: NAME, option: value}}, got {entry!r}")
    name = str(entry["name"])
    wrapper = _wrapper(name)
    return wrapper, _options(name, wrapper, {str(key): value for key, value in entry.items() if key != "name"})


def _wrapper(name: str) -> type[CollatorWrapper]:
    if ":" not in name:
        one_of("data.collators", name, WRAPPERS, hint="or an import string 'package.module:Class'")
        return WRAPPERS[name]
    wrapper = import_string(name)
    if not (isinstance(wrapper, type) and issubclass(wrapper, CollatorWrapper)):
        raise OptionError(f"data.collators: {name!r} is no subclass of dllm_core.training.CollatorWrapper")
    return wrapper


def _options(name: str, wrapper: type[CollatorWrapper], given: Mapping[str, object]) -> dict[str, object]:
    """The options in the types that the wrapper declares for them."""
    _, *parameters = inspect.signature(wrapper).parameters.values()  # the first is the collator
    known = {one.name: one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    for option in given:
        one_of(f"option of collator {name}", option, known)
    required = {option for option, one in known.items() if one.default is one.empty}
    missing = sorted(required - set(given) - set(wrapper.model_tokens))
    if missing:
        raise OptionError(f"collator {name}: option {missing[0]!r} is required")
    return coerce(wrapper.__init__, given)


def _nothing(examples: Sequence[object]) -> dict:
    return {}
