"""What happens around training: progress, checkpoints on time, by score and on signals, and warnings."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from tqdm import tqdm

from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError, nearest
from vcell.model.guard import NotFiniteError
from vcell.model.module import TransitionModule
from vcell.model.validation import FEWEST_TO_COLLAPSE
from vcell.progress import progress_bar

STEPS_BETWEEN_QUESTIONS = 20  # each makes the ranks wait for each other
# of what validation logs, the scores of which more is better; the others are errors
HIGHER_IS_BETTER = {"discrimination", "de_overlap", "delta_correlation", "distinctness"}


class Progress(Callback):
    """A bar with loss and cells per second, over all devices."""

    bar: tqdm | None = None
    validated = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.cells, self.since, self.bar = 0, time.monotonic(), None
        if trainer.is_global_zero:
            self.bar = progress_bar(trainer.max_steps, "training", "step", initial=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: CellSetBatch, batch_idx: int
    ) -> None:
        self.cells += batch.n_cells * trainer.world_size
        if self.bar is None:
            return
        elapsed = time.monotonic() - self.since
        if elapsed > 1.0 or trainer.global_step >= trainer.max_steps:
            # reading the loss waits for the device, so only now and then
            rate = self.cells / max(elapsed, 1e-9)
            self.bar.set_postfix_str(f"loss {float(outputs['loss']):.4f}, {rate:,.0f} cells/s", refresh=False)
            self.cells, self.since = 0, time.monotonic()
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.validated = True

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.validated:  # what validation, and what others do after it, took is no training time
            self.cells, self.since, self.validated = 0, time.monotonic(), False

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, module)


class KeepLast(Checkpoint):
    """Writes `last.ckpt` every so often, at the end, and when asked to stop (SIGTERM, SIGUSR1).

    SLURM sends these before it takes a node away. The run saves, asks to be queued again if the job allows it
    (SIGUSR1), and ends; the same command continues it. A run that stops because its loss or gradient is not finite leaves the weights
    from before that in `before_nonfinite.ckpt`.

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
        for name, value in (("every_seconds", every_seconds), ("share", share), ("every_n_steps", every_n_steps)):
            if value is not None and value <= 0:
                raise VcellError(f"callbacks.last.{name}={value} must be above 0")
        self.path = Path(folder) / "last.ckpt"
        self.seconds, self.share, self.pause = every_seconds, share, every_seconds
        self.steps = inf if every_n_steps is None else every_n_steps
        self.rescued = Path(folder) / "before_nonfinite.ckpt"
        self.signal: int | None = None
        self.saved_step, self.saved_at = -1, 0.0
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        self.handlers = {n: signal.signal(n, self._remember) for n in (signal.SIGTERM, signal.SIGUSR1)}

    def _remember(self, number: int, _: Any) -> None:
        self.signal = number

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._agreed(trainer, self.signal is not None):
            self.signal = self.signal or signal.SIGTERM  # another rank's, where this one got none
            self._save(trainer)
            self._requeue(trainer)
            trainer.should_stop = True
        elif trainer.global_step >= self.saved_step + self.steps or self._agreed(
            trainer, time.monotonic() >= self.saved_at + self.pause
        ):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, NotFiniteError) and trainer.world_size == 1:  # saving is done by all ranks or none
            assert isinstance(module, TransitionModule)
            module.guard.waiting.clear()
            trainer.save_checkpoint(self.rescued)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self.saved_step:  # the same on every rank: saving is done by all together
            start = time.monotonic()
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

    def _requeue(self, trainer: Trainer) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        if not (trainer.is_global_zero and job and self.signal == signal.SIGUSR1):
            return
        try:
            code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
            print(f"saved {self.path}; scontrol requeue {job} ended with exit code {code}", flush=True)
        except OSError as error:  # in a container, often
            print(
                f"saved {self.path}; job {job} could not be requeued from here ({error}): submit it again", flush=True
            )


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
        names = [monitor] if isinstance(monitor, str) else list(monitor)
        files = ["best.ckpt", *(f"best_{name.split('/')[-1]}.ckpt" for name in names[1:])]
        self.path = {name: Path(folder) / file for name, file in zip(names, files, strict=True)}
        self.best: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        check_scores(module, list(self.path), "callbacks.best.monitor")

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


