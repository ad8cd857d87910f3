"""Predicted and measured cells made comparable: same context, same genes, same targets, same scale."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem
from scipy import sparse

from vcell.data.files.genes import align, check_unique
from vcell.data.files.h5ad import column_names, element, has, open_h5ad, read_column, read_genes
from vcell.data.files.labels import NO_GUIDE, LabelRules, as_labels, is_control, read_labels, renamed, resolve
from vcell.data.files.matrix import Matrix, matrix_names
from vcell.data.files.scale import Scale, detect_scale, recover_counts
from vcell.errors import VcellError, nearest, shortlist
from vcell.inspection.columns import USUAL
from vcell.inspection.values import look_at
from vcell.score.grouped import GroupedCells

SAMPLE_CELLS = 500
LEAST_MEASURED = 0.5  # of the prediction's genes, that measured cells must have
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

    Columns are looked for under the names given, then under those that challenges and screens usually have: prediction and measured
    cells need not call them alike. Labels are read by their meaning (`data.files.labels`).

    Parameters
    ----------
    matrix
        ``X``, ``layers/NAME``, ``raw/X``; None: X, or another one where X holds no counts and that does.

    Raises
    ------
    VcellError
        If it cannot be read, or has no column or control cells of that name.
    """

    def __init__(self, path: Path, columns: Columns, needs_controls: bool, matrix: str | None = None) -> None:
        self.path, self.columns = path, columns
        with open_h5ad(path) as file:
            known = column_names(element(file, "obs", path)) if has(file, "obs") else []
            name = _first([columns.perturbation, "target_gene", *USUAL["perturbation"]], known)
            if name is None:
                raise VcellError(
                    f"{path} has no obs column {columns.perturbation!r}.{nearest(columns.perturbation, known)} "
                    f"It has: {', '.join(known) or 'none'}. Set columns.perturbation=NAME"
                )
            if not matrix_names(file):
                raise VcellError(f"{path} has no X")
            self.matrix = matrix or best_matrix(file, path)
            self.genes = read_genes(file, path, self.matrix)
            check_unique(self.genes, str(path), "Keep one of each")
            labels = as_labels(read_column(file, "obs", name, path))
            wanted = [columns.context, *CONTEXT_COLUMNS, *USUAL["context"]] if columns.context is not None else []
            self.context_column = _first(wanted, [n for n in known if n != name])
            contexts = None
            if self.context_column is not None:
                contexts = as_labels(read_column(file, "obs", self.context_column, path)).astype(str).to_numpy()
            self.contexts = contexts
            self.about = _about(file)
        self.perturbation = name
        self.labels = self._by_meaning(labels, needs_controls).astype(str).to_numpy()

    def _by_meaning(self, labels: pd.Series, needs_controls: bool) -> pd.Series:
        counted = {str(label): int(n) for label, n in labels.value_counts().items()}
        control = self.columns.control
        there = [label for label in counted if label.lower() == control.lower() or is_control(label)]
        if not there:
            if needs_controls:
                raise VcellError(
                    f"{self.path} has no control cells {control!r}: scores are differences from controls."
                    f"{nearest(control, counted)} Set control=LABEL"
                )
            return labels
        named = next((label for label in there if label.lower() == control.lower()), there[0])
        table = read_labels({str(self.path): counted}, named, LabelRules(), self.genes, "control")
        meaning = {
            label: control if became == table.control else became
            for label, became in table.meaning[str(self.path)].items()
        }
        return renamed(labels, meaning)

    def rows(self, context: str | None) -> np.ndarray:
        """Rows of a context, all where it is None; cells without a perturbation are left out."""
        labelled = self.labels != NO_GUIDE
        return np.flatnonzero(
            labelled if context is None or self.contexts is None else labelled & (self.contexts == context)
        )

    def read(self, rows: np.ndarray) -> ad.AnnData:
        """Cells in memory, X as CSR, values checked."""
        with open_h5ad(self.path) as file, tempfile.TemporaryDirectory(prefix="vcell-cells-") as scratch:
            matrix = Matrix.open(file, self.path, self.matrix, len(self.labels), len(self.genes))
            try:
                cells = matrix_rows(matrix, rows, Path(scratch))
            except (OSError, KeyError) as error:
                raise VcellError(
                    f"{self.path}: {self.matrix} cannot be read ({type(error).__name__}: {error})"
                ) from error
        if not np.isfinite(cells.data).all() or (cells.data < 0).any():
            raise VcellError(f"{self.path}: {self.matrix} holds NaN, infinite or negative values")
        obs = pd.DataFrame({self.columns.perturbation: self.labels[rows]}, index=pd.Index(rows.astype(str)))
        return ad.AnnData(cells, obs=obs, var=pd.DataFrame(index=pd.Index(self.genes)))


