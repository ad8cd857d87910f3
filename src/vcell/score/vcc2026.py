"""The six scores of 2026 (`cell-eval2` 0.20.0, preset vcc2026), computed fast and equal to the package's.

Pseudobulks are log1p of summed counts per 50,000. Effects are differences from the *measured* controls, whatever controls the
prediction holds; only the two halves of a replicate are each held against their own.

Shape legend: P targets, G genes, C cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numba import njit
from scipy import sparse

from vcell.data.files.normalize import pseudobulk_log1p
from vcell.score.blocks import by_targets, one_array
from vcell.score.differential import Calls, Tests2026
from vcell.score.embedding import Embedding
from vcell.score.grouped import GroupedCells, Pool
from vcell.score.halves import Splits, at_once
from vcell.score.jackknife import jackknife
from vcell.score.rows import with_values
from vcell.score.side import Side, known_as
from vcell.score.sums import CellGroup
from vcell.system import in_threads

if TYPE_CHECKING:
    import torch

BULK_SUM = 50_000.0
PURITY = 0.9
FEWEST_GENES = 10  # truly changed, for a target's fold changes to count
MOSTLY = 0.7  # of the controls are drawn: then no copy of those is made
SPLITS = 5  # of the replicate, seeds derived from 0 as the package derives them


class Fast2026:
    """Scores predictions of one context against the measured cells; these are analysed once.

    Parameters
    ----------
    real
        Measured whole counts with controls.
    device
        Where rank tests and jackknife run; None: on the CPU.
    """

    def __init__(self, real: GroupedCells, device: torch.device | None = None) -> None:
        self._first: Side | None = None  # the prediction that references may be made of
        controls = CellGroup(real.controls)
        # no method: a side must not keep its scorer alive, nor so itself
        noise = partial(sampling_variance, device=device)
        self.tests = Tests2026.of(controls.matrix, device)
        self.real = Side(
            real, self.tests, pseudobulk(controls), pseudobulk, noise,
            control_noise=noise(controls),
        )  # fmt: skip

    def place_in(self, embedding: Embedding) -> None:
        """Cells are placed in it while they are read."""
        self.real = replace(self.real, embedding=embedding)

    def side(self, pred: GroupedCells) -> Side:
        """The prediction's side."""
        side = replace(self.real, cells=pred, like=known_as(self._first, pred), known=None)
        self._first = self._first or side
        return side

    def score(self, pred: Side) -> pd.DataFrame:
        """The six members for every target, NaN where one is not defined; same targets and genes as measured."""
        return score(pred, self.real)

    def replicates(self) -> Iterator[tuple[pd.DataFrame, Side, Side]]:
        """Splits of the measured cells into halves: in their mean, what a replicate of the experiment would score.

        Of each split the table, one row per target, of the second half scored as a prediction of the first, and the sides of both; the
        cells of the first split are placed in the embedding too. The measured cells as a whole are measured in the same pass, where they were
        not yet.
        """
        seeds = np.random.SeedSequence(0).generate_state(SPLITS).tolist()
        step = at_once(self.real.cells)
        for first in range(0, SPLITS, step):
            embedding = self.real.embedding if first == 0 else None
            splits = Splits(
                self.real.cells, seeds[first : first + step], BULK_SUM, self.tests, embedding, not self.real.is_measured
            )
            sides = splits.sides()
            if splits.whole is not None:
                self.real = replace(self.real, known=splits.whole)
            del splits
            while sides:
                yield self._replicate(*sides.pop(0))

    def _replicate(self, first: Side, second: Side) -> tuple[pd.DataFrame, Side, Side]:
        """Fold changes are judged on the genes that all cells call; every other member on those of one half."""
        table = score(second, first)
        real, row_of = self.real.calls, np.array([self.real.calls.of(t) for t in table.index])
        own_P = own_genes(list(table.index), self.real.cells.genes)

        def error(rows: slice) -> np.ndarray:
            called = without_own(real.called_PG[row_of[rows]], own_P[rows])
            # a gene too rare in a half's controls to be tested there counts as unchanged
            halves = (half.calls.rows(rows) for half in (first, second))
            one_PG, other_PG = (np.where(np.isnan(calls.p_PG), 0.0, calls.fold_PG) for calls in halves)
            return fold_error(called, one_PG, other_PG, real.fold_PG[row_of[rows]])

        table["NMAE"] = one_array(by_targets(error, *first.calls.fold_PG.shape))
        return table, second, first

    def floor(self) -> GroupedCells:
        """The official baseline: the mean response of the context, which no submission can know, as cells.

        Control cells drawn with replacement, each gene scaled so that its expectation is the mean over targets of their mean
        counts (a gene's own target left out); as many cells of each target as measured.
        """
        cells = self.real.cells
        means_PG = np.array(list(in_threads(lambda target: cells.group(target).mean(), cells.targets)))
        total_G, number_G = means_PG.sum(0), np.full(means_PG.shape[1], float(len(means_PG)))
        for row, gene in enumerate(own_genes(cells.targets, cells.genes)):
            if gene >= 0 and len(cells.targets) > 1:
                total_G[gene] -= means_PG[row, gene]
                number_G[gene] -= 1
        control_G = CellGroup(cells.controls).mean()
        scale_G = np.divide(total_G / number_G, control_G, out=np.zeros_like(control_G), where=control_G > 0)
        rng, controls = np.random.default_rng(0), cells.controls
        drawn = {t: rng.integers(0, controls.shape[0], cells.n_cells(t)) for t in cells.targets}
        used = np.unique(np.concatenate(list(drawn.values())))
        if len(used) < MOSTLY * controls.shape[0]:
            some, drawn = controls[used], {target: np.searchsorted(used, rows) for target, rows in drawn.items()}
        else:  # a copy would take as much memory as the controls do
            some = controls
        return GroupedCells.drawn(Pool(_scaled(some, scale_G), drawn), cells.genes, cells.control, controls)


