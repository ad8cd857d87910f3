"""`curves.html`: the metrics of a run, or of several side by side, panel by panel; reloads itself while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vcell.atomic import write_text
from vcell.pages.render import render

# panels by topic, in reading order: a metric belongs to the topic that names it
TOPICS = (
    ("Loss", ("loss", "energy", "delta", "contrastive", "l1", "sparsity", "sinkhorn", "mmd", "nb")),
    ("Validation scores", ("discrimination", "de_overlap", "mae", "delta_correlation", "distinctness", "addition")),
    ("Optimiser", ("learning_rate", "gradient_norm")),
    ("Speed and memory", ("cells_per_second", "data_wait", "peak_memory_gb")),
)
OTHER = "More"
MEANING = {
    "loss": "what is minimised; on validation sets, of perturbations not trained on",
    "discrimination": "does a predicted effect lie nearest to that of its own target? 0.5 is chance",
    "de_overlap": "share of the truly changed genes that are called changed",
    "mae": "mean absolute error of mean log1p profiles",
    "delta_correlation": "Pearson correlation of predicted and measured effect",
    "distinctness": "how much predictions of different targets differ; near 0 they have collapsed to one",
    "addition": "share of what the network adds to its prior that is kept",
    "gradient_norm": "before clipping",
    "data_wait": "share of the time in which the device waited for cells",
    "cells_per_second": "perturbed cells trained on",
    "peak_memory_gb": "highest memory in use",
}
MOST_POINTS = 2_000  # of one curve


def write_curves(path: Path, runs: Mapping[str, Sequence[dict[str, Any]]], title: str) -> None:
    """The page of some runs' metrics; `runs` are rows of metrics.csv by the run's name."""
    write_text(path, render("curves.html", {"panels": panels(runs)}, title=title, several=len(runs) > 1))


def panels(runs: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What is drawn: for each topic its metrics, for each metric the curves of training and validation of every run."""
    keys = list(dict.fromkeys(key for rows in runs.values() for row in rows for key in sorted(row) if key != "step"))
    names = list(dict.fromkeys(key.split("/")[-1] for key in keys))
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        curves = [
            {"run": run, "split": key.split("/")[0], "steps": [s for s, _ in points], "values": [v for _, v in points]}
            for run, rows in runs.items()
            for key in keys
            if key.split("/")[-1] == name and (points := _thinned(rows, key))
        ]
        topic = next((topic for topic, words in TOPICS if name in words), OTHER)
        found.setdefault(topic, []).append({"name": name, "meaning": MEANING.get(name, ""), "curves": curves})
    order = [topic for topic, _ in TOPICS] + [OTHER]
    return [{"topic": topic, "metrics": found[topic]} for topic in order if topic in found]


def _thinned(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, as many as a screen can show; always the last."""
    points = [(row["step"], row[key]) for row in rows if key in row]
    every = max(1, -(-len(points) // MOST_POINTS))
    kept = points[::every]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
