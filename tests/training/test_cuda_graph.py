"""Steps replayed as a graph are those of the usual way. Without a GPU a recording is a computation that writes where the first one did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import train_here
from vcell.config import build, compose
from vcell.data.batch import CellSetBatch, codes
from vcell.errors import VcellError
from vcell.model.checkpoint import read_checkpoint
from vcell.training.cuda_graph import WARM_UP, Step, StepGraph, clip, may_be_recorded
from vcell.training.module import loss_terms

LARGEST = 0.01  # norm, so that gradients are clipped
LOSSES = ["energy", "energy_delta", "energy_contrastive"]


def record_here(compute: Callable[[], Step]) -> tuple[Step, Callable[[], None]]:
    first = compute()

    def tensors(step: Step) -> list[Tensor | None]:
        return [*step.terms.values(), step.loss, *step.gradients, step.norm, step.finite]

    def replay() -> None:
        for old, new in zip(tensors(first), tensors(compute()), strict=True):
            assert (old is None) == (new is None)
            if old is not None:
                old.copy_(new)

    return first, replay


def batch_of(step: int, cells: int = 5, masked: bool = False) -> CellSetBatch:
    torch.manual_seed(step)
    names = [f"P{step + i}" for i in range(3)]
    return CellSetBatch(
        ["a"] * 3, names, torch.rand(3, cells, 12), torch.rand(3, cells, 12), torch.rand(3, 12) > 0.3 if masked else None,
        codes_S2=codes(["a"] * 3, names),
    )  # fmt: skip


def trained(loss: str, graphed: bool, **batches: Any) -> tuple[list[float], list[Tensor]]:
    torch.manual_seed(0)
    config = compose("train", ["model=tiny", f"loss={loss}", "model.dropout=0"])
    model, terms = build(config.model, n_genes=12, perturbation_width=4), build(config.loss)
    weights = list(model.parameters())
    graph = (
        StepGraph(lambda *given: loss_terms(model, terms, *given), weights, LARGEST, record_here) if graphed else None
    )
    update, losses = torch.optim.SGD(weights, 0.1), []
    for step in range(WARM_UP + 5):
        batch = batch_of(step, **batches)
        given = batch.control_SCG, torch.rand(3, 4), batch
        replayed = graph.step(*given) if graph is not None else None
        update.zero_grad()
        if replayed is None:
            loss = loss_terms(model, terms, *given)["loss"].mean()
            loss.backward()
            clip(weights, LARGEST)
        else:
            assert graph is not None
            loss = replayed.loss
            graph.hand_over()
        update.step()
        losses.append(float(loss.detach()))
    return losses, [weight.detach() for weight in weights]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("masked", [False, True])
def test_replayed_steps_are_those_of_the_usual_way(loss: str, masked: bool):
    (losses, weights), (expected, others) = (trained(loss, graphed, masked=masked) for graphed in (True, False))
    assert losses == expected and len(set(losses)) > WARM_UP
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_a_step_of_another_shape_is_run_as_usual():
    graph = StepGraph(lambda start, vectors, batch: {"loss": start.sum((1, 2)) * weight}, [weight := torch.ones((), requires_grad=True)], 1.0, record_here)  # type: ignore[list-item]  # fmt: skip
    said = [graph.step((b := batch_of(0, cells)).control_SCG, torch.rand(3, 4), b) for cells in (5, 5, 5, 5, 6, 5)]
    assert [found is not None for found in said] == [False, False, False, True, False, True]


def trainer_with(**differing: Any) -> Any:
    settings = {
        "world_size": 1,
        "accumulate_grad_batches": 1,
        "precision": "bf16-mixed",
        "gradient_clip_algorithm": None,
        "device": "cuda",
        **differing,
    }
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(settings["device"])), **settings)


def test_steps_are_recorded_where_they_can_be_and_else_the_reason_is_given():
    config = compose("train", ["model=tiny"])
    model, loss = build(config.model, n_genes=12, perturbation_width=4), build(config.loss)
    assert may_be_recorded("auto", trainer_with(), model, loss, None)
    assert not may_be_recorded(False, trainer_with(), model, loss, None)
    for words, differing in {
        "no GPU": {"device": "cpu"},
        "several GPUs": {"world_size": 2},
        "accumulate_grad_batches": {"accumulate_grad_batches": 2},
        "fp16": {"precision": "16-mixed"},
        "by value": {"gradient_clip_algorithm": "value"},
    }.items():
        assert not may_be_recorded("auto", trainer_with(**differing), model, loss, None)
        with pytest.raises(VcellError, match=words):
            may_be_recorded(True, trainer_with(**differing), model, loss, None)
    with pytest.raises(VcellError, match="of your own"):
        may_be_recorded(True, trainer_with(), torch.nn.Linear(1, 1), loss, None)
    with pytest.raises(VcellError, match="reduce-overhead"):
        may_be_recorded(True, trainer_with(), model, loss, "reduce-overhead")
    model.checkpoint_activations = True
    with pytest.raises(VcellError, match="checkpoint_activations"):
        may_be_recorded(True, trainer_with(), model, loss, None)


VARIANTS: dict[str, list[str]] = {
    **{loss: [f"loss={loss}"] for loss in LOSSES},
    "l1 and sparsity": ["loss.weights.l1=1", "loss.weights.sparsity=0.1"],
    "negative binomial": ["model.head=nb"],
    "STATE's heads": ["model.head=state_bottleneck"],
    "covariates": ["model.covariates=[context,batch]"],
    "a prior": ["model.prior=transfer"],
    "some genes seen": ["data.input=50"],
    "float32": ["trainer.precision=32-true"],
    "streamed": ["data.sets.resident=false"],
    "averaged": ["callbacks=[default,average]"],
    "compiled": ["compile=true"],
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_gpu_replayed_steps_are_those_of_the_usual_way(variant: str, fresh: Path):
    weights = []
    for graphed in (True, False):
        train_here(
            "trainer.accelerator=gpu",
            *VARIANTS[variant],
            f"cuda_graph={graphed}",
            "trainer.max_steps=12",
            f"name=g{graphed}",
        )
        weights.append(read_checkpoint(Path(f"runs/g{graphed}/checkpoints/last.ckpt"))["state_dict"])
    differing = {name: float((weights[0][name] - tensor).abs().max()) for name, tensor in weights[1].items() if not torch.equal(weights[0][name], tensor)}  # fmt: skip
    assert not differing