def _scaled(cells: sparse.csr_matrix, scale_G: np.ndarray) -> sparse.csr_matrix:
    """Cells with every gene multiplied by a factor, in single precision; no zeros are stored."""
    values = np.empty(len(cells.data), np.float32)
    _multiply(cells.indices, cells.data, scale_G, values)
    if values.all():
        return with_values(cells, values)
    # places of their own, as those of `cells` stay
    scaled = sparse.csr_matrix((values, cells.indices.copy(), cells.indptr.copy()), cells.shape)
    scaled.eliminate_zeros()
    return scaled


@njit(nogil=True, cache=True)
def _multiply(genes, values, scale_G, into):
    for i in range(len(genes)):
        into[i] = np.float32(values[i] * scale_G[genes[i]])


def score(pred: Side, real: Side) -> pd.DataFrame:
    """The six members for every target, NaN where one is not defined; same targets and genes as measured."""
    targets, genes = pred.cells.targets, pred.cells.genes
    own_P, name_G = own_genes(targets, genes), np.argsort(np.argsort(np.asarray(genes, dtype=object)))
    calls, measured = pred.calls, real.calls  # before several threads ask for them

    def of_calls(rows: slice) -> pd.DataFrame:
        own, one, other = own_P[rows], calls.rows(rows), measured.rows(rows)
        pred_PG, real_PG = without_own(one.called_PG, own), without_own(other.called_PG, own)
        return pd.DataFrame({
            "FIDELITY": fidelity(pred_PG, real_PG, one, other),
            "REACH": reach(real_PG, one, other, name_G),
            "JACCARD": jaccard(pred_PG, real_PG),
            "NMAE": fold_error(real_PG, other.fold_PG, one.fold_PG, other.fold_PG),
        })  # fmt: skip

    part, whole = squared_error(pred, real, own_P)
    of_bulk = {"PDS": discrimination_cosine(pred, real, own_P), "MSE_part": part, "MSE_whole": whole}
    parts = by_targets(of_calls, len(targets), len(genes))
    table = pd.concat([pd.DataFrame(of_bulk), pd.concat(parts, ignore_index=True)], axis=1)
    return table.set_index(pd.Index(targets, name="perturbation"))


