"""Traces: what is recorded is what happened, the file is small, and every picture ends with the text of the run."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_core.cli import main
from dllm_core.cli.visualize import Difference as Edit
from dllm_core.cli.visualize import differences
from dllm_core.display.cells import Cells, edited
from dllm_core.display.order import cells_after, order_png, order_svg, replay_gif, shade
from dllm_core.display.page import page
from dllm_core.display.recorder import TraceRecorder
from dllm_core.display.text import TokenText
from dllm_core.display.trace import COLUMNS, LENGTH, Trace, TraceRow, read_trace, write_trace
from dllm_core.errors import DataError
from dllm_core.samplers.output import SampleOutput, SampleStats, Step

MASK, END = 0, 1


def made(changes: list[tuple[int, int, int]], length: int = 4, text: str = "ab") -> Trace:
    """A trace of one row from (step, position, token); token n is the nth letter."""
    steps = 1 + max(step for step, _, _ in changes)
    values = {
        "row": np.zeros(len(changes)),
        "step": [step for step, _, _ in changes],
        "block": np.zeros(len(changes)),
        "position": [position for _, position, _ in changes],
        "token": [token for _, _, token in changes],
        "confidence": np.full(len(changes), 0.5),
    }
    vocabulary = {MASK: "", END: ""} | {n: chr(95 + n) for n in range(2, 28)}
    pieces = [(n, n + 1, character) for n, character in enumerate(text)]
    row = TraceRow("a prompt", 0, steps, [MASK] * length, text, pieces)
    columns = {name: np.asarray(values[name]).astype(dtype) for name, dtype in COLUMNS.items()}
    return Trace({"model": "m"}, MASK, [END], vocabulary, [row], columns)


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
    assert [ids for _, ids in trace.frames(0)] == wanted


def test_the_pieces_of_each_row_are_its_text(recorded):
    path, texts = recorded
    trace = read_trace(path)
    assert [row.text for row in trace.rows] == texts
    assert ["".join(piece[2] for piece in row.pieces) for row in trace.rows] == texts


def test_what_is_read_is_what_was_written(tmp_path):
    trace = made([(0, 0, 2), (1, 1, 3), (2, 0, MASK), (3, 0, 4)])
    again = read_trace(stored(trace, tmp_path / "t"))
    assert list(again.frames(0)) == list(trace.frames(0))
    assert [ids for _, ids in again.frames(0)] == [[2, 0, 0, 0], [2, 3, 0, 0], [0, 3, 0, 0], [4, 3, 0, 0]]
    assert again.rows == trace.rows


def test_a_canvas_may_grow_and_shrink():
    trace = made([(0, LENGTH, 6), (0, 5, 2), (1, LENGTH, 3), (1, 0, 3)])
    assert [ids for _, ids in trace.frames(0)] == [[0, 0, 0, 0, 0, 2], [3, 0, 0]]


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
    assert [[canvas for _, canvas in trace.frames(row)] for row in (0, 1)] == [[[3, 4]], [[7, 5, 6, 8]]]
    assert differences([5, 6], [7, 5, 6, 8]) == edits[1]
    assert differences([2, 3, 4], [3, 4]) == edits[0]


@given(before=st.lists(st.integers(1, 4), max_size=8), after=st.lists(st.integers(1, 4), max_size=8))
def test_the_edits_told_from_two_canvases_lead_from_one_to_the_other(before, after):
    cells = edited(Cells.at_first(before, MASK), differences(before, after), MASK)
    assert [cells.ids[place] for place in cells.live] == after


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
    with pytest.raises(DataError, match=r"t is not a trace; write one with dllm run --trace FILE"):
        read_trace(path)


def test_a_later_version_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr("dllm_core.display.trace.VERSION", 2)
    path = stored(made([(0, 0, 2)]), tmp_path / "t")
    monkeypatch.undo()
    with pytest.raises(DataError, match="is a trace of version 2, this dllm reads 1; update dllm-core"):
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


def test_the_pictures_hold_the_text(recorded, tmp_path):
    trace, (text, *_) = read_trace(recorded[0]), recorded[1]
    assert "".join(re.findall(r">([^<]*)</text>", order_svg(trace))) == text
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
