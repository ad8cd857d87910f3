"""Which scale a matrix is in, and the raw counts it came from.

Files come as raw counts, as log1p(counts), or as counts scaled to a total per cell with or without log1p.
The scaled forms are counts times a per-cell constant, so a cell's counts are recovered by dividing by its
smallest non-zero value (a count of 1, or a small whole number). The scale is decided per file on a sample
and verified for every cell. If all counts of a cell share a divisor, they are recovered divided by it: the values cannot reveal
this. Values from which counts cannot be recovered are named for what they are, and kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from vcell.data.files.csr import LARGEST, positions, row_sums, starts_of
from vcell.data.files.normalize import LARGEST_LOG1P, counts_of_log1p
from vcell.errors import VcellError

# float32 holds log1p values near 10 to about 5e-7, so a count near 50,000 is recovered to about 0.03
RELATIVE_TOLERANCE = 2e-6
ABSOLUTE_TOLERANCE = 0.01
WIDEST_TOLERANCE = 0.2
# the smallest non-zero count of a cell is nearly always 1; in cells of few genes it can be more
SMALLEST_COUNTS = range(1, 13)
SAME_TOTAL = 0.01  # spread of the cells' totals, relative, below which they were scaled to one
WANTED = 0.95  # of the cells of a sample
TELLING_VALUES = 10
FEWEST_TELLING = 10  # cells
NEARLY_ONE_TOTAL = 0.01  # spread of the totals of values rounded after scaling; depths of cells differ by far more


class Scale(StrEnum):
    """What stored values are. Counts can be recovered from the first four; the others are kept as they are."""

    COUNTS = "counts"
    LOG1P_COUNTS = "log1p_counts"
    LOG1P_NORMALISED = "log1p_normalised"
    NORMALISED = "normalised"
    LOG1P_FRACTIONAL = "log1p_fractional"
    FRACTIONAL = "fractional"
    LOG1P_ROUNDED = "log1p_rounded"
    ROUNDED = "rounded"
    UNKNOWN = "unknown"

    @property
    def recoverable(self) -> bool:
        return self in (Scale.COUNTS, Scale.LOG1P_COUNTS, Scale.LOG1P_NORMALISED, Scale.NORMALISED)

    @property
    def logged(self) -> bool:
        return self.startswith("log1p")

    @property
    def words(self) -> str:
        return {
            Scale.COUNTS: "raw counts",
            Scale.LOG1P_COUNTS: "log1p of raw counts",
            Scale.LOG1P_NORMALISED: "log1p of counts scaled per cell",
            Scale.NORMALISED: "counts scaled per cell",
            Scale.LOG1P_FRACTIONAL: "log1p of scaled values that are not multiples of whole counts",
            Scale.FRACTIONAL: "values above 0 that are not multiples of whole counts",
            Scale.LOG1P_ROUNDED: "log1p of counts scaled to one total per cell and then rounded: all cells have nearly the same total",
            Scale.ROUNDED: "counts scaled to one total per cell and then rounded: all cells have nearly the same total",
            Scale.UNKNOWN: "unknown: neither counts, nor scaled counts, nor log1p of values with one total",
        }[self]


@dataclass(frozen=True)
class Recovered:
    """Counts behind some cells' stored values."""

    counts: np.ndarray  # float64 whole numbers (stored values)
    fine: np.ndarray  # bool (cells): every value came back as a whole number within tolerance
    unit: np.ndarray  # float64 (cells): what one count was scaled to; 1 where nothing was scaled


def is_whole(values: np.ndarray) -> np.ndarray:
    """Whether each value lies within the stated tolerance of a whole number; a small value above 0 is not 0."""
    tolerance = np.clip(RELATIVE_TOLERANCE * np.abs(values), ABSOLUTE_TOLERANCE, WIDEST_TOLERANCE)
    return (np.abs(values - np.rint(values)) <= tolerance) & ((values <= 0) | (values > 0.5))


