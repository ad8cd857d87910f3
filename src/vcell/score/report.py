"""Scores as a table, CSV, JSON, PNG and one self-contained HTML page (its template is in `pages`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcell.atomic import names_of_files, write_text, written_file
from vcell.pages.render import for_json, render
from vcell.process.helper import Helper
from vcell.records.provenance import PACKAGE, command_line, git_commit, versions
from vcell.score import figures
from vcell.score.conclusions import conclude
from vcell.score.explore import BYTES, PAGE_BYTES, columns_of_target
from vcell.score.metrics import Metric, has_room
from vcell.score.scoring import CEILING, Scorer
from vcell.score.shown import Shown
from vcell.score.statistics import Interval

OVERALL = "SCORE"


@dataclass(frozen=True)
class Report:
    """All that is written.

    Attributes
    ----------
    scores
        Predictors (rows) by overall score and metrics.
    by_context
        The same, rows by (context, predictor).
    intervals
        Of the predictions, by name and metric.
    compared
        By how much the first prediction beats another, by the other's name and by metric.
    per_perturbation
        One row per predictor, context and target.
    details
        Recorded in scores.json.
    pictures
        One a context.
    config
        The configuration of the command.
    over
        What the intervals run over: ``targets`` or ``cells``.
    """

    scores: pd.DataFrame
    by_context: pd.DataFrame
    intervals: Mapping[str, Mapping[str, Interval]]
    compared: Mapping[str, Mapping[str, Interval]]
    per_perturbation: pd.DataFrame
    metrics: Sequence[Metric]
    scorer: Scorer
    notes: Sequence[str]
    details: Mapping[str, Any]
    pictures: Sequence[Shown]
    config: Mapping[str, Any]
    over: str = "targets"


def table_text(scores: pd.DataFrame, metrics: Sequence[Metric]) -> str:
    """The table for the terminal: one row per predictor, the best of each column marked (the measured halves aside)."""
    higher = {m.key: m.higher for m in metrics} | {OVERALL: True}
    rivals = scores.drop(index=CEILING, errors="ignore")
    shown = scores.copy().astype(object)
    for key in scores:
        best = rivals[key].max() if higher[str(key)] else rivals[key].min()
        shown[key] = [f"{v:.4f}{'*' if v == best and n in rivals.index else ' '}" for n, v in scores[key].items()]
    width = max(len(str(name)) for name in shown.index)
    head = " " * width + "".join(f"{m:>10} " for m in shown)
    rows = [f"{name!s:<{width}}" + "".join(f"{v:>11}" for v in shown.loc[name]) for name in shown.index]
    return "\n".join([head, *rows])


def write_report(folder: Path, report: Report, helper: Helper | None = None) -> None:
    """scores.csv, by_context.csv, per_perturbation.csv, PNG, report.html and scores.json in `folder`; `helper` draws.

    Everything is drawn before the first file is written, each file is whole or not there, and scores.json is the last: where it is,
    the others are.
    """
    drawn = drawing(report, helper or Helper())
    texts = {
        "scores.csv": report.scores.to_csv(index_label="predictor"),
        "by_context.csv": report.by_context.to_csv(),
        "per_perturbation.csv": report.per_perturbation.to_csv(index=False),
        "report.html": page(report),
        "scores.json": json.dumps(for_json(as_json(report)), indent=1),
    }
    for name, picture in drawn().items():
        with written_file(folder / f"{name}.png") as scratch:
            scratch.write_bytes(picture)
    for name, text in texts.items():
        write_text(folder / name, text)


def as_json(report: Report) -> dict[str, Any]:
    def ranges(found: Mapping[str, Interval]) -> dict[str, Any]:
        return {k: {"value": i.value, "low": i.low, "high": i.high} for k, i in found.items()}

    return {
        "scores": report.scores.to_dict(orient="index"),
        "contexts": {
            str(c): table.droplevel("context").to_dict(orient="index")
            for c, table in report.by_context.groupby("context")
        },
        "intervals": {n: ranges(i) for n, i in report.intervals.items()},
        "compared": {n: ranges(i) for n, i in report.compared.items()},
        "metrics": {m.key: {"official": m.official, "higher_is_better": m.higher} for m in report.metrics},
        "notes": list(report.notes),
        **report.details,
        "versions": versions(),
        "command": command_line(),
        "commit": git_commit(PACKAGE),
        "config": report.config,
    }


def drawing(report: Report, helper: Helper) -> Callable[[], dict[str, bytes]]:
    """Has every picture drawn: for papers, and where no browser is at hand. Gives what waits for them: PNG by file name."""
    if not report.pictures:
        return dict
    floor, ceiling = floors(report), report.scores.loc[CEILING].to_dict()
    name, ends = next(iter(report.intervals)), [""]
    if len(report.pictures) > 1:
        ends = [f"_{context}" for context in names_of_files([shown.context for shown in report.pictures])]
    begun = {"scores": helper.submit(figures.png_of, figures.floor_to_ceiling, *_floor_to_ceiling(report))}
    for end, shown in zip(ends, report.pictures, strict=True):
        table = report.per_perturbation
        table = table[(table["predictor"] == name) & (table["context"] == shown.context)].set_index("perturbation")
        begun[f"heatmap{end}"] = helper.submit(
            figures.png_of, figures.heat_map, table, shown.genes, floor, ceiling, report.metrics
        )

    def wait() -> dict[str, bytes]:
        found = {key: picture for key, one in begun.items() if (picture := one.result()) is not None}
        for end, shown in zip(ends, report.pictures, strict=True):
            found |= {f"{key}{end}": picture for key, picture in shown.pictures().items()}
        return found

    return wait


def floor_to_ceiling(report: Report) -> figures.Picture:
    """Every metric from floor to ceiling, as a figure."""
    return figures.floor_to_ceiling(*_floor_to_ceiling(report))


def _floor_to_ceiling(report: Report) -> tuple[Any, ...]:
    ends = (report.scorer.floor, CEILING)
    return report.scores, report.intervals, floors(report), CEILING, ends, report.metrics


def floors(report: Report) -> dict[str, float]:
    """What a prediction must beat, metric by metric."""
    return {m.key: float(report.scores.loc[_floor_of(m, report), m.key]) for m in report.metrics}


def page(report: Report) -> str:
    """The report as one HTML file without anything from the network."""
    name = next(iter(report.intervals))
    known = {k: v for k, v in report.details.items() if k != "run"}
    floor, ceiling = floors(report), report.scores.loc[CEILING]
    contexts = [str(c) for c in dict.fromkeys(report.by_context.index.get_level_values("context"))]
    targets = report.per_perturbation[report.per_perturbation["predictor"] == name]
    return render(
        "report.html",
        {
            "metrics": [{"key": m.key, "meaning": m.meaning, "higher": m.higher} for m in report.metrics],
            "ceiling": CEILING,
            "place": places(report, floor, ceiling),
            "contexts": explorable(report, name, targets),
        },
        pred=str(report.details.get("pred", name)),
        overall=report.intervals[name][OVERALL],
        over=report.over,
        floor=report.scorer.floor,
        end="a perfect prediction" if report.scorer.perfect else "a replicate of the experiment",
        conclusions=conclude(
            name, report.scores, report.intervals[name][OVERALL], floor, CEILING, report.scorer.floor, report.metrics,
            targets.set_index("perturbation"), [shown.genes for shown in report.pictures],
            {c: float(report.by_context.loc[(c, name), OVERALL]) for c in contexts},
        ),
        compared=[
            f"Against {other}: {'better' if d[OVERALL].value > 0 else 'worse'} by {abs(d[OVERALL].value):.3f} (95 % of the difference "
            f"{d[OVERALL].low:.3f} to {d[OVERALL].high:.3f})."
            for other, d in report.compared.items()
        ],
        keys=list(report.scores),
        rows=[_row(str(n), values, report.intervals.get(str(n), {})) for n, values in report.scores.iterrows()],
        contexts=contexts,
        by_context=[_row(str(n), report.by_context[OVERALL].unstack("context").loc[n], {}) for n in report.scores.index] if len(contexts) > 1 else [],
        explorable=bool(report.pictures),
        notes=report.notes,
        metrics=report.metrics,
        details=json.dumps(for_json({**known, "versions": versions()}), indent=1),
        config=json.dumps(for_json(report.config), indent=1),
        run=report.details.get("run"),
    )  # fmt: skip


def places(report: Report, floor: Mapping[str, float], ceiling: pd.Series) -> list[dict[str, Any]]:
    """Where every row lies between floor (0) and ceiling (1), metric by metric."""
    found = []
    for metric in report.metrics:
        low, high = floor[metric.key], float(ceiling[metric.key])
        room = has_room(low, high, metric)
        points = []
        for name, value in report.scores[metric.key].items():
            if not room or str(name) in (report.scorer.floor, CEILING) or not np.isfinite(value):
                continue
            interval = report.intervals.get(str(name), {}).get(metric.key)
            ends = () if interval is None else (interval.low, interval.high)
            points.append(
                {
                    "name": str(name), "value": value, "at": (value - low) / (high - low), "scored": interval is not None,
                    **{k: (v - low) / (high - low) for k, v in zip(("low", "high"), ends, strict=False)},
                }
            )  # fmt: skip
        found.append({"key": metric.key, "room": room, "points": points})
    return found


def explorable(report: Report, name: str, targets: pd.DataFrame) -> list[dict[str, Any]]:
    """Of every context what can be looked into, small enough together."""
    number = sum(len(shown.effects.targets) for shown in report.pictures)
    fitting = PAGE_BYTES // (BYTES * max(1, number))
    kinds = ["control", "measured", "predicted"]
    found = []
    for shown in report.pictures:
        own, order = targets[targets["context"] == shown.context].set_index("perturbation"), shown.effects.targets
        place = {target: i for i, target in enumerate(order)}
        scores = report.by_context.loc[shown.context] if shown.context in report.by_context.index else report.scores
        found.append(
            {
                "name": shown.context, "targets": order, "effects": shown.effects.fewer(fitting).plain(),
                "table": {
                    **{key: [float(v) for v in shown.genes[key].reindex(order)] for key in shown.genes},
                    **{m.key: columns_of_target(m, own, order) for m in report.metrics},
                },
                "floor": {m.key: float(scores.loc[_floor_of(m, report), m.key]) for m in report.metrics},
                "ceiling": {m.key: float(scores.loc[CEILING, m.key]) for m in report.metrics},
                "cells": {
                    "x": [round(float(v), 3) for v in shown.cells["x"]], "y": [round(float(v), 3) for v in shown.cells["y"]],
                    "kinds": kinds, "kind": [kinds.index(k) for k in shown.cells["kind"]],
                    "target": [place.get(t, -1) for t in shown.cells["perturbation"]],
                },
            }
        )  # fmt: skip
    return found


def _floor_of(metric: Metric, report: Report) -> str:
    """The row that a prediction must beat in a metric."""
    if metric.official or "copied_controls" not in report.scores.index:
        return report.scorer.floor
    return "copied_controls"


def _row(name: str, values: pd.Series, intervals: Mapping[str, Interval]) -> dict[str, Any]:
    cells = [
        {
            "key": str(key), "text": _number(value), "raw": "" if not np.isfinite(value) else repr(float(value)),
            "range": f"{_number(intervals[str(key)].low, 3)}–{_number(intervals[str(key)].high, 3)}" if str(key) in intervals else "",
        }
        for key, value in values.items()
    ]  # fmt: skip
    return {"name": name, "cells": cells, "scored": bool(intervals)}


def _number(value: float, digits: int = 4) -> str:
    return "–" if not np.isfinite(value) else f"{value:.{digits}f}"
