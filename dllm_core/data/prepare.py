"""`load_dataset`: from a spec to examples that a trainer takes, with a report of what was left out.

Shapes: N rows, T tokens of all texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy

from dllm_core.config import from_mapping
from dllm_core.data.formats import COLUMNS, Layout, find_layout, value_at
from dllm_core.data.grammar import DataPart, parse_spec
from dllm_core.data.rendering import EMPTY, IGNORED, DataOptions, Dropped, Example, Renderer, group, tokenize_texts
from dllm_core.data.report import Counts, Report
from dllm_core.data.sources import Rows, import_datasets, read_rows
from dllm_core.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset
    from transformers import PreTrainedTokenizerBase

MAPPED = {name for columns in COLUMNS.values() for name in columns}  # the options of a part that name columns


@dataclass(frozen=True)
class Prepared:
    """Examples, ready to train on.

    Args:
        train: rows with ``input_ids``, ``labels``, ``prompt_length``, of edits ``source_ids`` too; a `Stream` where
            streaming was asked for.
        eval: the same, never a stream; None: the spec has no rows for evaluation.
        report: what became of every row; of a stream only what has been read of it so far.
        options: that they were made with.
    """

    train: Dataset | Stream
    eval: Dataset | None
    report: Report
    options: DataOptions


def load_dataset(spec: str, *, tokenizer: PreTrainedTokenizerBase, **options: object) -> Prepared:
    """The examples that a spec names (see `dllm_core.data.grammar`).

    Args:
        options: fields of `DataOptions`.

    Raises:
        DataError: the spec cannot be read, a data set is not there or has not the columns, or no row makes an example.
        OptionError: an unknown option, or a value out of range.
        ComponentLoadError: the library ``datasets`` is not installed.
    """
    return prepare(parse_spec(spec), tokenizer, from_mapping(DataOptions, options, what="data"))


def prepare(
    parts: Iterable[DataPart],
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
    *,
    evaluation_rows: int | None = None,
) -> Prepared:
    """As `load_dataset`, from the parts of a spec; of each at most so many rows for evaluation are looked at."""
    report, train, evaluation = Report(), [], []
    for part in parts:
        rows = read_rows(part, seed=options.seed, streaming=options.streaming, evaluation_rows=evaluation_rows)
        for split, own, made in (("train", rows.train, train), ("eval", rows.evaluation, evaluation)):
            if own is not None:
                source = _source(own, rows, part, split, tokenizer, options)
                report.counts.append(source.counts)
                made.append(source)
    if options.streaming:
        examples = Stream(train)
    else:
        examples = _concatenated([source.as_dataset() for source in train], report, "train")
    # A stream's rows for evaluation are few, and have to be the same at every evaluation.
    evaluated = _concatenated([source.as_dataset() for source in evaluation], report, "eval") if evaluation else None
    return Prepared(examples, evaluated, report, options)


def _source(
    rows: Dataset | IterableDataset,
    about: Rows,
    part: DataPart,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
) -> Source:
    mapping = {name: column for name, column in part.options.items() if name in MAPPED}
    columns = rows.column_names or list(next(iter(rows), {}))  # a stream may not know its columns
    layout = find_layout(
        columns,
        format=part.options.get("format", options.format),
        mapping=mapping,
        what=f"data set {str(part)!r}",
    )
    insert_eos = (not about.is_running_text) if options.insert_eos is None else options.insert_eos
    return Source(rows, layout, tokenizer, options, insert_eos, Counts(str(part), split, str(layout)))


@dataclass
class Source:
    """One split of one data set, on its way to examples; `counts` fills as they are made."""

    rows: Dataset | IterableDataset
    layout: Layout
    tokenizer: PreTrainedTokenizerBase
    options: DataOptions
    insert_eos: bool
    counts: Counts

    def __post_init__(self) -> None:
        if self.layout.format != "text":
            Renderer(self.tokenizer, self.layout, self.options)  # checks that the tokenizer can

    def __iter__(self) -> Iterator[Example]:
        """Examples one after the other; the counts begin anew."""
        counts = self.counts
        counts.rows = counts.examples = counts.tokens = counts.learned_tokens = counts.cut = 0
        counts.dropped = Counter()
        for example in self._pieces() if self.layout.format == "text" else self._rendered():
            counts.examples += 1
            counts.tokens += len(example["input_ids"])
            counts.learned_tokens += sum(label != IGNORED for label in example["labels"])
            yield example

    def as_dataset(self) -> Dataset:
        """All examples, in the rows' order."""
        rows = self.rows if hasattr(self.rows, "__len__") else import_datasets().Dataset.from_list(list(self.rows))
        if not len(rows):
            return _as_dataset({"input_ids": [], "labels": [], "prompt_length": []})
        return self._grouped(rows) if self.layout.format == "text" else self._mapped(rows)

    def _rendered(self) -> Iterator[Example]:
        render = Renderer(self.tokenizer, self.layout, self.options)
        for row in self.rows:
            self.counts.rows += 1
            try:
                example, is_cut = render(row)
            except Dropped as why:
                self.counts.dropped[str(why)] += 1
                continue
            self.counts.cut += is_cut
            yield example

    def _pieces(self) -> Iterator[Example]:
        return group(
            self._texts(),
            self.tokenizer,
            length=self.options.max_length,
            insert_eos=self.insert_eos,
            drop_tail=self.options.drop_tail,
        )

    def _texts(self) -> Iterator[str]:
        for row in self.rows:
            self.counts.rows += 1
            text = value_at(row, self.layout.columns["text"])
            if isinstance(text, str) and text:
                yield text
            else:
                self.counts.dropped[EMPTY] += 1

    def _mapped(self, rows: Dataset) -> Dataset:
        """One example a row that makes one."""
        render = Renderer(self.tokenizer, self.layout, self.options)
        made = rows.map(
            partial(_render_batch, render=render),
            batched=True,
            batch_size=200,
            remove_columns=rows.column_names,
            features=_features(edits=_is_edits(render), dropped="string", cut="bool", learned="int64"),
            num_proc=_processes(self.options.num_proc, rows),
            desc="preparing",
        )
        whys = made["dropped"][:]
        kept = [number for number, why in enumerate(whys) if not why]
        self.counts.rows, self.counts.examples = len(rows), len(kept)
        self.counts.dropped = Counter(why for why in whys if why)
        self.counts.cut, self.counts.learned_tokens = sum(made["cut"][:]), sum(made["learned"][:])
        examples = made.remove_columns(["dropped", "cut", "learned"])
        self.counts.tokens = sum(_lengths(examples))
        return examples if len(kept) == len(rows) else examples.select(kept)

    def _grouped(self, rows: Dataset) -> Dataset:
        """Pieces of running text."""
        column = self.layout.columns["text"]
        tokenized = rows.map(
            partial(_tokenize_batch, column=column, tokenizer=self.tokenizer, insert_eos=self.insert_eos),
            batched=True,
            remove_columns=rows.column_names,
            features=import_datasets().Features({"ids": import_datasets().List(import_datasets().Value("int64"))}),
            num_proc=_processes(self.options.num_proc, rows),
            desc="tokenizing",
        )
        lengths = _lengths(tokenized, "ids")
        ids = tokenized.data.column("ids").combine_chunks().flatten().to_numpy(zero_copy_only=False)  # (T,)
        length = self.options.max_length
        ends = [*range(length, len(ids) + 1, length)]
        tail = len(ids) % length
        if tail and not self.options.drop_tail:
            ends.append(len(ids))
        counts = self.counts
        counts.rows, counts.examples = len(rows), len(ends)
        counts.dropped = Counter({EMPTY: lengths.count(0)}) if 0 in lengths else Counter()
        counts.dropped_tail = tail if self.options.drop_tail else 0
        counts.tokens = counts.learned_tokens = ends[-1] if ends else 0
        return _pieces_as_dataset(ids, ends)


