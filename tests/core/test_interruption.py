"""SIGTERM and Ctrl-C: a checkpoint behind the running step, a clear line, an exit code, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import TrainerCallback

from dllm_core.cli.train import command
from dllm_core.plugins import load_plugins, use_plugin_host
from dllm_core.training import interruption, trainer
from dllm_core.training.checkpoints import is_whole
from dllm_core.training.interruption import SaveOnSignal

OVERRIDES = ["data.eval_count=0", "training.eval_strategy=no", "training.save_strategy=no", "training.max_steps=8"]


@pytest.fixture(scope="module", autouse=True)
def _installed(make_letters_plugin, tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        with use_plugin_host(load_plugins(entry_points=[make_letters_plugin(folder, "acme")])):
            yield


class Sends(TrainerCallback):
    """Sends this process real signals while a step runs."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


def run(output: Path, *arguments: str, sends: Sends | None = None):
    """`dllm train` in this process, with a callback that every trainer has."""
    with pytest.MonkeyPatch.context() as patch:
        if sends is not None:
            plain = trainer.DiffusionTrainer.__init__

            def with_callback(self, *args, **kwargs):
                plain(self, *args, **kwargs)
                self.add_callback(sends)

            patch.setattr(trainer.DiffusionTrainer, "__init__", with_callback)
        return CliRunner().invoke(command, ["--recipe", "letters", "--output", str(output), *arguments, *OVERRIDES])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(tmp_path, number, code):
    before = [signal.getsignal(each) for each in interruption.SIGNALS]
    result = run(tmp_path / "out", sends=Sends(2, number))
    assert result.exit_code == code
    assert f"{number.name} stopped the training at step 3 of 8" in result.stderr
    assert "go on with the same command and --resume" in result.stderr
    assert is_whole(tmp_path / "out/checkpoints/checkpoint-3")
    assert not (tmp_path / "out/config.json").exists()  # half a training is no model
    assert [signal.getsignal(each) for each in interruption.SIGNALS] == before

    result = run(tmp_path / "out", "--resume")
    assert result.exit_code == 0, result.output
    assert run(tmp_path / "whole").exit_code == 0
    want, got = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_a_repeated_sigterm_changes_nothing(tmp_path):
    """Launchers and schedulers repeat it while the checkpoint is being written."""
    result = run(tmp_path / "out", sends=Sends(1, signal.SIGTERM, signal.SIGTERM, signal.SIGTERM))
    assert result.exit_code == 143
    assert is_whole(tmp_path / "out/checkpoints/checkpoint-2")


def test_the_second_ctrl_c_ends_at_once(monkeypatch):
    monkeypatch.setattr(interruption, "ONE_CTRL_C", -1.0)  # what comes now is a second one, not an echo
    callback = SaveOnSignal()
    callback.hear(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        callback.hear(signal.SIGINT, None)


TWO_PROCESSES = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from dllm_core.training.launch import WorkerEnd
end = WorkerEnd()
from pathlib import Path
from transformers import TrainerCallback
import test_training as here
from dllm_core.training.checkpoints import newest_checkpoint
from dllm_core.training.interruption import saving_on_signals

class Sends(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if args.process_index == 1 and state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

here.torch.set_num_threads(1)
out, interrupted = Path(sys.argv[1]), sys.argv[2] == "interrupted"
args = here.arguments(out, max_steps=9, ema_decay=0.5)
trainer = here.DiffusionTrainer(here.denoiser(), args, objective=here.MDLMObjective(),
                                train_dataset=here.ragged_examples(128), callbacks=[Sends()] if interrupted else [])
assert args.world_size == 2
newest = newest_checkpoint(out)
with saving_on_signals(trainer) as signals:
    trainer.train(resume_from_checkpoint=newest and str(newest))
report = f"{{trainer.state.global_step}} {{signals.agreed}} {{newest and newest.name}}"
(out / f"rank-{{args.process_index}}").write_text(report)
if args.process_index == 0:
    here.torch.save(here.weights(trainer), out / "weights.pt")
end.with_code(0)
"""


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step(tmp_path):
    """The signal comes to one of two; both save behind the same step, and go on to the bits of an unbroken run."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES.format(folder=str(Path(__file__).parent)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ends = []
    for folder, kind in (("broken", "interrupted"), ("broken", "resumed"), ("whole", "whole")):
        done = subprocess.run(
            [*launcher, script, tmp_path / folder, kind],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        ends.append([(tmp_path / folder / f"rank-{rank}").read_text() for rank in (0, 1)])
    # Rank 1 hears it in step 4 and tells at its end; what was told is read behind step 5.
    assert ends[0] == ["5 15 None", "5 15 None"]
    assert ends[1] == ["9 0 checkpoint-5", "9 0 checkpoint-5"]
    one, other = (torch.load(tmp_path / folder / "weights.pt") for folder in ("broken", "whole"))
    assert torch.equal(one, other)
