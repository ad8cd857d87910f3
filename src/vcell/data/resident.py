"""Stored rows of cells as tensors, and all rows of a store on a device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vcell.data.store.store import Cells, SparseCells
from vcell.process.progress import progress_bar

SHARE_FOR_STORE = 0.75  # of the GPU's free memory; the rest is for the model and its activations

BLOCK_CELLS = 4096
SIGNED = {
    np.dtype(np.uint16): np.dtype(np.int16),
    np.dtype(np.uint32): np.dtype(np.int32),
    np.dtype(np.float32): np.dtype(np.float32),
}
UNSIGNED = {signed: unsigned for unsigned, signed in SIGNED.items()}


@dataclass(frozen=True)
class SparseTensors:
    """Stored values of some cells as tensors."""

    lengths: Tensor  # int64 (cells), stored values of each cell
    genes: Tensor  # int16 or int32 (stored values), bits of the unsigned numbers in the store
    counts: Tensor  # the same; float32 where the store holds fractions
    library_size: Tensor  # float32 (cells)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.lengths, self.genes, self.counts, self.library_size


def sparse_tensors(rows: SparseCells) -> SparseTensors:
    """numpy rows as tensors, without a copy: torch supports unsigned integers only partly, so their bits are passed as signed ones."""
    return SparseTensors(
        torch.from_numpy(np.diff(rows.indptr)),
        torch.from_numpy(rows.indices.view(SIGNED[rows.indices.dtype])),
        torch.from_numpy(rows.values.view(SIGNED[rows.values.dtype])),
        torch.from_numpy(rows.library_size),
    )


def unsigned(bits: Tensor) -> Tensor:
    """The inverse of `sparse_tensors`' reinterpretation, int32 (fractions unchanged); counts and genes are below 2^31."""
    return bits.int() & 0xFFFF if bits.dtype == torch.int16 else bits


@dataclass(frozen=True)
class DeviceRows:
    """All rows of a store on a device."""

    starts: Tensor  # int64 (cells + 1)
    cells: SparseTensors  # of the whole store
    lengths: Tensor  # of its cells, on the host: sizes are known there without asking the device

    @classmethod
    def of(cls, store: Cells, device: torch.device | str) -> DeviceRows:
        """Copies a store to the device, block by block, into tensors that are there: its size is what it takes."""
        gene_type, count_type = store.number_types
        none = SparseCells(*(np.zeros(0, t) for t in (np.int64, gene_type, count_type, np.float32)))
        sizes = store.n_cells, store.stored_values, store.stored_values, store.n_cells
        types = (part.dtype for part in sparse_tensors(none).parts)
        whole = SparseTensors(*(torch.empty(n, dtype=t, device=device) for n, t in zip(sizes, types, strict=True)))
        lengths, at = torch.empty(store.n_cells, dtype=torch.int64), 0
        with progress_bar(store.n_cells, "store to the device", "cells") as progress:
            for start in range(0, store.n_cells, BLOCK_CELLS):
                cells = slice(start, min(start + BLOCK_CELLS, store.n_cells))
                read = store.rows(np.arange(cells.start, cells.stop))
                # before the numbers become signed: bits of a short one are another number in a long one
                rows = sparse_tensors(replace(read, indices=read.indices.astype(gene_type, copy=False), values=read.values.astype(count_type, copy=False)))  # fmt: skip
                values = slice(at, at + len(rows.genes))
                for part, place, block in zip(whole.parts, (cells, values, values, cells), rows.parts, strict=True):
                    part[place] = block.to(device)
                lengths[cells], at = rows.lengths, values.stop
                progress.update(len(rows.lengths))
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return cls(starts.to(device), whole, lengths)

    def rows(self, numbers: Tensor) -> SparseTensors:
        """Rows of the cells with these `numbers`, without a copy to the host."""
        total = int(self.lengths[numbers].sum())
        numbers = numbers.to(self.starts.device, non_blocking=True)
        start, lengths = self.starts[numbers], self.cells.lengths[numbers]
        before = start - (lengths.cumsum(0) - lengths)
        at = torch.arange(total, device=start.device) + torch.repeat_interleave(before, lengths, output_size=total)
        return SparseTensors(lengths, self.cells.genes[at], self.cells.counts[at], self.cells.library_size[numbers])


def bytes_on_device(store: Cells) -> int:
    """What `DeviceRows.of` needs: numbers and counts of two or four bytes."""
    return store.stored_values * sum(kind.itemsize for kind in store.number_types) + store.n_cells * 20