class Stream:
    """Examples of several sources in turn, made while they are read; every pass is the same.

    Where there are several sources they take turns, one example each, until all are at their end.
    """

    def __init__(self, sources: list[Source]) -> None:
        self.sources = sources

    def __iter__(self) -> Iterator[Example]:
        running: list[Iterator[Example]] = [iter(source) for source in self.sources]
        while running:
            for iterator in list(running):
                example = next(iterator, None)
                if example is None:
                    running.remove(iterator)
                else:
                    yield example


def _render_batch(batch: Mapping[str, list], *, render: Renderer) -> dict[str, list]:
    """Rows that make no example have no tokens, and say why."""
    nothing = {"input_ids": [], "labels": [], "prompt_length": 0} | ({"source_ids": []} if _is_edits(render) else {})
    columns: dict[str, list] = {name: [] for name in (*nothing, "dropped", "cut", "learned")}
    for values in zip(*batch.values(), strict=True):
        try:
            example, is_cut = render(dict(zip(batch, values, strict=True)))
            why = ""
        except Dropped as reason:
            example, is_cut, why = nothing, False, str(reason)
        learned = sum(label != IGNORED for label in example["labels"])
        for name, value in {**example, "dropped": why, "cut": is_cut, "learned": learned}.items():
            columns[name].append(value)
    return columns


