"""Predicted and measured cells on one scale: log1p of counts per one total, or whole counts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from vcell.data.files.normalize import LARGEST_LOG1P, counts_of_log1p, log1p_as_scanpy
from vcell.data.files.scale import Scale, detect_scale, recover_counts
from vcell.errors import VcellError
from vcell.score.cells import SAMPLE_CELLS, Columns
from vcell.score.rows import LabelledCells, with_values
from vcell.system import in_threads


def whole_counts(cells: LabelledCells, path: Path, what: str) -> LabelledCells:
    """The cells as whole counts, which the scores of 2026 require; counts are recovered from measured log1p counts.

    Raises
    ------
    VcellError
        If there are none, here or where cells are first read.
    """
    scale = scale_of_prediction(cells) if what == "the prediction" else scale_of(cells)
    if scale is Scale.COUNTS:

        def check(block: sparse.csr_matrix) -> None:
            if not (block.data == np.rint(block.data)).all():
                raise VcellError(f"{path}: X contains counts that are not whole; the 2026 scores require whole counts")

        return cells.checked(check)
    if what == "the prediction" or not scale.recoverable:
        hint = (
            " python -m vcell.infer challenge=vcc2026 writes them; python -m vcell.package pred=FILE challenge=vcc2026 makes "
            "them from other predictions"
        )
        raise VcellError(
            f"{path}: the 2026 scores require whole counts, and those of {what} are {'log1p or other values' if scale is Scale.UNKNOWN else scale.words}."
            f"{hint if what == 'the prediction' else ' Give the file with their raw counts'}"
        )
    return cells.revalued(lambda block: recovered(block, scale, what))


def scale_of(cells: LabelledCells) -> Scale:
    """The scale of the values, on cells spread over all."""
    spread = np.unique(np.linspace(0, cells.n_cells - 1, min(cells.n_cells, SAMPLE_CELLS)).astype(int))
    sample = cells.take(spread)
    return detect_scale(sample.data, sample.indptr)


def scale_of_prediction(cells: LabelledCells) -> Scale:
    """The same of a prediction, whose control cells may be measured, on a scale, and its other cells what a network says, on none."""
    try:
        return scale_of(cells)
    except VcellError:
        return Scale.UNKNOWN


def log1p_target_sum(cells: LabelledCells, about: dict[str, Any], columns: Columns) -> float:
    """Counts per cell of a log1p matrix: as the file says, else as its control cells show.

    Raises
    ------
    VcellError
        If control cells have totals so different that they were not scaled to one, or not to what the file says.
    """
    rows = np.flatnonzero(cells.labels == columns.control)
    if not len(rows):
        raise VcellError(
            f"the prediction has no control cells {columns.control!r}, from which to tell what its values were scaled to"
        )
    controls = cells.take(rows).copy()
    controls.data = counts_of_log1p(controls.data.astype(np.float64))
    totals = np.asarray(controls.sum(axis=1)).ravel()
    if about.get("target_sum"):
        stated = float(about["target_sum"])
        # genes may have been dropped after scaling, so totals may lie below
        if np.median(totals) > 1.05 * stated:
            raise VcellError(
                f"the prediction says it is scaled to {stated:,.0f} counts per cell; its control cells sum to "
                f"{np.median(totals):,.0f}: the file was changed after it was written"
            )
        return stated
    low, middle, high = np.quantile(totals, [0.05, 0.5, 0.95])
    if high > 1.05 * low:
        raise VcellError(
            f"the control cells of the prediction sum to {low:,.0f} to {high:,.0f} counts after expm1: they were not "
            "scaled to one total. Give log1p of counts scaled to one total per cell, or whole counts"
        )
    return float(middle)


def recovered(cells: sparse.csr_matrix, scale: Scale, what: str) -> sparse.csr_matrix:
    """Whole counts, float32; every cell must give them back."""
    if scale is Scale.COUNTS and (cells.data == np.rint(cells.data)).all():
        return cells.astype(np.float32, copy=False)
    found = recover_counts(cells.data, cells.indptr, scale)
    if not found.fine.all():
        raise VcellError(f"{what}: {int((~found.fine).sum()):,} cells cannot be recovered as counts: {scale.words}")
    parts = (found.counts.astype(np.float32), cells.indices, cells.indptr)
    return sparse.csr_matrix(parts, shape=cells.shape)


def log1p_of_counts(cells: sparse.csr_matrix, scale: Scale, target_sum: float, what: str) -> sparse.csr_matrix:
    """log1p of counts per `target_sum`; through the counts, which every cell must give back."""
    counts = recovered(cells, scale, what)
    values = log1p_as_scanpy(counts.data, np.diff(counts.indptr), _totals(counts), target_sum)
    return with_values(counts, values)


def _totals(cells: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(cells.sum(axis=1)).ravel()


def same_scale(
    pred: LabelledCells, real: LabelledCells, about: dict[str, Any], columns: Columns
) -> tuple[LabelledCells, LabelledCells, float, float]:
    """Both as log1p of counts per one target sum; this sum, and the measured cells' median library size.

    Measured cells go through their raw counts, so whatever scale their file is in, the comparison is on the
    prediction's. A prediction of whole counts is scaled as the official scorer would: to its cells' median total.
    """
    looks = [partial(scale_of, real)]
    if about.get("scale") != "log1p":  # predicted log1p values need not come from whole counts
        looks.append(partial(scale_of_prediction, pred))
    real_scale, *found = in_threads(lambda look: look(), looks)
    if not real_scale.recoverable:
        raise VcellError(
            f"the values of the measured cells are {real_scale.words}: give the file with their raw counts, or log1p of them"
        )
    if found == [Scale.COUNTS]:
        target_sum = float(np.median(totals_of(pred, Scale.COUNTS, "the prediction")))
        if target_sum == 0:
            raise VcellError("the prediction holds no counts: half of its cells or more are zero in every gene")
        pred = pred.revalued(lambda block: log1p_of_counts(block, Scale.COUNTS, target_sum, "the prediction"))
    else:
        largest = max((float(block.data.max(initial=0.0)) for block in pred.blocks()), default=0.0)
        if largest >= LARGEST_LOG1P:
            raise VcellError(
                f"the prediction holds values up to {largest:,.1f}: neither whole counts nor log1p (below {LARGEST_LOG1P:.0f})"
            )
        target_sum = log1p_target_sum(pred, about, columns)
    middle = float(np.median(totals_of(real, real_scale, "the measured cells")))
    real = real.revalued(lambda block: log1p_of_counts(block, real_scale, target_sum, "the measured cells"))
    return pred, real, target_sum, middle


def totals_of(cells: LabelledCells, scale: Scale, what: str) -> np.ndarray:
    """Counts of each cell, which every cell must give back."""
    return np.concatenate(list(in_threads(lambda block: _totals(recovered(block, scale, what)), cells.blocks())))
