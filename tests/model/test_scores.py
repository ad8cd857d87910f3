"""Scores during training: equal to the official ones on equal cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from vcell.model.scores import (
    de_overlap,
    delta_correlation,
    differential,
    discrimination_l1,
    distinctness,
    false_discovery_rate,
    rank_sum_p,
)
from vcell.score.differential import false_discovery_rate as without_torch
from vcell.score.grouped import GroupedCells

pytestmark = pytest.mark.numeric

RNG = np.random.default_rng(0)


def log1p_cells(n: int, mean: np.ndarray) -> np.ndarray:
    """Sparse counts, so that there are many ties, as log1p."""
    return np.log1p(RNG.poisson(mean, (n, len(mean)))).astype(np.float32)


def test_p_values_equal_scipys():
    mean = np.geomspace(0.02, 20, 60)
    x, y = log1p_cells(23, mean * RNG.choice([0.4, 1, 1, 2], 60)), log1p_cells(41, mean)
    x[:, 3] = y[:, 3] = 1.5  # constant
    expected = stats.mannwhitneyu(x.astype(float), y.astype(float), method="asymptotic").pvalue
    expected[3] = 1.0
    np.testing.assert_allclose(rank_sum_p(torch.from_numpy(x), torch.from_numpy(y)).numpy(), expected, rtol=1e-9)


def test_false_discovery_rates_equal_scipys():
    p = RNG.random((3, 200)) ** 3
    p[1, :50] = p[1, 60]  # ties
    expected = stats.false_discovery_control(p, axis=1)
    assert np.array_equal(false_discovery_rate(torch.from_numpy(p)).numpy(), expected)
    tested_G = np.arange(200) % 3 > 0
    found = without_torch(p, tested_G)
    assert (
        np.array_equal(found[:, tested_G], stats.false_discovery_control(p[:, tested_G], axis=1))
        and np.isnan(found[:, ~tested_G]).all()
    )
    assert without_torch(np.zeros((2, 0)), np.zeros(0, bool)).shape == (2, 0)
    assert np.array_equal(false_discovery_rate(torch.from_numpy(p[0])).numpy(), expected[0])
    assert false_discovery_rate(torch.zeros(2, 0)).shape == (2, 0)


def test_scores_equal_the_official_ones():
    pytest.importorskip("cell_eval")
    from vcell.score.official import Official2025

    targets, genes = [f"G{i}" for i in range(6)], [f"G{i}" for i in range(80)]
    mean = np.geomspace(0.05, 15, 80)
    control = log1p_cells(60, mean)
    effects = [np.exp(RNG.normal(0, 0.8, 80) * (RNG.random(80) < 0.4)) for _ in targets]
    real = [log1p_cells(40, mean * effect) for effect in effects]
    pred = [log1p_cells(30, mean * effect ** RNG.choice([0.3, 1.0])) for effect in effects]
    pred[0], pred[1] = pred[1], pred[2]  # two that pass for others

    def grouped(cells: list[np.ndarray]) -> GroupedCells:
        labelled = {**dict(zip(targets, cells, strict=True)), "non-targeting": control}
        return GroupedCells({k: sparse.csr_matrix(labelled[k]) for k in sorted(labelled)}, genes, "non-targeting")

    official = Official2025(grouped(real), threads=1).score(grouped(pred))
    real_t, pred_t, control_t = (
        [torch.from_numpy(c) for c in real],
        [torch.from_numpy(c) for c in pred],
        torch.from_numpy(control),
    )
    overlap = [
        de_overlap(differential(p, control_t), differential(r, control_t)) for p, r in zip(pred_t, real_t, strict=True)
    ]
    deltas = [torch.stack([c.mean(0) - control_t.mean(0) for c in cells]) for cells in (pred_t, real_t)]
    found = discrimination_l1(*deltas, torch.arange(6))
    np.testing.assert_allclose([float(o) for o in overlap], official.loc[targets, "DES"], rtol=1e-6)
    np.testing.assert_allclose(found.numpy(), official.loc[targets, "PDS"], rtol=1e-6)
    assert len(set(official["DES"])) > 2 and official["PDS"].min() < 1  # something to tell apart


def test_overlap_is_0_where_nothing_changed_and_1_for_the_same_cells():
    control = torch.from_numpy(log1p_cells(50, np.full(30, 3.0)))
    changed = torch.from_numpy(log1p_cells(50, np.r_[np.full(5, 12.0), np.full(25, 3.0)]))
    same = differential(changed, control)
    assert same.significant_G[:5].all() and de_overlap(same, same) == 1
    assert de_overlap(same, differential(control, control)) == 0


def test_distinctness_is_0_for_one_profile_whatever_its_size():
    one = torch.randn(1, 50)
    assert distinctness(one.repeat(5, 1)) < 1e-6
    assert distinctness(torch.zeros(5, 50)) == 0
    assert distinctness(torch.randn(5, 50)) > 0.5


def test_correlation_leaves_out_genes_that_were_not_measured():
    x, y, known = torch.randn(3, 40), torch.randn(3, 40), torch.ones(3, 40, dtype=torch.bool)
    known[:, 25:] = False
    expected = [np.corrcoef(a[:25], b[:25])[0, 1] for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(delta_correlation(x, y, known).numpy(), expected, rtol=1e-4)
