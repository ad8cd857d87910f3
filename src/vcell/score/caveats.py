"""Notes on what makes local scores differ from those of a leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from vcell.data.files.normalize import counts_of_log1p
from vcell.data.store.part import target_columns
from vcell.errors import VcellError, shortlist
from vcell.score.metrics import Metric
from vcell.score.pairs import Pair
from vcell.score.rows import CELLS_AT_ONCE, rows_between
from vcell.score.statistics import Interval, Resampled, better_by
from vcell.score.sums import CellGroup, totals
from vcell.system import in_threads

SAME = 1e-6
FAR = 1.2  # of library sizes


def refuse_leaks(leaked: Mapping[str, Sequence[str]], run: str) -> None:
    """Refuses to score targets whose measured cells the model has seen.

    Raises
    ------
    VcellError
        Naming context and targets.
    """
    seen = {context: targets for context, targets in leaked.items() if targets}
    if not seen:
        return
    parts = [f"{len(t):,} of {c or 'its context'} ({shortlist(list(t), 5)})" for c, t in seen.items()]
    raise VcellError(
        f"{run} was trained on the measured cells of targets to be scored: {'; '.join(parts)}. Such a score does not measure performance on new "
        "perturbations. Hold them out (data.split.test, or vcell.crossval), give measured cells of other targets, or compute the "
        "score anyway with allow_leaks=true"
    )


class Looked(NamedTuple):
    """What the remarks need of one target's cells.

    Attributes
    ----------
    totals
        Counts of each predicted and of each measured cell; empty where cells are log1p.
    kept
        Expression of each of its own genes, relative to the controls, as predicted and as measured.
    """

    totals: list[np.ndarray]
    kept: list[list[float]]


def of_pair(pair: Pair) -> list[str]:
    """What is remarkable about predicted and measured cells, each of which is read once."""
    sides = pair.pred, pair.real
    columns = target_columns(pair.pred.targets, list(pair.pred.genes), pair.pred.control)
    pred, real = (cells.controls for cells in sides)
    real_G = _mean_counts(real, pair.target_sum)
    controls = real_G if pred is real else _mean_counts(pred, pair.target_sum), real_G

    def look(target: str, genes: np.ndarray) -> Looked:
        found = Looked([], [])
        known = [gene for gene in genes[genes >= 0].tolist() if min(control_G[gene] for control_G in controls) > 0]
        for cells, control_G in zip(sides, controls, strict=True):
            group = cells.group(target)
            if pair.target_sum is None:
                found.totals.append(totals(group.matrix, group.rows))
            found.kept.append([_mean_of_gene(group.cells, g, pair.target_sum) / control_G[g] for g in known])
        return found

    looked = list(in_threads(lambda task: look(*task), list(zip(pair.pred.targets, columns, strict=True))))
    notes = control_note(pair), library_note(pair, looked), own_gene_note(pair, looked)
    return [note for note in notes if note]


def control_note(pair: Pair) -> str | None:
    """How the prediction's control cells differ from the measured ones; None where it brought none."""
    if not pair.own_controls:
        return None
    where = f"{pair.context}: " if pair.context else ""
    pred, real = (c.controls for c in (pair.pred, pair.real))
    shift = 0.0 if pred is real else _apart(pred, real)
    if pred.shape == real.shape and shift < SAME:
        return f"{where}control cells of the prediction are the measured ones"
    first, second = pair.real.halves(0)
    noise = _apart(first.controls, second.controls)
    if shift <= noise:
        return f"{where}control cells of the prediction differ no more from the measured ones than those do from each other ({shift:.4f})"
    return (
        f"{where}control cells of the prediction differ from the measured ones by {shift:.4f} in mean log1p, halves of the measured "
        f"ones by {noise:.4f}: the shift affects MAE, but not DES and PDS, which compare each side with its own controls"
    )


