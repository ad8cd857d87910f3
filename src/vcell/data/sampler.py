"""Which cells make up each training step, as a pure function of (seed, step, rank, world size).

Each epoch deals every training group's cells, reshuffled, into sets of `set_size`; a group's last set is
filled up with other cells of the group. Weights change how many sets a group gets. The sets of an epoch are shuffled and dealt to
ranks and steps in turn, on into the next epoch, so every cell is reached in every epoch, ranks draw disjoint sets, and a run
resumes exactly from its step number alone.

Cell by cell, a set's controls come from the same context and batch. Where a batch has no control cell, the controls of the
whole context are used; `fallback_cells` counts the affected cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vcell.data.batch import CellSets
from vcell.data.permute import key, permuted
from vcell.data.splits import Group, check_known
from vcell.data.store.store import BATCH_COLUMNS, Cells
from vcell.errors import VcellError, check_choice, nearest, shortlist

# first word of every random key, so that draws for different purposes never share a stream
EPOCH, CELLS, CONTROLS, PLAN, VALIDATION, FILL, COUNTS = range(7)


@dataclass(frozen=True)
class Weights:
    """How many sets each group gets in an epoch.

    Parameters
    ----------
    balance
        ``cells``: as many as its cells fill, so that each cell is reached once; ``perturbations``: every group as many as the
        average one; ``sqrt``: between the two. A group with more sets than its cells fill is dealt again, reshuffled;
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
        check_choice("data.sets.weights.balance", self.balance, powers)
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
            raise VcellError("there are no perturbed cells to sample from: the split is empty")
        self.set_size, self.sets_per_step = set_size, sets_per_step
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.controls = ControlPool(store, {context for context, _ in self.groups})
        self.cells = Lists([store.groups[group] for group in self.groups])
        self.filled = np.array([-(-len(store.groups[g]) // set_size) for g in self.groups])
        n_sets = (weights or Weights()).sets(self.groups, self.filled)
        # set number -> (group number, index of the set within its group)
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
        epoch_S, place_S = np.divmod(np.arange(first, first + self.sets_per_step), self.sets_per_epoch)
        set_S = np.array([self._epoch_order(e)[p] for e, p in zip(epoch_S.tolist(), place_S.tolist(), strict=True)])
        group_S, part_S = self.set_table[set_S].T
        turn_S, part_S = np.divmod(part_S, self.filled[group_S])
        position_SC = self._dealt(self.cells.size[group_S], part_S, key(self.seed, FILL, epoch_S, set_S))
        shuffled_S = key(self.seed, CELLS, epoch_S, group_S, turn_S)
        position_SC = permuted(position_SC, self.cells.size[group_S, None], shuffled_S[:, None])
        cells_SC = self.cells.at(group_S[:, None], position_SC)
        return self._sets(group_S, cells_SC, key(self.seed, CONTROLS, epoch_S, set_S))

    def _dealt(self, n_S: np.ndarray, part_S: np.ndarray, key_S: np.ndarray) -> np.ndarray:
        """Positions in their shuffled groups of `n_S` cells that make up the `part_S`-th sets.

        First those that are dealt to the set; where they do not fill it, the group's others; then, round after round, all of them.
        """
        slot_C, before_S1 = np.arange(self.set_size), part_S[:, None] * self.set_size
        n_S1, key_S1 = n_S[:, None], key_S[:, None]
        own_S1 = np.minimum(self.set_size, n_S1 - before_S1)
        more_SC = np.maximum(slot_C - own_S1, 0)
        round_SC, again_SC = np.divmod(np.maximum(more_SC - before_S1, 0), n_S1)
        other_SC = permuted(np.minimum(more_SC, np.maximum(before_S1 - 1, 0)), np.maximum(before_S1, 1), key_S1)
        repeated_SC = permuted(again_SC, n_S1, key(key_S1, round_SC))
        filled_SC = np.where(more_SC < before_S1, other_SC, repeated_SC)
        return np.where(slot_C < own_S1, before_S1 + np.minimum(slot_C, own_S1 - 1), filled_SC)

    def validation(self) -> list[CellSets]:
        """One set of every group, the same whenever asked, in steps; this rank's share.

        Ranks get equally many groups, some twice where they do not divide.
        """
        n = len(self.groups)
        numbers = np.resize(np.arange(n), -(-n // self.world_size) * self.world_size)
        mine = numbers[self.rank :: self.world_size]
        return [self._validation(mine[i : i + self.sets_per_step]) for i in range(0, len(mine), self.sets_per_step)]

    def _validation(self, group_S: np.ndarray) -> CellSets:
        n_S1 = self.cells.size[group_S, None]
        round_SC, position_SC = np.divmod(np.arange(self.set_size), n_S1)
        drawn_S = key(self.seed, VALIDATION, group_S)
        cells_SC = self.cells.at(group_S[:, None], permuted(position_SC, n_S1, key(drawn_S[:, None], round_SC)))
        return self._sets(group_S, cells_SC, drawn_S)

    def _sets(self, group_S: np.ndarray, cells_SC: np.ndarray, key_S: np.ndarray) -> CellSets:
        groups = [self.groups[g] for g in group_S]
        return CellSets(
            contexts=[context for context, _ in groups],
            perturbations=[perturbation for _, perturbation in groups],
            controls_SC=self.controls.matched([context for context, _ in groups], cells_SC, key_S),
            perturbed_SC=cells_SC,
        )

    def _shuffled_epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, EPOCH, epoch]).permutation(self.sets_per_epoch)


class Lists:
    """Lists of cells, one after the other."""

    def __init__(self, lists: Sequence[np.ndarray]) -> None:
        self.size = np.array([len(cells) for cells in lists], dtype=np.int64)
        self.start = np.concatenate([np.zeros(1, np.int64), self.size.cumsum()[:-1]])
        self.flat = np.concatenate([np.asarray(cells, np.int64) for cells in lists]) if lists else np.zeros(0, np.int64)

    def at(self, number: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The cells at `position` of the lists `number`, broadcast."""
        return self.flat[self.start[number] + position]


class ControlPool:
    """Control cells of some contexts, by the batch they come from."""

    def __init__(self, store: Cells, contexts: Iterable[str]) -> None:
        self.batch_of_cell = store.obs.groupby(BATCH_COLUMNS, observed=True, sort=True).ngroup().to_numpy()
        self.batch_names = store.obs["batch"].astype(str).to_numpy()
        self.of_context = {context: store.controls_of(context) for context in sorted(contexts)}
        self.of_batch: dict[int, np.ndarray] = {}
        for cells in self.of_context.values():
            batches = self.batch_of_cell[cells]
            self.of_batch.update({int(b): cells[batches == b] for b in np.unique(batches)})
        self.pools = Lists([*self.of_batch.values(), *self.of_context.values()])
        self.pool_of_context = {context: len(self.of_batch) + i for i, context in enumerate(self.of_context)}
        self.pool_of_batch = np.full(int(self.batch_of_cell.max(initial=-1)) + 1, -1)
        self.pool_of_batch[list(self.of_batch)] = np.arange(len(self.of_batch))

    def matched(self, contexts: Sequence[str], cells_SC: np.ndarray, key_S: np.ndarray) -> np.ndarray:
        """One control for each of the cells, of its batch; in a set none of a batch twice while they last.

        Where a batch has none, those of the set's context are used.
        """
        fallback_S = np.array([self.pool_of_context[context] for context in contexts])
        pool_SC = self.pool_of_batch[self.batch_of_cell[cells_SC]]
        pool_SC = np.where(pool_SC < 0, fallback_S[:, None], pool_SC)
        size_SC = self.pools.size[pool_SC]
        round_SC, position_SC = np.divmod(ordinals(pool_SC), size_SC)
        return self.pools.at(pool_SC, permuted(position_SC, size_SC, key(key_S[:, None], pool_SC, round_SC)))

    def without_batch(self, cells: np.ndarray) -> int:
        """How many of `cells` lie in a batch without controls."""
        return int((~np.isin(self.batch_of_cell[cells], list(self.of_batch))).sum())

    def plan(
        self,
        context: str,
        perturbation: str,
        n_cells: int,
        set_size: int,
        seed: int,
        batches: Mapping[str, int] | None = None,
    ) -> CellSets:
        """Control cells to predict `n_cells` of one perturbation from, in as many full sets as that takes.

        Controls are drawn over the context's batches as they come, or as many from each as `batches` says; none twice while
        they last. A function of the seed, the context and the perturbation only: what else is asked for changes nothing.

        Raises
        ------
        VcellError
            If a batch of `batches` has no control cells in the context.
        """
        n_sets = -(-n_cells // set_size)
        pool = self.of_context[context]
        rng = np.random.default_rng([seed, PLAN, *f"{context}\t{perturbation}".encode()])
        if batches is None:
            controls = _rounds(pool, n_sets * set_size, rng)
        else:
            chosen = [_rounds(self._in_batch(context, batch), n, rng) for batch, n in batches.items()]
            rest = _rounds(pool, n_sets * set_size - n_cells, rng)
            controls = np.concatenate([rng.permutation(np.concatenate(chosen)), rest])
        return CellSets([context] * n_sets, [perturbation] * n_sets, controls.reshape(n_sets, set_size), None)

    def _in_batch(self, context: str, batch: str) -> np.ndarray:
        pool = self.of_context[context]
        cells = pool[self.batch_names[pool] == batch]
        if not len(cells):
            known = sorted(set(self.batch_names[pool].tolist()))
            raise VcellError(
                f"batch {batch!r} has no control cells in context {context!r}.{nearest(batch, known)} Batches with controls: "
                f"{shortlist(known)}. To use all controls of the context: batches=false"
            )
        return cells


def _rounds(pool: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` cells of the pool, none twice before all were taken."""
    rounds = [rng.permutation(pool) for _ in range(-(-n // len(pool)))]
    return np.concatenate(rounds)[:n] if rounds else pool[:0]


def ordinals(of_SC: np.ndarray) -> np.ndarray:
    """How many equal numbers stand before each one in its row."""
    order_SC = np.argsort(of_SC, axis=1, kind="stable")
    sorted_SC = np.take_along_axis(of_SC, order_SC, 1)
    place_C = np.arange(of_SC.shape[1])
    begins_SC = np.concatenate([np.ones((len(of_SC), 1), bool), sorted_SC[:, 1:] != sorted_SC[:, :-1]], axis=1)
    since_SC = place_C - np.maximum.accumulate(np.where(begins_SC, place_C, 0), axis=1)
    out_SC = np.empty_like(since_SC)
    np.put_along_axis(out_SC, order_SC, since_SC, 1)
    return out_SC
