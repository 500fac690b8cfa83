"""``dllm run --sampler bd3lm``: the same command, another sampler, with its own options and errors."""

from __future__ import annotations

import json

import pytest

from dllm_core.cli import main

SUM = ["run", "12+30=", "--model", "llada-tiny", "--sampler", "bd3lm", "--block-size", "8"]


def record(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*SUM, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_finished_blocks_are_kept_and_the_text_is_that_of_no_cache(capsys):
    kept, anew = (record(capsys, "-o", f"cache={name}", "-o", "stop_at_eos=off") for name in ("block", "none"))
    assert kept["sampler"] == "core/bd3lm"
    assert kept["text"] == anew["text"]
    assert kept["options"]["block_grid"] == "absolute"
    assert kept["stats"]["forward_passes"] == anew["stats"]["forward_passes"]
    assert kept["stats"]["positions_processed"] < anew["stats"]["positions_processed"] / 2
    assert kept["stats"]["cache_bytes"] > anew["stats"]["cache_bytes"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SUM, "-o", "block_grid=left"], "block_grid must be one of absolute, completion; got 'left'"),
        (["run", "hi", "--model", "llada-tiny", "-o", "cache=block"], "is for block_causal attention"),
        (["run", "hi", "--sampler", "bd3lm", "-o", "cache=fastdllm/dual"], "block_causal; use cache='block'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(capsys, arguments, words):
    assert main(arguments) != 0
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
