"""What `dllm run` writes: texts for people, one JSON object a prompt for programs; to stdout or to a file."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dllm_core.display.text import Glyphs, glyphs_for, harmless
from dllm_core.errors import OptionError

if TYPE_CHECKING:
    from dllm_core.cli.prompts import Request
    from dllm_core.samplers.output import SampleStats

# No line is longer than a narrow terminal, 40 columns, so that a command stays whole.
NEXT_STEPS = """\
Try:
  dllm run "your prompt"
  dllm run --infill "12+[MASK:2]=57"
  dllm run --help"""


@dataclass(frozen=True)
class Result:
    """What came of one request.

    Args:
        text: the completion, or the whole text whose blanks were filled.
        prompt_tokens, completion_tokens: of a text with blanks, what was given and what was filled.
        stats: of the batch that it was generated in.
        batch_size: of that batch.
    """

    request: Request
    text: str
    prompt_tokens: int
    completion_tokens: int
    stats: SampleStats
    batch_size: int


class Results:
    """Writes results as they come.

    Args:
        file: where texts or JSON objects go.
        as_json: one JSON object a line, with nothing else on `file`.
    """

    def __init__(self, file: IO[str], *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = Console(file=file, soft_wrap=True, highlight=False, markup=False)
        self._aside = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self._is_utf8 = self._out.encoding.lower().replace("-", "") == "utf8"
        self._count = 0

    def write(self, batch: Sequence[Result], *, about: Mapping[str, object], captions: bool) -> None:
        """Write one batch.

        Args:
            about: model, sampler, seed and options, for the JSON objects.
            captions: write each text below its prompt.
        """
        for result in batch:
            if self._as_json:
                self._write_line(json.dumps(_record(result, about), ensure_ascii=not self._is_utf8))
            else:
                self._write_text(result, captions)
            self._count += 1
        self._out.file.flush()
        if not (self._as_json or captions) and self._aside.is_terminal:
            self._say("\n" + summary(batch[-1].stats, self._aside.width, glyphs_for(self._aside.encoding)))

    def introduce(self, text: str) -> None:
        """Say what is going to be shown, beside the results."""
        if not self._as_json:
            self._say(text + "\n")

    def suggest_next(self) -> None:
        """Say what to try next, beside the results."""
        if not self._as_json:
            self._say(NEXT_STEPS)

    def _write_text(self, result: Result, captions: bool) -> None:
        if self._count and not captions:
            self._write_line("")
        if captions:
            glyphs = glyphs_for(self._out.encoding)
            self._out.print(Text(harmless(f"{glyphs.prompt} {result.request.caption}", self._out.file), "dim"))
        # Behind a captioned text there is a blank line at once: the next one may be drawn live below it.
        text = harmless(f"{result.text}\n" if captions else result.text, self._out.file)
        is_ended = result.request.is_whole and (text.endswith("\n") or not self._out.is_terminal)
        self._write_line(text, "" if is_ended else "\n")

    def _write_line(self, line: str, end: str = "\n") -> None:
        """Exactly this line: no console may wrap or colour it."""
        self._out.file.write(line + end)

    def _say(self, text: str) -> None:
        self._aside.print(Text(text, "dim"))


def working(what: str) -> AbstractContextManager:
    """A spinner on stderr while something takes time, nothing where stderr is not a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return nullcontext()
    return console.status(Text(what, "dim"), spinner_style="cyan")


@contextmanager
def loading(what: str, *, at_once: bool = True) -> Iterator[None]:
    """A bar on stderr while weights are read or written inside the ``with`` block, with the time left.

    Args:
        at_once: show it before there are weights to read; False where a download shows bars of its own until then.
    """
    from dllm_core.display.progress import progress_bar

    with progress_bar(what, None, at_once=at_once) as tell:
        from dllm_core.models.told import weights_told

        with weights_told(tell):
            yield


@contextmanager
def open_results(path: Path | None, *, as_json: bool) -> Iterator[Results]:
    """Results that go to stdout, or into a file that appears under its name only once it is whole.

    Raises:
        OptionError: the file cannot be written.
    """
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace", newline="\n")  # a text may hold what the terminal cannot show
        yield Results(sys.stdout, as_json=as_json)
        return
    with whole_file(path, "--output") as file:
        yield Results(io.TextIOWrapper(file, encoding="utf-8", newline="\n", write_through=True), as_json=as_json)


@contextmanager
def whole_file(path: Path, flag: str) -> Iterator[IO[bytes]]:
    """A file to write to, which appears under its name only once it is whole, and not at all after an error.

    Args:
        flag: the option that named it, for the error.

    Raises:
        OptionError: it cannot be written; before anything else is done.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        file = temporary.open("wb")
    except OSError as error:
        raise OptionError(f"{flag} {path} cannot be written: {error.strerror}; give a file in a folder") from error
    try:
        with file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _record(result: Result, about: Mapping[str, object]) -> dict[str, object]:
    """The JSON object of one result: what was asked for, and what came of it."""
    return {
        result.request.kind: result.request.content,
        **({"extra": result.request.extra} if result.request.extra else {}),
        "text": result.text,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "stats": result.stats.as_dict() | {"batch_size": result.batch_size},
        **about,
    }


def summary(stats: SampleStats, width: int, glyphs: Glyphs) -> str:
    """What a run took, on lines of at most `width` cells where that is possible."""
    parts = [
        f"{stats.tokens} token{'' if stats.tokens == 1 else 's'}",
        f"{stats.forward_passes} forward pass{'' if stats.forward_passes == 1 else 'es'}",
        f"{stats.seconds:.2f} s",
        f"{stats.tokens_per_second:.0f} tokens/s",
    ]
    lines = [parts[0]]
    for part in parts[1:]:
        longer = lines[-1] + glyphs.separator + part
        lines[-1:] = [longer] if len(longer) <= width else [lines[-1], part]
    return "\n".join(lines)
