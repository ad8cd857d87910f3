"""Steps replayed as a graph are those of the usual way. Without a GPU a recording is a computation that writes where the first one did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch import Tensor

from tests.conftest import train_here
from vcell.config import build, compose
from vcell.data.batch import CellSetBatch, codes
from vcell.errors import VcellError
from vcell.model.checkpoint import read_checkpoint
from vcell.training.cuda_graph import WARM_UP, Record, Step, StepGraph, clip, may_be_recorded, record_on_gpu
from vcell.training.module import Schedule, loss_terms

LARGEST = 0.01  # norm, so that gradients are clipped
LOSSES = ["energy", "energy_delta", "energy_contrastive"]


def recording(update: torch.optim.Optimizer, weights: list[torch.nn.Parameter]) -> Record:
    """Records on the CPU. Unlike a GPU's recording this computes the step, so weights are put back."""

    def record(compute: Callable[[], Step]) -> tuple[Step, Callable[[], None]]:
        kept, state = [weight.detach().clone() for weight in weights], deepcopy(update.state_dict())
        first = compute()
        with torch.no_grad():
            torch._foreach_copy_(weights, kept)
        update.load_state_dict(state)

        def replay() -> None:
            for old, new in zip(tensors_of_step(first), tensors_of_step(compute()), strict=True):
                assert (old is None) == (new is None)
                if old is not None:
                    old.copy_(new)

        return first, replay

    return record


def tensors_of_step(step: Step) -> list[Tensor | None]:
    return [*step.terms.values(), step.loss, *step.gradients, step.norm, step.finite]


def batch_of(step: int, cells: int = 5, masked: bool = False) -> CellSetBatch:
    torch.manual_seed(step)
    names = [f"P{step + i}" for i in range(3)]
    return CellSetBatch(
        ["a"] * 3, names, torch.rand(3, cells, 12), torch.rand(3, cells, 12), torch.rand(3, 12) > 0.3 if masked else None,
        codes_S2=codes(["a"] * 3, names),
    )  # fmt: skip


@cache
def composed(*overrides: str) -> DictConfig:
    return compose("train", list(overrides))


def trained(loss: str, graphed: bool, **batches: Any) -> tuple[list[float], list[Tensor]]:
    torch.manual_seed(0)
    config = composed("model=tiny", f"loss={loss}", "model.dropout=0")
    model, terms = build(config.model, n_genes=12, perturbation_width=4), build(config.loss)
    weights, losses = list(model.parameters()), []
    update = torch.optim.AdamW(weights, 0.001)
    graph = StepGraph(
        lambda *given: loss_terms(model, terms, *given),
        weights,
        LARGEST,
        lambda finite: update.step(),
        recording(update, weights),
    )
    for step in range(WARM_UP + 5):
        batch = batch_of(step, **batches)
        given = batch.control_SCG, torch.rand(3, 4), batch
        replayed = graph.step(*given) if graphed else None
        if replayed is None:
            update.zero_grad()
            loss = loss_terms(model, terms, *given)["loss"].mean()
            loss.backward()
            clip(weights, LARGEST)
            update.step()
        else:
            loss = replayed.loss
            assert replayed.finite.all() and replayed.norm > LARGEST
        losses.append(float(loss.detach()))
    return losses, [weight.detach() for weight in weights]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("masked", [False, True])
def test_replayed_steps_are_those_of_the_usual_way(loss: str, masked: bool):
    (losses, weights), (expected, others) = (trained(loss, graphed, masked=masked) for graphed in (True, False))
    assert losses == expected and len(set(losses)) > WARM_UP
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_a_step_of_another_shape_is_run_as_usual():
    weights = [torch.nn.Parameter(torch.ones(()))]
    record = recording(torch.optim.SGD(weights), weights)
    graph = StepGraph(
        lambda start, *_: {"loss": start.sum((1, 2)) * weights[0]}, weights, 1.0, lambda finite: None, record
    )
    said = [graph.step((b := batch_of(0, cells)).control_SCG, torch.rand(3, 4), b) for cells in (5, 5, 5, 5, 6, 5)]
    assert [found is not None for found in said] == [False, False, False, True, False, True]