def sampling_variance(group: CellGroup, device: torch.device | None = None) -> float:
    """Of a pseudobulk, summed over genes."""
    if device is not None:
        from vcell.score.gpu import dense_jackknife  # here: torch takes a second to load

        return dense_jackknife(group.cells, BULK_SUM, device)
    return jackknife(group, BULK_SUM)


def pseudobulk(group: CellGroup) -> np.ndarray:
    """log1p of summed counts per 50,000, ``(genes)``."""
    return pseudobulk_log1p(group.sums[0], BULK_SUM)


def own_genes(targets: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    """Each target's own column, -1 for none."""
    place = {gene: i for i, gene in enumerate(genes)}
    return np.array([place.get(target, -1) for target in targets], dtype=np.int64)


def without_own(called_PG: np.ndarray, own_P: np.ndarray) -> np.ndarray:
    called_PG = called_PG.copy()
    rows = np.flatnonzero(own_P >= 0)
    called_PG[rows, own_P[rows]] = False
    return called_PG


def discrimination_cosine(pred: Side, real: Side, own_P: np.ndarray) -> np.ndarray:
    """`pds_cosine` ``(targets)``: genes of all targets left out, equals share their places, over the number of others."""
    n_targets, n_genes = pred.bulk_PG.shape
    kept = np.delete(np.arange(n_genes), own_P[own_P >= 0])

    def effects(side: Side) -> tuple[np.ndarray, np.ndarray]:
        delta_PG = np.empty((n_targets, len(kept)))

        def fill(rows: slice) -> np.ndarray:
            delta_PG[rows] = side.delta_of(rows)[:, kept]
            return (delta_PG[rows] ** 2).sum(1)

        return delta_PG, np.sqrt(one_array(by_targets(fill, n_targets, n_genes)))

    (pred_PG, pred_P), (real_PG, real_P) = effects(pred), effects(real)
    sizes = np.outer(pred_P, real_P)
    likeness = np.divide(pred_PG @ real_PG.T, sizes, out=np.zeros_like(sizes), where=sizes != 0)
    distance_PP = np.clip(1.0 - likeness, 0.0, 2.0)
    own = np.diag(distance_PP)[:, None]
    rank = (distance_PP < own).sum(1) + ((distance_PP == own).sum(1) - 1) / 2
    others = len(pred_PG) - 1
    return 1 - rank / others if others else np.ones(len(pred_PG))


def squared_error(pred: Side, real: Side, own_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each target, the noise-free squared error of its pseudobulk and the noise-free squared size of its effect, per gene.

    The prediction's noise counts up to the measured one's, and in sum up to what the predictions differ by.
    """
    weight_P = 1.0 / np.maximum(pred.bulk_PG.shape[1] - (own_P >= 0), 1)
    noise_P = np.minimum(pred.noise_P, real.noise_P)
    claim = float((noise_P * weight_P).sum())
    if claim > 0:
        noise_P = noise_P * min(1.0, spread(pred.bulk_PG, own_P, weight_P) / claim)

    def squares(difference: Callable[[slice], np.ndarray]) -> np.ndarray:
        def of_some(rows: slice) -> np.ndarray:
            return _square_without_own(difference(rows), own_P[rows])

        return one_array(by_targets(of_some, *pred.bulk_PG.shape))

    error_P, effect_P = squares(lambda rows: pred.bulk_PG[rows] - real.bulk_PG[rows]), squares(real.delta_of)
    return (error_P - noise_P - real.noise_P) * weight_P, (effect_P - real.noise_P - real.control_noise) * weight_P


def _square_without_own(delta_PG: np.ndarray, own_P: np.ndarray) -> np.ndarray:
    square_P, rows = (delta_PG**2).sum(1), np.flatnonzero(own_P >= 0)
    square_P[rows] -= delta_PG[rows, own_P[rows]] ** 2
    return square_P


def spread(bulk_PG: np.ndarray, own_P: np.ndarray, weight_P: np.ndarray) -> float:
    """Weighted sum of squared differences of the predicted pseudobulks from their mean, own genes left out."""
    number_G, weight_G, first_G, second_G = _moments(bulk_PG, bulk_PG.mean(0), own_P, weight_P)
    enough_G = (number_G >= 2) & (weight_G > 0)
    variance_G = second_G[enough_G] - first_G[enough_G] ** 2 / weight_G[enough_G]
    return float(np.maximum(variance_G, 0).sum())


@njit(nogil=True, cache=True)
def _moments(bulk_PG, mean_G, own_P, weight_P):
    """Of each gene, how many targets count, the sum of their weights, and the weighted sums of deviations and of their squares."""
    sums = np.zeros((4, bulk_PG.shape[1]), np.float64)
    for p in range(len(bulk_PG)):
        if weight_P[p] > 0:
            for g in range(bulk_PG.shape[1]):
                if g != own_P[p]:
                    deviation = bulk_PG[p, g] - mean_G[g]
                    sums[0, g] += 1.0
                    sums[1, g] += weight_P[p]
                    sums[2, g] += weight_P[p] * deviation
                    sums[3, g] += weight_P[p] * (deviation * deviation)
    return sums


def fidelity(pred_PG: np.ndarray, real_PG: np.ndarray, pred: Calls, real: Calls) -> np.ndarray:
    """`direction_fidelity_yield_raw` ``(targets)``; NaN where neither calls a gene."""
    judged_PG = pred_PG & (real.fold_PG != 0) & ~np.isnan(real.p_PG)
    right_PG = judged_PG & (np.sign(pred.fold_PG) == np.sign(real.fold_PG))
    number_P = np.maximum(judged_PG.sum(1), real_PG.sum(1)).astype(float)
    return np.divide(right_PG.sum(1), number_P, out=np.full(len(number_P), np.nan), where=number_P > 0)


def reach(real_PG: np.ndarray, pred: Calls, real: Calls, name_G: np.ndarray) -> np.ndarray:
    """`direction_reach_raw` ``(targets)``: of the truly changed genes in the prediction's order, the longest beginning of which
    nine in ten have the right direction; NaN where none is truly changed. `name_G` are the places of the genes by name."""
    found = np.full(len(real.targets), np.nan)
    for row in range(len(found)):
        number_changed = int(real_PG[row].sum())
        if number_changed == 0:
            continue
        changed = np.flatnonzero(real_PG[row] & ~np.isnan(pred.p_PG[row]))
        fold, p, adjusted = pred.fold_PG[row, changed], pred.p_PG[row, changed], pred.adjusted_PG[row, changed]
        called = pred.called_PG[row, changed]
        order = np.lexsort((name_G[changed], -np.abs(fold), p, adjusted, ~called))
        right = (np.sign(fold) == np.sign(real.fold_PG[row, changed])) & (fold != 0)
        counted = real.fold_PG[row, changed][order] != 0
        length, number = np.cumsum(counted), np.cumsum((right & (real.fold_PG[row, changed] != 0))[order])
        pure = (length > 0) & (number / np.maximum(length, 1) >= PURITY)
        found[row] = (length[pure].max() if pure.any() else 0) / number_changed
    return found


def jaccard(pred_PG: np.ndarray, real_PG: np.ndarray) -> np.ndarray:
    """`sig_jaccard` ``(targets)``: 1 where neither calls a gene."""
    either_P = (pred_PG | real_PG).sum(1)
    return np.where(either_P == 0, 1.0, (pred_PG & real_PG).sum(1) / np.maximum(either_P, 1))


def fold_error(called_PG: np.ndarray, one_PG: np.ndarray, other_PG: np.ndarray, size_PG: np.ndarray) -> np.ndarray:
    """`lfc_nmae` ``(targets)``: mean difference of two fold changes over the mean size of a third, on the genes called; NaN
    where they are fewer than ten."""
    found = np.full(len(called_PG), np.nan)
    for row in range(len(found)):
        genes = np.flatnonzero(called_PG[row])
        size = np.abs(size_PG[row, genes]).mean() if len(genes) >= FEWEST_GENES else 0.0
        if size > 0:
            found[row] = np.abs(one_PG[row, genes] - other_PG[row, genes]).mean() / size
    return found
