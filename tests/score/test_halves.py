"""Halves of the measured cells: what is counted in one pass over all cells is what each half gives by itself."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from vcell.score import differential
from vcell.score.embedding import Embedding
from vcell.score.explore import target_table
from vcell.score.grouped import GroupedCells
from vcell.score.halves import Splits
from vcell.score.jackknife import jackknife
from vcell.score.own import extra_scores
from vcell.score.pairs import Pair
from vcell.score.side import Side
from vcell.score.sums import CellGroup
from vcell.score.vcc2025 import Fast2025
from vcell.score.vcc2026 import BULK_SUM, Fast2026, pseudobulk, sampling_variance

pytestmark = pytest.mark.numeric
CONTROL = "non-targeting"


def screen(controls: int, sizes: list[int], seed: int = 0) -> GroupedCells:
    """Cells of few counts, many of them alike, with genes near the least that is tested."""
    rng = np.random.default_rng(seed)
    rate = np.geomspace(1e-6, 0.2, 50)

    def some(n: int) -> sparse.csr_matrix:
        counts = rng.poisson(rng.choice([500, 1000], (n, 1)) * rate)
        counts[:, -1] = rng.choice([500, 1000], n) - np.minimum(
            counts[:, :-1].sum(1), 400
        )  # totals that repeat, and so ties
        return sparse.csr_matrix(counts.astype(np.float32))

    cells = {CONTROL: some(controls), **{f"G{i}": some(n) for i, n in enumerate(sizes)}}
    return GroupedCells(dict(sorted(cells.items())), [f"G{i}" for i in range(50)], CONTROL)


@pytest.mark.parametrize("controls", [40, 41])
def test_halves_are_those_of_their_own_cells(controls: int):
    cells, seeds = screen(controls, [2, 3, 9, 30, 31]), [0, 5, 7]
    splits = Splits(cells, seeds, BULK_SUM, differential.Tests2026.of(cells.controls))
    for seed, sides in zip(seeds, splits.sides(), strict=True):
        for half, side in zip(cells.halves(seed), sides, strict=True):
            tests = differential.Tests2026.of(half.controls)
            assert side.cells.targets == half.targets
            for row, target in enumerate(half.targets):
                [(p_G, fold_G)] = tests([half.group(target)])
                np.testing.assert_array_equal(side.measured.p_PG[row], p_G)  # whole ranks: not a bit may differ
                np.testing.assert_array_equal(side.measured.fold_PG[row], fold_G)
                np.testing.assert_array_equal(side.bulk_PG[row], pseudobulk(half.group(target)))
                assert side.noise_P[row] == pytest.approx(sampling_variance(half.group(target)), rel=1e-12)
            np.testing.assert_array_equal(side.control_G, pseudobulk(CellGroup(half.controls)))
            assert np.isnan(side.measured.p_PG).all(0).sum() == (~tests.tested_G).sum()


def test_all_cells_are_measured_with_their_halves_as_by_themselves():
    """A target of a single cell among them, which has no halves."""
    fast, alone = (Fast2026(screen(31, [8, 12, 1, 40])) for _ in range(2))
    list(fast.replicates())
    assert fast.real.is_measured and not alone.real.is_measured
    for found, expected in zip(fast.real.measured[:4], alone.real.measured[:4], strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("controls", [40, 41])
def test_halves_of_log1p_cells_are_those_of_their_own_cells(controls: int):
    counts = screen(controls, [1, 2, 3, 9, 30, 31])
    cells = GroupedCells({label: x.log1p() for label, x in counts.cells.items()}, counts.genes, CONTROL)
    fast, alone = Fast2025(cells), Fast2025(cells)
    [(_, second, first)] = fast.replicates()
    for half, side in zip(cells.halves(0), (first, second), strict=True):
        expected = Fast2025(half).real
        assert side.cells.targets == half.targets
        for found, own in zip(side.measured[:4], expected.measured[:4], strict=True):
            np.testing.assert_array_equal(found, own)
        np.testing.assert_array_equal(side.control_G, expected.control_G)
    assert fast.real.is_measured and not alone.real.is_measured
    for found, own in zip(fast.real.measured[:4], alone.real.measured[:4], strict=True):
        np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_means_are_those_of_scipy_to_the_last_bit(kind: type):
    """Which the official package takes: equal fold changes must stay equal."""
    cells = sparse.csr_matrix(screen(300, [2]).controls.log1p().astype(kind))
    rows = np.arange(300)[::-3]
    for group, own in ((CellGroup(cells), cells), (CellGroup(cells, rows), cells[rows])):
        np.testing.assert_array_equal(differential._mean(group), np.asarray(own.mean(axis=0)).ravel())


def test_splits_may_be_measured_some_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """As they are where all at once would take too much memory."""
    fast = Fast2026(screen(30, [8, 12, 1]))
    whole = [table for table, _, _ in fast.replicates()]
    monkeypatch.setattr("vcell.score.halves.MOST_BYTES", 1)
    for table, (part, _, _) in zip(whole, fast.replicates(), strict=True):
        assert table.equals(part)


@pytest.mark.parametrize("year", [2025, 2026])
def test_scores_do_not_depend_on_how_many_targets_are_taken_at_a_time(monkeypatch: pytest.MonkeyPatch, year: int):
    """Not a bit: measured by themselves or all together, scored one by one or all at once."""
    found = []
    for alone in (True, False):
        monkeypatch.setattr(GroupedCells, "batches", lambda c: [[t] for t in c.targets] if alone else [c.targets])  # noqa: B023
        monkeypatch.setattr("vcell.score.blocks.VALUES", 1 if alone else 10**9)
        pred, real = (screen(n, [8, 12, 2, 40, 11, 9], seed=n) for n in (31, 40))
        if year == 2025:
            pred, real = (replace(c, cells={k: x.log1p() for k, x in c.cells.items()}) for c in (pred, real))
        scorer = (Fast2025 if year == 2025 else Fast2026)(real)
        scorer.place_in(embedding := Embedding.of(real, None))
        side, tables = scorer.side(pred), [table for table, _, _ in scorer.replicates()]
        found.append([scorer.score(side), extra_scores(side, scorer.real, embedding), *tables])
        assert not found[-1][0].isna().all(axis=None)
    for one, other in zip(*found, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_the_table_of_targets_works_out_each_effect_once(monkeypatch: pytest.MonkeyPatch):
    """All effects for each target took time in the square of the targets."""
    real = screen(40, [8, 12, 2, 40])
    scorer = Fast2026(real)
    side = scorer.side(screen(31, [8, 12, 2, 40], seed=1))
    effect = np.sqrt((scorer.real.delta_PG**2).sum(1))
    monkeypatch.delattr(Side, "delta_PG")
    table = target_table(Pair("", side.cells, real, None, True, 1.0), side, scorer.real)
    np.testing.assert_allclose(table["effect"], effect, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 6, 10, 30, 200])
def test_the_jackknife_is_that_of_leaving_out_each_cell(n: int):
    counts = screen(n, [2], seed=n).controls
    dense = counts.toarray().astype(np.float64)
    without = dense.sum(0) - dense
    bulks = np.log1p(BULK_SUM * without / without.sum(1, keepdims=True))
    expected = ((bulks - bulks.mean(0)) ** 2).sum() * (n - 1) / n
    found = jackknife(CellGroup(counts), BULK_SUM)
    assert found == pytest.approx(expected, rel=1e-9)


def test_sums_are_exact_where_single_precision_is_not():
    cells = sparse.csr_matrix(np.full((20_000, 1), 1001, np.float32))
    assert CellGroup(cells).sums[0].tolist() == [20_020_000]
    cells = sparse.csr_matrix(np.full((20_000, 2), [1001, 1], np.float32))
    assert pseudobulk(CellGroup(cells))[1] == np.log1p(BULK_SUM / 1002)
