"""One context scored: the prediction and its references, in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from vcell.process.progress import progress_bar
from vcell.score import caveats
from vcell.score.embedding import Embedding, Sample
from vcell.score.grouped import GroupedCells
from vcell.score.metrics import EXTRA, METRICS_2025, METRICS_2026, Metric, summary
from vcell.score.official import Official2025, Official2026
from vcell.score.own import extra_scores
from vcell.score.pairs import Pair
from vcell.score.side import Side
from vcell.score.vcc2025 import Fast2025
from vcell.score.vcc2026 import BULK_SUM, Fast2026
from vcell.system import in_threads

if TYPE_CHECKING:
    import torch

CEILING = "split_half"
CELL_GROUPS = 10  # of the intervals over cells
EXPECTED = 4  # references


class YearScorer(Protocol):
    """Our scorer of a challenge's year, for the measured cells of one context.

    Its numbers equal those of the official package (`tests/score/test_parity.py`).
    """

    real: Any  # the measured cells' side

    def place_in(self, embedding: Embedding) -> None:
        """Cells are placed in it while they are read; before anything is measured."""
        ...

    def side(self, cells: GroupedCells) -> Side:
        """What is computed of some cells once: pseudobulks, called genes."""
        ...

    def score(self, pred: Any) -> pd.DataFrame:
        """The year's metrics of a side, a row for each target."""
        ...

    def floor(self) -> GroupedCells:
        """The official baseline, as cells."""
        ...

    def replicates(self) -> Iterable[tuple[pd.DataFrame, Side, Side]]:
        """Halves of the measured cells scored as predictions of each other: table, and the sides of both."""
        ...


@dataclass(frozen=True)
class Scorer:
    """How the predictions of a year are scored.

    Attributes
    ----------
    package, year
        Of the official scorer.
    metrics
        The official members.
    fast, official
        Ours and the package's.
    counts
        Whether they take whole counts; otherwise log1p.
    floor
        Name of the official baseline, which scores 0.
    perfect
        The end of the official scale, where that is a constant; None: the split-half replicate.
    """

    package: str
    year: int
    metrics: tuple[Metric, ...]
    fast: Callable[..., YearScorer]
    official: Callable[[GroupedCells, int], Any]
    counts: bool
    floor: str
    perfect: Mapping[str, float] | None


SCORERS = {
    "cell-eval": Scorer(
        "cell-eval",
        2025,
        METRICS_2025,
        Fast2025,
        Official2025,
        False,
        "cell_mean",
        {"DES": 1.0, "PDS": 1.0, "MAE": 0.0},
    ),
    "cell-eval2": Scorer("cell-eval2", 2026, METRICS_2026, Fast2026, Official2026, True, "mean_response", None),
}


@dataclass
class ContextScores:
    """Scores of one context.

    Attributes
    ----------
    tables
        By predictor, one row per target.
    floor, top
        Values of the official scale's ends.
    ceiling
        Values of the split-half replicate.
    difference
        Largest difference of the official values and ours, where both were computed.
    notes
        What is remarkable about predicted and measured cells (`caveats.of_pair`).
    without_cells
        By prediction, where targets are few: values ``(groups, metrics)`` with one group of cells left out each.
    """

    context: str
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    floor: dict[str, float] = field(default_factory=dict)
    top: dict[str, float] = field(default_factory=dict)
    ceiling: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    difference: float | None = None
    notes: list[str] = field(default_factory=list)
    without_cells: dict[str, np.ndarray] = field(default_factory=dict)


