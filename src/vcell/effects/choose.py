"""The settings of a transfer, chosen among a few values each by what they are worth in contexts left out.

Shape legend: T targets of a held-out context, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vcell.effects.bank import SPACES
from vcell.effects.evidence import Evidence
from vcell.effects.loco import (
    Held,
    amplitude,
    gathered,
    judged,
    scale_of_calls,
    scale_of_ranks,
    scales,
    shaped,
    worth,
)

DEFAULTS = {
    "denoising": 0.0, "smooth": 0.0, "vectors": 0.0, "components": 0, "whitening": 0.0, "alpha": 0.0, "beta": 0.0,
}  # fmt: skip
# where no context can be left out: on real signatures of K562 and RPE1 these two raise the cosine and hardly change the ranks
UNTESTED = {"smooth": 0.5, "vectors": 0.3}
GRID: dict[str, tuple[float, ...]] = {
    "denoising": (0.0, 0.5, 1.0), "smooth": (0.0, 0.5, 1.0), "vectors": (0.0, 0.3, 0.6, 1.0), "components": (0, 1, 2, 5, 10),
    "whitening": (0.0, 0.25, 0.5, 1.0), "alpha": (0.0, 0.5, 0.75, 1.0), "beta": (0.0, 0.5, 0.75, 1.0),
}  # fmt: skip
# where too few genes are called in training to tell: fold changes of called genes are larger than those of all genes, in a simulated
# atlas (screen=field, seed 5) by about this factor; the scores of 2026 are highest there too
CALLS_OVER_USUAL = 3.5


def settled_in(held: Held, space: str, settings: Mapping[str, float], usual: Mapping[str, float]) -> np.ndarray:
    """Unscaled effects of a held-out context's targets in a space, ``(T, G)``."""
    size = amplitude(held.agreement, held.magnitude, settings["alpha"], settings["beta"], usual)
    effect = gathered(held.elsewhere[space], held.smooth[space], held.vectors[space], settings)
    found: np.ndarray = size.astype(np.float32)[:, None] * shaped(effect, held.controls, held.reliable, settings)
    return found


