"""Save and stop when the process is told to end: preemption by a scheduler (SIGTERM), Ctrl-C (SIGINT).

The step that is running is finished, a checkpoint is written, and training returns. A second Ctrl-C ends at once.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback

from dllm_core.errors import DllmError

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState

    from dllm_core.training.arguments import DiffusionArguments
    from dllm_core.training.trainer import DiffusionTrainer

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds in which one Ctrl-C may arrive twice: the terminal tells every process, and a launcher tells its own again.
# A scheduler that repeats SIGTERM means nothing new by it either.
ONE_CTRL_C = 1.0


class TrainingInterrupted(DllmError):
    """A signal ended the training; a checkpoint to go on from was written.

    Args:
        number: of the signal; the command line exits with 128 + number, as shells count: 143 SIGTERM, 130 SIGINT.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class SaveOnSignal(TrainerCallback):
    """Stops training behind a checkpoint once a signal has come to any of the processes.

    With several processes all must stop at the same step, so they tell each other: at the end of every step the largest
    number of a signal goes around, and is read one step later, when it has arrived without anybody waiting for it.
    """

    def __init__(self) -> None:
        self.received = 0  # the signal that came to this process
        self._since = 0.0
        self.agreed = 0  # the one that all processes act on
        self._on_its_way: tuple[torch.Tensor, torch.distributed.Work] | None = None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.received:
            if number == signal.SIGINT and time.monotonic() - self._since > ONE_CTRL_C:
                raise KeyboardInterrupt
            return
        self.received, self._since = number, time.monotonic()
        if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        again = " (Ctrl-C again ends at once, without)" if number == signal.SIGINT else ""
        print(f"{signal.Signals(number).name}: saving behind this step{again}", file=sys.stderr, flush=True)

    def on_step_end(
        self, args: DiffusionArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        self.agreed = self._agree(args) if args.world_size > 1 else self.received
        if self.agreed:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # there may be seconds left
        return control

    def _agree(self, args: DiffusionArguments) -> int:
        came = 0
        if self._on_its_way is not None:
            tensor, work = self._on_its_way
            work.wait()
            came = int(tensor)
        tensor = torch.tensor(self.received, device=args.device)
        work = torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX, async_op=True)
        self._on_its_way = (tensor, work)
        return came

    def on_train_end(self, *_: object, **__: object) -> None:
        if self._on_its_way is not None:
            self._on_its_way[1].wait()
            self._on_its_way = None


@contextmanager
def saving_on_signals(trainer: DiffusionTrainer) -> Iterator[SaveOnSignal]:
    """Inside, the trainer saves and stops on `SIGNALS`; afterwards they do what they did before.

    Only the main thread may set handlers: elsewhere nothing changes.
    """
    callback = SaveOnSignal()
    trainer.add_callback(callback)
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, callback.hear) for number in SIGNALS}
    try:
        yield callback
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        trainer.remove_callback(callback)
