"""Predicted and measured cells made comparable: same context, same genes, same targets, same scale."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from vcell.data.h5ad import open_h5ad
from vcell.data.scale import Scale, detect_scale, recover_counts
from vcell.errors import VcellError, nearest, shortlist
from vcell.score.grouped import GroupedCells

SAMPLE_CELLS = 500
CONTEXT_COLUMNS = ("context", "cell_type", "cell_line")


@dataclass(frozen=True)
class Columns:
    """obs columns of target and context, and the label of control cells."""

    perturbation: str
    context: str | None
    control: str


@dataclass(frozen=True)
class Pair:
    """Predicted and measured cells of one context, on one scale, with the targets and genes they share.

    Attributes
    ----------
    context
        Its name, "" where the files have one without a name.
    pred, real
        log1p for the scores of 2025, whole counts for those of 2026; a prediction without control cells has the measured ones.
    target_sum
        Counts per cell of log1p values; None for counts.
    own_controls
        Whether the prediction brought control cells.
    real_total
        Median library size of the measured cells' counts.
    """

    context: str
    pred: GroupedCells
    real: GroupedCells
    target_sum: float | None
    own_controls: bool
    real_total: float


class CellFile:
    """An h5ad whose labels are read at once and whose cells are read context by context.

    Raises
    ------
    VcellError
        If it cannot be read, or has no column or control cells of that name.
    """

    def __init__(self, path: Path, columns: Columns, needs_controls: bool) -> None:
        with open_h5ad(path):
            pass
        try:
            self.backed = ad.read_h5ad(path, backed="r")
        except Exception as error:
            raise VcellError(f"{path} cannot be read as h5ad ({type(error).__name__}: {error})") from error
        if self.backed.X is None:
            raise VcellError(f"{path} has no X")
        self.path, self.columns, self.genes = path, columns, list(map(str, self.backed.var_names))
        obs = self.backed.obs
        if columns.perturbation not in obs:
            raise VcellError(
                f"{path} has no obs column {columns.perturbation!r}.{nearest(columns.perturbation, obs)} "
                f"It has: {', '.join(map(str, obs))}. Set columns.perturbation=NAME"
            )
        if len(set(self.genes)) < len(self.genes):
            twice = shortlist(sorted(gene for gene, number in Counter(self.genes).items() if number > 1), 3)
            raise VcellError(f"{path}: genes appear twice: {twice}")
        self.labels = obs[columns.perturbation].astype(str).to_numpy()
        if needs_controls and columns.control not in set(self.labels):
            raise VcellError(
                f"{path} has no control cells {columns.control!r}: scores are differences from controls."
                f"{nearest(columns.control, np.unique(self.labels))} Set control=LABEL"
            )
        wanted = (columns.context, *CONTEXT_COLUMNS) if columns.context is not None else ()
        self.context_column = next((c for c in wanted if c in obs), None)
        self.contexts = None if self.context_column is None else obs[self.context_column].astype(str).to_numpy()

    @property
    def about(self) -> dict[str, Any]:
        """What a file written by vcell says of itself; nothing for other files."""
        try:
            about = json.loads(str(self.backed.uns.get("vcell", "{}")))
        except json.JSONDecodeError:
            return {}
        return about if isinstance(about, dict) else {}

    def rows(self, context: str | None) -> np.ndarray:
        """Rows of a context, all where it is None."""
        if context is None or self.contexts is None:
            return np.arange(self.backed.n_obs)
        return np.flatnonzero(self.contexts == context)

    def read(self, rows: np.ndarray) -> ad.AnnData:
        """Cells in memory, X as CSR, values checked."""
        together = len(rows) and rows[-1] - rows[0] == len(rows) - 1
        try:
            cells = self.backed[slice(rows[0], rows[-1] + 1) if together else rows].to_memory()
        except Exception as error:
            raise VcellError(f"{self.path}: X cannot be read ({type(error).__name__}: {error})") from error
        matrix = sparse.csr_matrix(cells.X)
        if not np.isfinite(matrix.data).all() or (matrix.data < 0).any():
            raise VcellError(f"{self.path}: X holds NaN, infinite or negative values")
        obs = pd.DataFrame({self.columns.perturbation: self.labels[rows]}, index=pd.Index(rows.astype(str)))
        return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(self.genes)))


def pairs(pred: CellFile, real: CellFile, columns: Columns, counts: bool, notes: list[str]) -> Iterator[Pair]:
    """Every context that was predicted, one after the other; remarks are added to `notes`."""
    same_genes(pred, real)
    for context in scored_contexts(pred, real, columns):
        pred_rows, real_rows = pred.rows(context), real.rows(context)
        predicted, measured = pred.read(pred_rows), real.read(real_rows)
        if real.genes != pred.genes:
            measured = measured[:, pred.genes].copy()
        where = f"{context}: " if context and pred.contexts is not None else ""
        targets = common_targets(predicted, measured, columns, where, notes)
        predicted, measured = (kept_only(c, [*targets, columns.control], columns) for c in (predicted, measured))
        target_sum, total = None, 0.0
        if counts:
            whole_counts(predicted, pred.path, "the prediction")
            whole_counts(measured, real.path, "the measured cells")
        else:
            target_sum, total = same_scale(predicted, measured, pred.about, columns)
        pair = pair_of(str(context or ""), predicted, measured, columns, target_sum, total)
        del predicted, measured  # what is scored is in the pair, and a context may be large
        yield pair
        del pair


def kept_only(cells: ad.AnnData, labels: list[str], columns: Columns) -> ad.AnnData:
    """Cells of these labels; the same object where that is all of them."""
    kept = cells.obs[columns.perturbation].isin(labels).to_numpy()
    return cells if kept.all() else cells[kept].copy()


def pair_of(
    context: str, predicted: ad.AnnData, measured: ad.AnnData, columns: Columns, target_sum: float | None, total: float
) -> Pair:
    """From cells that are comparable."""
    made = GroupedCells.of(predicted, columns.perturbation, columns.control)
    real = GroupedCells.of(measured, columns.perturbation, columns.control)
    own = columns.control in made.cells
    return Pair(context, made if own else made.with_controls(real.controls), real, target_sum, own, total)


def same_genes(pred: CellFile, real: CellFile) -> None:
    """Refuses files of different genes; their order may differ."""
    if set(pred.genes) != set(real.genes):
        only_pred, only_real = set(pred.genes) - set(real.genes), set(real.genes) - set(pred.genes)
        raise VcellError(
            f"prediction and measured cells have different genes: {len(only_pred):,} only in the prediction "
            f"({shortlist(sorted(only_pred), 3)}), {len(only_real):,} only in the measured ({shortlist(sorted(only_real), 3)})"
        )


def scored_contexts(pred: CellFile, real: CellFile, columns: Columns) -> list[str | None]:
    """Contexts of the prediction; one without a name where its file does not tell them apart."""
    if pred.contexts is None:
        if real.contexts is not None and len(measured := np.unique(real.contexts)) > 1:
            raise VcellError(
                f"the measured cells are of {len(measured)} contexts ({shortlist(measured.tolist(), 5)}); the prediction has no "
                "column that says of which it is. Set columns.context=NAME, or give measured cells of that context alone"
            )
        return [None]
    contexts = list(dict.fromkeys(pred.contexts[pred.labels != columns.control]))
    if real.contexts is None:
        if len(contexts) > 1:
            raise VcellError(
                f"the prediction has {len(contexts)} contexts, the measured cells no column {columns.context!r}"
            )
        return list(contexts)
    known = np.unique(real.contexts).tolist()
    for context in contexts:
        if context not in known:
            raise VcellError(f"the measured cells have no context {context!r}; they have {', '.join(known)}")
    return list(contexts)


def common_targets(pred: ad.AnnData, real: ad.AnnData, columns: Columns, where: str, notes: list[str]) -> list[str]:
    """Targets that were predicted and measured."""
    in_pred, in_real = (set(cells.obs[columns.perturbation]) - {columns.control} for cells in (pred, real))
    common = in_pred & in_real
    if columns.control not in set(real.obs[columns.perturbation]):
        raise VcellError(f"{where}the measured cells have no control cells {columns.control!r} of this context")
    if not common:
        raise VcellError(
            f"{where}no predicted target is among the measured ones: predicted {shortlist(sorted(in_pred), 5)}; measured "
            f"{shortlist(sorted(in_real), 5)}"
        )
    if in_pred - common:
        notes.append(f"{where}{len(in_pred - common):,} predicted targets were not measured and are not scored")
    if in_real - common:
        notes.append(f"{where}{len(in_real - common):,} measured targets were not predicted and are not scored")
    return sorted(common)


def only(pair: Pair, targets: list[str]) -> Pair:
    """A pair with some of its targets."""
    return replace(pair, pred=pair.pred.only(targets), real=pair.real.only(targets))


def whole_counts(cells: ad.AnnData, path: Path, what: str) -> None:
    """Refuses anything but whole counts, which the scores of 2026 take; measured log1p counts come back as counts."""
    scale = scale_of(cells)
    if scale is not Scale.COUNTS:
        if what == "the prediction" or not scale.recoverable:
            hint = (
                " python -m vcell.infer challenge=vcc2026 writes them; python -m vcell.package pred=FILE challenge=vcc2026 makes "
                "them of other predictions"
            )
            raise VcellError(
                f"{path}: the scores of 2026 take whole counts, and {what} are {scale.words}."
                f"{hint if what == 'the prediction' else ' Give the file with their raw counts'}"
            )
        cells.X = recovered(cells, scale, what)
    elif not (cells.X.data == np.rint(cells.X.data)).all():
        raise VcellError(f"{path}: X holds counts that are not whole; the scores of 2026 take whole counts")


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
        If control cells have totals so different that they were not scaled to one, or not to what the file says.
    """
    rows = (cells.obs[columns.perturbation] == columns.control).to_numpy()
    if not rows.any():
        raise VcellError(
            f"the prediction has no control cells {columns.control!r}, which show what its values were scaled to"
        )
    controls = cells.X[rows].copy()
    controls.data = np.expm1(controls.data.astype(np.float64))
    totals = np.asarray(controls.sum(axis=1)).ravel()
    if about.get("target_sum"):
        stated = float(about["target_sum"])
        # genes may have been dropped after scaling, so totals may lie below
        if np.median(totals) > 1.05 * stated:
            raise VcellError(
                f"the prediction says it is scaled to {stated:,.0f} counts per cell; its control cells sum to "
                f"{np.median(totals):,.0f}: it was changed after it was written"
            )
        return stated
    low, middle, high = np.quantile(totals, [0.05, 0.5, 0.95])
    if high > 1.05 * low:
        raise VcellError(
            f"the control cells of the prediction sum to {low:,.0f} to {high:,.0f} counts after expm1: they were not "
            "scaled to one total. Give log1p of counts scaled to one total per cell, or whole counts"
        )
    return float(middle)


