"""Intervals over targets: as wide as theory says, paired where two predictions share targets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vcell.score.evaluation import comparison_text
from vcell.score.metrics import METRICS_2025, METRICS_2026, Metric, summary
from vcell.score.statistics import Interval, Resampled, better_by

pytestmark = pytest.mark.numeric

RNG = np.random.default_rng(0)
ONE = (Metric("A", None, True, ""),)


def table(values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"A": values}, index=[f"T{i}" for i in range(len(values))])


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = RNG.normal(0.3, 0.2, 400)
    found = Interval.of(Resampled.of([table(values)], ONE).of_metric("A"))
    error = values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.low < 0.3 < found.high


def test_a_shift_of_every_target_is_certain_though_the_intervals_overlap():
    values = RNG.normal(0, 1, 50)
    better, worse = (Resampled.of([table(v)], ONE).of_metric("A") for v in (values + 0.05, values))
    found = better_by(better, worse, higher=True)
    assert found.value == pytest.approx(0.05) and found.low == pytest.approx(0.05) and found.excludes_zero
    assert Interval.of(better).low < Interval.of(worse).high
    assert better_by(better, worse, higher=False).value == pytest.approx(-0.05)


def test_which_is_better_is_said_in_words():
    assert comparison_text("new", "old", Interval(0.031, 0.012, 0.05)) == "new beats old by 0.031 [0.012, 0.050]"
    assert comparison_text("new", "old", Interval(-0.031, -0.05, -0.012)) == "old beats new by 0.031 [0.012, 0.050]"
    assert comparison_text("new", "old", Interval(0.031, -0.01, 0.05)).startswith(
        "new and old do not differ significantly"
    )


def test_targets_without_a_value_are_left_out():
    values = np.array([0.1, np.nan, 0.5, np.nan])
    assert Resampled.of([table(values)], ONE).of_metric("A")[0] == pytest.approx(0.3)
    assert summary(table(values), ONE) == {"A": pytest.approx(0.3)}
    assert np.isnan(summary(table(np.full(3, np.nan)), ONE)["A"])


def test_a_ratio_of_sums_is_resampled_as_one():
    whole = RNG.uniform(0.5, 2, 300)
    rows = pd.DataFrame({"MSE_part": 0.4 * whole, "MSE_whole": whole})
    (metric,) = (m for m in METRICS_2026 if m.key == "MSE")
    found = Interval.of(Resampled.of([rows], [metric]).of_metric("MSE"))
    assert [found.value, found.low, found.high] == pytest.approx([0.4, 0.4, 0.4])


def overall(
    values: dict[str, float], floor: dict[str, float], top: dict[str, float], members: tuple[Metric, ...]
) -> float:
    rows = pd.DataFrame({k: [v] * 3 for k, v in values.items()})
    return float(Resampled.of([rows], members).overall([floor], [top], members)[0])


def test_overall_scores_are_scaled_cut_and_averaged():
    floor, top = {"DES": 0.2, "PDS": 0.5, "MAE": 0.1}, {"DES": 1.0, "PDS": 1.0, "MAE": 0.0}
    assert overall(floor, floor, top, METRICS_2025) == pytest.approx(0, abs=1e-12)
    assert overall(top, floor, top, METRICS_2025) == pytest.approx(1)
    # halfway in two, worse than the floor in the third, which is cut at 0
    assert overall({"DES": 0.6, "PDS": 0.75, "MAE": 0.3}, floor, top, METRICS_2025) == pytest.approx(1 / 3)
    # a member without room between the ends is left out
    flat = {"DES": 1.0, "PDS": 0.5, "MAE": 0.1}
    assert overall({"DES": 1.0, "PDS": 0.75, "MAE": 0.05}, flat, top, METRICS_2025) == pytest.approx(0.5)


@pytest.mark.filterwarnings("error")
def test_an_overall_score_of_no_value_is_none():
    nothing = dict.fromkeys(("DES", "PDS", "MAE"), np.nan)
    assert np.isnan(
        overall(nothing, {"DES": 0.2, "PDS": 0.5, "MAE": 0.1}, {"DES": 1.0, "PDS": 1.0, "MAE": 0.0}, METRICS_2025)
    )


def test_contexts_weigh_the_same_whatever_their_targets():
    found = Resampled.of([table(np.full(100, 1.0)), table(np.full(2, 0.0))], ONE).of_metric("A")
    assert found[0] == 0.5
