"""Predicted and measured cells made comparable: same genes, same targets, same scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse

from vcell.data.h5ad import open_h5ad
from vcell.data.scale import Scale, detect_scale, recover_counts
from vcell.errors import VcellError, nearest, shortlist

SAMPLE_CELLS = 500


@dataclass(frozen=True)
class Columns:
    """obs columns of target and context, and the label of control cells."""

    perturbation: str
    context: str | None
    control: str


def read_cells(path: Path, columns: Columns) -> ad.AnnData:
    """An h5ad in memory, X as CSR; its labels checked."""
    with open_h5ad(path):
        pass
    try:
        cells = ad.read_h5ad(path)
    except Exception as error:
        raise VcellError(f"{path} cannot be read as h5ad ({type(error).__name__}: {error})") from error
    if cells.X is None:
        raise VcellError(f"{path} has no X")
    cells.X = sparse.csr_matrix(cells.X)
    if not np.isfinite(cells.X.data).all() or (cells.X.data < 0).any():
        raise VcellError(f"{path}: X holds NaN, infinite or negative values")
    if columns.perturbation not in cells.obs:
        raise VcellError(
            f"{path} has no obs column {columns.perturbation!r}.{nearest(columns.perturbation, cells.obs)} "
            f"It has: {', '.join(map(str, cells.obs))}. Set columns.perturbation=NAME"
        )
    labels = cells.obs[columns.perturbation].astype(str)
    if not (labels == columns.control).any():
        raise VcellError(
            f"{path} has no control cells {columns.control!r}: scores are differences from controls."
            f"{nearest(columns.control, labels.unique())} Set control=LABEL"
        )
    cells.obs[columns.perturbation] = labels.to_numpy()
    return cells


def match(pred: ad.AnnData, real: ad.AnnData, columns: Columns) -> tuple[ad.AnnData, ad.AnnData, list[str]]:
    """Both restricted to common targets, `real` in the gene order of `pred`; and notes on what was left out."""
    if set(pred.var_names) != set(real.var_names):
        only_pred, only_real = set(pred.var_names) - set(real.var_names), set(real.var_names) - set(pred.var_names)
        raise VcellError(
            f"prediction and measured cells have different genes: {len(only_pred):,} only in the prediction "
            f"({shortlist(sorted(only_pred), 3)}), {len(only_real):,} only in the measured ({shortlist(sorted(only_real), 3)})"
        )
    notes = []
    in_pred, in_real = (set(cells.obs[columns.perturbation]) - {columns.control} for cells in (pred, real))
    common = in_pred & in_real
    if not common:
        raise VcellError(
            f"no predicted target is among the measured ones: predicted {shortlist(sorted(in_pred), 5)}; measured "
            f"{shortlist(sorted(in_real), 5)}"
        )
    if in_pred - common:
        notes.append(f"{len(in_pred - common):,} predicted targets were not measured and are not scored")
    if in_real - common:
        notes.append(f"{len(in_real - common):,} measured targets were not predicted and are not scored")
    keep = [*common, columns.control]
    pred, real = (cells[cells.obs[columns.perturbation].isin(keep)] for cells in (pred, real))
    return pred.copy(), real[:, pred.var_names].copy(), notes


def scale_of(cells: ad.AnnData) -> Scale:
    """The scale of X, on cells spread over the file."""
    spread = np.unique(np.linspace(0, cells.n_obs - 1, min(cells.n_obs, SAMPLE_CELLS)).astype(int))
    sample = cells.X[spread]
    return detect_scale(sample.data, sample.indptr)


def log1p_target_sum(cells: ad.AnnData, about: dict[str, Any], columns: Columns) -> float:
    """Counts per cell of a log1p matrix: as the file says, else as its control cells show.

    Raises
    ------
    VcellError
        If control cells have totals so different that they were not scaled to one.
    """
    if about.get("target_sum"):
        return float(about["target_sum"])
    controls = cells.X[(cells.obs[columns.perturbation] == columns.control).to_numpy()].copy()
    controls.data = np.expm1(controls.data.astype(np.float64))
    totals = np.asarray(controls.sum(axis=1)).ravel()
    low, middle, high = np.quantile(totals, [0.05, 0.5, 0.95])
    if high > 1.05 * low:
        raise VcellError(
            f"the control cells of the prediction sum to {low:,.0f} to {high:,.0f} counts after expm1: they were not "
            "scaled to one total. Give log1p of counts scaled to one total per cell, or whole counts"
        )
    return float(middle)


def counts_to_log1p(cells: ad.AnnData, scale: Scale, target_sum: float, what: str) -> None:
    """X, in place, to log1p of counts per `target_sum`; through the counts, which every cell must give back."""
    import scanpy

    found = recover_counts(cells.X.data, cells.X.indptr, scale)
    if not found.fine.all():
        raise VcellError(f"{what}: {int((~found.fine).sum()):,} cells do not come back as counts: {scale.words}")
    cells.X = sparse.csr_matrix((found.counts.astype(np.float32), cells.X.indices, cells.X.indptr), shape=cells.X.shape)
    scanpy.pp.normalize_total(cells, target_sum=target_sum)
    scanpy.pp.log1p(cells)


def same_scale(pred: ad.AnnData, real: ad.AnnData, about: dict[str, Any], columns: Columns) -> float:
    """Brings both to log1p of counts per one target sum, which is returned.

    Measured cells go through their raw counts, so whatever scale their file is in, the comparison is on the
    prediction's. A prediction of whole counts is scaled as the official scorer would: to its cells' median total.
    """
    real_scale = scale_of(real)
    if not real_scale.recoverable:
        raise VcellError(
            f"the values of the measured cells are {real_scale.words}: give the file with their raw counts, or log1p of them"
        )
    # predicted log1p values need not come from whole counts
    pred_scale = None if about.get("scale") == "log1p" else scale_of(pred)
    if pred_scale is Scale.COUNTS:
        target_sum = float(np.median(np.asarray(pred.X.sum(axis=1)).ravel()))
        counts_to_log1p(pred, Scale.COUNTS, target_sum, "the prediction")
    else:
        if pred.X.data.size and pred.X.data.max() >= 15:
            raise VcellError(
                f"the prediction holds values up to {pred.X.data.max():,.1f}: neither whole counts nor log1p (below 15)"
            )
        target_sum = log1p_target_sum(pred, about, columns)
    counts_to_log1p(real, real_scale, target_sum, "the measured cells")
    return target_sum
