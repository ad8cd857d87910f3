"""Lightning around the transition model: one step for training and validation, the optimiser, the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import cos, inf, pi
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from vcell.data.batch import CellSetBatch
from vcell.data.permute import key
from vcell.errors import check_choice, check_number
from vcell.model.checkpoint import Identity
from vcell.model.losses import Loss
from vcell.model.negative_binomial import CountLaw, likelihood_loss
from vcell.model.predictor import prior_of
from vcell.model.table import PerturbationTable
from vcell.model.trained import TrainedModel
from vcell.training.cuda_graph import Step, StepGraph, capturable, clip, may_be_recorded, rates_on
from vcell.training.guard import Guard
from vcell.training.resuming import check_states
from vcell.training.validation import ValidationScores

DROPOUT = 100  # first word of the random keys of a step, distinct from those of the sampler


@dataclass(frozen=True)
class Schedule:
    """The learning rate's course: linear warm-up, then constant, or down to `floor` along a half cosine."""

    warmup_steps: int = 100
    decay: str = "cosine"  # or "constant"
    floor: float = 0.05

    def __post_init__(self) -> None:
        check_number("schedule.warmup_steps", self.warmup_steps, 0)
        check_number("schedule.floor", self.floor, 0, 1, whole=False)
        check_choice("schedule.decay", self.decay, ("cosine", "constant"))

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
    trained
        The model in training, its table and identity.
    loss, optimizer, schedule, scores
        What it is trained with.
    seed
        Of the draws within a step (dropout), which are a function of (seed, step, rank).
    flops
        Of a batch, forward and backward, for the figures on utilisation.
    compiled
        A mode of `torch.compile`: network and loss become one graph; None: as they are written.
    cuda_graph
        Whether a step's kernels are started by one call: ``auto``, where they can be (`cuda_graph.why_not`); True or False.
    """

    def __init__(
        self,
        trained: TrainedModel,
        loss: Loss | None = None,
        optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
        schedule: Schedule | None = None,
        scores: ValidationScores | None = None,
        seed: int = 0,
        flops: int = 0,
        compiled: str | None = None,
        cuda_graph: str | bool = False,
    ) -> None:
        super().__init__()
        self.trained, self.model = trained, trained.model  # weights are named model.*
        self.loss, self.optimizer, self.schedule, self.scores, self.seed = loss, optimizer, schedule, scores, seed
        self.flops = flops
        self.compiled, self.cuda_graph = compiled, cuda_graph
        self.terms = loss_terms if compiled is None else torch.compile(loss_terms, mode=compiled)
        self.graph: StepGraph | None = None
        self.replayed: Step | None = None  # this step, where the graph has computed it
        self.guard = Guard()
        self.chosen_for: dict[str, Any] | None = None  # what a best checkpoint is written for
        self.addition: float | None = None  # how much of what the network adds to its prior validation would keep
        self._sharded = False

    @property
    def table(self) -> PerturbationTable:
        return self.trained.table

    @property
    def identity(self) -> Identity:
        return self.trained.identity

    def predict(self, batch: CellSetBatch) -> Tensor:
        """Predicted cells, log1p of counts per target sum, ``(sets, cells, genes)``."""
        return self.trained.predict(batch)

    def configure_model(self) -> None:
        if (
            self.device_mesh is not None and not self._sharded
        ):  # Lightning calls this for every strategy, and more than once
            from vcell.training.sharding import shard

            shard(self.model, self.device_mesh["data_parallel"])
            self._sharded = True

    def on_fit_start(self) -> None:
        self.guard = Guard(gradients=self.trainer.precision != "16-mixed", freeze=not self._sharded)

    def on_train_start(self) -> None:
        assert self.loss is not None
        loss, optimizer, trainer = self.loss, self.trainer.optimizers[0], self.trainer
        check_states(optimizer)
        if may_be_recorded(self.cuda_graph, trainer, optimizer, self.model, loss, self.compiled):
            trained = [weight for weight in self.parameters() if weight.requires_grad]
            largest = float(trainer.gradient_clip_val or inf)
            self.graph = StepGraph(lambda *given: self.terms(self.model, loss, *given), trained, largest, self._update)
        if self.device.type == "cuda" and optimizer.defaults.get("fused"):
            rates_on(self.device, optimizer)

    def _update(self, finite: Tensor) -> None:
        """Changes the weights by their gradients, unless not all was finite: the end of a recorded step."""
        optimizer = self.trainer.optimizers[0]
        self.guard.freezes(finite, optimizer)
        with capturable(optimizer):
            optimizer.step()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert optimizer_closure is not None
        if self.graph is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        loss = optimizer_closure()
        if self.replayed is None:  # only the gradients are there
            super().optimizer_step(epoch, batch_idx, optimizer, lambda: loss)
        else:
            self.guard.saw(self.replayed.finite, self.trainer.global_step + 1)

    def on_train_batch_start(self, batch: CellSetBatch, batch_idx: int) -> None:
        # dropout like the sampler: a function of (seed, step, rank), so that nothing of it needs to be saved
        accumulated = self.trainer.accumulate_grad_batches
        micro_step = self.trainer.global_step * accumulated + batch_idx % accumulated
        seed_device(batch.control_SCG.device, int(key(self.seed, DROPOUT, micro_step, self.trainer.global_rank)))

    def training_step(self, batch: CellSetBatch, batch_idx: int) -> Tensor:
        assert self.loss is not None
        start_SCG = self.trained.start(batch)
        vectors_SP = self.trained.lookup(batch.perturbations, start_SCG.device)
        self.replayed = None if self.graph is None else self.graph.step(start_SCG, vectors_SP, batch)
        if self.replayed is None:
            terms = self.terms(self.model, self.loss, start_SCG, vectors_SP, batch)
            self.guard.loss(terms["loss"], batch)
            loss = terms["loss"].mean()
        else:
            terms, loss = self.replayed.terms, self.replayed.loss.clone()  # the next step computes it at the same place
            self.guard.took(batch)
        if self._logs_now():
            means = {f"train/{name}": value_S.detach().mean() for name, value_S in terms.items()}
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            means["train/learning_rate"] = rate.clone() if isinstance(rate, Tensor) else rate
            if self.replayed is not None:
                means["train/gradient_norm"] = self.replayed.norm.clone()
            self.log_dict(means, batch_size=len(batch.perturbations))
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.replayed is None:
            loss.backward(*args, **kwargs)

    def _logs_now(self) -> bool:
        """Whether Lightning will write what this step logs: the others need not pay for it."""
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning would, but with a fused optimiser too; and has the guard look at the gradient."""
        by_value = gradient_clip_algorithm == "value"
        largest = inf if by_value or not gradient_clip_val else float(gradient_clip_val)
        norm = clip(list(self.parameters()), largest)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded
        if by_value and gradient_clip_val:
            torch.nn.utils.clip_grad_value_(self.parameters(), float(gradient_clip_val))
        if self._logs_now():
            self.log("train/gradient_norm", norm)
        self.guard.gradient(norm, self.trainer.global_step + 1, optimizer)

    def on_train_batch_end(self, outputs: Any, batch: CellSetBatch, batch_idx: int) -> None:
        self.guard.check()

    def on_train_end(self) -> None:
        self.graph = self.replayed = None  # with the memory that they hold

    def validation_step(self, batch: CellSetBatch, batch_idx: int) -> None:
        assert self.loss is not None and self.scores is not None
        if self.trained.adds:
            start_SCG = self.trained.start(batch)
            self.scores.add(batch, self.trained.predict_from(start_SCG, batch), self.loss, start_SCG)
        else:
            self.scores.add(batch, self.predict(batch), self.loss)

    def on_validation_epoch_end(self) -> None:
        assert self.loss is not None and self.scores is not None
        found = self.scores.compute(self.loss)
        self.addition = found.get("addition", self.addition)
        # ranks have put their results together already; the mean of equal numbers keeps Lightning from asking for it
        self.log_dict({f"val/{name}": value for name, value in found.items()}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        assert self.optimizer is not None and self.schedule is not None
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer, schedule, trainer = self.optimizer(trained), self.schedule, self.trainer
        course = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": course, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.addition = checkpoint["vcell"].get("addition")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.guard.check(wait=True)  # weights that are not finite are never written
        prior = prior_of(self.model)
        fitted = None if prior is None else prior.get_extra_state()
        known = replace(self.identity, chosen_for=self.chosen_for, prior=fitted, addition=self.addition)
        checkpoint["vcell"] = known.plain()
        for state in checkpoint.get("optimizer_states", []):  # rates that lie on a GPU are numbers elsewhere
            for group in state.get("param_groups", []):  # of sharded weights rank 0 alone has them
                group["lr"] = float(group["lr"])
        for state in checkpoint.get("lr_schedulers", []):
            state["_last_lr"] = [float(rate) for rate in state["_last_lr"]]


def loss_terms(
    model: nn.Module, loss: Loss, start_SCG: Tensor, vectors_SP: Tensor, batch: CellSetBatch
) -> Mapping[str, Tensor]:
    """The loss and its terms of each set, from what a network says of cells and perturbations."""
    said = model(start_SCG, vectors_SP, batch.embedding_SCE, batch.context_S, batch.batch_SC)
    return likelihood_loss(said, batch) if isinstance(said, CountLaw) else loss(said, batch)


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the generators that a step on `device` draws from, and no other: torch.manual_seed queues a call for each absent GPU."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
