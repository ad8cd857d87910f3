"""The scores of 2025 (`cell-eval` 0.8.2, profile vcc), computed fast and equal to the package's.

Shape legend: P targets, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from vcell.effects.distances import l1_distances
from vcell.score.blocks import by_targets, one_array
from vcell.score.differential import Calls, Tests2025, geometric_mean
from vcell.score.embedding import CELLS_PER_SET, Embedding
from vcell.score.grouped import GroupedCells, Lazy
from vcell.score.half_ranks import SplitControls
from vcell.score.halves import half_codes, measure_halves
from vcell.score.side import Measured, OfTarget, Side, known_as
from vcell.score.sums import CellGroup
from vcell.system import in_threads

if TYPE_CHECKING:
    import torch

RANKED_TOGETHER = 32  # targets whose distances from all others are held at once


class Fast2025:
    """Scores predictions of one context against the measured cells; these are analysed once.

    Parameters
    ----------
    real
        Measured log1p cells with controls.
    device
        Where the rank tests run; None: on the CPU.
    """

    def __init__(self, real: GroupedCells, device: torch.device | None = None) -> None:
        self.device = device
        self.embedding: Embedding | None = None
        self._tests: dict[int, tuple[sparse.csr_matrix, Tests2025, np.ndarray]] = {}  # by their controls
        self._first: Side | None = None  # the prediction that references may be made of
        self._floor: tuple[GroupedCells, sparse.csr_matrix] | None = None  # the official baseline, and its only cell
        self.real, self._first = self.side(real), None

    def place_in(self, embedding: Embedding) -> None:
        """Cells are placed in it while they are read."""
        self.embedding, self.real = embedding, replace(self.real, embedding=embedding)

    def side(self, pred: GroupedCells) -> Side:
        """The prediction's side: its own controls count."""
        controls = pred.controls
        if id(controls) not in self._tests:
            profile_G = _profile(CellGroup(controls))
            self._tests[id(controls)] = controls, Tests2025.of(controls, self.device), profile_G
        _, tests, control_G = self._tests[id(controls)]
        side = Side(pred, tests, control_G, _profile, embedding=self.embedding, like=known_as(self._first, pred))
        if self._floor is not None and pred is self._floor[0]:
            return replace(side, known=self._of_floor(pred, tests, self._floor[1]))
        self._first = self._first or side
        return side

    def score(self, pred: Side) -> pd.DataFrame:
        """DES, PDS and MAE of every target; same targets and genes as measured."""
        return score(pred, self.real)

    def replicates(self) -> Iterator[tuple[pd.DataFrame, Side, Side]]:
        """One half of the measured cells scored as a prediction of the other, one row per target; and the sides of both.

        The measured cells as a whole are measured in the same pass.
        """
        assert isinstance(self.real.tests, Tests2025)
        first, second, whole = halves(self.real, self.real.tests)
        self.real = replace(self.real, known=whole)
        yield score(second, first), second, first

    def floor(self) -> GroupedCells:
        """The official baseline: the mean of all groups' mean profiles, controls' included, as every cell of every target."""
        cells = self.real.cells
        profile = np.vstack([self.real.bulk_PG, self.real.control_G]).astype(float).mean(0).astype(np.float32)
        cell = sparse.csr_matrix(profile)
        sizes = {t: cells.n_cells(t) for t in cells.targets}
        made = GroupedCells(Lazy(sizes, lambda t: _tiled(cell, sizes[t])), cells.genes, cells.control)
        self._floor = made.with_controls(cells.controls), cell
        return self._floor[0]

    def _of_floor(self, floor: GroupedCells, tests: Tests2025, cell: sparse.csr_matrix) -> Measured:
        """What is measured of the official baseline, whose cells are all the same: once for each number of cells."""
        sizes = [floor.n_cells(t) for t in floor.targets]
        assert tests.p_of is not None
        measured = {n: (tests.p_of([cell], n)[0], tests.fold(CellGroup(cell, np.zeros(n, int)))) for n in set(sizes)}
        p_PG, fold_PG = (np.array([measured[n][part] for n in sizes]) for part in range(2))
        placed = [] if self.embedding is None else [
            np.repeat(self.embedding.place(CellGroup(cell)), min(n, CELLS_PER_SET), axis=0) for n in sizes
        ]  # fmt: skip
        return Measured(
            np.repeat(_profile(CellGroup(cell))[None], len(sizes), axis=0), np.zeros(len(sizes)), p_PG, fold_PG, placed
        )


def score(pred: Side, real: Side) -> pd.DataFrame:
    """DES, PDS and MAE of every target; same targets and genes as measured."""

    def error(rows: slice) -> np.ndarray:
        return np.abs(pred.bulk_PG[rows].astype(float) - real.bulk_PG[rows]).mean(1)

    return pd.DataFrame(
        {
            "DES": overlap(pred.calls, real.calls),
            "PDS": discrimination_l1(pred.delta_PG, real.delta_PG, pred.cells.targets, pred.cells.genes),
            "MAE": one_array(by_targets(error, *pred.bulk_PG.shape)),
        },
        index=pd.Index(pred.cells.targets, name="perturbation"),
    )