def recovered(cells: ad.AnnData, scale: Scale, what: str) -> sparse.csr_matrix:
    """Whole counts, float32; every cell must give them back."""
    if scale is Scale.COUNTS and (cells.X.data == np.rint(cells.X.data)).all():
        return cells.X.astype(np.float32, copy=False)
    found = recover_counts(cells.X.data, cells.X.indptr, scale)
    if not found.fine.all():
        raise VcellError(f"{what}: {int((~found.fine).sum()):,} cells do not come back as counts: {scale.words}")
    parts = (found.counts.astype(np.float32), cells.X.indices, cells.X.indptr)
    return sparse.csr_matrix(parts, shape=cells.X.shape)


def counts_to_log1p(cells: ad.AnnData, scale: Scale, target_sum: float, what: str) -> float:
    """X, in place, to log1p of counts per `target_sum`; through the counts, which every cell must give back.

    Returns the median library size of the counts.
    """
    import scanpy

    cells.X = recovered(cells, scale, what)
    total = float(np.median(np.asarray(cells.X.sum(axis=1)).ravel()))
    scanpy.pp.normalize_total(cells, target_sum=target_sum)
    scanpy.pp.log1p(cells)
    return total


def same_scale(pred: ad.AnnData, real: ad.AnnData, about: dict[str, Any], columns: Columns) -> tuple[float, float]:
    """Brings both to log1p of counts per one target sum, which is returned, with the measured cells' median library size.

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
    total = counts_to_log1p(real, real_scale, target_sum, "the measured cells")
    return target_sum, total
