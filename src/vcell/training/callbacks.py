"""Callbacks of training: progress, averaged weights, early stopping, a warning."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from tqdm import tqdm

from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError, check_number
from vcell.process.progress import progress_bar
from vcell.training.module import TransitionModule
from vcell.training.throughput import Paced
from vcell.training.validation import improved, score_of


class Progress(Paced):
    """A bar with loss and cells per second, over all devices."""

    bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.restart(trainer)
        self.bar = None
        if trainer.is_global_zero:
            self.bar = progress_bar(trainer.max_steps, "training", "step", initial=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: CellSetBatch, batch_idx: int
    ) -> None:
        self.count(trainer, batch)
        if self.bar is None:
            return
        if self.elapsed > 1.0 or trainer.global_step >= trainer.max_steps:
            # reading the loss waits for the device, so only now and then
            loss, rate = float(outputs["loss"]), self.cells_per_second
            self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} cells/s", refresh=False)
            self.restart(trainer)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, module)


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
        check_number("callbacks.early_stopping.patience", patience, 1)
        self.monitor, self.patience = monitor, patience
        self.best: float | None = None
        self.since = 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, TransitionModule) and module.scores is not None and module.loss is not None
        module.scores.check([self.monitor], module.loss, "callbacks.early_stopping.monitor")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.since >= self.patience:  # a run that had stopped is not taken up again
            trainer.should_stop = True

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


class Average(EMAWeightAveraging):
    """Exponential moving average of the weights: validated, and what a checkpoint predicts with.

    The weights in training are kept separately, in the checkpoint too, so that a resumed run equals an uninterrupted one.
    """

    def __init__(self, decay: float) -> None:
        check_number("callbacks.average.decay", decay, 0, whole=False)
        if not 0 < decay < 1:
            raise VcellError(f"callbacks.average.decay={decay} must lie between 0 and 1")
        super().__init__(use_buffers=False, decay=decay)
        self.decay = decay
        self.pairs: tuple[list[Tensor], list[Tensor]] | None = None  # averages and the weights in training

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise VcellError("averaging needs unsharded weights: callbacks=[default] with trainer=fsdp, or trainer=ddp")
        super().setup(trainer, module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: CellSetBatch, batch_idx: int
    ) -> None:
        """Updates the average in one kernel for all weights. torch's own way asks the device twice each step whether it is the first."""
        if trainer.global_step <= self._latest_update_step:
            return
        assert self._average_model is not None
        if self.pairs is None:
            self.pairs = list(self._average_model.module.parameters()), list(module.parameters())
        average, current = self.pairs
        with torch.no_grad():
            if self._latest_update_step == 0:
                torch._foreach_copy_(average, current)
            else:
                torch._foreach_lerp_(average, current, 1 - self.decay)
        self._average_model.n_averaged += 1
        self._latest_update_step = trainer.global_step

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
            silent = module.table.silent_on([p for *_, p in module.scores.last_groups])
            why = (
                f"a one-hot table has no information on {len(silent)} of the validated perturbations; an embedding table can "
                "(perturbation.path=TABLE.pt)"
                if silent
                else "usual remedies are loss=energy_contrastive, a higher optimizer.lr or more steps, and a table whose vectors differ"
            )
            print(f"warning: at step {trainer.global_step:,} the predicted effects of all held-out perturbations are nearly identical "
                  f"(val/distinctness {module.scores.distinctness:.4f}): {why}", flush=True)  # fmt: skip
        self.warned = collapsed