def halves(real: Side, tests: Tests2025) -> tuple[Side, Side, Measured]:
    """The sides of both halves of the measured cells, and what is measured of all of them, in one pass (`vcell.score.halves`)."""
    cells, embedding, controls = real.cells, real.embedding, real.cells.controls
    places = cells.half_places(0)
    split = SplitControls.of(
        tests.sorted_controls(controls), controls.indptr, half_codes(cells, cells.control, [places], True)
    )
    own = [CellGroup(controls, half[cells.control]) for half in places]
    tests_of = [*(Tests2025(geometric_mean(half)) for half in own), tests]

    def of_targets(targets: Sequence[str]) -> Iterator[list[OfTarget]]:
        groups = [cells.group(target) for target in targets]
        codes = [half_codes(cells, target, [places], True) for target in targets]
        return map(of_target, targets, groups, split.p_values([group.cells for group in groups], codes))

    def of_target(target: str, group: CellGroup, p: np.ndarray) -> list[OfTarget]:
        some = [CellGroup(group.cells, half[target]) for half in places if target in half]
        parts = zip([*some, group], [*p[0, : len(some)], p[1, 0]], tests_of[2 - len(some) :], strict=True)
        return [of_part(*part) for part in parts]

    def of_part(part: CellGroup, p_G: np.ndarray, test: Tests2025) -> OfTarget:
        placed = None if embedding is None else embedding.place(part, CELLS_PER_SET)
        return OfTarget(_profile(part), 0.0, p_G, test.fold(part), placed)

    placed = embedding is not None
    whole = Measured.empty(len(cells.targets), len(cells.genes), placed, np.float32)
    [found] = measure_halves(cells, [places], of_targets, placed, whole, np.float32)
    sides = [
        Side(cells.some(places[h]), tests_of[h], _profile(own[h]), embedding=embedding, known=found[h])
        for h in range(2)
    ]
    return sides[0], sides[1], whole


def _profile(group: CellGroup) -> np.ndarray:
    """Mean log1p, as the package keeps it."""
    return group.mean().astype(np.float32)


def overlap(pred: Calls, real: Calls) -> np.ndarray:
    """`overlap_at_N` ``(targets)``: 0 where either calls no gene."""
    found = np.zeros(len(real.targets))
    for row in range(len(found)):
        called = np.flatnonzero(pred.called_PG[row])
        number = int(real.called_PG[row].sum())
        if number == 0 or len(called) == 0:
            continue
        size = np.abs(pred.fold_PG[row, called]).astype(np.float32)
        found[row] = real.called_PG[row, called[_largest(size, number)]].sum() / number
    return found


def _largest(size: np.ndarray, number: int) -> np.ndarray:
    """Places of the `number` largest, of all where there are fewer, in no order. Which of equal ones are among them is the official
    package's choice, and only asked for where some are and others are not."""
    if number >= len(size):
        return np.arange(len(size))
    enough = np.flatnonzero(size >= np.partition(size, -number)[-number])
    return enough if len(enough) == number else _official_order(size)[:number]


def _official_order(size: np.ndarray) -> np.ndarray:
    """The largest first; equal ones as the official package has them, whose rank (polars', of a struct) does not keep their order.

    Where polars is not installed, nor then the official package, equal ones keep their order.
    """
    try:
        import polars
    except ModuleNotFoundError:
        return np.argsort(-size, kind="stable")
    ranks = polars.DataFrame({"size": size}).select(polars.struct("size").rank("ordinal", descending=True))
    return np.argsort(ranks.to_series().to_numpy())


def discrimination_l1(
    pred_PG: np.ndarray, real_PG: np.ndarray, targets: Sequence[str], genes: Sequence[str]
) -> np.ndarray:
    """`discrimination_score_l1` ``(targets)``: place of the own measured effect by L1 distance, own gene left out."""
    place = {gene: i for i, gene in enumerate(genes)}

    def ranks(first: int) -> np.ndarray:
        distance = l1_distances(pred_PG[first : first + RANKED_TOGETHER], real_PG)
        return np.array([rank(row, distance_P) for row, distance_P in enumerate(distance, first)])

    def rank(row: int, distance_P: np.ndarray) -> int:
        gene = place.get(targets[row])
        if gene is not None:
            distance_P = distance_P - np.abs(float(pred_PG[row, gene]) - real_PG[:, gene].astype(float))
        return int(np.flatnonzero(np.argsort(distance_P) == row)[0])

    return 1 - one_array(list(in_threads(ranks, range(0, len(pred_PG), RANKED_TOGETHER)))) / len(targets)


def _tiled(cell: sparse.csr_matrix, n: int) -> sparse.csr_matrix:
    """A cell, `n` times."""
    parts = (np.tile(cell.data, n), np.tile(cell.indices, n), np.arange(n + 1, dtype=np.int64) * cell.nnz)
    return sparse.csr_matrix(parts, shape=(n, cell.shape[1]))
