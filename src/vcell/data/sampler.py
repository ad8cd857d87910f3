"""Which cells make up each training step, as a pure function of (seed, step, rank, world size).

Each epoch deals every training group's cells, shuffled anew, into sets of `set_size`; a group's last set is
filled up with other cells of the group. Weights change how many sets a group gets. The sets of an epoch are shuffled and dealt to ranks and steps in
turn, on into the next epoch, so every cell is reached in every epoch, ranks draw disjoint sets, and a run
resumes exactly from its step number alone.

Cell by cell, a set's controls come from the same context and batch. Where a batch has no control cell, the
whole context's controls stand in; `fallback_cells` counts for how many cells that is so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vcell.data.batch import CellSets
from vcell.data.splits import Group, check_known
from vcell.data.store import Cells
from vcell.errors import VcellError

# first word of every random key, so that draws for different purposes never share a stream
EPOCH, CELLS, CONTROLS, PLAN, VALIDATION = range(5)


@dataclass(frozen=True)
class Weights:
    """How many sets each group gets in an epoch.

    Parameters
    ----------
    balance
        ``cells``: as many as its cells fill, so that each cell is reached once; ``perturbations``: every group as many as the
        average one; ``sqrt``: between the two. A group with more sets than its cells fill is dealt again, shuffled anew;
        one with fewer shows other cells from epoch to epoch.
    contexts, perturbations
        Factors by name.
    """

    balance: str = "cells"
    contexts: Mapping[str, float] | None = None
    perturbations: Mapping[str, float] | None = None

    def sets(self, groups: Sequence[Group], filled: np.ndarray) -> np.ndarray:
        """Sets of each group in an epoch, at least one, from those that its cells fill."""
        powers = {"cells": 1.0, "sqrt": 0.5, "perturbations": 0.0}
        if self.balance not in powers:
            raise VcellError(f"data.sets.weights.balance={self.balance} must be one of {', '.join(powers)}")
        contexts, perturbations = self.contexts or {}, self.perturbations or {}
        for place, (name, factors) in enumerate((("contexts", contexts), ("perturbations", perturbations))):
            check_known(factors, {g[place] for g in groups}, f"data.sets.weights.{name}", name.removesuffix("s"))
            bad = [k for k, v in factors.items() if not isinstance(v, int | float) or v <= 0]
            if bad:
                raise VcellError(
                    f"data.sets.weights.{name} must be numbers above 0; {bad[0]}: {factors[bad[0]]} is not"
                )
        balanced = filled ** powers[self.balance]
        balanced = balanced * (filled.sum() / balanced.sum())
        factor = [contexts.get(c, 1.0) * perturbations.get(p, 1.0) for c, p in groups]
        return np.maximum(1, np.rint(balanced * factor)).astype(np.int64)


class CellSetSampler:
    """Deals cell sets of the given groups.

    Parameters
    ----------
    store
        Where the cells are.
    groups
        The (context, perturbation) groups to draw from.
    set_size
        Cells per set; groups smaller than this repeat cells within a set.
    sets_per_step
        Sets per step and rank.
    seed, rank, world_size
        What a step is a function of.
    weights
        How many sets each group gets.
    """

    def __init__(
        self,
        store: Cells,
        groups: Iterable[Group],
        set_size: int,
        sets_per_step: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        weights: Weights | None = None,
    ) -> None:
        self.store = store
        self.groups = sorted(groups)
        if not self.groups:
            raise VcellError("there are no perturbed cells to draw from: the split is empty")
        self.set_size, self.sets_per_step = set_size, sets_per_step
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.controls = ControlPool(store, {context for context, _ in self.groups})
        self.filled = np.array([-(-len(store.groups[g]) // set_size) for g in self.groups])
        n_sets = (weights or Weights()).sets(self.groups, self.filled)
        # set number -> (group number, its how-manieth set)
        self.set_table = np.array([(g, k) for g, n in enumerate(n_sets) for k in range(n)], dtype=np.int64)
        self._epoch_order = lru_cache(maxsize=2)(self._shuffled_epoch)

    @property
    def sets_per_epoch(self) -> int:
        return len(self.set_table)

    @property
    def fallback_cells(self) -> int:
        """Perturbed cells whose batch has no control cell."""
        return sum(self.controls.without_batch(self.store.groups[g]) for g in self.groups)

    def batch(self, step: int) -> CellSets:
        """The sets of `step` on this rank."""
        first = (step * self.world_size + self.rank) * self.sets_per_step
        dealt = [divmod(position, self.sets_per_epoch) for position in range(first, first + self.sets_per_step)]
        return self._stack([self._draw(epoch, int(self._epoch_order(epoch)[place])) for epoch, place in dealt])

    def validation(self) -> list[CellSets]:
        """One set of every group, the same whenever asked, in steps; this rank's share.

        Ranks get equally many groups, some twice where they do not divide.
        """
        n = len(self.groups)
        numbers = np.resize(np.arange(n), -(-n // self.world_size) * self.world_size)
        mine = numbers[self.rank :: self.world_size]
        steps = [mine[i : i + self.sets_per_step] for i in range(0, len(mine), self.sets_per_step)]
        return [self._stack([self._validation_set(int(n)) for n in step]) for step in steps]

    def _draw(self, epoch: int, set_number: int) -> tuple[Group, np.ndarray, np.ndarray]:
        group_number, place = self.set_table[set_number]
        group = self.groups[group_number]
        cells = self.store.groups[group]
        turn, place = divmod(int(place), int(self.filled[group_number]))
        key = (epoch, group_number, turn) if turn else (epoch, group_number)
        shuffled = _rng(self.seed, CELLS, *key).permutation(cells)
        chosen = shuffled[place * self.set_size : (place + 1) * self.set_size]
        rng = _rng(self.seed, CONTROLS, epoch, set_number)
        if len(chosen) < self.set_size:
            others = np.setdiff1d(cells, chosen)
            chosen = np.concatenate([chosen, _fill(others, cells, self.set_size - len(chosen), rng)])
        return group, chosen, self.controls.matched(group[0], chosen, rng)

    def _validation_set(self, group_number: int) -> tuple[Group, np.ndarray, np.ndarray]:
        group = self.groups[group_number]
        rng = _rng(self.seed, VALIDATION, group_number)
        cells = self.store.groups[group]
        chosen = _fill(cells, cells, self.set_size, rng)
        return group, chosen, self.controls.matched(group[0], chosen, rng)

    def _shuffled_epoch(self, epoch: int) -> np.ndarray:
        return _rng(self.seed, EPOCH, epoch).permutation(self.sets_per_epoch)

    @staticmethod
    def _stack(drawn: Sequence[tuple[Group, np.ndarray, np.ndarray]]) -> CellSets:
        return CellSets(
            contexts=[group[0] for group, _, _ in drawn],
            perturbations=[group[1] for group, _, _ in drawn],
            controls_SC=np.stack([controls for _, _, controls in drawn]),
            perturbed_SC=np.stack([cells for _, cells, _ in drawn]),
        )


class ControlPool:
    """Control cells of some contexts, by the batch they come from."""

    def __init__(self, store: Cells, contexts: Iterable[str]) -> None:
        # a batch is a label within one source file and context: labels of two files do not mean the same lane
        obs = store.obs
        self.batch_of_cell = obs.groupby(["context", "source", "batch"], observed=True, sort=True).ngroup().to_numpy()
        self.of_context = {context: store.controls_of(context) for context in sorted(contexts)}
        self.of_batch: dict[int, np.ndarray] = {}
        for cells in self.of_context.values():
            batches = self.batch_of_cell[cells]
            self.of_batch.update({int(b): cells[batches == b] for b in np.unique(batches)})

    def matched(self, context: str, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One control for each of `cells`, of its batch; within a batch none twice while they last."""
        controls = np.empty(len(cells), dtype=np.int64)
        batches = self.batch_of_cell[cells]
        for batch in np.unique(batches):
            where = np.flatnonzero(batches == batch)
            pool = self.of_batch.get(int(batch), self.of_context[context])
            controls[where] = _fill(pool, pool, len(where), rng)
        return controls

    def without_batch(self, cells: np.ndarray) -> int:
        """How many of `cells` lie in a batch without controls."""
        return int((~np.isin(self.batch_of_cell[cells], list(self.of_batch))).sum())

    def plan(self, context: str, perturbation: str, n_cells: int, set_size: int, seed: int) -> CellSets:
        """Control cells to predict `n_cells` of one perturbation from, in as many full sets as that takes.

        Controls are drawn over the context's batches as they come, none twice while they last. A function of the
        seed, the context and the perturbation only: what else is asked for changes nothing.
        """
        n_sets = -(-n_cells // set_size)
        pool = self.of_context[context]
        rng = _rng(seed, PLAN, *f"{context}\t{perturbation}".encode())
        controls = _fill(pool, pool, n_sets * set_size, rng)
        return CellSets([context] * n_sets, [perturbation] * n_sets, controls.reshape(n_sets, set_size), None)


def _fill(first: np.ndarray, pool: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """`number` cells: of `first` without repeats while they last, then of `pool`, round after round."""
    drawn = rng.permutation(first)[:number]
    while len(drawn) < number:
        drawn = np.concatenate([drawn, rng.permutation(pool)[: number - len(drawn)]])
    return drawn


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([int(k) for k in key])