def _first(wanted: Sequence[str | None], known: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in known), None)


def _about(file: h5py.File) -> dict[str, Any]:
    """What a file written by vcell says of itself; nothing for other files."""
    if not has(file, "uns/vcell"):
        return {}
    try:
        about = json.loads(str(read_elem(file["uns/vcell"])))
    except Exception:  # another program's entry of that name, however it was written
        return {}
    return about if isinstance(about, dict) else {}


def best_matrix(file: h5py.File, path: Path) -> str:
    """X; or, where no counts come back from it and another matrix of the file has them, that one."""
    names = matrix_names(file)
    if len(names) == 1 or "X" not in names:
        return names[0]
    looked = [look_at(file, path, name, SAMPLE_CELLS) for name in names]
    if looked[0].scale is not None and looked[0].scale.recoverable:
        return "X"
    better = [values for values in looked[1:] if values.scale is not None and values.scale.recoverable]
    return min(better, key=lambda values: values.rank).name if better else "X"


def matrix_rows(matrix: Matrix, rows: np.ndarray, scratch: Path) -> sparse.csr_matrix:
    """Rows of a matrix, ascending, whatever its layout."""
    if matrix.layout != "csc":
        found = matrix.rows(rows)
        return _csr(found.values, found.indices, found.indptr, matrix.shape[1])
    wanted, parts = np.zeros(matrix.shape[0], bool), []
    wanted[rows] = True
    for block in matrix.blocks(scratch):
        here = _csr(block.values, block.indices, block.indptr, matrix.shape[1])
        parts.append(here[wanted[block.start : block.start + here.shape[0]]])
    return sparse.csr_matrix(sparse.vstack(parts, format="csr"))


