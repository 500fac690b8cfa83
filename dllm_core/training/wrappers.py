"""Collators that wrap a collator: each changes the examples before it, or the batch behind it, and they compose.

``AppendEOSBlockWrapper(PrependBOSWrapper(collator))`` appends, then prepends, then collates. The names are those of
ZHZisZZ/dllm (``dllm/core``); what each does is corrected where its docstring says so.

Shapes: B batch, L length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dllm_core.config import at_least, within
from dllm_core.errors import OptionError
from dllm_core.objectives.base import IGNORED_LABEL

Example = Mapping[str, "Sequence[int] | Tensor"]
Collator = Callable[[Sequence[Example]], dict[str, Tensor]]


class CollatorWrapper:
    """A collator around a collator; this one changes nothing.

    Subclasses take ``collator`` first; their further arguments are the options that a recipe may give.

    Args:
        collator: makes a batch of examples.

    Attributes:
        model_tokens: arguments that are token ids of the model where a recipe does not give them, by the names that
            they have there, for example ``eos_token_id``.
    """

    model_tokens: ClassVar[tuple[str, ...]] = ()

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return self.after(self.collator(self.before(examples)))

    @classmethod
    def longest(cls, length: int, options: Mapping[str, object]) -> int:
        """The most tokens that an example of `length` tokens has behind this wrapper, given its options."""
        return length

    def before(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples that the inner collator gets."""
        return examples

    def after(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch made of what the inner collator gives."""
        return batch


class NoAttentionMaskWrapper(CollatorWrapper):
    """Leaves the attention mask out: padding is attended to, as where the end of sequence is learned as padding.

    Labels stay as they are, so that with a collator that ignores padding only the attention changes.
    """

    def after(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in batch.items() if name != "attention_mask"}


class PrependBOSWrapper(CollatorWrapper):
    """Begins every example with the beginning of sequence, which is context and not learned.

    Done before padding and packing, so that every key of the batch has the token; 0 is a token like others.

    Args:
        bos_token_id: the token.

    Raises:
        OptionError: no token, or a negative one.
    """

    model_tokens: ClassVar[tuple[str, ...]] = ("bos_token_id",)

    def __init__(self, collator: Collator, bos_token_id: int | None) -> None:
        super().__init__(collator)
        self.bos_token_id = _token("bos_token_id", bos_token_id)

    @classmethod
    def longest(cls, length: int, options: Mapping[str, object]) -> int:
        return length + 1

    def before(self, examples: Sequence[Example]) -> list[Example]:
        return [_with_ends(example, [self.bos_token_id], [IGNORED_LABEL], [], []) for example in examples]


class AppendEOSBlockWrapper(CollatorWrapper):
    """Fills every example with ends of sequence, which are learned, up to whole blocks; for block diffusion.

    Args:
        block_size: tokens of a block.
        eos_token_id: the token.

    Raises:
        OptionError: no token, or a block size below 1.
    """

    model_tokens: ClassVar[tuple[str, ...]] = ("eos_token_id",)

    def __init__(self, collator: Collator, eos_token_id: int | None, block_size: int = 32) -> None:
        super().__init__(collator)
        at_least("block_size", block_size, 1)
        self.eos_token_id = _token("eos_token_id", eos_token_id)
        self.block_size = block_size

    @classmethod
    def longest(cls, length: int, options: Mapping[str, object]) -> int:
        return length + -length % int(options.get("block_size", 32))

    def before(self, examples: Sequence[Example]) -> list[Example]:
        return [self._filled(example) for example in examples]

    def _filled(self, example: Example) -> Example:
        ends = [self.eos_token_id] * (-len(example["input_ids"]) % self.block_size)
        return _with_ends(example, [], [], ends, ends)


class RandomTruncateWrapper(CollatorWrapper):
    """Cuts some batches to a random length, so that a model also learns short texts (LLaDA, arXiv:2502.09992, 2.2: 1%).

    What is drawn follows from the tokens of the batch and the seed: no global generator is touched, and a resumed
    training draws what the unbroken one would have. At least one token to learn stays. The tokens are cut off, where
    ZHZisZZ/dllm keeps them as padding.

    Args:
        random_length_ratio: share of the batches that are cut.
        seed: of the draws.

    Raises:
        OptionError: a share outside 0 to 1.
    """

    def __init__(self, collator: Collator, random_length_ratio: float = 0.01, seed: int = 0) -> None:
        super().__init__(collator)
        within("random_length_ratio", random_length_ratio, 0.0, 1.0)
        self.random_length_ratio = random_length_ratio
        self.seed = seed

    def before(self, examples: Sequence[Example]) -> Sequence[Example]:
        generator = batch_generator(self.seed, examples)
        if torch.rand((), generator=generator).item() >= self.random_length_ratio:
            return examples
        longest = max(len(example["input_ids"]) for example in examples)
        shortest = min((first_learned(example) + 1 for example in examples), default=longest)
        if shortest > longest:  # nothing is learned here at any length
            return examples
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        return [cut(example, length) for example in examples]


def first_learned(example: Example) -> int:
    """How many tokens stand before the first that is learned: the length of the prompt."""
    labels = _list(example.get("labels", example["input_ids"]))
    return next((place for place, label in enumerate(labels) if label != IGNORED_LABEL), len(labels))


def cut(example: Example, length: int) -> Example:
    """The first `length` tokens of an example."""
    return {name: value[:length] if name in ("input_ids", "labels") else value for name, value in example.items()}


def batch_generator(seed: int, examples: Sequence[Example]) -> torch.Generator:
    """Random numbers that follow from the seed and the tokens of the batch alone, whatever ran before."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8)
    for example in examples:
        digest.update(str(_list(example["input_ids"])).encode())
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big") >> 1)


def _with_ends(
    example: Example, before: list[int], labels_before: list[int], behind: list[int], labels_behind: list[int]
) -> Example:
    """An example with tokens before and behind, and their labels; labels are then there in any case."""
    ids = _list(example["input_ids"])
    labels = _list(example.get("labels", ids))
    longer = {"input_ids": [*before, *ids, *behind], "labels": [*labels_before, *labels, *labels_behind]}
    return {**example, **longer}


def _list(values: Sequence[int] | Tensor) -> list[int]:
    return values.tolist() if isinstance(values, Tensor) else list(values)


def _token(name: str, token: int | None) -> int:
    if token is None or token < 0:
        raise OptionError(f"{name} must be a token id, got {token}; the model has none, so give one")
    return token
