"""Forward pass, loss and backward pass of a training step as one CUDA graph: one call starts what are else hundreds of kernels.

A graph is recorded once and replayed with other numbers at the same addresses. So shapes must not change, nothing in it may ask the device
for a number, and what Python does in it happens only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError
from vcell.model.losses import GEOMLOSS, Loss, SetLoss
from vcell.model.transition import TransitionModel

CHOICES = ("auto", True, False)
WARM_UP = 3  # steps run as usual first: in them kernels are loaded, compiled and chosen

Terms = Mapping[str, Tensor]
Recorded = tuple[Terms, tuple[Tensor | None, ...]]  # terms of the loss, and a gradient for each weight
Record = Callable[[Callable[[], Recorded]], tuple[Recorded, Callable[[], None]]]


def record_on_gpu(compute: Callable[[], Recorded]) -> tuple[Recorded, Callable[[], None]]:
    """Records what `compute` starts on the GPU, without running it; gives where its results will lie, and what runs it."""
    graph = torch.cuda.CUDAGraph()
    # threads that fetch cells go on meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = compute()
    return found, graph.replay


class StepGraph:
    """Gives the terms of a step's loss, and its gradients, by replaying a graph.

    The numbers are those of the usual way: the same kernels run in the same order.

    Parameters
    ----------
    compute
        Gives the terms of the loss from the cells to start from, the perturbations' vectors and the batch.
    weights
        Those that are trained.
    record
        Records a computation; `record_on_gpu`.
    """

    def __init__(
        self,
        compute: Callable[[Tensor, Tensor, CellSetBatch], Terms],
        weights: Iterable[nn.Parameter],
        record: Record = record_on_gpu,
    ) -> None:
        self.compute, self.weights, self.record = compute, list(weights), record
        self.steps = 0
        self.inputs: dict[str, Tensor] = {}  # tensors of the recorded step, which later ones are copied into
        self.recorded: Recorded | None = None

    def terms(self, start_SCG: Tensor, vectors_SP: Tensor, batch: CellSetBatch) -> Terms | None:
        """The terms of a step; `hand_over` then gives its gradients. None for a step that must be run as usual.

        Those are the first ones, and any whose tensors have other shapes than the recorded ones.
        """
        self.steps += 1
        if self.steps <= WARM_UP:
            return None
        inputs = tensors_of(start_SCG, vectors_SP, batch)
        if self.recorded is None:
            self.inputs = inputs
            self.recorded, self.replay = self.record(lambda: self._computed(start_SCG, vectors_SP, batch))
        elif signature(inputs) != signature(self.inputs):
            return None
        for name, tensor in inputs.items():
            if tensor.data_ptr() != self.inputs[name].data_ptr():  # cells are made dense at the same place each step
                self.inputs[name].copy_(tensor)
        self.replay()
        return self.recorded[0]

    def hand_over(self) -> None:
        """Gives each weight its gradient of the last replay."""
        assert self.recorded is not None
        for weight, gradient in zip(self.weights, self.recorded[1], strict=True):
            weight.grad = gradient

    def _computed(self, start_SCG: Tensor, vectors_SP: Tensor, batch: CellSetBatch) -> Recorded:
        terms = self.compute(start_SCG, vectors_SP, batch)
        with torch.autocast(start_SCG.device.type, enabled=False):  # as where Lightning calls backward
            gradients = torch.autograd.grad(terms["loss"].mean(), self.weights, allow_unused=True)
        return {name: term.detach() for name, term in terms.items()}, gradients


def tensors_of(start_SCG: Tensor, vectors_SP: Tensor, batch: CellSetBatch) -> dict[str, Tensor]:
    """The tensors that a step is computed from, by name; a start that is the batch's own control cells is there once."""
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    if start_SCG is not batch.control_SCG:
        found["start_SCG"] = start_SCG
    found["vectors_SP"] = vectors_SP
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def signature(inputs: Mapping[str, Tensor]) -> list[tuple[Any, ...]]:
    return [(name, tensor.shape, tensor.dtype) for name, tensor in inputs.items()]


def may_be_recorded(asked: str | bool, trainer: Trainer, model: nn.Module, loss: Loss | None, compiled: str | None) -> bool:
    """Whether a run's steps become a graph: ``auto`` where they can.

    Raises
    ------
    VcellError
        If they are to and cannot, with the reason.
    """
    if asked is False:
        return False
    why = why_not(trainer, model, loss, compiled)
    if asked is True and why:
        raise VcellError(f"cuda_graph=true, but {why}: use cuda_graph=auto")
    return not why


def why_not(trainer: Trainer, model: nn.Module, loss: Loss | None, compiled: str | None) -> str:
    """Why the steps of a run cannot be recorded; no words where they can."""
    if trainer.strategy.root_device.type != "cuda":
        return "there is no GPU"
    if trainer.world_size > 1:
        return "several GPUs exchange gradients as they are computed"
    if trainer.accumulate_grad_batches > 1:
        return "gradients of several batches are added up (trainer.accumulate_grad_batches)"
    if trainer.precision == "16-mixed":
        return "fp16 scales the loss by a number that changes"
    if type(model) is not TransitionModel or type(loss) is not SetLoss:
        return "a network or loss of your own may do more than a graph can hold"
    if model.checkpoint_activations:
        return "the random numbers of the forward pass are drawn again (model.checkpoint_activations)"
    if asking := sorted(set(GEOMLOSS) & set(loss.weights)):
        return f"the loss term {asking[0]} asks the GPU for numbers"
    if compiled not in (None, "default", "max-autotune-no-cudagraphs"):
        return f"compile={compiled} makes graphs of its own"
    return ""
