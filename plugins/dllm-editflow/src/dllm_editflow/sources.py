"""Where a flow starts: the source text that is turned into the target. One small function each, and mixtures of them.

A spec is a name with options, ``masks[length:64]``, or a mixture ``mix[corrupt:0.8,identity:0.2]``, whose shares are
those of the examples that each source makes. Sources of a mixture are written with their options, too:
``mix[corrupt[share:0.1]:0.8,identity:0.2]``.

Source: Havasi et al., arXiv:2506.09018, section 4 (empty, uniform); ZHZisZZ/dllm at ca17675, dllm/pipelines/editflow
(masks). `corrupt`, `draft` and `identity` are for editing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dllm_core.config import at_least, within
from dllm_core.errors import DataError, OptionError, did_you_mean

MIX = "mix"


@dataclass(frozen=True)
class Tokens:
    """What a source may write.

    Args:
        mask: the mask token.
        plain: (P,) int64, all tokens that text is made of.
    """

    mask: int
    plain: torch.Tensor


Maker = Callable[[Sequence[int], Sequence[int] | None, Tokens, torch.Generator], list[int]]
"""``maker(target, draft, tokens, generator) -> source``: token ids of the editable part; draft None: there is none."""


def parse_source(spec: str) -> Maker:
    """The source of a spec.

    Raises:
        OptionError: no such source or option, a value out of range, or shares that do not add up to 1.
    """
    name, options = _split(spec)
    if name == MIX:
        return _mixture(options)
    if name not in _SOURCES:
        raise OptionError(
            f"unknown source {name!r}.{did_you_mean(name, [*_SOURCES, MIX])} Known are {', '.join(_SOURCES)} and "
            "mix[NAME:SHARE,...]"
        )
    return _SOURCES[name](**_numbers(name, options))


def _empty() -> Maker:
    return lambda target, draft, tokens, generator: []


def _masks(length: float = 64) -> Maker:
    at_least("source masks: length", length, 1)
    return lambda target, draft, tokens, generator: [tokens.mask] * int(length)


def _noise(length: float = 100) -> Maker:
    """Tokens drawn evenly from all that text is made of."""
    at_least("source noise: length", length, 1)

    def make(target: Sequence[int], draft: Sequence[int] | None, tokens: Tokens, generator: torch.Generator) -> list:
        return _random_tokens(int(length), tokens, generator)

    return make


def _corrupt(share: float = 0.15) -> Maker:
    """The target with errors: each token is substituted, deleted, or followed by another one, a third of `share` each.

    The share itself is drawn evenly between 0 and twice `share` for each text, so that few errors are learned as well
    as many.
    """
    within("source corrupt: share", share, 0.0, 0.5)

    def make(target: Sequence[int], draft: Sequence[int] | None, tokens: Tokens, generator: torch.Generator) -> list:
        rate = 2 * share * torch.rand((), generator=generator).item()
        what = torch.rand(len(target), generator=generator).tolist()
        others = _random_tokens(len(target), tokens, generator)
        spoilt: list[int] = []
        for token, draw, other in zip(target, what, others, strict=True):
            if draw < rate / 3:
                spoilt.append(other)
            elif draw < 2 * rate / 3:
                continue
            else:
                spoilt += [token, other] if draw < rate else [token]
        return spoilt

    return make


def _draft() -> Maker:
    def make(target: Sequence[int], draft: Sequence[int] | None, tokens: Tokens, generator: torch.Generator) -> list:
        if draft is None:
            raise DataError("source draft needs source_ids in every example; add that column, or use source corrupt")
        return list(draft)

    return make


def _identity() -> Maker:
    return lambda target, draft, tokens, generator: list(target)


_SOURCES: dict[str, Callable[..., Maker]] = {
    "empty": _empty,
    "masks": _masks,
    "noise": _noise,
    "corrupt": _corrupt,
    "draft": _draft,
    "identity": _identity,
}


def _mixture(options: Sequence[tuple[str, str]]) -> Maker:
    makers = [parse_source(name) for name, _ in options]
    shares = torch.tensor([_number(MIX, name, share) for name, share in options])
    if not len(shares) or (shares < 0).any() or abs(shares.sum().item() - 1) > 1e-6:
        raise OptionError(f"source mix: the shares must add up to 1, got {[round(one, 6) for one in shares.tolist()]}")

    def make(target: Sequence[int], draft: Sequence[int] | None, tokens: Tokens, generator: torch.Generator) -> list:
        chosen = int(torch.multinomial(shares, 1, generator=generator))
        return makers[chosen](target, draft, tokens, generator)

    return make


def _random_tokens(count: int, tokens: Tokens, generator: torch.Generator) -> list[int]:
    return tokens.plain[torch.randint(len(tokens.plain), (count,), generator=generator)].tolist()


def _split(spec: str) -> tuple[str, list[tuple[str, str]]]:
    """``name[key:value,key:value]`` as name and pairs; brackets may nest inside a key."""
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\[(.*)\])?\s*", spec, flags=re.DOTALL)
    if match is None:
        raise OptionError(f"source {spec!r} must be NAME or NAME[OPTION:VALUE,...], for example masks[length:64]")
    name, inner = match[1], match[2]
    pairs = [part.rpartition(":") for part in _parts(inner or "")]
    if not all(colon for _, colon, _ in pairs):
        raise OptionError(f"source {spec!r}: write OPTION:VALUE between the brackets, as in masks[length:64]")
    return name, [(key.strip(), value.strip()) for key, _, value in pairs]


def _parts(text: str) -> Iterator[str]:
    """Split at the commas that stand in no brackets."""
    depth, part = 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            yield part
            part = ""
        else:
            part += letter
    if part.strip():
        yield part


def _numbers(name: str, options: Sequence[tuple[str, str]]) -> dict[str, float]:
    known = inspect.signature(_SOURCES[name]).parameters
    for key, _ in options:
        if key not in known:
            raise OptionError(
                f"source {name} has no option {key!r}.{did_you_mean(key, known)} It has: {', '.join(known) or 'none'}"
            )
    return {key: _number(name, key, value) for key, value in options}


def _number(name: str, key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise OptionError(f"source {name}: {key} must be a number, got {value!r}") from None
