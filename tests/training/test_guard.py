"""The guard against losses and gradients that are not finite."""

from __future__ import annotations

import pytest
import torch

from vcell.data.batch import CellSetBatch
from vcell.training.cuda_graph import clip
from vcell.training.guard import Guard, NotFiniteError

BATCH = CellSetBatch(["A", "A", "B"], ["P", "Q", "R"], torch.zeros(3, 1, 1), None)
FINE, BAD = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, torch.nan, torch.inf])


def optimizer(device: str = "cpu") -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.ones(3, device=device, requires_grad=True)], lr=0.1, fused=True)


@pytest.mark.parametrize("largest", [0.5, 6.0, torch.inf])
def test_gradients_are_clipped_as_torch_clips_them(largest: float):
    ours, theirs = ([torch.ones(size, requires_grad=True) for size in (3, 4)] for _ in range(2))
    for parameters in (ours, theirs):
        for p in parameters:
            p.grad = torch.arange(1.0, len(p) + 1)
        parameters.append(torch.ones(2, requires_grad=True))  # one without
    norm = clip(ours, largest)
    assert norm == torch.nn.utils.clip_grad_norm_(theirs, largest) and 6 < norm < 7
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_fine_steps_pass_and_bad_sets_are_named():
    guard = Guard()
    guard.loss(FINE, BATCH)
    guard.gradient(torch.tensor(1.0), 1, optimizer())
    guard.loss(BAD, BATCH)
    with pytest.raises(NotFiniteError, match=r"loss of step 2 is not finite in set 1 \(Q in A\), set 2 \(R in B\)"):
        guard.gradient(torch.tensor(torch.nan), 2, optimizer())


def test_a_gradient_alone_is_said_so_but_for_fp16_whose_scaler_looks():
    guard = Guard()
    guard.loss(FINE, BATCH)
    with pytest.raises(NotFiniteError, match="gradient of step 3"):
        guard.gradient(torch.tensor(torch.inf), 3, optimizer())
    scaled = Guard(gradients=False)
    scaled.loss(FINE, BATCH)
    scaled.gradient(torch.tensor(torch.inf), 3, optimizer())


def test_accumulated_batches_are_all_looked_at():
    guard = Guard()
    guard.loss(BAD, BATCH)
    guard.loss(FINE, BATCH)
    with pytest.raises(NotFiniteError, match="set 1"):
        guard.gradient(torch.tensor(torch.nan), 1, optimizer())


def test_a_fused_optimiser_leaves_weights_alone_when_told_so():
    """What the guard relies on while a verdict is on its way from the GPU."""
    update = optimizer()
    (weight,) = update.param_groups[0]["params"]
    weight.grad = torch.full((3,), torch.nan)
    update.found_inf = torch.ones(())  # type: ignore[attr-defined]
    update.step()
    assert torch.equal(weight.detach(), torch.ones(3))
    weight.grad, update.found_inf = torch.ones(3), torch.zeros(())  # type: ignore[attr-defined]
    update.step()
    assert not torch.equal(weight.detach(), torch.ones(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_weights_stay_as_before_the_bad_step_until_it_is_known():
    guard, update = Guard(), optimizer("cuda")
    (weight,) = update.param_groups[0]["params"]
    after = []
    for step, loss in enumerate([FINE, BAD, FINE, FINE], start=1):
        weight.grad = torch.full((3,), loss.sum().item(), device="cuda")
        guard.loss(loss.cuda(), BATCH)
        guard.gradient(weight.grad.norm(), step, update)
        update.step()
        after.append(weight.detach().clone())
    with pytest.raises(NotFiniteError, match="step 2"):
        guard.check(wait=True)
    assert not torch.equal(after[0], torch.ones_like(after[0])) and all(torch.equal(after[0], later) for later in after)
