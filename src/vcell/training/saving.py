"""Checkpoints of a run: the last one, on time and on signals, and the best ones, by score."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import inf
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from vcell.data.files.labels import listed_names
from vcell.errors import VcellError, check_number
from vcell.process.stopping import Stopped, handle, requeue, tell
from vcell.training.guard import NotFiniteError
from vcell.training.module import TransitionModule
from vcell.training.validation import improved, score_of

STEPS_BETWEEN_QUESTIONS = 20  # each makes the ranks wait for each other


class KeepLast(Checkpoint):
    """Writes `last.ckpt` at intervals, at the end, and when asked to stop (TERM, INT, HUP, USR1, USR2).

    SLURM sends these before it takes a node away, a user presses Ctrl-C. The run saves, asks to be queued again if its time
    was up (USR1, USR2), and ends; the same command continues it. A second signal ends it at once. A run that stops because its loss or
    gradient is not finite leaves the last good weights in `before_nonfinite.ckpt`.

    A step is saved when the next one begins: by then it was logged and, where that was due, validated, so that a kill between
    the two loses neither.

    Parameters
    ----------
    folder
        Of the checkpoints.
    every_seconds, share
        A save comes this long after the one before, or later where saving would take more than this share of the time: what a kill
        without warning can cost.
    every_n_steps
        And after so many steps, however soon that is.
    """

    def __init__(
        self, folder: str, every_seconds: float = 10.0, share: float = 0.02, every_n_steps: int | None = None
    ) -> None:
        for name, value in (("every_seconds", every_seconds), ("share", share)):
            check_number(f"callbacks.last.{name}", value, 0, whole=False, above=True)
        if every_n_steps is not None:
            check_number("callbacks.last.every_n_steps", every_n_steps, 0, above=True, other="null")
        self.path = Path(folder) / "last.ckpt"
        self.seconds, self.share, self.pause = every_seconds, share, every_seconds
        self.steps = inf if every_n_steps is None else every_n_steps
        self.rescued = Path(folder) / "before_nonfinite.ckpt"
        self.signal: int | None = None
        self.saved_step, self.saved_at = -1, 0.0
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # a run that starts has nothing saved yet, not even its start
        self.saved_step, self.saved_at = trainer.global_step or -1, time.monotonic()
        self.handlers = handle(self._remember)

    def _remember(self, number: int, _: Any) -> None:
        if self.signal is not None and number in (signal.SIGINT, signal.SIGTERM):
            raise Stopped(number)
        self.signal = number

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        # a resumed loop adds one to the loggers' count of steps, which is right only for checkpoints from within training
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if batch_idx % trainer.accumulate_grad_batches:  # within a step: gradients are not saved
            return
        if self._agreed(trainer, self.signal is not None):
            self._stop(trainer)
        elif trainer.global_step >= max(self.saved_step, 0) + self.steps or self._agreed(
            trainer, time.monotonic() >= self.saved_at + self.pause
        ):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer, between_steps=False)

    def _stop(self, trainer: Trainer) -> None:
        """Saves, says so, and ends training with the signal's exit code."""
        number = self.signal or signal.SIGTERM  # another rank's, where this one got none
        self._save(trainer)
        if trainer.is_global_zero:
            requeue(number, str(self.path))
            tell(
                f"stopped by {signal.Signals(number).name}, saved at step {self.saved_step:,}; the same command continues the run"
            )
        raise Stopped(number)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NotFiniteError) and trainer.world_size == 1:  # saving is done by all ranks or none
            assert isinstance(module, TransitionModule)
            module.guard.waiting.clear()
            trainer.save_checkpoint(self.rescued)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def _save(self, trainer: Trainer, between_steps: bool = True) -> None:
        if trainer.global_step != self.saved_step:  # the same on every rank: saving is done by all together
            start = time.monotonic()
            with _logged_step_kept(trainer) if between_steps else nullcontext():
                trainer.save_checkpoint(self.path)
            self.pause = max(self.seconds, (time.monotonic() - start) / self.share)
            self.saved_step = trainer.global_step
        self.saved_at = time.monotonic()

    @staticmethod
    def _agreed(trainer: Trainer, wanted: bool) -> bool:
        """Whether any rank wants to save or stop; ranks ask each other now and then, so that all do at one step."""
        if trainer.world_size == 1:
            return wanted
        if trainer.global_step % STEPS_BETWEEN_QUESTIONS:
            return False
        return trainer.strategy.reduce_boolean_decision(wanted, all=False)


@contextmanager
def _logged_step_kept(trainer: Trainer) -> Iterator[None]:
    """Has a checkpoint that is written between two steps resume at the step that is to come, for loggers and for validation.

    Lightning has counted the coming batch as ready already, and adds one to the loggers' count when it resumes, as its own
    checkpoints are written before that count goes up.
    """
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped -= 1
    for progress in (loop.batch_progress.total, loop.batch_progress.current):
        progress.ready -= 1
    try:
        yield
    finally:
        loop._batches_that_stepped += 1
        for progress in (loop.batch_progress.total, loop.batch_progress.current):
            progress.ready += 1


class KeepBest(Checkpoint):
    """Writes a checkpoint when a validation gives a better score than any before; the file says which, and how good.

    Parameters
    ----------
    folder
        Of the checkpoints.
    monitor
        A score, such as ``val/discrimination``, or several: `best.ckpt` is by the first, `best_NAME.ckpt` by each further one.
    """

    def __init__(self, folder: str, monitor: str | Sequence[str]) -> None:
        names = listed_names(monitor)
        if not names:
            raise VcellError("callbacks.best.monitor names no score: val/loss, or one of those that validation gives")
        files = ["best.ckpt", *(f"best_{name.split('/')[-1]}.ckpt" for name in names[1:])]
        self.path = {name: Path(folder) / file for name, file in zip(names, files, strict=True)}
        self.best: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, TransitionModule) and module.scores is not None and module.loss is not None
        module.scores.check(list(self.path), module.loss, "callbacks.best.monitor")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, TransitionModule)
        for name, path in self.path.items():
            score = score_of(trainer, name, "callbacks.best.monitor")
            if not improved(name, score, self.best.get(name)):
                continue
            self.best[name] = score
            module.chosen_for = {"score": name, "value": score, "step": trainer.global_step}
            trainer.save_checkpoint(path)
            module.chosen_for = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = dict(state_dict["best"])
