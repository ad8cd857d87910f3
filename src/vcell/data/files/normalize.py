"""The one place where counts change scale: `to_log1p` and its inverse `from_log1p`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# the largest plausible log1p: of counts per cell that no experiment reaches (3 million); larger values are not logarithms
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
    return torch.log1p(counts.float() * (target_sum / library_size.float()).unsqueeze(-1))


def stored_to_log1p(counts: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`to_log1p` for single values on the CPU: counts times their cell's ``target_sum / library_size``, float32.

    numpy, because torch starts its threads anew for every small block; the numbers agree to the last bit or so.
    """
    values = np.multiply(counts, scale, dtype=np.float32, casting="unsafe")  # counts above 65,535 would make it float64
    return np.log1p(values, out=values)


def counts_of(log1p: np.ndarray) -> np.ndarray:
    """Scaled counts from their log1p, in double precision."""
    return np.expm1(np.asarray(log1p, np.float64))


def from_log1p(log1p: Tensor, library_size: Tensor, target_sum: float) -> Tensor:
    """The inverse of `to_log1p`: expected counts, ``(..., cells, genes)``, not rounded to whole numbers."""
    return torch.expm1(log1p.float()) * (library_size.float() / target_sum).unsqueeze(-1)


def change_target_sum(log1p: Tensor, old: float, new: float) -> Tensor:
    """log1p of counts per `old` as log1p of counts per `new`; the same object when they are equal."""
    return log1p if old == new else torch.log1p(torch.expm1(log1p.float()) * (new / old))
