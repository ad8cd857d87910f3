"""What the perturbation table is worth: the same cross-validation with its vectors dealt to the names at random, compared target by target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcell.atomic import write_text
from vcell.errors import VcellError
from vcell.score.options import CrossvalOptions
from vcell.score.statistics import Interval

ABLATIONS = ("table",)
FOLDER = "table_shuffled"
RESAMPLES = 2000
PAIR = ["fold", "context", "perturbation"]


def without_table(options: CrossvalOptions) -> CrossvalOptions:
    """The cross-validation without what `options.ablate` names: in a folder inside, otherwise the same.

    Raises
    ------
    VcellError
        If there is no such thing, or no table to shuffle.
    """
    if options.ablate not in ABLATIONS:
        raise VcellError(f"ablate={options.ablate} must be null or {', '.join(ABLATIONS)}")
    perturbation: Mapping[str, Any] = options.training["perturbation"]
    if perturbation["path"] is None:
        raise VcellError("ablate=table needs a table of vectors to shuffle: perturbation.path=TABLE.pt")
    if perturbation["shuffle"] is not None:
        raise VcellError("ablate=table shuffles the table itself: leave perturbation.shuffle out")
    training = {**options.training, "perturbation": {**perturbation, "shuffle": options.seed}}
    return replace(
        options, name=f"{options.name}/{FOLDER}", folder=options.folder / FOLDER, training=training, ablate=None
    )


def compared(folder: Path, shuffled: Path, folds: int) -> pd.DataFrame:
    """Scores with the table, with the shuffled one, and their paired difference: metrics (rows) by ``with_table``, ``shuffled``, ``difference``,
    ``low``, ``high`` (95 % of resamples of targets) and ``targets``."""
    one, two = (_targets(place, folds) for place in (folder, shuffled))
    metrics = [column for column in one if column in two and pd.api.types.is_numeric_dtype(one[column])]
    both = one[metrics].join(two[metrics], how="inner", rsuffix=" shuffled")
    rows = {}
    for metric in metrics:
        pair = both[[metric, f"{metric} shuffled"]].dropna()
        if not len(pair):
            continue
        difference = (pair[metric] - pair[f"{metric} shuffled"]).to_numpy()
        draws = np.random.default_rng(0).integers(0, len(difference), (RESAMPLES, len(difference)))
        interval = Interval.of(np.concatenate([[difference.mean()], difference[draws].mean(1)]))
        rows[metric] = [*pair.mean(), interval.value, interval.low, interval.high, len(pair)]
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["with_table", "shuffled", "difference", "low", "high", "targets"]
    ).rename_axis("metric")


def report(options: CrossvalOptions) -> None:
    """Writes `ablation.csv`, and prints what it says."""
    found = compared(options.folder, options.folder / FOLDER, options.folds)
    write_text(options.folder / "ablation.csv", found.to_csv())
    print(
        f"\nwhat the table is worth: with it, with its vectors shuffled, and the difference over {int(found['targets'].max()):,} targets (95 %)\n"
    )
    for row in found.itertuples():
        print(
            f"{row.Index!s:<12} {row.with_table:>8.3f} {row.shuffled:>8.3f}   {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        )
    print(f"\nablation     {options.folder / 'ablation.csv'}", flush=True)


def _targets(folder: Path, folds: int) -> pd.DataFrame:
    """Scores of the prediction for every target of every fold."""
    tables = [
        pd.read_csv(folder / f"fold_{f}" / "scores" / "per_perturbation.csv").assign(fold=f) for f in range(folds)
    ]
    table = pd.concat(tables, ignore_index=True)
    table["context"] = table["context"].fillna("")
    return table[table["predictor"] == table["predictor"].iloc[0]].drop(columns="predictor").set_index(PAIR)
