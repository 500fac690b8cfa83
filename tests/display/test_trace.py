"""Traces: what is recorded is what happened, the file is small, and every picture ends with the text of the run."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dllm_core.cli import main
from dllm_core.cli.visualize import TracedEdit as Edit
from dllm_core.cli.visualize import edits_of
from dllm_core.display.cells import Cells, edited
from dllm_core.display.order import SCALE, cells_after, order_png, order_svg, replay_gif, shade
from dllm_core.display.page import page
from dllm_core.display.recorder import TraceRecorder
from dllm_core.display.text import TokenText
from dllm_core.display.trace import (
    COLUMNS,
    DELETED,
    INSERTED,
    LENGTH,
    VERSION,
    WRITTEN,
    Trace,
    TraceRow,
    read_trace,
    write_trace,
)
from dllm_core.errors import DataError
from dllm_core.samplers.output import SampleOutput, SampleStats, Step

MASK, END = 0, 1


def made(changes: list[tuple[int, ...]], length: int = 4, text: str = "ab") -> Trace:
    """A trace of one row from (step, position, token) and perhaps a kind; token n is the nth letter."""
    steps = 1 + max(change[0] for change in changes)
    values = {
        "row": np.zeros(len(changes)),
        "step": [change[0] for change in changes],
        "block": np.zeros(len(changes)),
        "kind": [change[3] if len(change) > 3 else WRITTEN for change in changes],
        "position": [change[1] for change in changes],
        "token": [change[2] for change in changes],
        "confidence": np.full(len(changes), 0.5),
    }
    vocabulary = {MASK: "", END: ""} | {n: chr(95 + n) for n in range(2, 28)}
    pieces = [(n, n + 1, character) for n, character in enumerate(text)]
    row = TraceRow("a prompt", 0, steps, [MASK] * length, text, pieces)
    columns = {name: np.asarray(values[name]).astype(dtype) for name, dtype in COLUMNS.items()}
    return Trace({"model": "m"}, MASK, [END], vocabulary, [row], columns)


def canvases(trace: Trace, row: int = 0) -> list[list[int]]:
    return [frame.ids for frame in trace.frames(row)]


def stored(trace: Trace, path: Path) -> Path:
    with path.open("wb") as file:
        write_trace(trace, file)
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A trace of two prompts and their texts, by the command."""
    folder = tmp_path_factory.mktemp("trace")
    prompts, results, trace = folder / "p.jsonl", folder / "r.jsonl", folder / "t.trace"
    prompts.write_text('{"prompt": "reverse planet"}\n{"prompt": "12+30="}\n{"infill": "12+[MASK:2]=57"}\n')
    options = ["--prompts-file", prompts, "--trace", trace, "--json", "--output", results, "--steps", "8"]
    assert main(["run", *map(str, options)]) == 0
    return trace, [json.loads(line)["text"] for line in results.read_text().splitlines()]


def test_a_trace_holds_every_step_of_the_sampler():
    from dllm_core.cli.generate import Generation
    from dllm_core.cli.prompts import Request

    generation = Generation.load("llada-tiny", "mdlm", {"max_new_tokens": 16, "steps": 4}, device="cpu", dtype="auto")
    generation.prepare([Request("prompt", "reverse planet", "the prompt")], chat=None, system=None)
    recorder = generation.recorder()
    list(generation.run(8, live=False, slowly=False, recorder=recorder))
    trace = recorder.trace(generation.about)
    wanted = [step.input_ids[0].tolist() for step in generation.sampler.stream([generation.prepared[0].ids])]
    assert canvases(trace) == wanted


def test_the_pieces_of_each_row_are_its_text(recorded):
    path, texts = recorded
    trace = read_trace(path)
    assert [row.text for row in trace.rows] == texts
    assert ["".join(piece[2] for piece in row.pieces) for row in trace.rows] == texts


def test_what_is_read_is_what_was_written(tmp_path):
    trace = made([(0, 0, 2), (1, 1, 3), (2, 0, MASK), (3, 0, 4)])
    again = read_trace(stored(trace, tmp_path / "t"))
    assert list(again.frames(0)) == list(trace.frames(0))
    assert canvases(again) == [[2, 0, 0, 0], [2, 3, 0, 0], [0, 3, 0, 0], [4, 3, 0, 0]]
    assert again.rows == trace.rows


