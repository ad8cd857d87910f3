"""What takes longest of the scores, on a GPU: rank tests and the jackknife of sparse cells.

On the CPU `ranksum` and `vcc2026` do the same on the stored values alone; here cells are made dense, some genes or all of them at a
time, in double precision.

Shape legend: C cells, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vcell.model.scores import GENES_AT_A_TIME, Reference
from vcell.score.ranksum import Tested
from vcell.score.rows import with_values


class DenseRankTest:
    """The tests of `ranksum.SortedControls`, by tensors.

    Parameters
    ----------
    controls
        Control cells.
    device
        Where.
    tested_G
        The genes that are tested, a mask; None: all.
    """

    def __init__(self, controls: sparse.csr_matrix, device: torch.device, tested_G: np.ndarray | None = None) -> None:
        self.device, self.tested_G = device, tested_G
        self.references = [Reference.of(part_GC) for part_GC in self._parts(controls)]

    def __call__(self, groups: Sequence[sparse.csr_matrix], copies: int = 1) -> np.ndarray:
        return np.stack([self._p_of(cells, copies) for cells in groups])

    def _p_of(self, cells: sparse.csr_matrix, copies: int = 1) -> np.ndarray:
        parts = zip(self.references, self._parts(cells), strict=True)
        found = [reference.rank_sum_p(part_GC.repeat(1, copies)) for reference, part_GC in parts]
        return torch.cat(found).cpu().numpy()

    def drawn_from(self, pool: sparse.csr_matrix, tested: Tested) -> Callable[[np.ndarray], np.ndarray]:
        values = with_values(pool, tested(pool))
        return lambda rows: self._p_of(values[rows])

    def _parts(self, cells: sparse.csr_matrix) -> tuple[Tensor, ...]:
        tested = cells if self.tested_G is None else cells[:, self.tested_G]
        return _dense(tested, self.device).split(GENES_AT_A_TIME)


def dense_jackknife(counts: sparse.csr_matrix, target: float, device: torch.device) -> float:
    """Sampling variance of a pseudobulk, summed over genes, by leaving out one cell at a time; 0 for a single cell."""
    n = counts.shape[0]
    counts_CG = _dense(counts, device).t()
    sum_G = counts_CG.sum(0)
    total = sum_G.sum()
    if n < 2 or total <= 0:
        return 0.0
    rest_C = (total - counts_CG.sum(1))[:, None]
    without_CG = torch.log1p(target * (sum_G - counts_CG) / rest_C.clamp(min=1.0))
    apart_CG = torch.where(rest_C > 0, without_CG, 0.0) - torch.log1p(target * sum_G / total)
    squares = (apart_CG.square().sum(0) - apart_CG.sum(0).square() / n).sum()
    return max(float(squares) * (n - 1) / n, 0.0)


def _dense(cells: sparse.csr_matrix, device: torch.device) -> Tensor:
    """Float64 ``(genes, cells)``; only stored values travel."""
    rows = np.repeat(np.arange(cells.shape[0]), np.diff(cells.indptr))
    values, genes, rows_t = (
        torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (cells.data, cells.indices.astype(np.int64), rows)
    )
    dense_GC = torch.zeros(cells.shape[1], cells.shape[0], dtype=torch.float64, device=device)
    dense_GC[genes, rows_t] = values.double()
    return dense_GC