def _csr(values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    made = sparse.csr_matrix((values, indices, indptr), shape=(len(indptr) - 1, n_genes))
    made.sum_duplicates()
    return made


def pairs(pred: CellFile, real: CellFile, columns: Columns, counts: bool, notes: list[str]) -> Iterator[Pair]:
    """Every context that was predicted and measured, one after the other; remarks are added to `notes`."""
    place = common_genes(pred, real, notes)
    for context in scored_contexts(pred, real, columns, notes):
        yield pair_in(context, pred, real, columns, counts, place, notes)


def pair_in(
    context: str | None,
    pred: CellFile,
    real: CellFile,
    columns: Columns,
    counts: bool,
    place: GenePlaces,
    notes: list[str],
) -> Pair:
    """Predicted and measured cells of one context."""
    predicted, measured = pred.read(pred.rows(context)), real.read(real.rows(context))
    if not place.all_predicted:
        predicted = predicted[:, place.predicted].copy()
    if not place.same_order:
        measured = measured[:, place.measured].copy()
        measured.var_names = list(predicted.var_names)
    _same_targets(predicted, measured, columns)
    where = f"{context}: " if context and pred.contexts is not None else ""
    targets = common_targets(predicted, measured, columns, where, notes)
    predicted, measured = (kept_only(c, [*targets, columns.control], columns) for c in (predicted, measured))
    target_sum, total = None, 0.0
    if counts:
        whole_counts(predicted, pred.path, "the prediction")
        whole_counts(measured, real.path, "the measured cells")
    else:
        target_sum, total = same_scale(predicted, measured, pred.about, columns)
    return pair_of(str(context or ""), predicted, measured, columns, target_sum, total)


def _same_targets(predicted: ad.AnnData, measured: ad.AnnData, columns: Columns) -> None:
    """Measured labels as the prediction spells them."""
    known = set(predicted.obs[columns.perturbation])
    distinct = sorted(set(measured.obs[columns.perturbation]) - {columns.control})
    meant = {
        name: became
        for name, became in zip(distinct, resolve(distinct, known - {columns.control}), strict=True)
        if name != became
    }
    if meant:
        measured.obs[columns.perturbation] = measured.obs[columns.perturbation].replace(meant)


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


@dataclass(frozen=True)
class GenePlaces:
    """Genes that are scored: columns of the prediction, and of the measured cells, in the prediction's order."""

    predicted: np.ndarray
    measured: np.ndarray
    n_predicted: int
    n_measured: int

    @property
    def all_predicted(self) -> bool:
        return len(self.predicted) == self.n_predicted

    @property
    def same_order(self) -> bool:
        return len(self.measured) == self.n_measured and bool((np.diff(self.measured) == 1).all())


def common_genes(pred: CellFile, real: CellFile, notes: list[str]) -> GenePlaces:
    """The prediction's genes that were measured, matched by name as everywhere (`data.files.genes.align`); remarks go to `notes`.

    Raises
    ------
    VcellError
        If fewer than half of the prediction's genes were measured.
    """
    place = np.full(len(pred.genes), -1, np.int64)
    position = align(real.genes, pred.genes).position
    place[position[position >= 0]] = np.flatnonzero(position >= 0)
    kept = np.flatnonzero(place >= 0)
    if len(kept) < LEAST_MEASURED * len(pred.genes):
        missing = [gene for gene, at in zip(pred.genes, place, strict=True) if at < 0]
        raise VcellError(
            f"only {len(kept):,} of the prediction's {len(pred.genes):,} genes are in {real.path}; missing are {shortlist(missing, 3)}. "
            "Give measured cells with the same genes"
        )
    if len(kept) < len(pred.genes):
        notes.append(f"scored on the {len(kept):,} of {len(pred.genes):,} predicted genes that {real.path.name} has")
    elif len(real.genes) > len(kept):
        notes.append(f"scored on the prediction's {len(kept):,} genes, of {len(real.genes):,} in {real.path.name}")
    return GenePlaces(kept, place[kept], len(pred.genes), len(real.genes))


def scored_contexts(pred: CellFile, real: CellFile, columns: Columns, notes: list[str]) -> list[str | None]:
    """Contexts that were predicted and measured; one without a name where its file does not tell them apart."""
    if pred.contexts is None:
        if real.contexts is not None and len(measured := np.unique(real.contexts)) > 1:
            raise VcellError(
                f"the measured cells are of {len(measured)} contexts ({shortlist(measured.tolist(), 5)}); the prediction has no "
                "column that says of which it is. Set columns.context=NAME, or give measured cells of that context alone"
            )
        return [None]
    contexts = list(dict.fromkeys(pred.contexts[(pred.labels != columns.control) & (pred.labels != NO_GUIDE)]))
    if real.contexts is None:
        if len(contexts) > 1:
            raise VcellError(
                f"the prediction has {len(contexts)} contexts, the measured cells no column {columns.context!r}"
            )
        return list(contexts)
    known = np.unique(real.contexts).tolist()
    both = [context for context in contexts if context in known]
    if not both:
        raise VcellError(f"the measured cells have no context {contexts[0]!r}; they have {', '.join(known)}")
    if len(both) < len(contexts):
        left = [context for context in contexts if context not in both]
        notes.append(f"scored in {shortlist(both)}; no cells of {shortlist(left)} were measured")
    return list(both)


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
    try:
        scale = scale_of(cells)
    except VcellError:
        if what != "the prediction":
            raise
        scale = Scale.UNKNOWN
    if scale is not Scale.COUNTS:
        if what == "the prediction" or not scale.recoverable:
            hint = (
                " python -m vcell.infer challenge=vcc2026 writes them; python -m vcell.package pred=FILE challenge=vcc2026 makes "
                "them of other predictions"
            )
            raise VcellError(
                f"{path}: the scores of 2026 take whole counts, and those of {what} are {'log1p or other values' if scale is Scale.UNKNOWN else scale.words}."
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