def library_note(pair: Pair, looked: Sequence[Looked]) -> str | None:
    """Library sizes that are far apart: of whole counts, or of what the prediction is scaled to and the measured cells have."""
    where = f"{pair.context}: " if pair.context else ""
    if pair.target_sum is not None:
        if max(pair.target_sum, pair.real_total) <= FAR * min(pair.target_sum, pair.real_total):
            return None
        return (
            f"{where}the prediction is scaled to {pair.target_sum:,.0f} counts per cell and so are the measured cells here; given their "
            f"counts, the official scorer would scale them to their own median, {pair.real_total:,.0f}, and give other values. "
            "vcell.infer challenge=vcc2025 writes the median of the control cells"
        )
    sizes = [float(np.median(np.concatenate(side))) for side in zip(*(found.totals for found in looked), strict=True)]
    if max(sizes) <= FAR * min(sizes):
        return None
    return (
        f"{where}predicted cells have {sizes[0]:,.0f} counts per cell (median), measured ones {sizes[1]:,.0f}. The scores scale both to "
        "one total, but cells with fewer counts are noisier, which changes the called genes"
    )


def own_gene_note(pair: Pair, looked: Sequence[Looked]) -> str | None:
    """What the perturbations did to their own genes, measured and predicted; None where no target is a gene of the files."""
    left = [np.concatenate(side) for side in zip(*(found.kept for found in looked), strict=True)]
    if not len(left[0]):
        return None
    predicted, measured = (float(np.median(side)) for side in left)
    return (
        f"{pair.context + ': ' if pair.context else ''}own genes of {len(left[0]):,} targets keep {measured:.2f} of the controls' "
        f"expression as measured, {predicted:.2f} as predicted (medians)"
    )


def _mean_counts(cells: sparse.csr_matrix, target_sum: float | None) -> np.ndarray:
    """Mean of counts, or of counts per target sum where cells are log1p, ``(genes)``."""
    if target_sum is None:
        return CellGroup(cells).mean()
    starts = range(0, cells.shape[0], CELLS_AT_ONCE)
    blocks = (rows_between(cells, start, min(start + CELLS_AT_ONCE, cells.shape[0])) for start in starts)
    total_G: np.ndarray = sum(CellGroup(_undone(block)).sums[0] for block in blocks)  # type: ignore[assignment]
    return total_G / cells.shape[0]


def _undone(log1p: sparse.csr_matrix) -> sparse.csr_matrix:
    return sparse.csr_matrix((counts_of_log1p(log1p.data), log1p.indices, log1p.indptr), log1p.shape)


def _mean_of_gene(cells: sparse.csr_matrix, gene: int, target_sum: float | None) -> float:
    """The same of one gene."""
    values = cells.data[cells.indices == gene].astype(np.float64)
    return float((values if target_sum is None else counts_of_log1p(values)).sum() / cells.shape[0])


def discrimination_note(tables: Sequence[pd.DataFrame], over_all: bool, subset: int | None) -> str:
    """A note that PDS depends on the number of targets, and what it would be among fewer.

    Among m of n targets drawn at random, a target of rank r is expected at rank r (m - 1) / (n - 1).
    """
    numbers = sorted({len(t) for t in tables})
    words = ", ".join(f"{n:,}" for n in numbers)
    note = f"PDS ranks among the {words} targets scored here"
    if over_all:
        note += ": a leaderboard with another number of targets gives another value"
    else:
        note += ": divided by the number of others, its expected value does not depend on their number, its spread does"
    if subset is None:
        return note + ". pds_subset=N estimates it for N targets"
    values = []
    for table in tables:
        n = len(table)
        if subset > n:
            raise VcellError(f"pds_subset={subset} is more than the {n:,} targets scored")
        ranks = (1 - table["PDS"].to_numpy()) * (n if over_all else n - 1)
        expected = ranks * (subset - 1) / max(n - 1, 1)
        values.append(float((1 - expected / (subset if over_all else max(subset - 1, 1))).mean()))
    return f"{note}. With {subset:,} targets drawn at random it would be about {np.mean(values):.4f}"


def weak_metrics(floor: Resampled, ceiling: Resampled, metrics: Sequence[Metric]) -> dict[str, Interval]:
    """Metrics that cannot tell the split-half replicate from the floor on this data, and by how much it is better."""
    found = {}
    for metric in metrics:
        gap = better_by(ceiling.of_metric(metric.key), floor.of_metric(metric.key), metric.higher)
        if not gap.low > 0:
            found[metric.key] = gap
    return found


def _apart(one: sparse.csr_matrix, other: sparse.csr_matrix) -> float:
    """Mean absolute difference of mean profiles."""
    return float(np.abs(CellGroup(one).mean() - CellGroup(other).mean()).mean())
