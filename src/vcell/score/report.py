"""Scores as a table, CSV, JSON, PNG and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcell.atomic import write_text, written_file
from vcell.score import figures
from vcell.score.figures import Shown
from vcell.score.metrics import Metric
from vcell.score.scoring import CEILING, Scorer
from vcell.score.statistics import Interval

OVERALL = "SCORE"
VERSIONS = ("torch", "lightning", "numpy", "scipy", "anndata", "scanpy", "pdex", "numba", "cell-eval", "cell-eval2")


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


def write_report(folder: Path, report: Report) -> None:
    """scores.csv, by_context.csv, per_perturbation.csv, PNG, report.html and scores.json in `folder`.

    Everything is drawn before the first file is written, each file is whole or not there, and scores.json is the last: where it is,
    the others are.
    """
    drawn = draw(report)
    texts = {
        "scores.csv": report.scores.to_csv(index_label="predictor"),
        "by_context.csv": report.by_context.to_csv(),
        "per_perturbation.csv": report.per_perturbation.to_csv(index=False),
        "report.html": page(report, drawn),
        "scores.json": json.dumps(for_json(as_json(report)), indent=1),
    }
    for name, (_, picture) in drawn.items():
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
        "config": report.config,
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def draw(report: Report) -> dict[str, tuple[str, bytes]]:
    """Caption and PNG of every picture, by file name."""
    if not report.pictures:
        return {}
    floor = floors(report)
    ceiling = report.scores.loc[CEILING].to_dict()
    found = {
        "scores": (
            f"From floor (the official baseline {report.scorer.floor} for official scores, copied controls for the others) to ceiling "
            f"(one half of the measured cells predicting the other). Lines are 95 % intervals over {report.over}; marks far outside are "
            "clipped.",
            figures.png(floor_to_ceiling(report)),
        )
    }
    name = next(iter(report.intervals))
    for shown in report.pictures:
        end = f"_{shown.context}" if shown.context and len(report.pictures) > 1 else ""
        where = f" {shown.context}." if end else ""
        table = report.per_perturbation
        table = table[(table["predictor"] == name) & (table["context"] == shown.context)].set_index("perturbation")
        pictures = {
            "heatmap": ("Every target, the strongest measured effect first.", figures.heat_map(table, shown, floor, ceiling, report.metrics)),
            "deltas": ("Predicted against measured effect of every gene; genes truly changed in blue.", figures.deltas(shown)),
            "called": ("Genes called changed, in measured and predicted cells.", figures.called_genes(shown)),
            "knockdown": ("The target's own gene.", figures.knock_down(shown)),
            "embedding": ("Measured and predicted cells in principal components of the measured ones.", figures.embedding(shown)),
        }  # fmt: skip
        for key, (caption, figure) in pictures.items():
            if figure is not None:
                found[f"{key}{end}"] = (caption + where, figures.png(figure))
    return found


def floor_to_ceiling(report: Report) -> figures.Picture:
    """Every metric from floor to ceiling, as a figure."""
    ends = (report.scorer.floor, CEILING)
    return figures.floor_to_ceiling(report.scores, report.intervals, floors(report), CEILING, ends, report.metrics)


def floors(report: Report) -> dict[str, float]:
    """What a prediction must beat, metric by metric."""
    copied = "copied_controls" if "copied_controls" in report.scores.index else report.scorer.floor
    return {
        m.key: float(report.scores.loc[report.scorer.floor if m.official else copied, m.key]) for m in report.metrics
    }


def page(report: Report, drawn: Mapping[str, tuple[str, bytes]]) -> str:
    """The report as one HTML file without anything from the network."""
    name = next(iter(report.intervals))
    overall = report.intervals[name][OVERALL]
    ends = "a perfect prediction" if report.scorer.perfect else "a replicate of the experiment"
    compared = "".join(
        f"<p>Against <b>{html.escape(other)}</b>: {'better' if d[OVERALL].value > 0 else 'worse'} by {abs(d[OVERALL].value):.3f} "
        f"(95 % of the difference {d[OVERALL].low:.3f} to {d[OVERALL].high:.3f}).</p>"
        for other, d in report.compared.items()
    )
    pictures = "".join(
        f'<figure><div class="wide"><img class="{key.split("_")[0]}" alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"></div><figcaption>{html.escape(caption)}</figcaption></figure>'
        for key, (caption, picture) in drawn.items()
    )
    meaning = "".join(f"<li><b>{m.key}</b>: {html.escape(m.meaning)}; {m.direction}.</li>" for m in report.metrics)
    remarks = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes) or "<li>none</li>"
    known = {k: v for k, v in report.details.items() if k != "run"}
    details = html.escape(json.dumps(for_json({**known, "versions": versions()}), indent=1))
    run = report.details.get("run")
    run_text = (
        f"<details><summary>configuration of the run that was trained</summary><pre>{html.escape(run)}</pre></details>"
        if run
        else ""
    )
    config = html.escape(json.dumps(for_json(report.config), indent=1))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>vcell scores</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #d5dae1; white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; position: sticky; left: 0; background: white; }}
tr.scored {{ font-weight: 600; color: #2a6fbb; }} .big {{ font-size: 1.6rem; font-weight: 600; margin: .2rem 0; }}
small, figcaption {{ color: #5a6472; }} figure {{ margin: 1.5rem 0; }} img {{ max-width: min(100%, 58rem); height: auto; }}
pre {{ overflow-x: auto; background: #f3f5f8; padding: 1rem; font-size: .8rem; }}
@media (max-width: 34rem) {{ figure img {{ max-width: none; width: 42rem; }} img.knockdown {{ width: 100%; }} th, td {{ padding: .3rem .4rem; font-size: .85rem; }} body {{ margin: 1rem auto; }} }}
</style></head><body>
<h1>Scores of {html.escape(str(report.details.get("pred", name)))}</h1>
<p class="big">{overall.value:.3f} <small>[{overall.low:.3f}, {overall.high:.3f}]</small></p>
<p>Overall score with its 95 % interval over {report.over}. 0 is the official baseline ({report.scorer.floor}), 1 is {ends}.</p>{compared}
<div class="wide">{score_table(report)}</div>{context_table(report)}
{f"<h2>Pictures</h2>{pictures}" if pictures else ""}
<h2>What to know of these numbers</h2><ul>{remarks}</ul>
<h2>What the columns mean</h2><ul>{meaning}</ul>
<h2>How these were made</h2><details><summary>scorer, versions, prediction</summary><pre>{details}</pre></details>
<details><summary>configuration of this command</summary><pre>{config}</pre></details>{run_text}
</body></html>
"""


