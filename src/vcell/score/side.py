"""What the scores need of some cells, measured in one pass over their targets: the cells may lie in a file, or be drawn as they are read.

Shape legend: P targets, G genes, K components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
from scipy import sparse

from vcell.score.differential import Calls, PAndFold
from vcell.score.embedding import CELLS_PER_SET, Embedding
from vcell.score.grouped import GroupedCells
from vcell.score.sums import CellGroup
from vcell.system import in_threads


class Tests(Protocol):
    """Differential expression of a year, against controls."""

    def __call__(self, groups: Sequence[CellGroup]) -> list[PAndFold]: ...

    def drawn_from(self, pool: sparse.csr_matrix) -> Callable[[Sequence[CellGroup]], list[PAndFold]]: ...

    def calls(self, targets: list[str], p_PG: np.ndarray, fold_PG: np.ndarray) -> Calls: ...


class OfTarget(NamedTuple):
    """Of the cells of one target."""

    bulk_G: np.ndarray
    noise: float
    p_G: np.ndarray
    fold_G: np.ndarray
    placed: np.ndarray | None


class Measured(NamedTuple):
    """Of the targets of some cells."""

    bulk_PG: np.ndarray
    noise_P: np.ndarray
    p_PG: np.ndarray
    fold_PG: np.ndarray
    placed: list[np.ndarray]  # ``(cells, components)`` of some cells of each

    @classmethod
    def empty(cls, n_targets: int, n_genes: int, placed: bool, bulk_type: type = np.float64) -> Measured:
        """Room for what is measured; `placed`: for cells in an embedding too."""
        p_PG, fold_PG = (np.empty((n_targets, n_genes)) for _ in range(2))
        places = [np.empty(0)] * n_targets if placed else []
        return cls(np.empty((n_targets, n_genes), bulk_type), np.empty(n_targets), p_PG, fold_PG, places)

    def put(self, row: int, found: OfTarget) -> None:
        """What was measured of a target; any thread may."""
        self.bulk_PG[row], self.noise_P[row], self.p_PG[row], self.fold_PG[row] = found[:4]
        if found.placed is not None:
            self.placed[row] = found.placed

    def rows(self, places: list[int]) -> Measured:
        """Of some of the targets."""
        bulk_PG, noise_P, p_PG, fold_PG = (part[places] for part in self[:4])
        return Measured(bulk_PG, noise_P, p_PG, fold_PG, [self.placed[p] for p in places] if self.placed else [])


@dataclass(frozen=True)
class Side:
    """What the scores need of one set of cells.

    Attributes
    ----------
    cells
        Predicted or measured cells.
    tests
        Against the controls that count for them.
    control_G
        Pseudobulk of these.
    bulk, noise
        Of a target's cells: pseudobulk, and its sampling variance summed over genes.
    embedding
        In which some cells of each target are placed; None: not wanted.
    like
        The side of the same cells under other names, and these names, where that was measured already.
    control_noise
        Sampling variance of the controls' pseudobulk.
    known
        What was measured elsewhere: of halves and all cells, which are read once for several splits.
    """

    cells: GroupedCells
    tests: Tests
    control_G: np.ndarray
    bulk: Callable[[CellGroup], np.ndarray] | None = None
    noise: Callable[[CellGroup], float] | None = None
    embedding: Embedding | None = None
    like: tuple[Side, dict[str, str]] | None = None
    control_noise: float = 0.0
    known: Measured | None = None

    @property
    def is_measured(self) -> bool:
        """Whether that is done."""
        return self.known is not None or "measured" in vars(self)

    @cached_property
    def measured(self) -> Measured:
        if self.known is not None:
            return self.known
        if self.like is not None:
            other, names = self.like
            place = {target: p for p, target in enumerate(other.cells.targets)}
            return other.measured.rows([place[names[target]] for target in self.cells.targets])
        targets, pool = self.cells.targets, self.cells.pool
        test = self.tests if pool is None or not pool.is_drawn_often else self.tests.drawn_from(pool.cells)
        p_PG, fold_PG = (np.empty((len(targets), len(self.cells.genes))) for _ in range(2))
        noise_P, bulks, placed = np.zeros(len(targets)), [], []
        measured = in_threads(partial(self._measure, test), self.cells.batches())
        for p, found in enumerate(chain.from_iterable(measured)):
            noise_P[p], p_PG[p], fold_PG[p] = found.noise, found.p_G, found.fold_G
            bulks.append(found.bulk_G)
            if found.placed is not None:
                placed.append(found.placed)
        return Measured(np.array(bulks), noise_P, p_PG, fold_PG, placed)  # bulks in the precision that they come in

    def _measure(self, test: Callable[[Sequence[CellGroup]], list[PAndFold]], targets: Sequence[str]) -> list[OfTarget]:
        groups = [self.cells.group(target) for target in targets]
        return [self._of_group(group, *tested) for group, tested in zip(groups, test(groups), strict=True)]

    def _of_group(self, group: CellGroup, p_G: np.ndarray, fold_G: np.ndarray) -> OfTarget:
        assert self.bulk is not None
        noise = 0.0 if self.noise is None else self.noise(group)
        placed = None if self.embedding is None else self.embedding.place(group, CELLS_PER_SET)
        return OfTarget(self.bulk(group), noise, p_G, fold_G, placed)

    @cached_property
    def calls(self) -> Calls:
        measured = self.measured
        return self.tests.calls(self.cells.targets, measured.p_PG, measured.fold_PG)

    @property
    def bulk_PG(self) -> np.ndarray:
        """Pseudobulks."""
        return self.measured.bulk_PG

    @property
    def noise_P(self) -> np.ndarray:
        """Sampling variance of each pseudobulk, summed over genes."""
        return self.measured.noise_P

    @property
    def delta_PG(self) -> np.ndarray:
        """Effects on the pseudobulk, worked out anew each time."""
        return self.bulk_PG - self.control_G

    def delta_of(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Those of a target, or of some."""
        return self.bulk_PG[rows] - self.control_G

    def placed(self, row: int, embedding: Embedding) -> np.ndarray:
        """Some cells of a target in `embedding`, ``(cells, components)``."""
        if self.embedding is embedding:
            return self.measured.placed[row]
        return embedding.place(self.cells.group(self.cells.targets[row]), CELLS_PER_SET)


def known_as(side: Side | None, cells: GroupedCells) -> tuple[Side, dict[str, str]] | None:
    """`side` where it is that of these cells under other names; and the name there of each target."""
    if side is None or cells.same_as is None or cells.same_as[0] is not side.cells:
        return None
    return side, dict(cells.same_as[1])
