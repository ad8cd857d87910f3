"""Scores as a table, CSV, JSON, PNG and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

DIRECTION = {"DES": "higher is better", "PDS": "higher is better", "MAE": "lower is better"}
MEANING = {
    "DES": "share of the truly changed genes that the prediction calls changed (differential expression score)",
    "PDS": "how near the true profile of its own target a prediction lies, among those of all targets; 0.5 is chance "
    "(perturbation discrimination score)",
    "MAE": "mean absolute error of the mean log1p profile",
}


def table_text(scores: pd.DataFrame) -> str:
    """The table for the terminal: one row a predictor, the best of each column marked."""
    shown = scores.copy().astype(object)
    for metric in scores:
        best = scores[metric].min() if DIRECTION[str(metric)].startswith("lower") else scores[metric].max()
        shown[metric] = [f"{v:.4f}{'*' if v == best else ' '}" for v in scores[metric]]
    width = max(len(str(name)) for name in shown.index)
    head = " " * width + "".join(f"{m:>11} " for m in shown)
    rows = [f"{name!s:<{width}}" + "".join(f"{v:>12}" for v in shown.loc[name]) for name in shown.index]
    return "\n".join([head, *rows])


def write_report(
    folder: Path, scores: pd.DataFrame, per_perturbation: pd.DataFrame, about: dict[str, Any], notes: list[str]
) -> None:
    """scores.csv, per_perturbation.csv, scores.json, scores.png and report.html in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    scores.to_csv(folder / "scores.csv", index_label="predictor")
    per_perturbation.to_csv(folder / "per_perturbation.csv", index=False)
    content = {"scores": scores.to_dict(orient="index"), "notes": notes, **about}
    (folder / "scores.json").write_text(json.dumps(content, indent=1))
    picture = plot(scores, per_perturbation)
    (folder / "scores.png").write_bytes(picture)
    (folder / "report.html").write_text(page(scores, about, notes, picture))


def plot(scores: pd.DataFrame, per_perturbation: pd.DataFrame) -> bytes:
    """One panel a metric: the mean of each predictor as a bar, each target as a dot. PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(scores.columns), 3.4), layout="constrained")
    names = list(scores.index)
    axes = figure.subplots(1, len(scores.columns), squeeze=False, sharey=True)[0]
    axes[0].invert_yaxis()
    for axis, metric in zip(axes, scores, strict=True):
        colours = ["#2a6fbb"] + ["#b8bec7"] * (len(names) - 1)
        axis.barh(names, scores[metric], color=colours)
        for row, name in enumerate(names):
            values = per_perturbation.loc[per_perturbation["predictor"] == name, str(metric)]
            jitter = [row + 0.25 * ((i * 0.618) % 1 - 0.5) for i in range(len(values))]
            axis.plot(values, jitter, "o", color="black", alpha=0.35, markersize=2)
        axis.set_title(f"{metric} ({DIRECTION[str(metric)]})", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def page(scores: pd.DataFrame, about: dict[str, Any], notes: list[str], picture: bytes) -> str:
    """The report as one HTML file without anything from the network."""
    head = "".join(f"<th>{m}</th>" for m in scores)
    rows = "".join(
        f"<tr><td>{html.escape(str(name))}</td>" + "".join(f"<td>{v:.4f}</td>" for v in scores.loc[name]) + "</tr>"
        for name in scores.index
    )
    meaning = "".join(f"<li><b>{m}</b>: {MEANING[str(m)]}; {DIRECTION[str(m)]}.</li>" for m in scores)
    remarks = "".join(f"<li>{html.escape(note)}</li>" for note in notes) or "<li>none</li>"
    details = html.escape(json.dumps(about, indent=1))
    image = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>vcell scores</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }}
table {{ border-collapse: collapse; }} th, td {{ padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #d5dae1; }}
td:first-child, th:first-child {{ text-align: left; }} tbody tr:first-child {{ font-weight: 600; color: #2a6fbb; }}
img {{ max-width: 100%; height: auto; }} pre {{ overflow-x: auto; background: #f3f5f8; padding: 1rem; font-size: .85rem; }}
@media (max-width: 30rem) {{ th, td {{ padding: .3rem .4rem; font-size: .9rem; }} }}
</style></head><body>
<h1>Scores</h1>
<table><thead><tr><th>predictor</th>{head}</tr></thead><tbody>{rows}</tbody></table>
<ul>{meaning}</ul>
<img alt="Scores by metric: bars are means, dots are single targets" src="data:image/png;base64,{image}">
<h2>Notes</h2><ul>{remarks}</ul>
<h2>How these were made</h2><pre>{details}</pre>
</body></html>
"""
