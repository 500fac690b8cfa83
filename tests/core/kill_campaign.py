"""Kills a training again and again, and lets it go on. A program, run by test_kills.py in a process of its own.

It loads everything once and forks: each forked process is a real training that is really killed, without the seconds
that imports take. Nothing is computed before a fork, so no thread of torch is lost in it.

    python kill_campaign.py PLUGIN_FOLDER PLUGIN_MODULE RECIPE OUTPUT random|events
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

from safetensors.torch import load_file

from dllm_core.plugins import load_plugins, use_plugin_host
from dllm_core.training.checkpoints import PREFIX, WRITING, newest_checkpoint, step_of
from dllm_core.training.recipes import Recipe, load_recipe
from dllm_core.training.run import train

KILLS = 24


def fork_training(recipe: Recipe, output: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """A process that trains, or goes on with what is there. Returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with (output.parent / f"{output.name}.log").open("a") as log:
            os.dup2(log.fileno(), 2)
        prepare()
        train(recipe, output, resume=True)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(pid: int) -> int:
    """0: it came to its end, -9: killed. Anything else stops the campaign."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a training ended with {code}")
    return code


def has_ended(pid: int) -> bool:
    """Whether it has ended; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def newest_step(output: Path) -> int:
    newest = newest_checkpoint(output / "checkpoints")
    return 0 if newest is None else step_of(newest)


def half_written(output: Path) -> list[str]:
    """Files of a checkpoint or model that was being written (one that was being deleted is older than the newest)."""
    newest = newest_step(output)
    places = [output / ".saving"]
    places += [place for place in (output / "checkpoints" / WRITING).glob(f"{PREFIX}*") if step_of(place) > newest]
    return [entry.name for place in places for entry in place.rglob("*") if entry.is_file()]


def started_writing(output: Path, since: float) -> bool:
    """Whether a checkpoint was begun after `since`; what an earlier process left is older."""
    try:
        return any(place.stat().st_ctime > since for place in (output / "checkpoints" / WRITING).glob(f"{PREFIX}*"))
    except FileNotFoundError:  # it was brought in meanwhile
        return False


def kill_at_random(recipe: Recipe, output: Path, rng: random.Random, cycle: float) -> dict[str, object] | None:
    """One kill, somewhere in the two checkpoints that follow the first sign of one. None: it had ended before."""
    before, since = newest_step(output), time.time()
    pid = fork_training(recipe, output)
    while newest_step(output) == before and not started_writing(output, since) and not has_ended(pid):
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 2 * cycle))
    os.kill(pid, signal.SIGKILL)
    if wait(pid) == 0:
        return None
    left = half_written(output) if started_writing(output, since) else []
    return {"before": before, "after": newest_step(output), "half_written": left}


def random_kills(recipe: Recipe, output: Path, cycle: float) -> dict[str, object]:
    rng, kills = random.Random(0), []
    while len(kills) < KILLS:
        kill = kill_at_random(recipe, output, rng, cycle)
        if kill is None:
            raise SystemExit(f"the training ended after {len(kills)} kills; make it longer")
        kills.append(kill)
    at_the_end = wait(fork_training(recipe, output))
    return {"kills": kills, "end": at_the_end}


def kill_at_event(number: int, output: Path, counted: Path | None = None) -> Callable[[], None]:
    """Kills the process that calls it at the n-th time that it opens, renames, makes or removes something there."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in EVENTS or not str(arguments[0]).startswith(str(output)):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if counted is not None:
            os.write(handle, b".")

    handle = os.open(counted, os.O_WRONLY | os.O_CREAT) if counted is not None else -1
    return lambda: sys.addaudithook(hook)


EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def kills_at_events(recipe: Recipe, output: Path, points: int) -> dict[str, object]:
    """A fresh training for each of `points` places, killed there and resumed."""
    count = output.parent / "events"
    wait(fork_training(recipe, output / "counted", kill_at_event(-1, output / "counted", count)))
    total, report = count.stat().st_size, []
    for point in range(points):
        number, own = 1 + point * total // points, output / str(point)
        killed = wait(fork_training(recipe, own, kill_at_event(number, own)))
        state = {"event": number, "killed": killed, "half_written": half_written(own), "newest": newest_step(own)}
        report.append(
            {**state, "end": wait(fork_training(recipe, own)), "equal": same_weights(own, output / "counted")}
        )
    return {"events": total, "kills": report}


def same_weights(one: Path, other: Path) -> bool:
    """Published weights, trained weights and their average, bit for bit."""
    return all(
        same_tensors(left / name, right / name)
        for left, right, names in (
            (one, other, ["model.safetensors"]),
            (last(one), last(other), ["model.safetensors", "ema.safetensors"]),
        )
        for name in names
    )


def last(output: Path) -> Path:
    return newest_checkpoint(output / "checkpoints")


def same_tensors(one: Path, other: Path) -> bool:
    left, right = load_file(one), load_file(other)
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def main(folder: str, module: str, recipe_file: str, output: str, kind: str) -> None:
    sys.path.insert(0, folder)
    out = Path(output)
    with use_plugin_host(load_plugins(entry_points=[EntryPoint("acme", module, "dllm")])):
        recipe = load_recipe(recipe_file)
        if kind == "events":
            report = kills_at_events(recipe, out, points=30)
        else:
            start = time.monotonic()
            wait(fork_training(recipe, out / "whole"))
            saves = recipe.training["max_steps"] / recipe.training["save_steps"]
            cycle = (time.monotonic() - start) / saves
            report = random_kills(recipe, out / "killed", cycle)
            report["equal"] = same_weights(out / "killed", out / "whole")
            report["left"] = sorted(entry.name for entry in (out / "killed" / "checkpoints").iterdir())
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