def test_a_canvas_may_grow_and_shrink():
    trace = made([(0, 0, 6, LENGTH), (0, 5, 2), (1, 0, 3, LENGTH), (1, 0, 3)])
    assert canvases(trace) == [[0, 0, 0, 0, 0, 2], [3, 0, 0]]


def test_the_changes_of_a_step_all_count_in_the_canvas_before_it():
    trace = made(
        [
            *((0, 0, 2), (0, 1, 3)),
            *((1, -1, 9, INSERTED), (1, 0, 0, DELETED), (1, 0, 8, INSERTED), (1, 0, 7, INSERTED), (1, 1, 4)),
            (2, 4, 6, INSERTED),
        ]
    )
    assert canvases(trace) == [[2, 3, 0, 0], [9, 8, 7, 4, 0, 0], [9, 8, 7, 4, 0, 6, 0]]
    assert [frame.writers for frame in trace.frames(0)][-1] == [1, 1, 1, 1, None, 2, None]


def test_edits_are_recorded_row_by_row_and_told_again_from_the_canvases():
    state = SimpleNamespace(
        canvas=SimpleNamespace(cut=lambda ids, pad: ids, completes=False, shown=(3, 2)),
        input_ids=torch.tensor([[2, 3, 4], [5, 6, END]]),
    )
    recorder = TraceRecorder(TokenText(lambda ids: "x" * len(ids)), mask_id=MASK, special_ids=[END], end_ids=[])
    recorder.begin(state, ["", ""], END)
    edits = [[Edit("delete", 0, 2, None)], [Edit("insert", -1, None, 7), Edit("insert", 1, None, 8)]]
    ids = torch.tensor([[3, 4, END, END], [7, 5, 6, 8]])
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    recorder.show(Step(0, 0, ids, nothing, torch.full((2, 4), torch.nan), nothing[:, 0], edits))
    lengths = torch.tensor([2, 4])
    recorder.end(SampleOutput(ids, lengths, torch.zeros(2, dtype=torch.int64), ["xx", "xxxx"], SampleStats()))
    trace = recorder.trace({})
    assert [canvases(trace, row) for row in (0, 1)] == [[[3, 4]], [[7, 5, 6, 8]]]
    for row, own in enumerate(edits):
        assert edits_of(next(trace.changes(row)), trace.rows[row].ids) == own


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, list[int], str]:
    """A trace of a model that inserts, deletes and substitutes; the tokens and the text that it ended with."""
    from dllm_core.cli.generate import Generation
    from dllm_core.cli.prompts import Request

    options = {"max_length": 48}
    generation = Generation.load("editflow-tiny", "editflow", options, device="cpu", dtype="auto")
    generation.prepare([Request("prompt", "def total(a, b):\n", "the prompt")], chat=None, system=None)
    output = generation.sampler.sample([generation.prepared[0].ids])
    recorder = generation.recorder()
    list(generation.run(8, live=False, slowly=False, recorder=recorder))
    path = stored(recorder.trace(generation.about), tmp_path_factory.mktemp("mended") / "t.trace")
    return read_trace(path), output.sequences[0, : output.lengths[0]].tolist(), output.texts[0]


def test_edits_keep_the_tokens_that_they_move(mended):
    trace, ids, text = mended
    *_, (_, last, writers) = trace.frames(0)
    assert last == ids
    assert trace.rows[0].text == text
    inserted = sum(len(change.inserted) for change in trace.changes(0))
    deleted = sum(len(change.deleted) for change in trace.changes(0))
    assert min(inserted, deleted) > 0
    assert len(ids) == len(trace.rows[0].ids) + inserted - deleted
    assert len({writer for writer in writers if writer is not None}) > 3  # not all moved by the last insertion
    before = trace.rows[0].ids
    for change, after, _ in trace.frames(0):
        cells = edited(Cells.at_first(before, trace.mask_id), edits_of(change, before), trace.mask_id)
        assert [cells.ids[place] for place in cells.live] == after
        before = after


