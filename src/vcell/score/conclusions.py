"""What the numbers of a report say, in sentences: for those who read one line before they read a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vcell.score.metrics import Metric, has_room, per_target
from vcell.score.statistics import Interval

NOISE = 0.5  # of an interval of 95 %: differences below half its width are not worth a word


def conclude(
    name: str,
    scores: pd.DataFrame,
    overall: Interval,
    floors: Mapping[str, float],
    ceiling: str,
    floor: str,
    metrics: Sequence[Metric],
    targets: pd.DataFrame,
    genes: Sequence[pd.DataFrame],
    contexts: Mapping[str, float],
) -> list[str]:
    """Sentences on the prediction `name`, the most important first.

    Parameters
    ----------
    scores
        Predictors by SCORE and metrics.
    floors
        What must be beaten, by metric.
    ceiling, floor
        The rows of `scores` that are the replicate and the official baseline.
    targets
        Of the prediction, one row a target, by metric.
    genes
        Of each context, the calls of every target (`score.explore.target_table`); none without pictures.
    contexts
        SCORE in each context.
    """
    said = [_overall(overall, float(scores.loc[ceiling, "SCORE"]), floor)]
    said += _rival(name, scores, overall, (ceiling, floor))
    said += _metrics(scores.loc[name], floors, scores.loc[ceiling], metrics)
    if genes:
        said += _calls(pd.concat(list(genes)))
    said += _targets(targets, metrics)
    if len(contexts) > 1:
        best, worst = max(contexts, key=contexts.__getitem__), min(contexts, key=contexts.__getitem__)
        said.append(
            f"Of {len(contexts)} contexts it is best in {best} ({contexts[best]:.3f}) and worst in {worst} ({contexts[worst]:.3f})."
        )
    return said


def _overall(found: Interval, reachable: float, floor: str) -> str:
    if found.high < 0:
        return f"Worse than the official baseline ({floor}), beyond chance."
    if found.low <= 0:
        return f"Not distinguishable from the official baseline ({floor}): the interval of SCORE holds 0."
    share = (
        f": it reaches {100 * found.value / reachable:.0f} % of what a repeat of the experiment reaches ({reachable:.3f})"
        if reachable > 0
        else ""
    )
    return f"Better than the official baseline ({floor}), beyond chance{share}."


def _rival(name: str, scores: pd.DataFrame, found: Interval, ends: Sequence[str]) -> list[str]:
    rivals = scores["SCORE"].drop([name, *(e for e in ends if e in scores.index)], errors="ignore").dropna()
    if rivals.empty:
        return []
    rival, value = str(rivals.idxmax()), float(rivals.max())
    near = abs(found.value - value) < NOISE * (found.high - found.low) / 2
    how = "about as good as" if near else "better than" if found.value > value else "worse than"
    return [f"It is {how} the best other row of the table, {rival} ({value:.3f})."]


def _metrics(mine: pd.Series, floors: Mapping[str, float], top: pd.Series, metrics: Sequence[Metric]) -> list[str]:
    reached = {m.key: (mine[m.key] - floors[m.key]) / (top[m.key] - floors[m.key]) for m in metrics if has_room(floors[m.key], top[m.key], m)}  # fmt: skip
    reached = {key: value for key, value in reached.items() if np.isfinite(value)}
    said = []
    if len(reached) > 1:
        best, worst = max(reached, key=reached.__getitem__), min(reached, key=reached.__getitem__)
        below = ", below the floor" if reached[worst] < 0 else ""
        said.append(
            f"Of the way from floor to replicate it goes furthest in {best} ({100 * reached[best]:.0f} %) and least far in {worst} "
            f"({100 * reached[worst]:.0f} %{below})."
        )
    without = [m.key for m in metrics if not has_room(floors[m.key], top[m.key], m)]
    if without:
        said.append(
            f"{', '.join(without)} cannot tell a replicate of the experiment from the floor on these data: ignore {'them' if len(without) > 1 else 'it'} here."
        )
    return said


def _calls(genes: pd.DataFrame) -> list[str]:
    wrong, missed = genes["pred"] - genes["right"], genes["real"] - genes["both"]
    said = [
        f"Per target (medians) {genes['real'].median():,.0f} genes truly change; it calls {genes['pred'].median():,.0f}, of which "
        f"{genes['right'].median():,.0f} rightly and {wrong.median():,.0f} wrongly, and misses {missed.median():,.0f}."
    ]
    silent = int((genes["pred"] == 0).sum())
    if silent:
        said.append(f"For {silent:,} of {len(genes):,} targets it calls no gene at all.")
    own = genes[["own_real", "own_pred"]].replace([np.inf, -np.inf], np.nan).dropna()
    if len(own):
        real, pred = own.median()
        said.append(
            f"The target's own gene falls to {100 * 2**real:.0f} % as measured and {100 * 2**pred:.0f} % as predicted (medians of {len(own):,})."
        )
    return said


def _targets(table: pd.DataFrame, metrics: Sequence[Metric]) -> list[str]:
    metric = next((m for m in metrics if m.key == "PDS"), metrics[0])
    values = per_target(table, metric).groupby(level=0).mean().dropna().sort_values(ascending=not metric.higher)
    if len(values) < 6:
        return []
    return [
        f"By {metric.key} the best targets are {', '.join(map(str, values.index[:3]))}; the worst {', '.join(map(str, values.index[::-1][:3]))}."
    ]
