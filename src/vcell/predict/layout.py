"""The form of predicted cells in a file: which genes, in which order, on which scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from vcell.data.dense import sparse_columns
from vcell.data.files.genes import align
from vcell.data.files.normalize import log1p_as_scanpy
from vcell.data.store.store import Cells


@dataclass(frozen=True)
class Layout:
    """How cells are written.

    Parameters
    ----------
    genes
        Of the file, in order.
    source_genes
        int64: the store's number of each of them; -1 for one that the control cells do not have, which is 0.
    values
        ``log1p`` of counts per `target_sum`, or ``counts``.
    """

    genes: list[str]
    source_genes: np.ndarray
    values: str
    target_sum: float

    @classmethod
    def of(cls, genes: Sequence[str], store: Cells, values: str, target_sum: float) -> Layout:
        """`genes` are the store's by name, or mean the same gene."""
        same = list(genes) == store.genes
        position = np.arange(len(genes)) if same else align(list(genes), store.genes).position
        return cls(list(genes), position, values, target_sum)

    @cached_property
    def _place(self) -> np.ndarray:
        """Number in the file of each of the store's genes; -1 for none."""
        place = np.full(int(self.source_genes.max(initial=-1)) + 1, -1, np.int64)
        place[self.source_genes[self.source_genes >= 0]] = np.flatnonzero(self.source_genes >= 0)
        return place

    def of_counts(self, counts: sparse.csr_matrix, library_C: np.ndarray) -> sparse.csr_matrix:
        """Cells of the file, float32, from whole counts of the store's genes and the cells' library sizes."""
        values = counts.data.astype(np.float32)
        if self.values == "log1p":  # control cells are then those that the scorers make of the measured ones
            values = log1p_as_scanpy(values, np.diff(counts.indptr), library_C, self.target_sum)
        return self._in_file(sparse.csr_matrix((values, counts.indices, counts.indptr), counts.shape))

    def of_log1p(self, log1p_CG: np.ndarray) -> sparse.csr_matrix:
        """Cells of the file from log1p of the store's genes, on the same scale as these."""
        return sparse_columns(log1p_CG, self.source_genes)

    def _in_file(self, cells: sparse.csr_matrix) -> sparse.csr_matrix:
        if not np.array_equal(self.source_genes, np.arange(cells.shape[1])):
            place = np.full(cells.shape[1], -1, np.int64)
            place[: len(self._place)] = self._place
            cells = sparse.csr_matrix(cells)
            kept = place[cells.indices] >= 0
            starts = np.concatenate([[0], np.cumsum(kept)])[cells.indptr]
            found = (cells.data[kept], place[cells.indices[kept]].astype(np.int32), starts)
            cells = sparse.csr_matrix(found, shape=(cells.shape[0], len(self.genes)))
        cells.sort_indices()
        return cells