def allowed(asked: str | bool = True, **differing: Any) -> bool:
    """As `may_be_recorded` says of a run on a GPU, but for what differs."""
    config = composed("model=tiny")
    model = build(config.model, n_genes=12, perturbation_width=4)
    settings: dict[str, Any] = {
        "world_size": 1, "accumulate_grad_batches": 1, "precision": "bf16-mixed", "gradient_clip_algorithm": None, "device": "cuda", "callbacks": [],
        "model": model, "loss": build(config.loss), "optimizer": torch.optim.AdamW(model.parameters(), fused=True), "compiled": None, **differing,
    }  # fmt: skip
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(settings["device"])), **settings)
    return may_be_recorded(
        asked, trainer, settings["optimizer"], settings["model"], settings["loss"], settings["compiled"]
    )


class Watching(Callback):
    def on_before_optimizer_step(self, *_: Any) -> None: ...


def test_steps_are_recorded_where_they_can_be():
    assert allowed("auto") and allowed(True) and allowed(compiled="default", callbacks=[Callback()])
    assert not allowed(False)


@pytest.mark.parametrize(
    ("words", "differing"),
    [
        ("no GPU", {"device": "cpu"}),
        ("several GPUs", {"world_size": 2}),
        ("accumulate_grad_batches", {"accumulate_grad_batches": 2}),
        ("fp16", {"precision": "16-mixed"}),
        ("by value", {"gradient_clip_algorithm": "value"}),
        ("of your own", {"model": torch.nn.Linear(1, 1)}),
        ("of your own", {"loss": lambda predicted, batch: {}}),
        ("fused Adam", {"optimizer": torch.optim.SGD([torch.ones(1)])}),
        ("fused Adam", {"optimizer": torch.optim.AdamW([torch.ones(1)], fused=False)}),
        ("callback Watching looks", {"callbacks": [Watching()]}),
        ("reduce-overhead", {"compiled": "reduce-overhead"}),
    ],
)
def test_else_the_reason_is_given(words: str, differing: dict[str, Any]):
    assert not allowed("auto", **differing)
    with pytest.raises(VcellError, match=words):
        allowed(True, **differing)


@pytest.mark.parametrize(
    ("cause", "expected", "words"),
    [
        (
            RuntimeError("operation not permitted when stream is capturing\nmore"),
            VcellError,
            r"is capturing\): cuda_graph=false",
        ),
        (torch.OutOfMemoryError("out of memory"), torch.OutOfMemoryError, "out of memory"),
    ],
)
def test_a_step_that_cannot_be_recorded_says_what_to_do(
    cause: RuntimeError, expected: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
):
    @contextmanager
    def capture(*_: Any, **__: Any) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("capture was invalidated")

    def compute() -> Step:
        raise cause

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    with pytest.raises(expected, match=words):
        record_on_gpu(compute)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
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
@needs_gpu
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


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_a_resumed_run_equals_an_uninterrupted_one(fresh: Path):
    options = ["trainer.accelerator=gpu", "cuda_graph=true", "model.dropout=0.2", "schedule.decay=constant"]
    train_here(*options, "trainer.max_steps=14", "name=whole")
    for steps in (6, 14):
        train_here(*options, f"trainer.max_steps={steps}", "name=parts")
    whole, parts = (read_checkpoint(Path(f"runs/{name}/checkpoints/last.ckpt")) for name in ("whole", "parts"))
    assert all(torch.equal(whole["state_dict"][name], weight) for name, weight in parts["state_dict"].items())
    assert isinstance(whole["optimizer_states"][0]["param_groups"][0]["lr"], float)


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_a_loss_that_is_not_finite_stops_replayed_steps_too(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Schedule, "factor", lambda self, step, most: 1e30 if step >= WARM_UP + 3 else 1.0)
    with pytest.raises(VcellError, match="is not finite"):
        train_here("trainer.accelerator=gpu", "cuda_graph=true", "trainer.max_steps=40")
    rescued = read_checkpoint(Path("runs/demo/checkpoints/before_nonfinite.ckpt"))
    assert all(weight.isfinite().all() for weight in rescued["state_dict"].values())
