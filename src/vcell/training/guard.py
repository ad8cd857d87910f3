"""Stops a run whose loss or gradient is not finite, before its weights are damaged, without making the device wait."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from vcell.data.batch import CellSetBatch
from vcell.data.splits import Group
from vcell.errors import VcellError, shortlist


class NotFiniteError(VcellError):
    """A loss or gradient that is NaN or infinite."""


@dataclass(frozen=True)
class Watched:
    """What a step left on the device, on its way to the host."""

    step: int
    sets: list[Group]
    finite: Tensor  # bool (sets + 1): each set's loss, and the gradient
    arrived: torch.cuda.Event | None


class Guard:
    """Watches steps.

    On a GPU the host reads a step's verdict only once it has arrived, some steps later. Until then `frozen` is 1 on the device, and
    the fused optimiser, given it as its `found_inf`, leaves the weights as they were before the bad step.

    Parameters
    ----------
    gradients
        Whether gradients are judged too: not under fp16, where a loss scaler finds infinite ones as it goes.
    freeze
        Whether the optimiser can be told: not where weights are sharded.
    """

    def __init__(self, gradients: bool = True, freeze: bool = True) -> None:
        self.gradients, self.freeze = gradients, freeze
        self.waiting: deque[Watched] = deque()
        self.frozen: Tensor | None = None
        # of the micro-batches since the last update
        self.groups: list[Group] = []
        self.losses: list[Tensor] = []

    def loss(self, loss_S: Tensor, batch: CellSetBatch) -> None:
        """Takes note of the losses of some sets."""
        self.took(batch)
        self.losses.append(loss_S.detach().isfinite())

    def took(self, batch: CellSetBatch) -> None:
        """Takes note of the sets alone."""
        self.groups += zip(batch.contexts, batch.perturbations, strict=True)

    def gradient(self, norm: Tensor, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Takes note of the gradient's norm before the optimiser uses it.

        Raises
        ------
        NotFiniteError
            On the CPU at once; on a GPU later, in `check`.
        """
        fine = norm.detach().isfinite() if self.gradients else torch.ones_like(norm, dtype=torch.bool)
        finite = torch.cat([*self.losses, fine.reshape(1)])
        self.losses.clear()
        if finite.device.type == "cuda":
            self.freezes(finite, optimizer)
        self.saw(finite, step)

    def freezes(self, finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Has the optimiser leave the weights as they are from the first step on in which not all is finite, on the GPU."""
        if self.frozen is None:
            self.frozen = torch.zeros((), device=finite.device)
        torch.maximum(self.frozen, (~finite.all()).float(), out=self.frozen)
        if self.freeze and optimizer.defaults.get("fused"):
            optimizer.found_inf = self.frozen  # type: ignore[attr-defined]

    def saw(self, finite: Tensor, step: int) -> None:
        """Takes note of the verdict on a step: bool ``(sets + 1)``, each set's loss and the gradient."""
        groups, self.groups = self.groups, []
        if finite.device.type != "cuda":
            self._judge(Watched(step, groups, finite.cpu(), None))
            return
        host = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True)
        host.copy_(finite, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self.waiting.append(Watched(step, groups, host, arrived))

    def check(self, wait: bool = False) -> None:
        """Judges the steps whose verdict has arrived; all of them with `wait`, as before weights are saved.

        Raises
        ------
        NotFiniteError
            Naming the first bad step and its sets.
        """
        while self.waiting:
            first = self.waiting[0]
            if first.arrived is not None and not first.arrived.query():
                if not wait:
                    return
                first.arrived.synchronize()
            self._judge(self.waiting.popleft())

    @staticmethod
    def _judge(watched: Watched) -> None:
        if bool(watched.finite.all()):
            return
        bad = [f"set {i} ({p} in {c})" for i, (c, p) in enumerate(watched.sets) if not bool(watched.finite[i])]
        if bad:
            what = f"the loss of step {watched.step:,} is not finite in {shortlist(bad, 4)}"
        else:
            what = f"the gradient of step {watched.step:,} is not finite, though the losses seen here are"
        raise NotFiniteError(what)
