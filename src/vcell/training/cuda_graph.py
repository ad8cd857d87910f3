"""A training step, from dense cells to updated weights, as one CUDA graph: one call starts what are else hundreds of kernels.

A graph is recorded once and replayed with other numbers at the same addresses. So shapes must not change, nothing in it may ask the device
for a number, and what Python does in it happens only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError
from vcell.model.losses import GEOMLOSS, Loss, SetLoss
from vcell.model.transition import TransitionModel

CHOICES = ("auto", True, False)
WARM_UP = 3  # steps run as usual first: in them kernels are loaded, compiled and chosen

Terms = Mapping[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What a step has computed on its way to new weights."""

    terms: Terms  # of the loss, (sets)
    loss: Tensor  # ()
    gradients: tuple[Tensor | None, ...]  # clipped, of each weight
    norm: Tensor  # of the gradients before they were clipped, ()
    finite: Tensor  # bool (sets + 1): each set's loss, and the gradient


Record = Callable[[Callable[[], Step]], tuple[Step, Callable[[], None]]]


def record_on_gpu(compute: Callable[[], Step]) -> tuple[Step, Callable[[], None]]:
    """Records what `compute` starts on the GPU, without running it; gives where its results will lie, and what runs it.

    Raises
    ------
    VcellError
        If something in it cannot be recorded.
    torch.OutOfMemoryError
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # threads that fetch cells go on meanwhile
            found = compute()
    except RuntimeError as error:  # the end of a broken recording fails too, and hides why
        cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        raise VcellError(
            f"a training step could not be recorded as a CUDA graph ({str(cause).splitlines()[0][:200]}): cuda_graph=false runs it as usual"
        ) from error
    return found, graph.replay


class StepGraph:
    """Computes steps by replaying a graph.

    The numbers are those of the usual way: the same kernels run in the same order.

    Parameters
    ----------
    compute
        Gives the terms of the loss from the cells to start from, the perturbations' vectors and the batch.
    weights
        Those that are trained.
    largest
        Norm to which gradients are clipped.
    update
        Changes the weights by their gradients; told what was finite.
    record
        Records a computation; `record_on_gpu`.
    """

    def __init__(
        self,
        compute: Callable[[Tensor, Tensor, CellSetBatch], Terms],
        weights: Iterable[nn.Parameter],
        largest: float,
        update: Callable[[Tensor], None],
        record: Record = record_on_gpu,
    ) -> None:
        self.compute, self.weights, self.largest, self.update = compute, list(weights), largest, update
        self.record = record
        self.steps = 0
        self.inputs: dict[str, Tensor] = {}  # tensors of the recorded step, which later ones are copied into
        self.recorded: Step | None = None

    def step(self, start_SCG: Tensor, vectors_SP: Tensor, batch: CellSetBatch) -> Step | None:
        """Makes a step, whose numbers stay until the next one; None for one that must be run as usual.

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
        # cells are made dense at the same place each step
        moved = [name for name, tensor in inputs.items() if tensor.data_ptr() != self.inputs[name].data_ptr()]
        if moved:
            torch._foreach_copy_([self.inputs[name] for name in moved], [inputs[name] for name in moved])
        self.replay()
        return self.recorded

    def _computed(self, start_SCG: Tensor, vectors_SP: Tensor, batch: CellSetBatch) -> Step:
        terms = self.compute(start_SCG, vectors_SP, batch)
        loss = terms["loss"].mean()
        with torch.autocast(start_SCG.device.type, enabled=False):  # as where Lightning calls backward
            gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient
            norm = clip(self.weights, self.largest)
            finite = torch.cat([terms["loss"].detach().isfinite(), norm.isfinite().reshape(1)])
            self.update(finite)
        return Step({name: term.detach() for name, term in terms.items()}, loss.detach(), gradients, norm, finite)


@contextmanager
def capturable(optimizer: Optimizer) -> Iterator[None]:
    """Has torch allow that a step of the optimiser is recorded: its fused kernel reads the rate, the counts of steps and what is finite on the GPU."""
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["capturable"] = False


def rates_on(device: torch.device, optimizer: Optimizer) -> None:
    """Puts the learning rates of a fused optimiser on its GPU, where a recorded step reads them; steps run as usual then do so too."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def clip(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Scales gradients down to the norm `largest`, and gives the norm that they had.

    Torch multiplies them by 1 where they are small enough, a pass over all of them. On a CPU that is known; a GPU is not asked, for it would
    have to be waited for.
    """
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    at_hand = norm.device.type == "cpu" and not hasattr(norm, "full_tensor")  # not a part of a sharded one
    if largest < inf and not (at_hand and float(norm) <= largest):
        clip_grads_with_norm_(parameters, largest, norm)
    return norm


def tensors_of(start_SCG: Tensor, vectors_SP: Tensor, batch: CellSetBatch) -> dict[str, Tensor]:
    """The tensors that a step is computed from, by name; a start that is the batch's own control cells is there once."""
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    if start_SCG is not batch.control_SCG:
        found["start_SCG"] = start_SCG
    found["vectors_SP"] = vectors_SP
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def signature(inputs: Mapping[str, Tensor]) -> list[tuple[Any, ...]]:
    return [(name, tensor.shape, tensor.dtype) for name, tensor in inputs.items()]


def may_be_recorded(
    asked: str | bool, trainer: Trainer, optimizer: Optimizer, model: nn.Module, loss: Loss, compiled: str | None
) -> bool:
    """Whether a run's steps become a graph: ``auto`` where they can.

    Raises
    ------
    VcellError
        If they are to and cannot, with the reason.
    """
    if asked is False:
        return False
    why = why_not(trainer, optimizer, model, loss, compiled)
    if asked is True and why:
        raise VcellError(f"cuda_graph=true, but {why}: use cuda_graph=auto")
    return not why


def why_not(trainer: Trainer, optimizer: Optimizer, model: nn.Module, loss: Loss, compiled: str | None) -> str:
    """Why the steps of a run cannot be recorded; no words where they can."""
    if trainer.strategy.root_device.type != "cuda":
        return "there is no GPU"
    if trainer.world_size > 1:
        return "several GPUs exchange gradients as they are computed"
    if trainer.accumulate_grad_batches > 1:
        return "gradients of several batches are added up (trainer.accumulate_grad_batches)"
    if trainer.precision == "16-mixed":
        return "fp16 scales the loss by a number that changes"
    if trainer.gradient_clip_algorithm == "value":
        return "gradients are clipped by value"
    if type(model) is not TransitionModel or type(loss) is not SetLoss:
        return "a network or loss of your own may do more than a graph can hold"
    if model.checkpoint_activations:
        return "the random numbers of the forward pass are drawn again (model.checkpoint_activations)"
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or not optimizer.defaults.get("fused"):
        return "only a fused Adam or AdamW can be recorded"
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if watching := [type(callback).__name__ for callback in callbacks if _looks_at_gradients(callback)]:
        return f"the callback {watching[0]} looks at gradients"
    if asking := sorted(set(GEOMLOSS) & set(loss.weights)):
        return f"the loss term {asking[0]} asks the GPU for numbers"
    if compiled not in (None, "default", "max-autotune-no-cudagraphs"):
        return f"compile={compiled} makes graphs of its own"
    return ""


def _looks_at_gradients(callback: Callback) -> bool:
    """Whether a callback is called between the gradients and the step of the optimiser, which are one here."""
    names = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
    return any(getattr(type(callback), name) is not getattr(Callback, name) for name in names)