def test_edits_are_drawn_and_shown_in_a_browser(mended, tmp_path):
    trace, _, text = mended
    assert drawn_text(trace) == text.replace("\n", "")
    replay_gif(trace, tmp_path / "p.gif")
    script = """
      const text = () => document.getElementById("text").textContent, bar = document.getElementById("scrubber");
      const said = {last: text(), kinds: {}};
      for (let n = 0; n < Number(bar.max); n++) {
        bar.value = n; bar.dispatchEvent(new Event("input"));
        for (const span of document.querySelectorAll("#text .now, #text del")) {
          const kind = span.title.match(/(written|replaced|inserted|deleted) at/)[1];
          said.kinds[kind] = (said.kinds[kind] ?? 0) + 1;
        }
      }
      document.title = JSON.stringify(said);"""
    title, log = browse(page(trace), tmp_path, script)
    said = json.loads(unescape(title))
    assert said["last"] == text
    changes = list(trace.changes(0))[:-1]
    assert said["kinds"].get("deleted", 0) == sum(len(change.deleted) for change in changes)
    assert said["kinds"].get("inserted", 0) == sum(len(change.inserted) for change in changes)
    assert "CONSOLE" not in log


def test_a_long_trace_is_small_and_opens_at_once(tmp_path):
    draw = np.random.default_rng(0)
    steps, length = 2000, 1024
    changes = [(step, int(draw.integers(length)), int(draw.integers(2, 28))) for step in range(steps) for _ in range(8)]
    trace = made(changes, length)
    trace.columns["confidence"] = draw.random(len(changes)).astype(np.float16)
    path = stored(trace, tmp_path / "t")
    assert path.stat().st_size < 5_000_000
    began = time.process_time()
    assert sum(1 for _ in read_trace(path).frames(0)) == steps
    assert time.process_time() - began < 2


@pytest.mark.parametrize("content", [b"", b"no trace", b"PK\x03\x04 broken"])
def test_what_is_no_trace_is_refused_in_words(tmp_path, content):
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t is not a trace, or is damaged; write one with dllm run --trace FILE"):
        read_trace(path)


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"format": "other"}', b"\xff"])
def test_an_archive_of_something_else_is_refused_in_words(tmp_path, header):
    path = tmp_path / "t"
    with path.open("wb") as file:
        np.savez_compressed(file, header=np.frombuffer(header, dtype=np.uint8))
    with pytest.raises(DataError, match="t is not a trace"):
        read_trace(path)


def test_a_damaged_trace_is_refused_wherever_the_damage_is(tmp_path):
    """Every cut, and bytes changed all over: either the file reads as it was, or the error says what to do."""
    trace = made([(step, step % 4, 2 + step % 20) for step in range(40)])
    whole = stored(trace, tmp_path / "whole").read_bytes()
    damaged = [whole[:stop] for stop in range(0, len(whole), 97)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in range(0, len(whole), 29)]
    for content in damaged:
        (tmp_path / "t").write_bytes(content)
        with suppress(DataError):
            assert canvases(read_trace(tmp_path / "t")) == canvases(trace)


def test_changes_that_do_not_fit_the_canvas_are_refused_in_words(tmp_path):
    with pytest.raises(DataError, match="is damaged: its changes do not fit its canvas; record it again"):
        read_trace(stored(made([(0, 9, 2)]), tmp_path / "t"))


@pytest.mark.parametrize(("version", "cure"), [(VERSION + 1, "update dllm-core"), (VERSION - 1, "record it again")])
def test_another_version_is_refused_in_words(tmp_path, monkeypatch, version, cure):
    monkeypatch.setattr("dllm_core.display.trace.VERSION", version)
    path = stored(made([(0, 0, 2)]), tmp_path / "t")
    monkeypatch.undo()
    with pytest.raises(DataError, match=f"is a trace of version {version}, this dllm reads {VERSION}; {cure}"):
        read_trace(path)


def test_a_missing_trace_or_row_is_refused_in_words(recorded, capsys):
    assert main(["visualize", "nowhere.trace"]) == 2
    assert "cannot read the trace nowhere.trace: No such file" in capsys.readouterr().err
    assert main(["visualize", str(recorded[0]), "--row", "4"]) == 2
    assert "the trace holds 3 answers; give 1 to 3" in capsys.readouterr().err