def _tokenize_batch(
    batch: Mapping[str, list], *, column: str, tokenizer: PreTrainedTokenizerBase, insert_eos: bool
) -> dict[str, list]:
    rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
    return {"ids": tokenize_texts([value_at(row, column) for row in rows], tokenizer, insert_eos=insert_eos)}


def _is_edits(render: Renderer) -> bool:
    return render.layout.format == "edits"


def _features(*, edits: bool = False, **more: str) -> Features:
    datasets = import_datasets()
    ids = datasets.List(datasets.Value("int64"))
    extra = {name: datasets.Value(kind) for name, kind in more.items()} | ({"source_ids": ids} if edits else {})
    return datasets.Features({"input_ids": ids, "labels": ids, "prompt_length": datasets.Value("int64"), **extra})


def _as_dataset(columns: Mapping[str, list]) -> Dataset:
    return import_datasets().Dataset.from_dict(dict(columns), features=_features())


def _pieces_as_dataset(ids: numpy.ndarray, ends: list[int]) -> Dataset:
    """Examples of the token ids (T,) between the ends."""
    import pyarrow

    offsets = pyarrow.array(numpy.array([0, *ends], dtype=numpy.int32))
    pieces = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(ids[: ends[-1] if ends else 0], pyarrow.int64()))
    prompts = pyarrow.array(numpy.zeros(len(ends), dtype=numpy.int64))
    table = pyarrow.table({"input_ids": pieces, "labels": pieces, "prompt_length": prompts})
    return import_datasets().Dataset(table).cast(_features())


def _lengths(rows: Dataset, column: str = "input_ids") -> list[int]:
    import pyarrow.compute

    return pyarrow.compute.list_value_length(rows.data.column(column)).to_pylist()


def _processes(wanted: int, rows: Dataset) -> int | None:
    """As `datasets` wants it: None is this process."""
    return min(wanted, len(rows)) if wanted > 1 else None


def _concatenated(made: list[Dataset], report: Report, split: str) -> Dataset:
    """All examples of a split.

    Raises:
        DataError: there is none; the message says what became of the rows.
    """
    together = import_datasets().concatenate_datasets(made)
    if not len(together):
        own = [counts for counts in report.counts if counts.split == split]
        reasons = ", ".join(filter(None, (counts.notes() for counts in own)))
        raise DataError(
            f"no example came of {sum(counts.rows for counts in own)} rows of {split}: {reasons or 'there are none'}; "
            "check format, max_length and truncation"
        )
    return together
