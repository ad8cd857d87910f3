"""Scores from Python: `vcell.score_prediction`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from vcell.atomic import names_of_files
from vcell.challenge import Challenge, challenge_of
from vcell.data.files.labels import CONTROL
from vcell.data.files.memory import Given, as_file, given_list
from vcell.data.store.store import Cells, CellStore
from vcell.pages.pictures import as_they_are
from vcell.process.given import as_name, as_name_or_none, as_names_or_file, check_switches
from vcell.process.progress import spoken
from vcell.score import figures
from vcell.score.cells import Columns
from vcell.score.evaluation import score
from vcell.score.options import ScoreOptions
from vcell.score.report import OVERALL, Report, floor_to_ceiling, table_text, write_report
from vcell.score.statistics import Interval


@dataclass(frozen=True)
class Scores:
    """Scores of a prediction, next to the baselines to beat and the ceiling set by replicate noise. In a notebook they show as their table."""

    found: Report

    @property
    def table(self) -> pd.DataFrame:
        """Predictors (rows) by overall score and metrics (columns)."""
        return self.found.scores

    @property
    def per_target(self) -> pd.DataFrame:
        """A row for each predictor, context and target."""
        return self.found.per_perturbation

    @property
    def by_context(self) -> pd.DataFrame:
        """The table for each context, rows by (context, predictor)."""
        return self.found.by_context

    @property
    def score(self) -> float:
        """The overall score of the prediction: 0 is the official baseline."""
        return float(self.interval.value)

    @property
    def interval(self) -> Interval:
        """The overall score with its 95 % interval."""
        return next(iter(self.found.intervals.values()))[OVERALL]

    @property
    def notes(self) -> list[str]:
        """What to know of these numbers."""
        return list(self.found.notes)

    def plot(self) -> figures.Picture:
        """The prediction's metrics from floor to ceiling, as a matplotlib figure."""
        figure = as_they_are(floor_to_ceiling(self.found))
        figure._repr_png_ = partial(figures.png, figure)  # a notebook shows it, pyplot or not
        return figure

    def report(self, path: str | Path) -> Path:
        """Writes report.html, tables and pictures to the folder `path`; gives the page."""
        write_report(Path(path), self.found)
        return Path(path) / "report.html"

    def __str__(self) -> str:
        return table_text(self.found.scores, self.found.metrics)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return str(self.table.style.format("{:.4f}", na_rep="–").to_html())


def score_prediction(
    pred: Given,
    real: Given | Cells,
    *,
    challenge: str | Challenge = "none",
    perturbation: str | None = None,
    context: str | None = None,
    control: str = CONTROL,
    against: Mapping[str, Given] | Given | Sequence[Given] = (),
    ckpt: str | Path | None = None,
    store: str | Sequence[str] | None = None,
    engine: str = "auto",
    allow_leaks: bool = False,
    pictures: bool = True,
    device: str = "cpu",
    threads: int | None = None,
    verbose: bool = False,
) -> Scores:
    """Scores predicted cells against measured ones with the challenge's own metrics.

    Parameters
    ----------
    pred
        Predicted cells with control cells, log1p or counts (for ``vcc2026`` whole counts): an h5ad file or an AnnData.
    real
        Measured cells and control cells of the same targets: a file, an AnnData, or a cell store.
    challenge
        ``vcc2025``, ``vcc2026`` or ``none`` (the metrics of 2025), or the rules themselves.
    perturbation, context
        obs columns, where they are not the challenge's.
    control
        The label of control cells.
    against
        Other predictions to compare with: files, or by name.
    ckpt, store
        The run whose training cells make the baselines, and where its store lies; None: as `pred` says.
    engine
        ``auto``: predictions by the official package, references by our equal one; ``official``; ``fast``.
    allow_leaks
        Score targets that the run was trained on all the same.
    pictures
        Whether the report is to have pictures.
    device, threads
        Of our scorer, and of the official package.
    verbose
        Print progress.

    Returns
    -------
    ``.table`` and ``.per_target`` (DataFrames), ``.plot()``, ``.report(folder)``.

    Raises
    ------
    VcellError
        If the cells are not comparable, or targets were trained on.
    """
    rules = challenge_of(challenge)
    columns = Columns(
        as_name_or_none("perturbation", perturbation) or rules.perturbation,
        as_name_or_none("context", context) or rules.context,
        as_name("control", control),
    )
    others = as_others(against)
    check_switches(allow_leaks=allow_leaks, pictures=pictures, verbose=verbose)
    with ExitStack() as stack, spoken(verbose):
        options = ScoreOptions(
            pred=stack.enter_context(as_file(pred, "prediction.h5ad")),
            real=Path(real.name) if isinstance(real, Cells) else stack.enter_context(as_file(real, "measured.h5ad")),
            challenge=rules,
            columns=columns,
            against=[stack.enter_context(as_file(p, f"{n}.h5ad")) for n, p in others],
            real_stores=[str(real.path)] if isinstance(real, CellStore) else (),
            ckpt=as_name_or_none("ckpt", ckpt),
            store=as_names_or_file("store", store),
            engine=engine,
            allow_leaks=allow_leaks,
            pictures=pictures,
            device=device,
            threads=threads,
        )
        return Scores(score(options)[0])


def as_others(given: Any) -> list[tuple[str, Given]]:
    """Predictions to compare with, each with the name that its file shows; AnnData without one are numbered."""
    if isinstance(given, Mapping):
        names = names_of_files([as_name("a name in against", name) for name in given])
        return list(zip(names, given.values(), strict=True))
    if given is None or (isinstance(given, Sized) and not isinstance(given, str) and not len(given)):
        return []
    return [
        (Path(one).stem if isinstance(one, str | Path) else f"other_{number}", one)
        for number, one in enumerate(given_list(given), 1)
    ]
