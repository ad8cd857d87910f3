"""Predicted and measured cells made comparable: same context, same genes, same targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vcell.data.files.genes import align
from vcell.data.files.labels import NO_GUIDE, resolve
from vcell.errors import VcellError, shortlist
from vcell.score.cells import Columns, ReadCells
from vcell.score.grouped import GroupedCells
from vcell.score.rows import LabelledCells
from vcell.score.scaling import same_scale, whole_counts
from vcell.system import in_threads

LEAST_MEASURED = 0.5  # of the prediction's genes, that measured cells must have


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


def pairs(pred: ReadCells, real: ReadCells, columns: Columns, counts: bool, notes: list[str]) -> Iterator[Pair]:
    """Every context that was predicted and measured, one after the other; remarks are added to `notes`."""
    place = common_genes(pred, real, notes)
    for context in scored_contexts(pred, real, columns, notes):
        yield pair_in(context, pred, real, columns, counts, place, notes)


def pair_in(
    context: str | None,
    pred: ReadCells,
    real: ReadCells,
    columns: Columns,
    counts: bool,
    place: GenePlaces,
    notes: list[str],
) -> Pair:
    """Predicted and measured cells of one context."""
    predicted, measured = in_threads(lambda cells: cells.cells_of(context), (pred, real))
    names = [pred.genes[i] for i in place.predicted]
    if not place.all_predicted:
        predicted = predicted.in_columns(place.predicted, names)
    if not place.same_order:
        measured = measured.in_columns(place.measured, names)
    measured = _same_targets(predicted, measured, columns)
    where = f"{context}: " if context and pred.contexts is not None else ""
    targets = common_targets(predicted, measured, columns, where, notes)
    predicted, measured = (c.where(np.isin(c.labels, [*targets, columns.control])) for c in (predicted, measured))
    target_sum, total = None, 0.0
    if counts:
        both = (predicted, pred.path, "the prediction"), (measured, real.path, "the measured cells")
        predicted, measured = in_threads(lambda one: whole_counts(*one), both)
    else:
        predicted, measured, target_sum, total = same_scale(predicted, measured, pred.about, columns)
    real_cells = GroupedCells.of_labelled(measured, columns.control)
    made = GroupedCells.of_labelled(predicted, columns.control, real_cells.controls)
    own = columns.control in made.cells
    made = made if own else made.with_controls(real_cells.controls)
    return Pair(str(context or ""), made, real_cells, target_sum, own, total)


def _same_targets(predicted: LabelledCells, measured: LabelledCells, columns: Columns) -> LabelledCells:
    """Measured labels as the prediction spells them."""
    known = set(predicted.labels) - {columns.control}
    distinct = sorted(set(measured.labels) - {columns.control})
    meant = {name: became for name, became in zip(distinct, resolve(distinct, known), strict=True) if name != became}
    return measured.relabelled(meant) if meant else measured


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


def common_genes(pred: ReadCells, real: ReadCells, notes: list[str]) -> GenePlaces:
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


def scored_contexts(pred: ReadCells, real: ReadCells, columns: Columns, notes: list[str]) -> list[str | None]:
    """Contexts that were predicted and measured; one without a name where its file does not tell them apart."""
    if pred.contexts is None:
        if real.contexts is not None and len(measured := np.unique(real.contexts)) > 1:
            raise VcellError(
                f"the measured cells are of {len(measured)} contexts ({shortlist(measured.tolist(), 5)}); the prediction has no "
                "context column. Set columns.context=NAME, or provide measured cells of that context only"
            )
        return [None]
    contexts = list(dict.fromkeys(pred.contexts[(pred.labels != columns.control) & (pred.labels != NO_GUIDE)]))
    if not contexts:
        raise VcellError(f"{pred.path} has control cells only: there is nothing to score")
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


def common_targets(
    pred: LabelledCells, real: LabelledCells, columns: Columns, where: str, notes: list[str]
) -> list[str]:
    """Targets that were predicted and measured."""
    in_pred, in_real = (set(cells.labels) - {columns.control} for cells in (pred, real))
    common = in_pred & in_real
    if columns.control not in real.labels:
        raise VcellError(f"{where}the measured cells have no control cells {columns.control!r} of this context")
    if not common:
        raise VcellError(
            f"{where}no predicted target is among the measured ones: predicted {shortlist(sorted(in_pred), 5) or 'none'}; measured "
            f"{shortlist(sorted(in_real), 5) or 'none'}"
        )
    if in_pred - common:
        notes.append(f"{where}{len(in_pred - common):,} predicted targets were not measured and are not scored")
    if in_real - common:
        notes.append(f"{where}{len(in_real - common):,} measured targets were not predicted and are not scored")
    return sorted(common)


def only(pair: Pair, targets: list[str]) -> Pair:
    """A pair with some of its targets."""
    return replace(pair, pred=pair.pred.only(targets), real=pair.real.only(targets))
