"""Our scorer gives the official packages' values, and the same called genes, on ordinary and on awkward cells."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats

from vcell.score.gpu import DenseRankTest, dense_jackknife
from vcell.score.grouped import GroupedCells
from vcell.score.metrics import METRICS_2025, METRICS_2026, summary
from vcell.score.official import PERTURBATION, Official2025, Official2026, quiet
from vcell.score.ranksum import SortedControls, numbered, rank_sum_p
from vcell.score.references import copied
from vcell.score.vcc2025 import Fast2025, _largest, _official_order
from vcell.score.vcc2026 import Fast2026, sampling_variance

pytestmark = pytest.mark.numeric
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GENES = [f"G{i}" for i in range(100)]
TARGETS = [*(f"G{i}" for i in range(0, 63, 7)), "UNKNOWN"]


def screen(rng: np.random.Generator, effects: dict[str, np.ndarray], each: int, controls: int) -> GroupedCells:
    """Negative-binomial counts: the same base profile in every screen of a seed."""
    base = np.exp(np.random.default_rng(5).normal(1, 1.6, len(GENES)))
    made = {}
    for label in ["non-targeting", *effects]:
        n = controls if label == "non-targeting" else each
        depth = rng.gamma(5, 0.2, (n, 1))
        made[label] = rng.poisson(base * effects.get(label, 1.0) * depth).astype(np.float32)
    return grouped(made)


def grouped(cells: dict[str, np.ndarray]) -> GroupedCells:
    return GroupedCells({k: sparse.csr_matrix(cells[k]) for k in sorted(cells)}, GENES, "non-targeting")


def dense(cells: GroupedCells) -> dict[str, np.ndarray]:
    return {label: matrix.toarray() for label, matrix in cells.cells.items()}


def effects(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {t: np.exp(rng.normal(0, 0.9, len(GENES)) * (rng.random(len(GENES)) < 0.4)) for t in TARGETS}


Cells = dict[str, np.ndarray]


def ordinary(pred: Cells, real: Cells) -> None:
    """As simulated."""


def ties(pred: Cells, real: Cells) -> None:
    """Few distinct values, and cells that are copies of each other."""
    for side in (pred, real):
        for label in side:
            side[label] = np.minimum(side[label], 2)
            side[label][::2] = side[label][:1]


def constant_genes(pred: Cells, real: Cells) -> None:
    """Genes of zeros only, on one side or both, and genes equal in all cells."""
    for side in (pred, real):
        for label in side:
            side[label][:, 3] = 0
            side[label][:, 4] = 7
    for label in pred:
        pred[label][:, 9] = 0
    for label in real:
        real[label][:, 11] = 0


def single_cells(pred: Cells, real: Cells) -> None:
    pred["G7"], pred["G14"], real["G14"] = pred["G7"][:1], pred["G14"][:1], real["G14"][:2]


def no_effect(pred: Cells, real: Cells) -> None:
    """Nothing is called where all cells are control cells."""
    for label in TARGETS:
        pred[label] = pred["non-targeting"][:20]
    real["G0"] = real["non-targeting"][:25]


def p_of_zero(pred: Cells, real: Cells) -> None:
    """Groups so large and far apart that p-values underflow to exactly 0."""
    for side in (pred, real):
        side["non-targeting"] = np.resize(side["non-targeting"], (3000, len(GENES)))
        side["G7"] = np.resize(side["G7"], (3000, len(GENES)))
        side["G7"][:, 20:40] += 500


def empty_cell(pred: Cells, real: Cells) -> None:
    """A cell of zeros, and one that holds nearly all of its target's counts."""
    pred["G21"][0] = 0
    pred["G28"][0] *= 200
    real["G28"][:2] *= 100


def zeroed_genes(pred: Cells, real: Cells) -> None:
    """A prediction that switches genes off: their fold changes are infinite, and so many tie."""
    rng = np.random.default_rng(2)
    for label in TARGETS:
        pred[label][:, rng.random(len(GENES)) < 0.4] = 0
        real[label][:, rng.random(len(GENES)) < 0.15] = 0


