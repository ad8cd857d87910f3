"""Drawn cells: real cells where nothing is predicted, cells of the law of real ones where something is."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from tests.conftest import SHARED
from vcell.data.files.h5ad import Columns
from vcell.data.store.ingest import ingest
from vcell.data.store.store import CellStore
from vcell.errors import VcellError
from vcell.predict.cells import as_csr, pooled
from vcell.predict.counts import CountModel, again, expected_log1p

pytestmark = pytest.mark.numeric

N_GENES, N_CONTROLS, LIBRARY = 400, 1500, 4000
TARGET_SUM = 1e4


def negative_binomial(rate_G: np.ndarray, n: int, rng: np.random.Generator, dispersion: float = 0.3) -> np.ndarray:
    library_C1 = LIBRARY * np.exp(0.3 * rng.standard_normal((n, 1)))
    return rng.poisson(rng.standard_gamma(1 / dispersion, (n, len(rate_G))) * dispersion * library_C1 * rate_G)


def log1p(counts: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    counts = counts.toarray() if sparse.issparse(counts) else counts
    return np.log1p(counts * (TARGET_SUM / counts.sum(axis=1, keepdims=True)))


def called(cells: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Genes that a Wilcoxon rank-sum test tells apart, Benjamini-Hochberg 5 %."""
    p = np.nan_to_num(stats.mannwhitneyu(cells, controls, axis=0).pvalue, nan=1.0)
    return stats.false_discovery_control(p) < 0.05


@pytest.fixture(scope="module")
def rates() -> np.ndarray:
    rate_G = np.random.default_rng(1).lognormal(0.0, 1.5, N_GENES)
    rate_G[-1] = 0
    return rate_G / rate_G.sum()


@pytest.fixture(scope="module")
def store(rates: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    """Control cells whose law is known; the last gene is never seen."""
    counts = negative_binomial(rates, N_CONTROLS, np.random.default_rng(2))
    folder = tmp_path_factory.mktemp("counts")
    obs = pd.DataFrame(
        {"target_gene": "non-targeting", "batch": "b", "cell_type": "c"}, index=np.arange(N_CONTROLS).astype(str)
    )
    var = pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var).write_h5ad(folder / "controls.h5ad")
    return ingest([folder / "controls.h5ad"], folder / "store", Columns())


@pytest.fixture(scope="module")
def model(store: CellStore) -> CountModel:
    return CountModel.fit(store, np.arange(N_CONTROLS), TARGET_SUM)


def all_counts(store: CellStore) -> sparse.csr_matrix:
    return sparse.csr_matrix(
        (store.values, store.indices.astype(np.int32), store.indptr), (store.n_cells, store.n_genes)
    )


@pytest.mark.parametrize(("mean", "dispersion"), [(0.01, 0.0), (0.3, 1.0), (5.0, 0.2), (200.0, 0.5)])
def test_expected_log1p_is_the_sum_over_counts(mean: float, dispersion: float):
    k = np.arange(20_000)
    law = stats.poisson(mean) if dispersion == 0 else stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))
    exact = (law.pmf(k) * np.log1p(k * (TARGET_SUM / LIBRARY))).sum()
    found = expected_log1p(np.array([mean / LIBRARY]), np.array([dispersion]), np.array([LIBRARY]), TARGET_SUM)
    assert found[0, 0] == pytest.approx(exact, rel=1e-5)


def test_the_model_finds_the_law_of_the_cells(model: CountModel, rates: np.ndarray):
    seen = rates * LIBRARY > 1
    np.testing.assert_allclose(model.rate_G[seen], rates[seen], rtol=0.15)
    assert np.median(model.dispersion_G[seen]) == pytest.approx(0.3, rel=0.1)
    # the law gives the mean that the cells have, and a rate comes back from its mean
    np.testing.assert_allclose(model._mean_of_rate[seen], model.mean_log1p_G[seen], rtol=0.05)
    doubled = model.mean_log1p_of(model.rate_G * 2)
    np.testing.assert_allclose(
        model.rates_of_log1p(doubled, model.mean_log1p_G)[seen], 2 * model.rate_G[seen], rtol=1e-3
    )


