"""What a run will need, measured on a few steps: memory and time, before it is started."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vcell.data.datamodule import CellSetDataModule
from vcell.errors import VcellError
from vcell.training.build import RunSettings
from vcell.training.cost import BYTES_PER_PARAMETER
from vcell.training.cuda_graph import WARM_UP as RUN_AS_USUAL
from vcell.training.module import TransitionModule
from vcell.training.throughput import peak_memory_gb

WARM_UP, MEASURED = RUN_AS_USUAL + 1, 5  # steps; in the last of the warm-up a step is recorded
STEPS = WARM_UP + MEASURED


class Stopwatch(Callback):
    """When steps ended, and how long validation batches took."""

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        if len(self.ended) < trainer.global_step:
            self.ended.append(time.perf_counter())

    def on_validation_batch_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.validated.append(time.perf_counter() - self.began)


def estimate(
    trainer: Trainer, run: RunSettings, data: CellSetDataModule, module: TransitionModule, watch: Stopwatch
) -> str:
    """Trains some steps that leave nothing behind, and says what the whole run will take.

    Parameters
    ----------
    trainer
        Of `STEPS` steps, with the callback `watch`.

    Raises
    ------
    VcellError
        If the memory does not suffice.
    """
    try:
        trainer.fit(module, data)
    except torch.OutOfMemoryError as error:
        raise VcellError(out_of_memory(data)) from error
    return "\n".join([memory_line(trainer, module), *time_lines(run, data, watch)])


def memory_line(trainer: Trainer, module: TransitionModule) -> str:
    device = trainer.strategy.root_device
    state = sum(p.numel() for p in module.model.parameters()) * BYTES_PER_PARAMETER / 1e9
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "this process"
    has = f" of {torch.cuda.get_device_properties(device).total_memory / 1e9:,.1f} GB" if device.type == "cuda" else ""
    return (
        f"memory       {peak_memory_gb(device):,.2f} GB{has} at the peak of {STEPS} steps on {where}, {state:,.2f} GB of it "
        f"weights, gradients and optimiser; a checkpoint takes {state * 3 / 4:,.2f} GB"
    )


def time_lines(run: RunSettings, data: CellSetDataModule, watch: Stopwatch) -> list[str]:
    if len(watch.ended) < 2:
        return ["time         could not be measured"]
    measured = watch.ended[-(MEASURED + 1) :]
    step = (measured[-1] - measured[0]) / (len(measured) - 1)
    steps, every = run.max_steps, run.validated_every
    validations, one = 0, 0.0
    if watch.validated:
        batches = -(-len(data.groups("val")) // data.sets_per_step)
        validations = int(steps * run.accumulated // every)
        one = batches * watch.validated[-1]
    total = steps * step + validations * one
    cells = 2 * data.sets_per_step * data.set_size * run.accumulated
    return [
        f"time         {step:.3g} s per step ({cells / step:,.0f} cells/s), {steps:,} steps; {validations:,} validations of {one:.2g} s",
        f"             about {duration(total)} in total, estimated from {len(measured) - 1} steps on this machine under its present load",
    ]


def duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def out_of_memory(data: CellSetDataModule) -> str:
    """What to do where the GPU's memory does not suffice."""
    return (
        f"the GPU's memory is too small for {data.sets_per_step} sets of {data.set_size} cells. Fewer sets at a time give the same "
        f"step: data.sets.sets_per_step={max(1, data.sets_per_step // 2)} trainer.accumulate_grad_batches=2. Or "
        "model.checkpoint_activations=true, data.sets.resident=false, or trainer=fsdp on several GPUs"
    )
