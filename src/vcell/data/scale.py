"""Which scale a matrix is in, and the raw counts it came from.

Files come as raw counts, as log1p(counts), or as counts scaled to a total per cell with or without log1p.
The scaled forms are counts times a per-cell constant, so a cell's counts come back by dividing by its
smallest non-zero value (a count of 1, or a small whole number). The scale is decided per file on a sample
and verified for every cell; a cell that does not come back is an error, never a guess.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from vcell.errors import VcellError

# float32 holds log1p values near 10 to about 5e-7, so a count near 50,000 comes back to about 0.03
RELATIVE_TOLERANCE = 2e-6
ABSOLUTE_TOLERANCE = 0.01
WIDEST_TOLERANCE = 0.2
# the smallest non-zero count of a cell is nearly always 1; in cells of few genes it can be more
SMALLEST_COUNTS = range(1, 13)


class Scale(StrEnum):
    """Scales from which counts come back."""

    COUNTS = "counts"
    LOG1P_COUNTS = "log1p_counts"
    LOG1P_NORMALISED = "log1p_normalised"
    NORMALISED = "normalised"


def is_whole(values: np.ndarray) -> np.ndarray:
    """Whether each value lies within the stated tolerance of a whole number."""
    tolerance = np.clip(RELATIVE_TOLERANCE * np.abs(values), ABSOLUTE_TOLERANCE, WIDEST_TOLERANCE)
    return np.abs(values - np.rint(values)) <= tolerance


def recover_counts(values: np.ndarray, indptr: np.ndarray, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Counts behind the stored values of some cells.

    Parameters
    ----------
    values, indptr
        CSR rows: stored values, and where each cell's values start (from 0).
    scale
        What `values` are.

    Returns
    -------
    counts
        Whole numbers as float64, as long as `values`.
    recovered
        Per cell, whether every value came back as a whole number within tolerance.
    """
    values = values.astype(np.float64)
    if scale in (Scale.LOG1P_COUNTS, Scale.LOG1P_NORMALISED):
        with np.errstate(over="ignore"):
            values = np.expm1(values)
    if scale in (Scale.COUNTS, Scale.LOG1P_COUNTS):
        return np.rint(values), _every(is_whole(values), indptr)
    lengths = np.diff(indptr)
    smallest = _smallest_positive(values, indptr)
    counts = np.zeros_like(values)
    recovered = lengths == 0
    for smallest_count in SMALLEST_COUNTS:
        if recovered.all():
            break
        ratio = values * np.repeat(smallest_count / smallest, lengths)
        whole = _every(is_whole(ratio), indptr) & ~recovered
        counts = np.where(np.repeat(whole, lengths), np.rint(ratio), counts)
        recovered |= whole
    return counts, recovered


def detect_scale(values: np.ndarray, indptr: np.ndarray) -> Scale:
    """The scale of a sample of cells; at least 95 of 100 must give whole counts.

    Raises
    ------
    VcellError
        If no known scale gives whole counts: z-scored, batch-corrected or otherwise changed values.
    """
    wanted = 0.95
    looks_logged = values.size == 0 or values.max() < np.log(2**32)
    logged = [Scale.LOG1P_COUNTS, Scale.LOG1P_NORMALISED] if looks_logged else []
    for scale in [Scale.COUNTS, *logged, Scale.NORMALISED]:
        if recover_counts(values, indptr, scale)[1].mean() >= wanted:
            return scale
    raise VcellError(
        f"the values (from {values.min():.4g} to {values.max():.4g}) are neither raw counts, nor log1p of counts, nor "
        "counts scaled per cell with or without log1p, so no counts can be recovered from them. Give the file, or a "
        "layer, that holds raw counts (data.matrix=layers/counts, data.matrix=raw/X)"
    )


def _every(flags: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Per cell, whether all its flags are set; true for a cell without values."""
    failed = np.concatenate([[0], np.cumsum(~flags)])
    return failed[indptr[1:]] == failed[indptr[:-1]]


def _smallest_positive(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Per cell, its smallest value above 0; 1 for a cell without any."""
    smallest = np.full(len(indptr) - 1, np.inf)
    filled = np.flatnonzero(np.diff(indptr))
    if filled.size:
        positive = np.where(values > 0, values, np.inf)
        smallest[filled] = np.minimum.reduceat(positive, indptr[:-1][filled])
    return np.where(np.isfinite(smallest), smallest, 1.0)