def test_without_an_effect_cells_are_the_control_cells(model: CountModel, store: CellStore):
    cells, mean_G = np.arange(0, 300), np.random.default_rng(0).random(N_GENES)
    rates_G = model.rates_of_log1p(mean_G, mean_G)
    drawn = model.draw(store.rows(cells), rates_G, np.random.default_rng(0), again(cells))
    assert (drawn != all_counts(store)[cells]).nnz == 0 and drawn.dtype.kind == "i"


def test_null_cells_are_called_for_about_no_gene(store: CellStore):
    """Drawn from one half of the controls, tested against the other; even where every cell is drawn anew."""
    cells = np.random.default_rng(3).permutation(N_CONTROLS)
    half, others = cells[:750], log1p(all_counts(store)[cells[750:]])
    model, rng = CountModel.fit(store, np.sort(half), TARGET_SUM), np.random.default_rng(4)
    calls = []
    for stands_already in (np.zeros(400, bool), np.ones(400, bool)):
        for _ in range(5):
            some = rng.choice(half, 400, replace=False)
            drawn = model.draw(store.rows(some), model.rate_G, rng, stands_already)
            calls.append(called(log1p(drawn), others).sum())
    assert np.mean(calls) < 0.01 * N_GENES


def matched_cells(model: CountModel, store: CellStore, rate_G: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells as drawn, and the same with their sums matched."""
    rng = np.random.default_rng(seed)
    controls = store.rows(rng.choice(store.n_cells, 200, replace=False))
    drawn = model.draw(controls, rate_G, rng)
    library_C = controls.library_size.astype(np.float64)
    matched = model.matched(drawn, library_C, rate_G, rng)
    wanted_G = rate_G * library_C.sum()
    assert (matched.data > 0).all() and matched.has_sorted_indices
    assert (np.abs(np.asarray(matched.sum(0)).ravel() - wanted_G) < 1).all()
    return drawn.toarray(), matched.toarray()


def test_matched_cells_have_the_wanted_sums_and_change_little(model: CountModel, store: CellStore, rates: np.ndarray):
    rate_G = model.rate_G * np.where(
        np.arange(N_GENES) % 10 == 0, 1.5, np.where(np.arange(N_GENES) % 10 == 1, 0.4, 1.0)
    )
    drawn, matched = matched_cells(model, store, rate_G, 0)
    # a gene is only added to or only taken from, whichever its sum asks for
    change = matched - drawn
    assert not ((change > 0).any(0) & (change < 0).any(0)).any()
    assert np.abs(change).sum() < 0.15 * drawn.sum()


def test_matched_cells_without_an_effect_are_called_for_about_no_gene(model: CountModel, store: CellStore):
    controls = log1p(all_counts(store))
    calls = [called(log1p(matched_cells(model, store, model.rate_G, seed)[1]), controls).sum() for seed in range(5)]
    assert np.median(calls) <= 1


@pytest.fixture(scope="module")
def planted(model: CountModel, store: CellStore, rates: np.ndarray) -> dict[str, np.ndarray]:
    """A hundred genes changed by half to three times; cells drawn from their true mean of log1p, and real ones."""
    rng = np.random.default_rng(5)
    factor_G = np.ones(N_GENES)
    changed = rng.choice(N_GENES - 1, 100, replace=False)
    factor_G[changed] = np.exp(rng.uniform(-0.7, 1.1, 100))
    new_G = rates * factor_G / (rates * factor_G).sum()
    truth = log1p(negative_binomial(new_G, 20_000, rng)).mean(axis=0)
    cells = np.arange(600)
    from_G = log1p(all_counts(store)[cells]).mean(axis=0)
    predicted_G = np.maximum(from_G + truth - model.mean_log1p_G, 0)
    drawn = model.draw(store.rows(cells), model.rates_of_log1p(predicted_G, from_G), rng)
    real = negative_binomial(new_G, 600, rng)
    return {"drawn": drawn.toarray(), "real": real, "predicted": predicted_G, "factor": factor_G, "rate": new_G}


def test_planted_genes_are_called_like_in_real_cells(planted: dict[str, np.ndarray], store: CellStore):
    controls = log1p(all_counts(store))
    strong = np.abs(np.log(planted["factor"])) > 0.4
    drawn, real = (called(log1p(planted[name]), controls) for name in ("drawn", "real"))
    assert drawn[strong].mean() > 0.9 * real[strong].mean() and real[strong].mean() > 0.6
    unchanged = planted["factor"] == 1
    assert drawn[unchanged].mean() < real[unchanged].mean() + 0.05


def test_means_agree_with_the_prediction(planted: dict[str, np.ndarray]):
    """Mean over cells of log1p, and pseudobulk of counts: nearer to what was predicted than another sample of real cells is."""
    seen = planted["rate"] * LIBRARY > 1
    error = {
        name: np.abs(log1p(planted[name]).mean(axis=0) - planted["predicted"])[seen].mean()
        for name in ("drawn", "real")
    }
    assert error["drawn"] < error["real"] < 0.1
    share = {name: planted[name].sum(axis=0) / planted[name].sum() for name in ("drawn", "real")}
    off = {name: np.abs(np.log(share[name][seen] / planted["rate"][seen])).mean() for name in ("drawn", "real")}
    assert off["drawn"] < 1.5 * off["real"] < 0.1


def test_spread_and_zeros_are_those_of_real_cells(planted: dict[str, np.ndarray]):
    seen = planted["rate"] * LIBRARY > 1
    spread = [np.log(log1p(planted[name]).std(axis=0)[seen]) for name in ("drawn", "real")]
    assert np.abs(spread[0] - spread[1]).mean() < 0.1
    assert (planted["drawn"] == 0).mean() == pytest.approx((planted["real"] == 0).mean(), rel=0.03)
    depth = [planted[name].sum(axis=1) for name in ("drawn", "real")]
    assert np.std(np.log(depth[0])) == pytest.approx(np.std(np.log(depth[1])), rel=0.1)


def test_a_gene_predicted_away_is_gone_and_one_never_seen_appears(model: CountModel, store: CellStore):
    predicted_G = model.mean_log1p_G.copy()
    gene = int(np.argmax(model.rate_G))
    predicted_G[gene], predicted_G[-1] = 0.0, 0.5
    rates_G = model.rates_of_log1p(predicted_G, model.mean_log1p_G)
    drawn = model.draw(store.rows(np.arange(500)), rates_G, np.random.default_rng(0)).toarray()
    assert drawn[:, gene].sum() == 0
    assert np.log1p(drawn[:, -1] * TARGET_SUM / store.library_size[:500]).mean() == pytest.approx(0.5, rel=0.2)
    assert 0 < (drawn[:, -1] > 0).mean() < 0.9


def test_a_cell_that_stands_twice_is_another_cell(model: CountModel, store: CellStore):
    cells = np.array([7, 8, 7, 7])
    assert again(cells).tolist() == [False, False, True, True]
    drawn = model.draw(store.rows(cells), model.rate_G, np.random.default_rng(0), again(cells)).toarray()
    original = all_counts(store)[cells].toarray()
    assert (
        (drawn[:2] == original[:2]).all() and (drawn[2] != drawn[3]).sum() > 20 and (drawn[2] != original[2]).sum() > 20
    )


def test_the_same_seed_draws_the_same(model: CountModel, store: CellStore):
    rates_G = model.rate_G * np.exp(np.random.default_rng(0).normal(0, 0.3, N_GENES))
    draws = [model.draw(store.rows(np.arange(99)), rates_G, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert (draws[0] != draws[1]).nnz == 0 and (draws[0] != draws[2]).nnz > 0


def test_fractions_are_no_counts_to_draw_from(tmp_path: Path):
    rng = np.random.default_rng(0)
    values = rng.gamma(1.0, 1.0, (60, 30))
    cells = ad.AnnData(sparse.csr_matrix((np.log1p(values / values.sum(1, keepdims=True) * 1e4)).astype(np.float32)))
    cells.obs = pd.DataFrame(
        {"target_gene": "non-targeting", "batch": "b", "cell_type": "c"}, index=[f"c{i}" for i in range(60)]
    )
    cells.var_names = [f"G{i}" for i in range(30)]
    cells.write_h5ad(tmp_path / "f.h5ad")
    store = ingest([tmp_path / "f.h5ad"], tmp_path / "store", Columns())
    with pytest.raises(VcellError, match=r"f\.h5ad holds none.*controls=FILE"):
        CountModel.fit(store, np.arange(60), 1e4)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the checkout")
@pytest.mark.parametrize(("name", "context"), [("papalexi2021_thp1", "THP1"), ("kang_pbmc_ifnb", "CD4T")])
def test_real_controls_null_and_a_real_effect(name: str, context: str, tmp_path: Path):
    """Nothing is called without an effect; with the mean of real perturbed cells, spread and zeros are those of these cells."""
    store = ingest([SHARED / f"{name}.h5ad"], tmp_path / "store", Columns("target_gene", "batch_var", "cell_type"))
    rng = np.random.default_rng(0)
    counts, library = all_counts(store).toarray(), store.library_size[:, None]

    def scaled(cells: np.ndarray) -> np.ndarray:
        return np.log1p(counts[cells] / library[cells] * 1e4)

    controls = rng.permutation(store.controls_of(context))
    half, others = controls[: len(controls) // 2], controls[len(controls) // 2 :]
    model = CountModel.fit(store, np.sort(half), 1e4)
    drawn = model.draw(store.rows(half), model.rate_G, rng, np.ones(len(half), bool)).toarray()
    assert called(np.log1p(drawn / library[half] * 1e4), scaled(others)).sum() <= 1
    group = max(
        (g for g in store.groups if g[0] == context and g[1] != store.control), key=lambda g: len(store.groups[g])
    )
    cells = store.groups[group]
    rates_G = model.rates_of_log1p(scaled(cells).mean(axis=0), model.mean_log1p_G)
    drawn = model.draw(store.rows(half), rates_G, rng).toarray()
    mean_G, real_G = np.log1p(drawn / library[half] * 1e4).mean(axis=0), scaled(cells).mean(axis=0)
    change = real_G - model.mean_log1p_G
    slope = ((mean_G - model.mean_log1p_G) @ change) / (change @ change)
    assert slope == pytest.approx(1, abs=0.1)
    assert (drawn > 0).mean() == pytest.approx((counts[cells] > 0).mean(), rel=0.1)


def test_pooled_cells_have_the_law_of_means_of_cells(store: CellStore):
    cells = store.controls_of("c")[:120]
    rows, rng = store.rows(cells), np.random.default_rng(0)
    found = pooled(rows, 3, rng)
    single, sums = (as_csr(r, store.n_genes).toarray() for r in (rows, found))
    expected = single.reshape(40, 3, -1).sum(1) / 3
    assert len(found.library_size) == 40 and np.issubdtype(found.values.dtype, np.integer)
    # thinning a sum of n molecules with 1/3 strays by sqrt(n * 2) / 3
    total, spread = expected.sum(0), np.sqrt(expected.sum(0) * 3 * 2) / 3
    assert (np.abs(sums.sum(0) - total) <= 6 * spread).all()
    np.testing.assert_allclose(found.library_size, rows.library_size.reshape(40, 3).mean(1), rtol=1e-6)