AWKWARD = [zeroed_genes, ordinary, ties, constant_genes, single_cells, no_effect, p_of_zero, empty_cell]


def two_screens(how: Callable[[Cells, Cells], None]) -> tuple[GroupedCells, GroupedCells]:
    rng = np.random.default_rng(len(how.__name__))
    true = effects(rng)
    real = dense(screen(rng, true, 30, 60))
    pred = dense(screen(rng, {t: e ** rng.choice([0.3, 1.0, -0.2]) for t, e in true.items()}, 26, 50))
    how(pred, real)
    return grouped(pred), grouped(real)


def log1p(cells: GroupedCells) -> GroupedCells:
    made = {}
    for label, counts in dense(cells).items():
        total = np.maximum(counts.sum(1, keepdims=True), 1)
        made[label] = np.log1p(counts * (1000 / total)).astype(np.float32)
    return grouped(made)


def assert_equal(ours: pd.DataFrame, official: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        ours,
        official[ours.columns],
        check_names=False,
        check_index_type=False,
        check_column_type=False,
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("how", AWKWARD)
def test_2025(how: Callable[[Cells, Cells], None]):
    pytest.importorskip("cell_eval")
    pred, real = map(log1p, two_screens(how))
    fast = Fast2025(real)
    official = Official2025(real, threads=1)
    assert_equal(fast.score(fast.side(pred)), official.score(pred))
    called = official.real_de.to_pandas().pivot(index="target", columns="feature", values="fdr")[GENES]
    assert (fast.real.calls.called_PG == (called.to_numpy().astype(np.float32) < np.float32(0.05))).all()


@pytest.mark.parametrize("how", AWKWARD)
def test_2026(how: Callable[[Cells, Cells], None]):
    cell_eval2 = pytest.importorskip("cell_eval2")
    from cell_eval2.run import aggregate_metrics

    pred, real = two_screens(how)
    fast, official = Fast2026(real), Official2026(real, threads=1)
    ours, theirs = fast.score(fast.side(pred)), official.score(pred)
    assert_equal(ours, theirs)
    with quiet("cell-eval2"):
        made = pred.with_controls(real.controls).anndata(PERTURBATION)
        rows = cell_eval2.compute_metrics(made, real.anndata(PERTURBATION), config=official.preset)
        found = aggregate_metrics(rows, metrics=[m.official for m in METRICS_2026])
    packages = dict(zip(found["metric"], found["mean"], strict=True))
    for metric, value in summary(ours, METRICS_2026).items():
        name = next(m.official for m in METRICS_2026 if m.key == metric)
        assert value == pytest.approx(packages[name], rel=1e-6, abs=1e-6, nan_ok=True), metric


def test_the_ends_of_the_scale_of_2026_are_the_packages():
    cell_eval2 = pytest.importorskip("cell_eval2")
    from cell_eval2.anchor import compute_replicate_anchor

    _, real = two_screens(ordinary)
    fast, config = Fast2026(real), Official2026(real, threads=1).preset
    with quiet("cell-eval2"):
        measured = real.anndata(PERTURBATION)
        base = cell_eval2.build_generic_baseline(measured, config=config).agg
        _, anchor = compute_replicate_anchor(measured, config=config)
    floor = dict(zip(base.columns[1:], base.filter(base["statistic"] == "mean").row(0)[1:], strict=True))
    top = dict(zip(anchor["metric"], anchor["replicate"], strict=True))
    ours = summary(fast.score(fast.side(fast.floor())), METRICS_2026)
    replicates = pd.DataFrame([summary(t, METRICS_2026) for t, _, _ in fast.replicates()]).mean()
    for metric in METRICS_2026:
        assert ours[metric.key] == pytest.approx(floor[metric.official], rel=1e-6)
        assert replicates[metric.key] == pytest.approx(top[metric.official], rel=1e-6, abs=1e-9)


def test_the_baseline_of_2025_is_the_packages():
    pytest.importorskip("cell_eval")
    from cell_eval import build_base_mean_adata

    _, real = two_screens(ordinary)
    real = log1p(real)
    with quiet("cell-eval"):
        theirs = build_base_mean_adata(real.anndata(PERTURBATION))
    ours = Fast2025(real).floor().anndata(PERTURBATION)
    theirs = theirs[theirs.obs[PERTURBATION] != "non-targeting"]
    profile = ours[ours.obs[PERTURBATION] != "non-targeting"].X.toarray()
    np.testing.assert_allclose(profile, sparse.csr_matrix(theirs.X).toarray(), atol=1e-6)
    assert theirs.obs[PERTURBATION].value_counts().to_dict() == {t: real.cells[t].shape[0] for t in real.targets}


def test_the_overall_score_of_2025_is_the_packages():
    pytest.importorskip("cell_eval")
    import polars
    from cell_eval import score_agg_metrics

    from vcell.score.statistics import Resampled

    pred, real = map(log1p, two_screens(ordinary))
    fast = Fast2025(real)
    table, floor = fast.score(fast.side(pred)), fast.score(fast.side(fast.floor()))
    names = {m.key: m.official for m in METRICS_2025}
    user, base = (
        polars.DataFrame({"statistic": ["mean"], **{names[k]: [v] for k, v in summary(t, METRICS_2025).items()}})
        for t in (table, floor)
    )
    with quiet("cell-eval"):
        theirs = score_agg_metrics(user, base)
    expected = theirs.filter(theirs["metric"] == "avg_score")["from_baseline"][0]
    ours = Resampled.of([table], METRICS_2025).overall(
        [summary(floor, METRICS_2025)], [{"DES": 1.0, "PDS": 1.0, "MAE": 0.0}], METRICS_2025
    )
    assert ours[0] == pytest.approx(expected, rel=1e-6)


def test_p_values_are_scipys():
    rng = np.random.default_rng(1)
    mean = np.geomspace(0.02, 20, 60)
    x, y = (rng.poisson(mean * rng.choice([0.4, 1, 2], 60), (n, 60)).astype(float) for n in (23, 400))
    x[:, 3] = y[:, 3] = 2.0
    expected = stats.mannwhitneyu(x, y, method="asymptotic").pvalue
    expected[3] = 1.0
    stored = sparse.csr_matrix(x)
    np.testing.assert_allclose(rank_sum_p([stored], SortedControls.of(sparse.csr_matrix(y)))[0], expected, rtol=1e-12)
    # zeros that are stored are zeros all the same
    full = sparse.csr_matrix((x.ravel(), np.tile(np.arange(60), 23), np.arange(24) * 60), shape=x.shape)
    np.testing.assert_array_equal(
        rank_sum_p([full], SortedControls.of(sparse.csr_matrix(y))),
        rank_sum_p([stored], SortedControls.of(sparse.csr_matrix(y))),
    )
    twice = sparse.csr_matrix(sparse.vstack([stored, stored], format="csr"))
    np.testing.assert_array_equal(
        rank_sum_p([stored], SortedControls.of(sparse.csr_matrix(y)), copies=2),
        rank_sum_p([twice], SortedControls.of(sparse.csr_matrix(y))),
    )


@pytest.mark.parametrize("distinct", [1, 3, 40, 10_000])
def test_the_largest_fold_changes_are_those_first_in_the_official_order(distinct: int):
    """Which is asked for only where equal ones are on both sides of the cut."""
    rng = np.random.default_rng(distinct)
    size = np.where(rng.random(60) < 0.1, np.inf, rng.integers(distinct, size=60)).astype(np.float32)
    for number in (1, 2, 7, 30, 59, 60, 80):
        assert set(_largest(size, number)) == set(_official_order(size)[:number])


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("number", [1, 7, 300])
@pytest.mark.parametrize("at_once", [4_000_000, 300])
def test_drawn_cells_are_tested_as_any_others(monkeypatch: pytest.MonkeyPatch, number: int, equal: bool, at_once: int):
    """Bit for bit, whatever the pool: some of the controls' values or none, drawn once or often; all genes at once or few at a time."""
    monkeypatch.setattr("vcell.score.ranksum.VALUES_A_THREAD", at_once)
    rng = np.random.default_rng(number)
    totals = rng.choice([500, 700, 900], (80, 1))
    pool, y = (
        sparse.csr_matrix(np.log1p(rng.poisson(np.geomspace(0.02, 20, 60), (80, 60)) / totals)) for _ in range(2)
    )
    pool = y if equal else pool
    tested = numbered(np.arange(60) % 7 > 0)
    test = SortedControls.of(y, tested)
    rows = rng.integers(0, 80, number)
    np.testing.assert_array_equal(test.drawn_from(pool, lambda cells: cells.data)(rows), test([pool[rows]])[0])
    if equal:
        np.testing.assert_array_equal(test.drawn_again(pool)(rows), test([pool[rows]])[0])


@pytest.mark.parametrize("often", [0.0, np.inf])
def test_references_are_measured_from_their_pool_as_from_their_cells(monkeypatch: pytest.MonkeyPatch, often: float):
    """Whether the pool is analysed, or each target's cells as few are drawn."""
    monkeypatch.setattr("vcell.score.grouped.OFTEN", often)
    _, real = two_screens(AWKWARD[0])
    for cells in (copied(real, 0), Fast2026(real).floor()):
        pooled, plain = (Fast2026(real).side(c).measured for c in (cells, replace(cells, pool=None)))
        for one, other in zip(pooled[:4], plain[:4], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("how", AWKWARD)
def test_tensors_give_the_same_as_stored_values(how: Callable[[Cells, Cells], None]):
    """What a GPU computes, here on the CPU."""
    pred, real = two_screens(how)
    test = DenseRankTest(real.controls, torch.device("cpu"))
    controls = SortedControls.of(real.controls)
    groups = [pred.cells[target] for target in pred.targets]
    np.testing.assert_allclose(test(groups), rank_sum_p(groups, controls), rtol=1e-12)
    for target in pred.targets:
        dense = dense_jackknife(pred.cells[target], 5e4, torch.device("cpu"))
        assert sampling_variance(pred.group(target)) == pytest.approx(dense, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])
@pytest.mark.parametrize("how", AWKWARD)
def test_a_device_gives_the_same(how: Callable[[Cells, Cells], None], device: str):
    """Of predictions, references and halves; tensors on the CPU take the way that those on a GPU take."""
    pred, real = two_screens(how)
    for scorer, cells in ((Fast2026, (pred, real)), (Fast2025, (log1p(pred), log1p(real)))):
        here, there = scorer(cells[1]), scorer(cells[1], torch.device(device))
        for other, expected, _ in zip(there.replicates(), here.replicates(), range(1), strict=False):
            assert_equal(other[0], expected[0])
        for made in (cells[0], copied(cells[0], 0), here.floor()):
            assert_equal(there.score(there.side(made)), here.score(here.side(made)))
        assert (there.real.calls.called_PG == here.real.calls.called_PG).all()


def test_halves_are_gone_once_they_are_scored():
    """Those of a large context are a gigabyte each; the collector may come late."""
    rng = np.random.default_rng(0)
    fast = Fast2026(screen(rng, effects(rng), each=6, controls=20))
    gc.collect()
    gc.disable()
    try:
        for table, pred, real in fast.replicates():
            left = [weakref.ref(side) for side in (pred, real)]
            del table, pred, real
            assert [side() for side in left] == [None, None]
    finally:
        gc.enable()