def linear(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Values with log1p undone, float64."""
    values = values.astype(np.float64)
    with np.errstate(over="ignore"):
        return counts_of_log1p(values) if scale.logged else values


def recover_counts(values: np.ndarray, indptr: np.ndarray, scale: Scale) -> Recovered:
    """Counts behind the stored values of some cells.

    Parameters
    ----------
    values, indptr
        CSR rows: stored values, and where each cell's values start (from 0).
    scale
        What `values` are; one from which counts can be recovered.
    """
    values, lengths = linear(values, scale), np.diff(indptr)
    unit = np.ones(len(lengths))
    if scale in (Scale.COUNTS, Scale.LOG1P_COUNTS):
        whole = np.rint(values)
        fine = np.ones(len(lengths), bool) if (whole == values).all() else _every(is_whole(values), indptr)
        return Recovered(whole, fine, unit)
    smallest = smallest_positive(values, indptr)
    counts = np.zeros_like(values)
    fine = lengths == 0
    for smallest_count in SMALLEST_COUNTS:
        left = np.flatnonzero(~fine)
        if not left.size:
            break
        at = positions(indptr[left], lengths[left])  # only cells that are not recovered yet
        ratio = values[at] * np.repeat(smallest_count / smallest[left], lengths[left])
        whole = _every(is_whole(ratio), starts_of(lengths[left]))
        done = np.repeat(whole, lengths[left])
        counts[at[done]] = np.rint(ratio[done])
        unit[left[whole]] = smallest[left[whole]] / smallest_count
        fine[left[whole]] = True
    return Recovered(counts, fine, unit)


def detect_scale(values: np.ndarray, indptr: np.ndarray) -> Scale:
    """The scale of a sample of cells without negative, infinite or NaN values; 95 of 100 cells must agree.

    Raises
    ------
    VcellError
        If the cells are on several scales.
    """
    looks_logged = values.size == 0 or values.max() < LARGEST_LOG1P
    logged = [Scale.LOG1P_COUNTS, Scale.LOG1P_NORMALISED] if looks_logged else []
    telling = np.diff(indptr) >= TELLING_VALUES  # a cell of few values may look like counts by chance
    left, found = telling.copy(), {}
    for scale in [Scale.COUNTS, *logged, Scale.NORMALISED]:
        fine = recover_counts(values, indptr, scale).fine
        if fine.mean() >= WANTED:
            return _told_by_steps(values, indptr, scale)
        found[scale] = int((fine & left).sum())
        left &= ~fine
    if sum(found.values()) > (1 - WANTED) * telling.sum():
        found[Scale.UNKNOWN] = int(left.sum())
        shares = "; ".join(f"{n / telling.sum():.0%} {scale.words}" for scale, n in found.items() if n)
        raise VcellError(
            f"the cells are on several scales ({shares}): scores and losses would compare numbers on different scales. "
            "Write cells of each scale to a file of their own; or, where all are counts from which something was subtracted (ambient RNA), "
            "keep the values as they are: data.scale=fractional (or log1p_fractional)"
        )
    if not looks_logged:
        return Scale.FRACTIONAL
    # of two ways to read them, the one by which the cells' totals agree; small values look alike both ways
    candidates = [s for s in (Scale.FRACTIONAL, Scale.LOG1P_FRACTIONAL) if one_total(values, indptr, s) is not None]
    return min(candidates, key=lambda s: np.ptp(cell_totals(values, indptr, s)), default=Scale.UNKNOWN)


def _told_by_steps(values: np.ndarray, indptr: np.ndarray, scale: Scale) -> Scale:
    """Whether whole values are counts: scaled ones may be whole too, by their factor or by rounding.

    Counts of a cell are 1 and more, so that the smallest step between its values is 1. Where it is larger in nearly every cell, the
    values are multiples of a count. And cells of one experiment have totals of their own: totals that are equal to a few parts in a
    thousand, but not exactly, were scaled and rounded; exactly equal ones may have been drawn down to one depth.
    """
    if scale not in (Scale.COUNTS, Scale.LOG1P_COUNTS):
        return scale
    whole = np.rint(linear(values, scale))
    if whole.max(initial=0) > LARGEST:  # said where cells are named
        return scale
    keep = whole > 0
    starts = starts_of(keep)[indptr]
    lengths = np.diff(starts)
    filled = np.flatnonzero(lengths)
    telling = lengths[filled] >= TELLING_VALUES
    if telling.sum() < FEWEST_TELLING:
        return scale
    whole, begins = whole[keep].astype(np.int64), starts[:-1][filled]
    steps = np.gcd.reduceat(whole, begins)[telling]
    if np.mean(steps > 1) >= WANTED:
        return Scale.NORMALISED if scale is Scale.COUNTS else Scale.LOG1P_NORMALISED
    totals = np.add.reduceat(whole, begins)[telling]
    low, high = np.quantile(totals, [0.02, 0.98])
    if low != high and high / low - 1 < NEARLY_ONE_TOTAL:
        return Scale.ROUNDED if scale is Scale.COUNTS else Scale.LOG1P_ROUNDED
    return scale


def cell_totals(values: np.ndarray, indptr: np.ndarray, scale: Scale) -> np.ndarray:
    """Sum of each cell's values with log1p undone, float64 ``(cells)``."""
    return row_sums(linear(values, scale), indptr)


def one_total(values: np.ndarray, indptr: np.ndarray, scale: Scale) -> float | None:
    """The total that the cells were scaled to, if they sum to one (log1p undone); None if they do not."""
    totals = cell_totals(values, indptr, scale)
    totals = totals[np.diff(indptr) > 0]
    if not totals.size or not np.isfinite(totals).all():
        return None
    middle = float(np.median(totals))
    return middle if np.mean(np.abs(totals / middle - 1) < SAME_TOTAL) >= WANTED else None


def _every(flags: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Per cell, whether all its flags are set; true for a cell without values."""
    failed = starts_of(~flags)
    return failed[indptr[1:]] == failed[indptr[:-1]]


def smallest_positive(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Per cell, its smallest value above 0; 1 for a cell without any."""
    smallest = np.full(len(indptr) - 1, np.inf)
    filled = np.flatnonzero(np.diff(indptr))
    if filled.size:
        positive = np.where(values > 0, values, np.inf)
        smallest[filled] = np.minimum.reduceat(positive, indptr[:-1][filled])
    return np.where(np.isfinite(smallest), smallest, 1.0)
