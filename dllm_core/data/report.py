"""What became of the rows of every data set: counts, and why rows were left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class Counts:
    """What became of the rows of one split of one data set.

    Args:
        part: as the spec writes it.
        split: ``train`` or ``eval``.
        layout: format and columns.
        rows: rows read.
        examples: examples made of them.
        tokens, learned_tokens: in the examples.
        cut: examples cut to the longest length.
        dropped_tail: tokens of plain text behind the last whole piece.
        dropped: rows left out, by reason.
    """

    part: str
    split: str
    layout: str
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    cut: int = 0
    dropped_tail: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def notes(self) -> str:
        """What was left out, in words."""
        notes = [f"{count} {reason}" for reason, count in self.dropped.most_common()]
        notes += [f"{self.cut} cut"] if self.cut else []
        notes += [f"{self.dropped_tail} tokens at the end"] if self.dropped_tail else []
        return ", ".join(notes)


@dataclass
class Report:
    """One entry a split of each data set."""

    counts: list[Counts] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"sets": [{**asdict(counts), "dropped": dict(counts.dropped)} for counts in self.counts]}

    def table(self) -> Table:
        """For a terminal, with names shortened."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("data set", "split", "format"):
            table.add_column(name, no_wrap=True)
        for name in ("rows", "examples", "tokens", "learned"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("left out", overflow="fold")
        for counts in self.counts:
            numbers = (counts.rows, counts.examples, counts.tokens, counts.learned_tokens)
            short = (counts.part.partition("[")[0].strip('"').rpartition("/")[2][:24], counts.split)
            format = counts.layout.partition(" ")[0]
            cells = (*short, format, *(f"{number:,}" for number in numbers), counts.notes())
            table.add_row(*map(Text, cells))  # a data set's [options] are no markup
        return table
