"""Lightning around the transition model: one step for training and validation, the optimiser, the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from vcell.data.batch import CellSetBatch
from vcell.model.losses import SetLoss
from vcell.perturbation.table import PerturbationTable


@dataclass(frozen=True)
class Schedule:
    """The learning rate's course: linear warm-up, then constant, or down to `floor` along a half cosine."""

    warmup_steps: int = 100
    decay: str = "cosine"  # or "constant"
    floor: float = 0.05

    def factor(self, step: int, max_steps: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay == "constant":
            return warm
        done = min(1.0, step / max(1, max_steps))
        return warm * (self.floor + (1 - self.floor) * (1 + cos(pi * done)) / 2)


class TransitionModule(LightningModule):
    """Trains a set-to-set model; `predict` is what every predictor offers.

    Parameters
    ----------
    model
        Control cells and perturbation vectors to predicted cells.
    table
        Vectors of the perturbations.
    identity
        What a checkpoint says of itself beyond weights; plain Python values and tensors only.
    loss, optimizer, schedule
        For training; not needed to predict.
    """

    def __init__(
        self,
        model: nn.Module,
        table: PerturbationTable,
        identity: dict[str, Any],
        loss: SetLoss | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.model, self.table, self.identity = model, table, identity
        self.loss, self.optimizer, self.schedule = loss, optimizer, schedule
        self._rng_to_restore: dict[str, Any] | None = None

    def predict(self, batch: CellSetBatch) -> Tensor:
        """Predicted cells, log1p of counts per target sum, ``(sets, cells, genes)``."""
        vectors_SP = self.table.lookup(batch.perturbations).to(batch.control_SCG.device, non_blocking=True)
        return self.model(batch.control_SCG, vectors_SP, batch.embedding_SCE)

    def training_step(self, batch: CellSetBatch, batch_idx: int) -> Tensor:
        terms, _ = self._compare(batch)
        self._log_terms("train", terms, len(batch.perturbations))
        return terms["loss"]

    def validation_step(self, batch: CellSetBatch, batch_idx: int) -> None:
        terms, predicted_SCG = self._compare(batch)
        terms["delta_correlation"] = delta_correlation(batch, predicted_SCG)
        self._log_terms("val", terms, len(batch.perturbations))

    def _compare(self, batch: CellSetBatch) -> tuple[dict[str, Tensor], Tensor]:
        assert self.loss is not None and batch.perturbed_SCG is not None
        predicted_SCG = self.predict(batch)
        return self.loss(predicted_SCG, batch.perturbed_SCG, batch.measured_SG), predicted_SCG

    def _log_terms(self, split: str, terms: dict[str, Tensor], sets: int) -> None:
        named = {f"{split}/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(named, batch_size=sets, sync_dist=split == "val")

    def configure_optimizers(self) -> Any:
        assert self.optimizer is not None and self.schedule is not None
        optimizer, schedule, trainer = self.optimizer(self.parameters()), self.schedule, self.trainer
        course = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": course, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        rng = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        checkpoint["vcell"] = {**self.identity, "rng": rng}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng_to_restore = checkpoint["vcell"]["rng"]

    def on_train_start(self) -> None:
        # last before the first step: what ran since loading may have drawn numbers
        if self._rng_to_restore is not None and self.trainer.world_size == 1:
            torch.set_rng_state(self._rng_to_restore["cpu"].cpu())
            if torch.cuda.is_available() and "cuda" in self._rng_to_restore:
                torch.cuda.set_rng_state(self._rng_to_restore["cuda"].cpu())
        self._rng_to_restore = None


def delta_correlation(batch: CellSetBatch, predicted_SCG: Tensor) -> Tensor:
    """Pearson correlation over measured genes of predicted and measured pseudobulk deltas, mean over sets; a scalar."""
    assert batch.perturbed_SCG is not None
    control_SG = batch.control_SCG.mean(1)
    known_SG = torch.ones_like(control_SG) if batch.measured_SG is None else batch.measured_SG.float()

    def centred(delta_SG: Tensor) -> Tensor:
        mean_S1 = (delta_SG * known_SG).sum(1, keepdim=True) / known_SG.sum(1, keepdim=True).clamp(min=1)
        return (delta_SG - mean_S1) * known_SG

    predicted_SG, measured_SG = predicted_SCG.float().mean(1) - control_SG, batch.perturbed_SCG.mean(1) - control_SG
    return torch.cosine_similarity(centred(predicted_SG), centred(measured_SG), dim=1).mean()
