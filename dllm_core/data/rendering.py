"""From rows to examples: token ids, and labels that say which of them are learned.

An example is a dict: ``input_ids``, ``labels`` (-100 = context) and ``prompt_length`` (tokens before the first that is
learned). Of format ``edits`` it has ``source_ids`` too: what the learned tokens are made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm_core.config import at_least, one_of
from dllm_core.data.formats import AUTO, FORMATS, Layout, Turn, instruction_turns, turns_of, value_at
from dllm_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # a label that is not learned, as everywhere in Hugging Face

# Why a row is left out.
EMPTY = "empty"
UNREADABLE = "not of the format"
NO_ASSISTANT = "without an answer"
TOO_LONG = "too long"
PROMPT_TOO_LONG = "nothing to learn within max_length"
NO_PREFIX = "the template changes earlier turns"

Example = dict[str, "list[int] | int"]


class Dropped(Exception):
    """Raised where a row makes no example; the argument is the reason, as the report counts it."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How rows become examples.

    Args:
        format: ``chat``, ``edits``, ``alpaca``, ``prompt``, ``text``, ``tokens``, or ``auto``: what the columns say.
        max_length: longest example, in tokens; the length of the pieces of plain text.
        truncation: ``right`` keeps the first `max_length` tokens of a longer example, ``filter`` leaves it out. Of
            edits a longer one is always left out: two cut texts are no edit.
        mask_prompt_loss: learn what the assistant says only; otherwise the prompt too.
        supervised: the turns that are learned: ``all`` of the assistant's, or the ``last``.
        use_chat_template: None: where the tokenizer has one. Without, a response simply follows its prompt, and edits
            have no instruction.
        insert_eos: end a piece of plain text, and a response without template, with the end of sequence. None: yes, but
            not between the lines of text files.
        drop_tail: leave out what remains of plain text behind the last whole piece.
        seed: of the rows that are held out for evaluation.
        streaming: read rows while training, instead of all of them before.
        num_proc: processes that prepare.

    Raises:
        OptionError: a value out of range.
    """

    format: str = AUTO
    max_length: int = 1024
    truncation: str = "right"
    mask_prompt_loss: bool = True
    supervised: str = "all"
    use_chat_template: bool | None = None
    insert_eos: bool | None = None
    drop_tail: bool = True
    seed: int = 0
    streaming: bool = False
    num_proc: int = 1

    def __post_init__(self) -> None:
        one_of("format", self.format, (AUTO, *FORMATS))
        one_of("truncation", self.truncation, ("right", "filter"))
        one_of("supervised", self.supervised, ("all", "last"))
        at_least("max_length", self.max_length, 1)
        at_least("num_proc", self.num_proc, 1)


@dataclass(frozen=True)
class Renderer:
    """Makes the example of one row; for every format but plain text, of which `group` makes pieces."""

    tokenizer: PreTrainedTokenizerBase
    layout: Layout
    options: DataOptions

    def __post_init__(self) -> None:
        if self.options.use_chat_template and not self.tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template; leave out use_chat_template, or give another tokenizer"
            )
        if self.layout.format == "chat" and not self.uses_template:
            raise DataError("format chat needs a tokenizer with a chat template; give one of an instruct model")
        if "instruction" in self.layout.columns and self.layout.format == "edits" and self.lacks_template:
            raise DataError(
                "the instructions of edits are chat messages, and the tokenizer has no chat template; give one of an "
                "instruct model, or data without that column"
            )

    @property
    def uses_template(self) -> bool:
        wanted = self.options.use_chat_template
        return bool(self.tokenizer.chat_template) if wanted is None else wanted

    @property
    def lacks_template(self) -> bool:
        return self.options.use_chat_template is None and not self.tokenizer.chat_template

    def __call__(self, row: Mapping[str, object]) -> tuple[Example, bool]:
        """The example of a row, and whether it was cut to fit.

        Raises:
            Dropped: the row makes none; the argument says why.
        """
        if self.layout.format == "tokens":
            return self._fit(*self._given(row))
        if self.layout.format == "edits":
            return self._edited(row), False
        turns = turns_of(row, self.layout)
        if turns is None:
            raise Dropped(UNREADABLE)
        if not any(turn["role"] == "user" and turn["content"].strip() for turn in turns):
            raise Dropped(EMPTY)
        if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in turns):
            raise Dropped(NO_ASSISTANT)
        ids, learned = self._with_template(turns) if self.uses_template else self._plain(turns)
        if not self.options.mask_prompt_loss:
            return self._fit(ids, list(ids))
        labels = [IGNORED] * len(ids)
        for start, end in learned:
            labels[start:end] = ids[start:end]
        return self._fit(ids, labels)

    def _given(self, row: Mapping[str, object]) -> tuple[list[int], list[int]]:
        ids = value_at(row, self.layout.columns["input_ids"])
        labels = value_at(row, self.layout.columns["labels"]) if "labels" in self.layout.columns else ids
        if not isinstance(ids, Sequence) or not isinstance(labels, Sequence) or len(ids) != len(labels):
            raise Dropped(UNREADABLE)
        return list(ids), list(labels)

    def _edited(self, row: Mapping[str, object]) -> Example:
        """The edited text behind what stands in front of it, and the text that it is made from.

        Raises:
            Dropped: a text is missing, nothing is left of it, or one is too long.
        """
        values = {name: value_at(row, column) for name, column in self.layout.columns.items()}
        before, after, told = (values.get(name) for name in ("before", "after", "instruction"))
        if not isinstance(before, str) or not isinstance(after, str) or not isinstance(told, str | None):
            raise Dropped(UNREADABLE)
        front = self._in_front(before, told or "")
        old, new = (
            self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in (before, after)
        )
        if not new:
            raise Dropped(EMPTY)
        if len(front) + max(len(old), len(new)) > self.options.max_length:
            raise Dropped(TOO_LONG)
        labels = [IGNORED] * len(front) + new
        return {"input_ids": front + new, "labels": labels, "prompt_length": len(front), "source_ids": old}

    def _in_front(self, text: str, instruction: str) -> list[int]:
        """What stands in front of a text that is edited: a chat whose answer it is, or the beginning of sequence."""
        if instruction.strip() and self.uses_template:
            return self._templated(instruction_turns(instruction.strip(), text), reply=True)
        tokenizer = self.tokenizer
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        return [] if start is None else [start]

    def _with_template(self, turns: list[Turn]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of the whole chat up to the last turn that is learned, and what of it is learned.

        Raises:
            Dropped: the ids of a prompt are not how the ids of the whole begin.
        """
        answers = [
            number for number, turn in enumerate(turns) if turn["role"] == "assistant" and turn["content"].strip()
        ]
        answers = answers if self.options.supervised == "all" else answers[-1:]
        turns = turns[: answers[-1] + 1]
        whole = self._templated(turns)
        learned = []
        for number in answers:
            prompt = self._templated(turns[:number], reply=True)
            through = whole if number == answers[-1] else self._templated(turns[: number + 1])
            if whole[: len(prompt)] != prompt or whole[: len(through)] != through:
                raise Dropped(NO_PREFIX)
            learned.append((len(prompt), len(through)))
        return whole, learned

    def _templated(self, turns: list[Turn], *, reply: bool = False) -> list[int]:
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply)
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _plain(self, turns: list[Turn]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a prompt and its response as they stand, and where the response is."""
        prompt = "\n\n".join(turn["content"] for turn in turns[:-1])
        head = self.tokenizer(prompt, verbose=False)["input_ids"]
        eos = self.tokenizer.eos_token_id
        if head and head[-1] in (eos, self.tokenizer.sep_token_id):
            head = head[:-1]
        tail = self.tokenizer(turns[-1]["content"], add_special_tokens=False)["input_ids"]
        ends = [eos] if eos is not None and self.options.insert_eos is not False else []
        return [*head, *tail, *ends], [(len(head), len(head) + len(tail) + len(ends))]

    def _fit(self, ids: list[int], labels: list[int]) -> tuple[Example, bool]:
        """The example within `max_length`, and whether it was longer."""
        if not ids:
            raise Dropped(EMPTY)
        limit = self.options.max_length
        is_longer = len(ids) > limit
        if is_longer and self.options.truncation == "filter":
            raise Dropped(TOO_LONG)
        ids, labels = ids[:limit], labels[:limit]
        first = next((place for place, label in enumerate(labels) if label != IGNORED), None)
        if first is None:
            raise Dropped(PROMPT_TOO_LONG)
        return {"input_ids": ids, "labels": labels, "prompt_length": first}, is_longer


def tokenize_texts(texts: Sequence[object], tokenizer: PreTrainedTokenizerBase, *, insert_eos: bool) -> list[list[int]]:
    """The token ids of each text, of what is no text none.

    Raises:
        DataError: `insert_eos`, but the tokenizer has no end of sequence.
    """
    eos = tokenizer.eos_token_id
    if insert_eos and eos is None:
        raise DataError("the tokenizer has no end of sequence; set insert_eos=false")
    known = [text if isinstance(text, str) else "" for text in texts]
    ids = tokenizer(known, add_special_tokens=False, verbose=False)["input_ids"] if known else []
    return [[*own, eos] if insert_eos and text else own for text, own in zip(known, ids, strict=True)]


def group(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, length: int, insert_eos: bool, drop_tail: bool
) -> Iterator[Example]:
    """Pieces of `length` tokens of texts that follow each other; every token is learned.

    Raises:
        DataError: `insert_eos`, but the tokenizer has no end of sequence.
    """
    waiting: list[int] = []
    for text in texts:
        waiting += tokenize_texts([text], tokenizer, insert_eos=insert_eos)[0]
        whole = len(waiting) // length * length
        yield from (_piece(waiting[start : start + length]) for start in range(0, whole, length))
        waiting = waiting[whole:]
    if waiting and not drop_tail:
        yield _piece(waiting)


def _piece(ids: list[int]) -> Example:
    return {"input_ids": ids, "labels": list(ids), "prompt_length": 0}
