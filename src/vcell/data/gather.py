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
    """Stored values of some cells as tensors."""

    lengths: Tensor  # int64 (cells), stored values of each cell
    genes: Tensor  # int16 or int32 (stored values), bits of the unsigned numbers in the store
    counts: Tensor  # the same
    library_size: Tensor  # float32 (cells)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.lengths, self.genes, self.counts, self.library_size

    def pin_memory(self) -> SparseTensors:
        return SparseTensors(*(part.pin_memory() for part in self.parts))


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
        cells = sparse_tensors(self.store.rows(np.concatenate([p.ravel() for p in parts])))
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
        lengths, genes, counts, library_size = (part.to(device, non_blocking=True) for part in cells.parts)
        row = torch.repeat_interleave(lengths, output_size=len(genes))
        # log1p(0) is 0, so only stored values need it: most of a cell is zeros
        log1p = to_log1p(unsigned(counts).unsqueeze(-1), library_size[row], self.target_sum).squeeze(-1)
        dense_CG = torch.zeros(len(library_size), self.store.n_genes, device=device)
        dense_CG.view(-1)[row * self.store.n_genes + unsigned(genes)] = log1p
        return dense_CG

    def log1p(self, cells: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """`cells` as log1p, ``(cells, genes)``."""
        return self.densify(sparse_tensors(self.store.rows(cells)), device)

    def pseudobulk_mean_log1p(self, cells: np.ndarray, block: int = 4096) -> np.ndarray:
        """Mean log1p over `cells`, float64 ``(genes)``; summed over stored values only, in blocks."""
        total = np.zeros(self.store.n_genes)
        for start in range(0, len(cells), block):
            rows = self.store.rows(cells[start : start + block])
            scale = np.repeat(self.target_sum / rows.library_size.astype(np.float64), np.diff(rows.indptr))
            total += np.bincount(rows.indices, weights=np.log1p(rows.values * scale), minlength=self.store.n_genes)
        return total / len(cells)


def sparse_tensors(rows: SparseCells) -> SparseTensors:
    """numpy rows as tensors, without a copy: torch knows unsigned numbers only partly, so their bits travel."""
    signed = {np.dtype(np.uint16): np.int16, np.dtype(np.uint32): np.int32}
    return SparseTensors(
        torch.from_numpy(np.diff(rows.indptr)),
        torch.from_numpy(rows.indices.view(signed[rows.indices.dtype])),
        torch.from_numpy(rows.values.view(signed[rows.values.dtype])),
        torch.from_numpy(rows.library_size),
    )


def unsigned(bits: Tensor) -> Tensor:
    """The numbers whose bits `sparse_tensors` took, int32; no count or gene number reaches 2^31."""
    return bits.int() & 0xFFFF if bits.dtype == torch.int16 else bits
