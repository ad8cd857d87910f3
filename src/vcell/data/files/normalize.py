"""The one place where counts change scale: to log1p of counts per a total and back, for tensors and for numpy arrays.

The numpy forms exist because torch starts its threads again for every small block; the numbers agree to the last bit or so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor  # its methods are enough here: looking at files does not load torch

# the largest plausible log1p, as in the official validator: 3.3 million counts of one gene in one cell; more is no logarithm
LARGEST_LOG1P = 15.0


def to_log1p(counts: Tensor, library_size: Tensor, target_sum: float) -> Tensor:
    """Scale each cell to `target_sum` counts and take log1p.

    Parameters
    ----------
    counts
        Raw counts, ``(..., cells, genes)``.
    library_size
        Counts per cell over *all* measured genes, ``(..., cells)``, greater than 0. Summed before any
        choice of genes, so that a gene subset does not change a cell's scale.
    target_sum
        Counts per cell after scaling.

    Returns
    -------
    log1p of counts per `target_sum`, ``(..., cells, genes)``, float32. The same numbers as
    ``scanpy.pp.normalize_total(target_sum=target_sum)`` followed by ``scanpy.pp.log1p``.
    """
    return (counts.float() * (target_sum / library_size.float()).unsqueeze(-1)).log1p()


def from_log1p(log1p: Tensor, library_size: Tensor, target_sum: float) -> Tensor:
    """The inverse of `to_log1p`: expected counts, ``(..., cells, genes)``, not rounded to whole numbers."""
    return log1p.float().expm1() * (library_size.float() / target_sum).unsqueeze(-1)


def change_target_sum(log1p: Tensor, old: float, new: float) -> Tensor:
    """log1p of counts per `old` as log1p of counts per `new`; the same object when they are equal."""
    return log1p if old == new else (log1p.float().expm1() * (new / old)).log1p()


def scaled_log1p(counts: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`to_log1p` of single values, in their own precision: `scale` is ``target_sum / library_size`` of each one's cell."""
    return np.log1p(counts * scale)


def stored_to_log1p(counts: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`scaled_log1p` in single precision, and in place."""
    values = np.multiply(counts, scale, dtype=np.float32, casting="unsafe")  # counts above 65,535 would make it float64
    return np.log1p(values, out=values)


def log1p_as_scanpy(counts: np.ndarray, per_cell: np.ndarray, library_C: np.ndarray, target_sum: float) -> np.ndarray:
    """`to_log1p` of stored counts, float32, to the last bit as `scanpy.pp.normalize_total` and `log1p` have them, whose numbers the official
    scorers read.

    Parameters
    ----------
    counts, per_cell
        Of each cell in turn the stored counts, float32, and how many these are.
    library_C
        Counts of each cell.
    """
    divisor_C = library_C.astype(np.float32) / np.float32(target_sum)
    divisor_C[divisor_C == 0] = 1
    values = counts / np.repeat(divisor_C, per_cell)
    return np.log1p(values, out=values)


def counts_of_log1p(log1p: np.ndarray) -> np.ndarray:
    """Scaled counts from their log1p, in its own precision, single at least: the inverse of `scaled_log1p` before the division by the scale."""
    # numpy takes small whole numbers for half precision
    return np.expm1(log1p, dtype=np.result_type(log1p, np.float32))


def pseudobulk_log1p(total_G: np.ndarray, target_sum: float) -> np.ndarray:
    """log1p of summed counts scaled to `target_sum`, ``(genes)``; 0 where there are none."""
    total = total_G.sum()
    return np.log1p(total_G * (target_sum / total if total > 0 else 0.0))
