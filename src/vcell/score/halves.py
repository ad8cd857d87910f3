"""Halves of the measured cells, each held against its half of the controls: several splits in one pass over the cells.

A cell's values are those of any half that it is in. So each target's cells are sorted once, and find their places among all controls
once; what a half needs of that is counted (`vcell.score.half_ranks`).

Shape legend: S splits, P targets, G genes; 2 halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from vcell.data.files.normalize import pseudobulk_log1p
from vcell.score.differential import LEAST_CPM, Tests2026, fold_of_cpm, in_millions, log1p_cpm, mean_cpm, millions_of
from vcell.score.embedding import CELLS_PER_SET, Embedding
from vcell.score.grouped import GroupedCells
from vcell.score.half_ranks import NEITHER, SplitControls, half_of
from vcell.score.jackknife import jackknife
from vcell.score.side import Measured, OfTarget, Side
from vcell.score.sums import CellGroup
from vcell.system import in_threads

MOST_BYTES = 1_400_000_000  # of what is measured of halves at a time
Places = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]  # of two halves: of each label, which cells


@dataclass(frozen=True)
class ControlHalves:
    """Two halves of the control cells.

    Attributes
    ----------
    mean
        Mean counts per million, of each half ``(genes)``.
    bulk, noise
        Pseudobulk of each half, and its sampling variance.
    """

    mean: Sequence[np.ndarray]
    bulk: Sequence[np.ndarray]
    noise: Sequence[float]

    def tested(self, half: int) -> np.ndarray:
        """The genes that a half's cells are tested for, a mask."""
        return self.mean[half] > LEAST_CPM


class Splits:
    """Splits of measured cells into halves.

    Parameters
    ----------
    cells
        Measured whole counts with controls.
    seeds
        Of the splits.
    target
        Pseudobulks are log1p of summed counts per this.
    tests
        Against all controls.
    embedding
        In which the cells of the first split are placed.
    whole
        Whether what is measured of all cells of each target is wanted too.
    """

    def __init__(
        self, cells: GroupedCells, seeds: Sequence[int], target: float, tests: Tests2026, embedding: Embedding | None = None,
        whole: bool = False,
    ) -> None:  # fmt: skip
        self.cells, self.target, self.tests, self.embedding = cells, target, tests, embedding
        self.places: list[Places] = [cells.half_places(seed) for seed in seeds]
        self.whole = Measured.empty(len(cells.targets), len(cells.genes), embedding is not None) if whole else None
        controls = cells.controls
        millions, half_SC = millions_of(controls), half_codes(cells, cells.control, self.places, whole)
        halves = [half for both in self._groups(CellGroup(controls), cells.control, half_SC) for half in both]
        means = list(in_threads(lambda half: mean_cpm(half, millions[half.rows]), halves))
        bulks, noises = zip(*in_threads(self._profile, halves), strict=True)
        self.controls = [
            ControlHalves(means[h : h + 2], bulks[h : h + 2], noises[h : h + 2]) for h in range(0, len(halves), 2)
        ]
        self.split = SplitControls.of(tests.sorted_controls(controls), controls.indptr, half_SC)

    def sides(self) -> list[tuple[Side, Side]]:
        """Of every split the sides of its halves, everything measured; fills `whole`."""
        measured = measure_halves(self.cells, self.places, self._of_targets, self.embedding is not None, self.whole)
        return [(self._side(s, 0, one), self._side(s, 1, other)) for s, (one, other) in enumerate(measured)]

    def _side(self, split: int, half: int, measured: Measured) -> Side:
        controls = self.controls[split]
        return Side(
            self.cells.some(self.places[split][half]), Tests2026(controls.mean[half], controls.tested(half)), controls.bulk[half],
            embedding=self.embedding if split == 0 else None, known=measured, control_noise=controls.noise[half],
        )  # fmt: skip

    def _groups(self, group: CellGroup, label: str, half_SC: np.ndarray) -> list[list[CellGroup]]:
        """The halves of a label's cells, summed, in each split; none of a single cell."""
        if label not in self.places[0][0]:
            return []
        first_SG = first_sums(group, half_SC[: len(self.places)])
        sum_G, mass_C = group.sums
        found = []
        for s, places in enumerate(self.places):
            first, second = (half[label] for half in places)
            # sums of whole counts are exact
            second_G = sum_G - first_SG[s]
            for odd in np.flatnonzero(half_SC[s] == NEITHER):
                second_G -= CellGroup(group.matrix, np.array([odd])).sums[0]
            found.append([
                CellGroup(group.matrix, first, (first_SG[s], mass_C[first])),
                CellGroup(group.matrix, second, (second_G, mass_C[second])),
            ])  # fmt: skip
        return found

    def _profile(self, group: CellGroup) -> tuple[np.ndarray, float]:
        """Pseudobulk of some cells, and its sampling variance."""
        return pseudobulk_log1p(group.sums[0], self.target), jackknife(group, self.target)

    def _of_targets(self, targets: Sequence[str]) -> Iterator[list[OfTarget]]:
        """Of every split, both halves of each target's cells; where it is wanted, all of them last."""
        groups = [self.cells.group(target) for target in targets]
        codes = [half_codes(self.cells, target, self.places, self.whole is not None) for target in targets]
        millions = [in_millions(group.sums[1]) for group in groups]
        values, means = zip(*(log1p_cpm(g.cells, m) for g, m in zip(groups, millions, strict=True)), strict=True)
        return map(self._of_target, targets, groups, codes, millions, means, self.split.p_values(values, codes))

    def _of_target(
        self, target: str, group: CellGroup, half_SC: np.ndarray, millions: np.ndarray, mean_G: np.ndarray, p: np.ndarray
    ) -> list[OfTarget]:  # fmt: skip
        found = []
        for s, both in enumerate(self._groups(group, target, half_SC)):
            for h, half in enumerate(both):
                controls, mean_half_G = self.controls[s], mean_cpm(half, millions[half.rows])
                p_G = self.tests.of_all_genes(p[s, h], controls.tested(h))
                fold_G = fold_of_cpm(mean_half_G, controls.mean[h])
                found.append(OfTarget(*self._profile(half), p_G, fold_G, self._placed(half) if s == 0 else None))
        if self.whole is not None:
            p_G, fold_G = self.tests.of_all_genes(p[-1, 0]), fold_of_cpm(mean_G, self.tests.control_mean_G)
            found.append(OfTarget(*self._profile(group), p_G, fold_G, self._placed(group)))
        return found

    def _placed(self, group: CellGroup) -> np.ndarray | None:
        return None if self.embedding is None else self.embedding.place(group, CELLS_PER_SET)