def test_visualize_imports_no_torch(recorded):
    code = f"import sys; from dllm_core.cli import main; main(['visualize', {str(recorded[0])!r}]); " + (
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == recorded[1][0] + "\n"


def test_json_of_a_trace_is_one_object(recorded, capsys):
    assert main(["visualize", str(recorded[0]), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["text"] for row in json.loads(out)["rows"]] == recorded[1]
    assert err == ""


def drawn_text(trace: Trace) -> str:
    """What the SVG says in front of the scale of its colours."""
    drawn = unescape("".join(re.findall(r">([^<]*)</text>", order_svg(trace))))
    scale = " " * SCALE + "firstlast"
    assert drawn.endswith(scale)
    return drawn.removesuffix(scale)


def test_the_pictures_hold_the_text(recorded, tmp_path):
    trace, (text, *_) = read_trace(recorded[0]), recorded[1]
    assert drawn_text(trace) == text
    shares = [cell.share for cell in cells_after(trace, 0)]
    assert (min(shares), max(shares)) == (0, 1)
    assert all(cell.masked for cell in cells_after(trace, 0, 0))
    order_png(trace, tmp_path / "p.png")
    replay_gif(trace, tmp_path / "p.gif")
    image = pytest.importorskip("PIL.Image")
    assert 1 < image.open(tmp_path / "p.gif").n_frames <= 1 + sum(1 for _ in trace.changes(0))  # equal ones are one
    assert shade(1.0) in {colour for _, colour in image.open(tmp_path / "p.png").getcolors(1 << 16)}


def test_without_pillow_the_error_says_what_to_install(recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert main(["visualize", str(recorded[0]), "--gif", str(tmp_path / "p.gif")]) == 1
    assert "pip install pillow" in capsys.readouterr().err


def test_no_text_can_end_the_script_of_the_page():
    trace = made([(0, 0, 2)], text="</script><img src=x>")
    assert page(trace).count("</script>") == 2
    assert "<img" not in page(trace)


def browse(html: str, tmp_path: Path, script: str) -> tuple[str, str]:
    """(what the script leaves in the page's title, the browser's log) of a page in headless Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    path = tmp_path / "page.html"
    probe = (
        f"<script>addEventListener('error', e => document.title = 'error ' + e.message);{{{script}}}</script></body>"
    )
    path.write_text(html.replace("</body>", probe), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    home = f"--user-data-dir={tmp_path / 'chromium'}"
    net = f"--log-net-log={tmp_path / 'net.json'}"
    done = subprocess.run(
        [browser, *flags, home, net, path.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    return re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1], done.stderr


def test_the_page_in_a_browser(recorded, tmp_path):
    """The scrubber moves, the last step shows the text of the run, and nothing is asked of the network or wrong."""
    script = """
      const bar = document.getElementById("scrubber"), text = () => document.getElementById("text").textContent;
      const said = {last: text(), max: Number(bar.max)};
      bar.value = 0; bar.dispatchEvent(new Event("input")); said.first = text();
      document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"})); said.moved = Number(bar.value);
      document.getElementById("row").value = 2; document.getElementById("row").dispatchEvent(new Event("change"));
      said.filled = text(); said.hover = document.querySelector("#text span.now").title;
      said.requests = performance.getEntriesByType("resource").length;
      document.title = JSON.stringify(said);"""
    trace = read_trace(recorded[0])
    title, log = browse(page(trace), tmp_path, script)
    said = json.loads(title)
    assert said["last"] == recorded[1][0]
    assert said["filled"] == recorded[1][2]
    assert (said["first"], said["moved"], said["requests"]) == ("", 1, 0)
    assert said["max"] == sum(1 for _ in trace.changes(0))
    assert re.fullmatch(r"position \d+: .*, written at step \d+, block \d+, confidence [\d.]+", said["hover"])
    assert "CONSOLE" not in log


def test_a_trace_of_a_failed_run_leaves_no_file(tmp_path, capsys):
    path = tmp_path / "t.trace"
    assert main(["run", "x" * 5000, "--trace", str(path)]) == 2
    assert not list(tmp_path.iterdir())
    assert "Error" in capsys.readouterr().err


def test_a_written_trace_is_no_pickle(recorded):
    with np.load(io.BytesIO(recorded[0].read_bytes()), allow_pickle=False) as archive:
        assert set(archive.files) == {"header", *COLUMNS}
