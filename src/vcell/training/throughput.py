"""How fast training runs and what it waits for, logged with the other metrics."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer

from vcell.data.batch import CellSetBatch
from vcell.data.datamodule import CellSetDataModule

DTYPE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}

H200_FLOPS = 989.4e12  # dense, half precision; NVIDIA's data sheet, as for the H100 SXM


class Paced(Callback):
    """Counts cells and time since `restart`. What validation takes, and what others do after it, is no training time."""

    def restart(self, trainer: Trainer) -> None:
        self.cells, self.since, self.validated = 0, time.perf_counter(), False

    def count(self, trainer: Trainer, batch: CellSetBatch) -> None:
        self.cells += batch.n_cells * trainer.world_size

    @property
    def elapsed(self) -> float:
        return max(time.perf_counter() - self.since, 1e-9)

    @property
    def cells_per_second(self) -> float:
        """On all devices."""
        return self.cells / self.elapsed

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.validated = True

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.validated:
            self.restart(trainer)


class Throughput(Paced):
    """Logs, every `trainer.log_every_n_steps`, over the steps since:

    ``throughput/cells_per_second``: cells that the model learnt from, controls and perturbed ones, on all devices.
    ``throughput/data_wait``: share of the time in which the training loop waited for cells. On a GPU the device may still be busy
    then, so this is the most that the data can have cost.
    ``throughput/model_flops_utilisation``: FLOPs of the model, forward and backward, as a share of what the GPU is said to do
    in the precision used; left out where that is not known.
    ``throughput/peak_memory_gb``: of this rank's GPU, or of the process where there is none.
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.peak_flops = peak_flops(trainer)
        self.restart(trainer)

    def restart(self, trainer: Trainer) -> None:
        super().restart(trainer)
        self.batches, self.waited = 0, waited(trainer)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: CellSetBatch, batch_idx: int) -> None:
        self.count(trainer, batch)
        self.batches += 1
        if trainer.global_step % trainer.log_every_n_steps or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        elapsed = self.elapsed
        found = {
            "cells_per_second": self.cells_per_second,
            "data_wait": min(1.0, (waited(trainer) - self.waited) / elapsed),
            "peak_memory_gb": peak_memory_gb(trainer.strategy.root_device),
        }
        if self.peak_flops and module.flops:
            found["model_flops_utilisation"] = module.flops * self.batches / elapsed / self.peak_flops
        module.log_dict({f"throughput/{name}": value for name, value in found.items()})
        self.restart(trainer)


def waited(trainer: Trainer) -> float:
    """Seconds that the training loop has waited for cells."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data.waited if isinstance(data, CellSetDataModule) else 0.0


def peak_flops(trainer: Trainer) -> float | None:
    """FLOPs per second of this rank's GPU in the precision used, where they are known."""
    device = trainer.strategy.root_device
    if device.type != "cuda" or trainer.precision not in DTYPE:
        return None
    dtype = DTYPE[trainer.precision]
    if "H200" in torch.cuda.get_device_name(device) and dtype != torch.float32:
        return H200_FLOPS  # which Lightning knows by other names only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_available_flops(device, dtype)


def peak_memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows has none
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