def score_table(report: Report) -> str:
    """Predictors by metrics; the predictions with their intervals."""
    keys = list(report.scores)
    head = "".join(f"<th>{key}</th>" for key in keys)
    rows = []
    for name, values in report.scores.iterrows():
        found = report.intervals.get(str(name), {})
        cells = "".join(
            f"<td>{_number(values[k])}"
            + (f"<br><small>{_number(found[k].low, 3)}–{_number(found[k].high, 3)}</small>" if k in found else "")
            + "</td>"
            for k in keys
        )
        mark = ' class="scored"' if str(name) in report.intervals else ""
        rows.append(f"<tr{mark}><td>{html.escape(str(name))}</td>{cells}</tr>")
    return f"<table><thead><tr><th>predictor</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def context_table(report: Report) -> str:
    """Overall score of every predictor in each context, where there are several."""
    table = report.by_context[OVERALL].unstack("context")
    if table.shape[1] < 2:
        return ""
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in table)
    rows = "".join(
        f"<tr><td>{html.escape(str(n))}</td>{''.join(f'<td>{_number(v)}</td>' for v in table.loc[n])}</tr>"
        for n in report.scores.index
    )
    return f'<h3>Overall score by context</h3><div class="wide"><table><thead><tr><th>predictor</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _number(value: float, digits: int = 4) -> str:
    return "–" if not np.isfinite(value) else f"{value:.{digits}f}"


def for_json(value: Any) -> Any:
    """For JSON, which has no NaN, and for numpy's numbers."""
    if isinstance(value, Mapping):
        return {str(k): for_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
