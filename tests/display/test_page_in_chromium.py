"""The page of a long trace in headless Chromium: small, quick to open, and silent: it asks the network for nothing."""

from __future__ import annotations

import json
import re
import shutil
import socketserver
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from dllm_core.display.page import page
from dllm_core.display.trace import COLUMNS, WRITTEN, Trace, TraceRow, read_trace, write_trace

STEPS, LENGTH, EACH = 2000, 1024, 8
MOST_BYTES = 5_000_000
# What the browser asks for by itself, whatever it shows.
OWN_HOSTS = re.compile(
    r"(clients\d|accounts|www|android\.clients)\.google\.com|(update|optimizationguide-pa)\.googleapis"
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom", "--timeout=3000"),
)
LOOK = """<script>{
  const text = document.getElementById("text");
  document.title = JSON.stringify({height: text.offsetHeight, milliseconds: performance.now(),
    text: text.textContent, last: Number(document.getElementById("scrubber").max)});
}</script></body>"""


class Proxy(socketserver.ThreadingTCPServer):
    """Takes every request that the browser sends anywhere, keeps its first line, and answers nothing."""

    daemon_threads = allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline().decode(errors="replace").strip())


def long_trace() -> Trace:
    """2,000 steps that write 8 of 1,024 positions each; token n is the nth letter."""
    draw = np.random.default_rng(0)
    columns = {
        "row": np.zeros(STEPS * EACH),
        "step": np.repeat(np.arange(STEPS), EACH),
        "block": np.zeros(STEPS * EACH),
        "kind": np.full(STEPS * EACH, WRITTEN),
        "position": np.concatenate([draw.permutation(LENGTH) for _ in range(16)])[: STEPS * EACH],
        "token": draw.integers(2, 28, STEPS * EACH),
        "confidence": draw.random(STEPS * EACH),
    }
    ids = np.zeros(LENGTH, dtype=int)
    for position, token in zip(columns["position"], columns["token"], strict=True):
        ids[position] = token
    text = "".join(chr(95 + token) for token in ids)
    row = TraceRow("", 0, STEPS, [0] * LENGTH, text, [(n, n + 1, letter) for n, letter in enumerate(text)])
    vocabulary = {0: "", 1: ""} | {n: chr(95 + n) for n in range(2, 28)}
    typed = {name: columns[name].astype(kind) for name, kind in COLUMNS.items()}
    return Trace({"model": "m"}, 0, [1], vocabulary, [row], typed)


def visit(html: str, folder: Path) -> tuple[str, str, list[str]]:
    """(title, log, requests that are not the browser's own) of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    folder.mkdir()
    (folder / "page.html").write_text(html, encoding="utf-8")
    with Proxy() as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        where = [f"--proxy-server=127.0.0.1:{proxy.server_address[1]}", f"--user-data-dir={folder / 'chromium'}"]
        command = [browser, *FLAGS, *where, (folder / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        proxy.shutdown()
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    return title, done.stderr, [line for line in proxy.asked if line and not OWN_HOSTS.search(line)]


def test_a_long_trace_opens_whole_and_silently(tmp_path: Path) -> None:
    trace = long_trace()
    with (tmp_path / "long.trace").open("wb") as file:
        write_trace(trace, file)
    html = page(read_trace(tmp_path / "long.trace"))
    assert (tmp_path / "long.trace").stat().st_size < MOST_BYTES
    assert len(html.encode()) < MOST_BYTES
    title, log, asked = visit(html.replace("</body>", LOOK), tmp_path / "long")
    said = json.loads(title)
    assert (said["text"], said["last"]) == (trace.rows[0].text, STEPS)
    assert "CONSOLE" not in log
    assert asked == []


def test_a_request_would_be_seen(tmp_path: Path) -> None:
    """The page forbids itself to ask; without that line an image is asked for, and the test above would say so."""
    forbids = re.compile(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>")
    html = page(long_trace()).replace("</body>", '<img src="http://example.invalid/x.png"></body>')
    assert forbids.search(html)
    assert visit(html, tmp_path / "forbidden")[2] == []
    assert any("example.invalid" in line for line in visit(forbids.sub("", html), tmp_path / "asks")[2])