class ContextScorer:
    """Scores predictions of one context.

    Parameters
    ----------
    pair
        The measured cells, and the prediction whose scale they share.
    engine
        ``official``: everything by the package; ``fast``: nothing; ``auto``: the predictions by the package, references by ours.
    threads
        Of the package.
    device
        Of our scorer.
    """

    def __init__(self, pair: Pair, scorer: Scorer, engine: str, threads: int, device: torch.device | None) -> None:
        self.scorer, self.engine, self.real = scorer, engine, pair.real
        tasks: list[Callable[[], Any]] = [
            partial(Sample.of, pair.real, BULK_SUM if scorer.counts else None),
            partial(scorer.fast, pair.real, device),
            partial(caveats.of_pair, pair),
        ]
        sample, self.fast, notes = in_threads(lambda task: task(), tasks)
        self.embedding = sample.embedding()
        self.fast.place_in(self.embedding)
        self.official = None if engine == "fast" else scorer.official(pair.real, threads)
        self.scores = ContextScores(pair.context, notes=notes)
        if self.official is not None:
            self.scores.parameters = self.official.parameters

    def add(self, name: str, cells: GroupedCells, reference: bool) -> Side:
        """Scores `cells` under `name`; gives what was computed of them."""
        side = self.fast.side(cells)
        table = self.fast.score(side)
        if self.official is not None and (not reference or self.engine == "official"):
            ours, table = table, self.official.score(cells).loc[table.index, table.columns]
            defined_alike = bool((ours.isna() == table.isna()).all(axis=None))
            apart = float((ours - table).abs().max().fillna(0.0).max()) if defined_alike else float("inf")
            self.scores.difference = max(self.scores.difference or 0.0, apart)
        self.scores.tables[name] = table.join(extra_scores(side, self.fast.real, self.embedding))
        return side

    def add_replicate(self) -> None:
        """The split-half replicate: first of all, as what the measured cells are is found on the way."""
        if not self.real.can_be_halved:
            where = f"{self.scores.context}: " if self.scores.context else ""
            what = "ceiling" if self.scorer.perfect is not None else "ceiling, and no SCORE, which is measured by it"
            self.scores.notes.append(
                f"{where}there is no {what}: measured cells are split into halves, which takes two control cells, and two cells of one target at least"
            )
            return
        values = []
        for halves, second, first in self.fast.replicates():
            values.append(summary(halves, self.scorer.metrics))
            if CEILING not in self.scores.tables:
                self.scores.tables[CEILING] = halves.join(extra_scores(second, first, self.embedding))
            del first, second  # with their controls, before the next split is made
        self.scores.ceiling = {str(k): float(v) for k, v in pd.DataFrame(values).mean().items()}
        self.scores.top = dict(self.scorer.perfect) if self.scorer.perfect is not None else self.scores.ceiling

    def add_floor(self) -> None:
        """The official scale's floor; puts the replicate after it."""
        self.add(self.scorer.floor, self.fast.floor(), reference=True)
        self.scores.floor = summary(self.scores.tables[self.scorer.floor], self.scorer.metrics)
        replicate = self.scores.tables.pop(CEILING, None)
        if replicate is None:
            replicate = self.scores.tables[self.scorer.floor] * np.nan
            self.scores.ceiling = summary(replicate, self.scorer.metrics)
            self.scores.top = dict(self.scorer.perfect) if self.scorer.perfect is not None else self.scores.ceiling
        self.scores.tables[CEILING] = replicate


def score_context(
    pair: Pair,
    others: Mapping[str, GroupedCells],
    references: Iterable[tuple[str, GroupedCells | str]],
    name: str,
    scorer: Scorer,
    engine: str,
    threads: int,
    device: torch.device | None,
    first: Callable[[Side, ContextScorer], None] = lambda side, judge: None,
) -> ContextScores:
    """The prediction `name`, other predictions of the same targets, references, floor and ceiling.

    `first` is given the prediction's side as soon as it is scored.
    """
    judge = ContextScorer(pair, scorer, engine, threads, device)
    with progress_bar(2 + len(others) + EXPECTED, f"scoring {pair.context}".strip(), "predictors") as progress:
        judge.add_replicate()
        progress.update()
        first(judge.add(name, pair.pred, reference=False), judge)
        progress.update()
        for other, cells in others.items():
            judge.add(other, cells, reference=False)
            progress.update()
        for reference, predicted in references:
            if isinstance(predicted, str):  # the same cells as those of another one
                judge.scores.tables[reference] = judge.scores.tables[predicted].copy()
            else:
                judge.add(reference, predicted, reference=True)
            progress.update()
        judge.add_floor()
        progress.total = progress.n + 1  # fewer references where no run is at hand
        progress.update()
    return judge.scores


def without_cells(
    pair: Pair, predictions: Mapping[str, GroupedCells], scorer: Scorer, device: torch.device | None
) -> dict[str, np.ndarray]:
    """Values of each prediction ``(groups, metrics)`` by our scorer, with one group of predicted and measured cells left out each."""
    metrics = all_metrics(scorer)
    found: dict[str, list[list[float]]] = {name: [] for name in predictions}
    embedding = Embedding.of(pair.real, BULK_SUM if scorer.counts else None)  # the same axes for all
    with progress_bar(CELL_GROUPS, "intervals over cells", "groups") as progress:
        for group in range(CELL_GROUPS):
            some = pair.real.without_group(group, CELL_GROUPS)
            fast = scorer.fast(some, device)
            fast.place_in(embedding)
            for name, cells in predictions.items():
                side = fast.side(cells.without_group(group, CELL_GROUPS))
                values = summary(fast.score(side).join(extra_scores(side, fast.real, embedding)), metrics)
                found[name].append([values[m.key] for m in metrics])
            progress.update()
    return {name: np.array(values) for name, values in found.items()}


def all_metrics(scorer: Scorer) -> list[Metric]:
    """The official members and ours."""
    return [*scorer.metrics, *EXTRA]
