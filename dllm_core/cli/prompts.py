"""What `dllm run` generates from: the argument, standard input, or a JSONL file of prompts. No torch here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dllm_core.errors import DataError, PromptError

Kind = Literal["prompt", "messages", "infill"]
KINDS: tuple[Kind, ...] = ("prompt", "messages", "infill")
LINE_FORM = 'a line is {"prompt": "..."}, {"messages": [{"role": "user", "content": "..."}]} or {"infill": "..."}'
BLANK = re.compile(r"\[MASK(?::(\d+))?\]")

Message = Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """One thing to generate from.

    Args:
        kind: ``prompt`` (text to continue or answer), ``messages`` (a chat), ``infill`` (a text with blanks).
        content: the text, or the chat messages.
        where: where it came from, for error messages: ``"the prompt"``, ``"prompts.jsonl, line 3"``.
        extra: the other keys of its line, which ``--json`` hands back.
        is_whole: the text is a whole file, to be written back with the line end that it has or has not.
    """

    kind: Kind
    content: str | tuple[Message, ...]
    where: str
    extra: Mapping[str, object] = field(default_factory=dict)
    is_whole: bool = False

    @property
    def caption(self) -> str:
        """The text to show above the completion: the prompt, or what the user said last."""
        return self.content if isinstance(self.content, str) else self.content[-1]["content"]


def read_requests(argument: str | None, prompts_file: Path | None, *, infill: bool) -> list[Request]:
    """The requests that the command line names; an empty list where it names none.

    Raises:
        PromptError: two sources at once, an empty prompt, or standard input that is not text.
        DataError: the file cannot be read, is empty, or has a broken line.
    """
    if argument is not None and prompts_file is not None:
        raise PromptError("PROMPT and --prompts-file were both given; give one of them")
    if prompts_file is not None:
        return list(_read_file(prompts_file, infill))
    if argument is None:
        if infill:
            raise PromptError("--infill needs a text with blanks, for example: dllm run --infill '3 + 4 = [MASK]'")
        return []
    is_piped = argument == "-"
    text, where = (_read_stdin(whole=infill), "standard input") if is_piped else (argument, "the prompt")
    if not text.strip():
        raise PromptError(f"{where} is empty; give a text, or '-' to read one from standard input")
    return [Request("infill" if infill else "prompt", text, where, is_whole=is_piped and infill)]


def expand_blanks(text: str, mask_token: str, where: str) -> str:
    """The text with its blanks written as mask tokens: ``[MASK]`` is one, ``[MASK:5]`` five of them.

    Raises:
        PromptError: there is no blank, or one of length 0.
    """
    if any(match[1] and int(match[1]) == 0 for match in BLANK.finditer(text)):
        raise PromptError(f"{where}: [MASK:0] is a blank of no tokens; give at least [MASK:1]")
    expanded = BLANK.sub(lambda match: mask_token * int(match[1] or 1), text)
    if mask_token not in expanded:
        raise PromptError(f"{where} has no blank to fill; mark one with [MASK], or [MASK:5] for five tokens")
    return expanded


def with_blanks_filled(text: str, mask_token: str, fill: Callable[[int], str]) -> str:
    """The text as it was given, byte for byte, with each blank replaced by what ``fill`` gives for its length.

    Decoding the whole canvas would not do: many tokenizers do not give back every blank and mark that they were given.
    """
    blank = re.compile(f"{BLANK.pattern}|{re.escape(mask_token)}")
    return blank.sub(lambda match: fill(int(match[1] or 1)), text)


def _read_stdin(*, whole: bool) -> str:
    """All of standard input as one text.

    Args:
        whole: keep a byte order mark, and the line end that the shell adds.
    """
    if sys.stdin.isatty():
        print("Reading the prompt from the terminal; end it with Ctrl-D.", file=sys.stderr)
    try:
        text = sys.stdin.buffer.read().decode("utf-8" if whole else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not UTF-8 text (byte {error.start}); convert it first") from error
    return text if whole else text.removesuffix("\n").removesuffix("\r")


def _read_file(path: Path, infill: bool) -> Iterator[Request]:
    lines = _file_lines(path)
    if not any(line.strip() for line in lines):
        raise DataError(f"{path} holds no prompts; {LINE_FORM}")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield parse_line(line, f"{path}, line {number}", infill=infill)


def _file_lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): JSON strings may hold U+2028 and the like unescaped.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise DataError(f"cannot read the prompts file {path}: {error.strerror or error}") from error


def parse_line(line: str, where: str, *, infill: bool = False) -> Request:
    """One line of a prompts file.

    Args:
        line: a JSON object with exactly one of the keys ``prompt``, ``messages``, ``infill``.
        where: file and line number, for the errors.
        infill: read ``prompt`` as a text with blanks, as ``--infill`` asks for.

    Raises:
        DataError: the line is not such an object.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg} at column {error.colno}); {LINE_FORM}") from error
    return parse_record(record, where, infill=infill)


def parse_record(record: object, where: str, *, infill: bool = False) -> Request:
    """What a line of a prompts file holds; arguments and errors as of `parse_line`."""
    kinds = [kind for kind in KINDS if kind in record] if isinstance(record, dict) else []
    if len(kinds) != 1:
        found = "more than one of these" if kinds else "none of these"
        raise DataError(f"{where}: {found}; {LINE_FORM}")
    kind = kinds[0]
    if infill and kind == "messages":
        raise DataError(f"{where}: --infill fills texts, this line is a chat; give it as 'infill' or 'prompt'")
    extra = {key: value for key, value in record.items() if key != kind}
    content = _checked_content(kind, record[kind], where)
    return Request("infill" if infill else kind, content, where, extra)


def _checked_content(kind: str, value: object, where: str) -> str | tuple[Message, ...]:
    if kind == "messages":
        if not (isinstance(value, list) and value and all(_is_message(item) for item in value)):
            raise DataError(f'{where}: "messages" must be a list of {{"role": "...", "content": "..."}}')
        return tuple(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{where}: "{kind}" must be a text that is not empty')
    return value


def _is_message(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