def settled(held: Held, settings: Mapping[str, float], usual: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Unscaled effects of a held-out context's targets by space, ``(T, G)``."""
    return {space: settled_in(held, space, settings, usual) for space in SPACES}


def _judged_all(held: Sequence[Held], settings: Mapping[str, float], usual: Mapping[str, float]) -> pd.DataFrame:
    """What settings are worth in each held-out context, at the scale that suits the other contexts best."""
    effect = [settled_in(h, "bulk", settings, usual) for h in held]
    rows = {}
    for number, h in enumerate(held):
        others = [i for i in range(len(held)) if i != number] or [number]
        zeros = [np.zeros_like(h.mean["bulk"])] * len(others)
        scale, _ = scales([effect[i] for i in others], zeros, [held[i].truth["bulk"] for i in others])
        rows[h.context] = {"targets": len(h.targets), **judged(scale * effect[number], h.truth["bulk"])}
    return pd.DataFrame.from_dict(rows, orient="index")


def chosen_settings(
    held: Sequence[Held], usual: Mapping[str, float], given: Mapping[str, float]
) -> tuple[dict[str, float], pd.DataFrame]:
    """Settings by leaving out contexts, one after the other; and the table of what they reach in each, beside plain copies."""
    settings: dict[str, float] = {**DEFAULTS, **given}
    if len(held) < 2:
        return {**settings, **{key: value for key, value in UNTESTED.items() if key not in given}}, pd.DataFrame()
    table = _judged_all(held, settings, usual)
    for key, values in GRID.items():
        if key in given:
            continue
        best_value, best_table = settings[key], table
        for value in values:
            if value == settings[key]:
                continue
            trial = _judged_all(held, {**settings, key: value}, usual)
            gain = worth(trial) - worth(table)
            error = float(gain.std(ddof=1) / np.sqrt(len(gain)))
            if gain.mean() > error and worth(trial).mean() > worth(best_table).mean():
                best_value, best_table = value, trial
        settings[key], table = best_value, best_table
    copied = pd.DataFrame.from_dict(
        {h.context: judged(h.elsewhere["bulk"] + h.mean["bulk"], h.truth["bulk"]) for h in held}, orient="index"
    )
    table["pds copied"], table["error copied"] = copied["pds"], copied["error"]
    return settings, table


def scales_of_spaces(
    held: Sequence[Held], found: Sequence[Mapping[str, np.ndarray]], largest_G: np.ndarray, untested_mean: float = 0.0
) -> tuple[dict[str, float], dict[str, float]]:
    """The scale of effects, and of the mean added to them, by space.

    Besides, ``calls``: the scale of called genes' fold changes, as the scores of 2026 look at them; and ``ranks``: that of the space ``cell``
    where cells are to be told apart by L1 distance, as by the scores of 2025.

    Parameters
    ----------
    found
        Unscaled effects of each held-out context (`settled`).
    largest_G
        Beyond which effects scaled for ranks do not go.
    untested_mean
        The scale of the mean where no context can be left out.
    """
    if not held:
        return {**dict.fromkeys(SPACES, 1.0), "calls": CALLS_OVER_USUAL, "ranks": 1.0}, dict.fromkeys(
            SPACES, untested_mean
        )
    effects, means, truths = (
        {space: [one[space] for one in parts] for space in SPACES}
        for parts in (found, [h.mean for h in held], [h.truth for h in held])
    )
    both = {space: scales(effects[space], means[space], truths[space]) for space in SPACES}
    scale, mean_scale = ({space: pair[i] for space, pair in both.items()} for i in (0, 1))
    of_calls = scale_of_calls(effects["fold"], truths["fold"], [h.called for h in held], scale["fold"])
    scale["calls"] = CALLS_OVER_USUAL * scale["fold"] if of_calls is None else of_calls
    scale["ranks"] = scale["cell"]
    if scale["cell"] > 0:
        added = [mean_scale["cell"] * mean_G for mean_G in means["cell"]]
        scale["ranks"] = scale_of_ranks(effects["cell"], added, truths["cell"], scale["cell"], largest_G)
    mean_scale["bulk"] = worthwhile_mean(held, found, scale["bulk"], mean_scale["bulk"])
    mean_scale["fold"] = min(mean_scale["fold"], mean_scale["bulk"])
    return scale, mean_scale


def worthwhile_mean(
    held: Sequence[Held], found: Sequence[Mapping[str, np.ndarray]], scale: float, most: float
) -> float:
    """How much of the other contexts' mean effect to add to bulk effects: it lowers the error and blurs which target is which."""
    values = {}
    for part in (0.0, 0.25, 0.5, 1.0):
        predicted = [scale * f["bulk"] + part * most * h.mean["bulk"] for f, h in zip(found, held, strict=True)]
        values[part] = float(
            worth(pd.DataFrame([judged(p, h.truth["bulk"]) for p, h in zip(predicted, held, strict=True)])).mean()
        )
    return most * max(values, key=values.__getitem__)


def fitted_weights(evidence: Evidence, held: Sequence[Held]) -> dict[str, float] | None:
    """A weight for each study, not negative, with mean 1, by which held-out contexts are predicted best; None with fewer than four."""
    from scipy.optimize import nnls

    studies = list(dict.fromkeys(evidence.studies))
    if len(held) < 4:
        return None
    normal, right = np.zeros((len(studies), len(studies))), np.zeros(len(studies))
    for h in held:
        by_study = np.zeros((len(studies), *h.truth["bulk"].shape), np.float32)
        for row, target in enumerate(h.targets):
            for number in evidence.usable(target, h.context):
                by_study[studies.index(evidence.studies[number]), row] = evidence.centred["bulk"][number]
        truth = h.truth["bulk"] - h.truth["bulk"].mean(0)
        flat = by_study.reshape(len(studies), -1)
        size = max(float((truth**2).sum()), 1e-12)
        normal += (flat @ flat.T) / size
        right += (flat @ truth.ravel()) / size
    ridge = 0.1 * np.trace(normal) / len(studies)
    root = np.linalg.cholesky(normal + ridge * np.eye(len(studies)))
    weights, _ = nnls(root.T, np.linalg.solve(root, right))
    if weights.sum() <= 0:
        return None
    return {study: float(w) for study, w in zip(studies, weights / weights.mean(), strict=True)}
