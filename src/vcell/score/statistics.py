"""The uncertainty of a score: resampled targets, and the difference of two predictions on the same targets.

Targets are drawn with replacement within each context; a discrimination score keeps the rank its target had among all. So the
intervals show how much a score depends on which targets were measured, not on which cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vcell.score.metrics import Metric, parts, summary

DRAWS = 2_000
LEVEL = 0.95
NORMAL = 1.959964  # standard errors that hold 95 of 100
FEW_TARGETS = 10  # below which targets are too few to be resampled
Values = Mapping[str, float]


@dataclass(frozen=True)
class Interval:
    """A value and the range that holds it in 95 of 100 resamples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def of(cls, values: np.ndarray) -> Interval:
        """From the value itself, first, and those of the resamples."""
        drawn = values[1:][np.isfinite(values[1:])]
        if len(drawn) == 0:
            return cls(float(values[0]), float("nan"), float("nan"))
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(values[0]), float(low), float(high))

    @classmethod
    def jackknife(cls, values: np.ndarray) -> Interval:
        """From the value itself, first, and those with one group of cells left out each (Efron 1982): normal, 95 of 100."""
        left_out = values[1:][np.isfinite(values[1:])]
        if len(left_out) < 2:
            return cls(float(values[0]), float("nan"), float("nan"))
        groups = len(left_out)
        error = float(np.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum()))
        return cls(float(values[0]), float(values[0]) - NORMAL * error, float(values[0]) + NORMAL * error)

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Resampled:
    """Metrics of every context, on its targets as they are and on resamples of them.

    Attributes
    ----------
    metrics
        Names of the last axis.
    values
        ``(1 + draws, contexts, metrics)``; the first are those of the targets as they are.
    """

    metrics: Sequence[Metric]
    values: np.ndarray

    @classmethod
    def of(cls, tables: Sequence[pd.DataFrame], metrics: Sequence[Metric], seed: int = 0) -> Resampled:
        """From a table of targets for each context; equal targets are drawn alike, so that two predictions can be compared."""
        rng = np.random.default_rng(seed)
        found = np.full((1 + DRAWS, len(tables), len(metrics)), np.nan)
        for c, table in enumerate(tables):
            number = len(table)
            weights = rng.multinomial(number, np.full(number, 1 / number), size=DRAWS).astype(float)
            weights = np.vstack([np.ones(number), weights])
            for m, metric in enumerate(metrics):
                top, bottom = parts(table, metric)
                sums = weights @ bottom
                found[:, c, m] = np.divide(weights @ top, sums, out=np.full(len(sums), np.nan), where=sums > 0)
        return cls(metrics, found)

    @classmethod
    def of_groups(
        cls, whole: Sequence[pd.DataFrame], left_out: Sequence[np.ndarray], metrics: Sequence[Metric]
    ) -> Resampled:
        """From tables of all cells, and values ``(groups, metrics)`` with a group of cells left out each, context by context."""
        first = [[summary(table, metrics)[m.key] for m in metrics] for table in whole]
        values = [np.vstack([one, groups]) for one, groups in zip(first, left_out, strict=True)]
        return cls(metrics, np.stack(values, 1))

    def of_metric(self, key: str) -> np.ndarray:
        """Mean over contexts, ``(1 + draws)``."""
        return _mean(self.values[:, :, [m.key for m in self.metrics].index(key)])

    def overall(self, floors: Sequence[Values], tops: Sequence[Values], members: Sequence[Metric]) -> np.ndarray:
        """The overall score ``(1 + draws)``: each member scaled from 0 at the context's floor to 1 at its top, then their mean,
        then that of the contexts. A member without room between floor and top is left out."""
        keys = [m.key for m in self.metrics]
        columns = []
        for c, (floor, top) in enumerate(zip(floors, tops, strict=True)):
            scaled = []
            for member in members:
                room = (top[member.key] - floor[member.key]) * (1 if member.higher else -1)
                if not np.isfinite(room) or room <= 0:
                    continue
                score = (self.values[:, c, keys.index(member.key)] - floor[member.key]) / (
                    top[member.key] - floor[member.key]
                )
                worst = member.lowest if member.lowest is not None else -np.inf
                scaled.append(np.maximum(score, worst))
            columns.append(_mean(np.stack(scaled, -1)) if scaled else np.full(len(self.values), np.nan))
        return _mean(np.stack(columns, 1))


def better_by(one: np.ndarray, other: np.ndarray, higher: bool, over_cells: bool = False) -> Interval:
    """By how much `one` beats `other`, the same targets (or groups of cells) resampled for both; positive is better."""
    difference = (one - other) * (1 if higher else -1)
    return Interval.jackknife(difference) if over_cells else Interval.of(difference)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, NaNs left out."""
    known = np.isfinite(values)
    number = known.sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
