"""The metrics by name: what each means, which way is better, and how values of targets become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Metric:
    """One score.

    Attributes
    ----------
    key
        Column in our tables.
    official
        Its name in the official package; None for our own.
    higher
        Whether more is better.
    meaning
        For readers of the report.
    over
        Column by whose sum the summed column is divided; None: the mean over targets that have a value.
    lowest
        Scaled scores are cut there, as the package does.
    """

    key: str
    official: str | None
    higher: bool
    meaning: str
    over: str | None = None
    lowest: float | None = None

    @property
    def direction(self) -> str:
        return "higher is better" if self.higher else "lower is better"

    @property
    def columns(self) -> list[str]:
        """Columns of a table of targets that it takes."""
        return [self.key] if self.over is None else [f"{self.key}_part", self.over]


METRICS_2025 = (
    Metric("DES", "overlap_at_N", True, "share of the truly changed genes that the prediction calls changed, larger sets "
           "cut to size (differential expression score)", lowest=0.0),
    Metric("PDS", "discrimination_score_l1", True, "how near the measured effect of its own target a predicted effect lies, "
           "among those of all targets; 0.5 is chance (perturbation discrimination score)", lowest=0.0),
    Metric("MAE", "mae", False, "mean absolute error of the mean log1p profile", lowest=0.0),
)  # fmt: skip

METRICS_2026 = (
    Metric("PDS", "pds_cosine", True, "how near the measured effect of its own target a predicted effect lies, by cosine, "
           "among those of all targets and without their genes; 0.5 is chance"),
    Metric("MSE", "expr_mse_unbiased_capped_norm", False, "squared error of the pseudobulk, sampling noise taken off, over "
           "the squared size of the measured effect; 1 is no change predicted", over="MSE_whole", lowest=-6.0),
    Metric("FIDELITY", "de_wilcoxon_direction_fidelity_yield_raw", True, "changed genes called with the right direction, "
           "over those called or truly changed, whichever are more"),
    Metric("REACH", "de_wilcoxon_direction_reach_raw", True, "how far down its ranking of truly changed genes the prediction "
           "keeps nine directions in ten right"),
    Metric("JACCARD", "de_wilcoxon_sig_jaccard", True, "overlap of the sets of called genes"),
    Metric("NMAE", "de_wilcoxon_lfc_nmae", False, "error of log fold changes over their size, on truly changed genes; 1 is no "
           "change predicted", lowest=-6.0),
)  # fmt: skip

EXTRA = (
    Metric("PEARSON", None, True, "Pearson correlation over genes of predicted and measured effect (delta of the pseudobulk)"),
    Metric("TOP50", None, True, "share of the 50 truly changed genes of largest fold change that are among the prediction's 50"),
    Metric("LFC", None, True, "Spearman correlation of fold changes over truly changed genes"),
    Metric("ENERGY", None, False, "energy distance of predicted and measured cells in 50 principal components"),
)  # fmt: skip


def has_room(floor: float, ceiling: float, metric: Metric) -> bool:
    """Whether the ceiling is better than the floor."""
    return bool((ceiling - floor) * (1 if metric.higher else -1) > 0)


def summary(table: pd.DataFrame, metrics: Sequence[Metric]) -> dict[str, float]:
    """One value per metric from a table of the targets of one context; NaN where no target has one."""
    values = {}
    for metric in metrics:
        top, bottom = parts(table, metric)
        values[metric.key] = float(top.sum() / bottom.sum()) if bottom.sum() else float("nan")
    return values


def parts(table: pd.DataFrame, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """What each target adds to the metric's two sums, ``(targets)`` both: the mean is a sum over a count."""
    columns = [table[c].to_numpy(float) for c in metric.columns]
    known = np.logical_and.reduce([np.isfinite(c) for c in columns])
    bottom = columns[1] if metric.over is not None else np.ones(len(table))
    return np.where(known, columns[0], 0.0), np.where(known, bottom, 0.0)


def per_target(table: pd.DataFrame, metric: Metric) -> pd.Series:
    """One value per target, for pictures and tables; of a ratio of sums, its own ratio."""
    if metric.over is None:
        return table[metric.key]
    return table[metric.columns[0]] / table[metric.over].where(table[metric.over] > 0)