def at_once(cells: GroupedCells) -> int:
    """How many splits are measured together, so that memory stays small."""
    return max(1, MOST_BYTES // max(1, 2 * 3 * 8 * len(cells.targets) * len(cells.genes)))


def half_codes(cells: GroupedCells, label: str, splits: Sequence[Places], whole: bool) -> np.ndarray:
    """The half that each cell of a label is in, in each split, ``(splits, cells)``; where the `whole` is wanted, a last split has all cells
    in its first half."""
    n = cells.n_cells(label)
    codes = [half_of(n, [half[label] for half in places if label in half]) for places in splits]
    return np.stack([*codes, np.zeros_like(codes[0])] if whole else codes)


def measure_halves(
    cells: GroupedCells, splits: Sequence[Places], of_targets: Callable[[Sequence[str]], Iterator[list[OfTarget]]], placed: bool, whole: Measured | None,
    bulk_type: type = np.float64,
) -> list[list[Measured]]:  # fmt: skip
    """What is measured of both halves in each split, of the targets that have halves; fills `whole`.

    Parameters
    ----------
    of_targets
        Measures both halves of every split, where a target has any, and all of its cells last where `whole` is wanted: of some targets, one
        after the other, as all of it is much.
    placed
        Whether cells of the first split are placed in an embedding.
    """
    # the same in every split: those of two cells and more
    targets, genes = cells.targets, len(cells.genes)
    place = {target: p for p, target in enumerate(targets)}
    halved = {target: p for p, target in enumerate(t for t in targets if t in splits[0][0])}
    measured = [
        [Measured.empty(len(halved), genes, placed and s == 0, bulk_type) for _ in range(2)] for s in range(len(splits))
    ]

    def measure(some: Sequence[str]) -> None:
        for target, found in zip(some, of_targets(some), strict=True):
            if whole is not None:
                whole.put(place[target], found.pop())
            for into, half in zip((half for both in measured for half in both), found, strict=False):
                into.put(halved[target], half)

    for _ in in_threads(measure, cells.batches()):
        pass
    return measured


def first_sums(group: CellGroup, half_SC: np.ndarray) -> np.ndarray:
    """Sums of the genes over the cells of the first half in each split, ``(splits, genes)``; `group` is all of a matrix."""
    counts = group.matrix
    weight_CS = np.ascontiguousarray((half_SC == 0).T.astype(np.float64))
    return np.ascontiguousarray(
        _weighted_sums(counts.indptr, counts.indices, counts.data, weight_CS, counts.shape[1]).T
    )


@njit(nogil=True, cache=True)
def _weighted_sums(starts, genes, values, weight_CS, n_genes):
    sum_GS = np.zeros((n_genes, weight_CS.shape[1]), np.float64)
    for c in range(len(weight_CS)):
        for k in range(starts[c], starts[c + 1]):
            value, g = float(values[k]), genes[k]
            for s in range(weight_CS.shape[1]):
                sum_GS[g, s] += value * weight_CS[c, s]
    return sum_GS