class StopEarly(Callback):
    """Ends training when a score has not improved for some validations.

    Parameters
    ----------
    monitor
        The score.
    patience
        Validations without improvement.
    """

    def __init__(self, monitor: str, patience: int) -> None:
        self.monitor, self.patience = monitor, patience
        self.best: float | None = None
        self.since = 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        check_scores(module, [self.monitor], "callbacks.early_stopping.monitor")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.should_stop = (
            trainer.should_stop or self.since >= self.patience
        )  # a run that had stopped is not taken up again

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        score = score_of(trainer, self.monitor, "callbacks.early_stopping.monitor")
        if improved(self.monitor, score, self.best):
            self.best, self.since = score, 0
            return
        self.since += 1
        if self.since >= self.patience:
            trainer.should_stop = True
            if trainer.is_global_zero:
                best = "a number" if self.best is None else f"better than {self.best:.4f}"
                print(f"stopped early: {self.monitor} has not been {best} for {self.since} validations", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.since = state_dict["best"], state_dict["since"]


def check_scores(module: LightningModule, names: Sequence[str], key: str) -> None:
    """Raises, before training, for a score that no validation will give."""
    assert isinstance(module, TransitionModule) and module.scores is not None and module.loss is not None
    known = [f"val/{name}" for name in module.scores.names(module.loss)]
    for name in names:
        if name not in known:
            raise VcellError(f"{key} names {name!r}; validation gives {', '.join(known)}.{nearest(name, known)}")


def score_of(trainer: Trainer, name: str, key: str) -> float:
    """A score of the validation that just ended."""
    if name not in trainer.callback_metrics:
        raise VcellError(
            f"{key} names {name!r}, which this validation does not give: it takes {FEWEST_TO_COLLAPSE} perturbations of one context"
        )
    return float(trainer.callback_metrics[name])


def improved(name: str, score: float, best: float | None) -> bool:
    higher = name.split("/")[-1] in HIGHER_IS_BETTER
    return score == score and (best is None or (score > best if higher else score < best))


class Average(EMAWeightAveraging):
    """Exponential moving average of the weights: validated, and what a checkpoint predicts with.

    The weights in training go on beside it, in the checkpoint too, so that a resumed run equals an uninterrupted one.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise VcellError(f"callbacks.average.decay={decay} must lie between 0 and 1")
        super().__init__(use_buffers=False, decay=decay)

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise VcellError("averaged weights need whole ones: callbacks=[default] with trainer=fsdp, or trainer=ddp")
        super().setup(trainer, module, stage)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Nothing is copied: checkpoints hold the average already."""


class WarnOfCollapse(Callback):
    """Says when predictions of different perturbations have become one profile."""

    def __init__(self) -> None:
        self.warned = False

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, TransitionModule) and module.scores is not None and module.schedule is not None
        collapsed = module.scores.collapsed and trainer.global_step >= module.schedule.warmup_steps
        if collapsed and not self.warned and trainer.is_global_zero:
            distinct = score_of(trainer, "val/distinctness", "")
            silent = module.table.silent_on([p for *_, p in module.scores.last_groups])
            why = (
                f"a one-hot table says nothing of {len(silent)} of the validated perturbations; an embedding table can "
                "(perturbation.path=TABLE.pt)"
                if silent
                else "usual remedies are loss=energy_contrastive, a higher optimizer.lr or more steps, and a table whose vectors differ"
            )
            print(f"warning: at step {trainer.global_step:,} the predicted effects of all held-out perturbations are nearly one profile "
                  f"(val/distinctness {distinct:.4f}): {why}", flush=True)  # fmt: skip
        self.warned = collapsed
