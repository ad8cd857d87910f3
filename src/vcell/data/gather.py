"""Sparse rows of the store to a `CellSetBatch` on the device.

`fetch` runs in a worker thread and only copies rows; `to_device` densifies, scales and takes log1p on the
device. Training, validation, inference and the baselines all come through here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vcell.data.batch import CellSetBatch, CellSets
from vcell.data.normalize import to_log1p
from vcell.data.store import CellStore, SparseCells


@dataclass(frozen=True)
class SparseTensors:
    """Stored values of some cells as tensors; `position` is row * genes + gene."""

    position: Tensor  # int64 (stored values)
    counts: Tensor  # float32 (stored values)
    library_size: Tensor  # float32 (cells)

    def pin_memory(self) -> SparseTensors:
        return SparseTensors(self.position.pin_memory(), self.counts.pin_memory(), self.library_size.pin_memory())


@dataclass(frozen=True)
class FetchedSets:
    """The sets of a step with their rows, still on the CPU."""

    sets: CellSets
    cells: SparseTensors  # controls first, then perturbed cells


@dataclass(frozen=True)
class Gather:
    """Reads cells of `store` as log1p of counts per `target_sum`."""

    store: CellStore
    target_sum: float

    def fetch(self, sets: CellSets, pin: bool = False) -> FetchedSets:
        """Copies the rows of `sets` out of the store."""
        parts = [sets.controls_SC] if sets.perturbed_SC is None else [sets.controls_SC, sets.perturbed_SC]
        cells = sparse_tensors(self.store.rows(np.concatenate([p.ravel() for p in parts])), self.store.n_genes)
        return FetchedSets(sets, cells.pin_memory() if pin else cells)

    def to_device(self, fetched: FetchedSets, device: torch.device | str = "cpu") -> CellSetBatch:
        """Densifies and normalises on `device`: controls and perturbed cells, ``(sets, cells, genes)``."""
        sets = fetched.sets
        log1p_CG = self.densify(fetched.cells, device)
        n_control = sets.controls_SC.size
        control_SCG = log1p_CG[:n_control].view(*sets.controls_SC.shape, self.store.n_genes)
        perturbed_SCG = None
        if sets.perturbed_SC is not None:
            perturbed_SCG = log1p_CG[n_control:].view(*sets.perturbed_SC.shape, self.store.n_genes)
        return CellSetBatch(sets.contexts, sets.perturbations, control_SCG, perturbed_SCG)

    def densify(self, cells: SparseTensors, device: torch.device | str) -> Tensor:
        """log1p of counts per target sum, ``(cells, genes)``."""
        position = cells.position.to(device, non_blocking=True)
        counts = cells.counts.to(device, non_blocking=True)
        library_size = cells.library_size.to(device, non_blocking=True)
        dense = torch.zeros(len(library_size) * self.store.n_genes, device=device)
        dense[position] = counts
        return to_log1p(dense.view(len(library_size), self.store.n_genes), library_size, self.target_sum)

    def log1p(self, cells: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """`cells` as log1p, ``(cells, genes)``."""
        return self.densify(sparse_tensors(self.store.rows(cells), self.store.n_genes), device)

    def pseudobulk_mean_log1p(self, cells: np.ndarray, block: int = 4096) -> np.ndarray:
        """Mean log1p over `cells`, float64 ``(genes)``; summed over stored values only, in blocks."""
        total = np.zeros(self.store.n_genes)
        for start in range(0, len(cells), block):
            rows = self.store.rows(cells[start : start + block])
            scale = np.repeat(self.target_sum / rows.library_size.astype(np.float64), np.diff(rows.indptr))
            total += np.bincount(rows.indices, weights=np.log1p(rows.values * scale), minlength=self.store.n_genes)
        return total / len(cells)


def sparse_tensors(rows: SparseCells, n_genes: int) -> SparseTensors:
    """numpy rows as tensors. uint16 is storage, not arithmetic: cast here, once."""
    row = np.repeat(np.arange(len(rows.library_size)), np.diff(rows.indptr))
    return SparseTensors(
        torch.from_numpy(row * n_genes + rows.indices.astype(np.int64)),
        torch.from_numpy(rows.values.astype(np.float32)),
        torch.from_numpy(rows.library_size),
    )
