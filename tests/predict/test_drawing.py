"""Molecules drawn by compiled code: the laws they should follow, whatever the block."""

import numpy as np
import pytest
from scipy import sparse, stats

from vcell.predict.drawing import draw_cells

CELLS, GENES, KEY = 4_000, 6, 77
LIBRARY = np.full(CELLS, 10_000.0)


def drawn(
    counts: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    dispersion: float = 0.5,
    again: bool = False,
    key: int = KEY,
):
    return draw_cells(
        sparse.csr_matrix(counts), LIBRARY[: len(counts)], before, after, np.full(counts.shape[1], dispersion),
        np.full(len(counts), again), key,
    )  # fmt: skip


def test_a_cell_gets_the_same_numbers_in_any_block():
    rng = np.random.default_rng(0)
    before = np.array([1e-4, 1e-3, 0.0, 2e-2, 1e-5, 1e-3])
    after = np.array([3e-4, 1e-4, 1e-4, 5e-2, 1e-5, 2e-3])
    counts = rng.poisson(before * 10_000, (60, GENES))
    for again in (False, True):
        whole = drawn(counts, before, after, again=again).toarray()
        np.testing.assert_array_equal(drawn(counts[:7], before, after, again=again).toarray(), whole[:7])
        assert (drawn(counts, before, after, again=again, key=KEY + 1).toarray() != whole).any()
    np.testing.assert_array_equal(drawn(counts, before, before).toarray(), counts)
    assert drawn(counts, before, before * 0).nnz == 0


@pytest.mark.parametrize("share", [0.1, 0.7, 0.999])
def test_molecules_stay_with_the_share_that_the_rate_keeps(share: float):
    before = np.full(GENES, 1e-2)
    counts = np.full((CELLS, GENES), 9)
    found = drawn(counts, before, before * share).toarray()
    expected = CELLS * stats.binom.pmf(np.arange(10), 9, share)
    for gene in range(GENES):
        seen = np.bincount(found[:, gene], minlength=10)
        assert stats.chisquare(*_pooled(seen, expected)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("number", "before", "after"), [(0, 0.0, 1e-5), (0, 1e-5, 1e-3), (3, 1e-4, 4e-4), (20, 1e-3, 2e-2)]
)
def test_added_molecules_follow_a_negative_binomial(number: int, before: float, after: float):
    """Poisson(d w), w from what the cell's count tells of it; the last mean is above that of one part."""
    dispersion = 0.5
    counts = np.full((CELLS, 1), number)
    found = drawn(counts, np.array([before]), np.array([after]), dispersion).toarray().ravel() - number
    shape = 1 / dispersion + number
    scale = (after - before) * 10_000 / (1 / dispersion + before * 10_000)
    law = stats.nbinom(shape, 1 / (1 + scale))
    top = int(law.ppf(1 - 1e-6)) + 1
    expected = CELLS * np.append(law.pmf(np.arange(top)), law.sf(top - 1))
    seen = np.bincount(np.minimum(found, top), minlength=top + 1)
    assert stats.chisquare(*_pooled(seen, expected)).pvalue > 1e-4


def test_a_block_with_more_molecules_than_expected_finds_room():
    """As many genes as there are appear anew, all of them at once."""
    before, after = np.zeros(3_000), np.full(3_000, 1e-3)
    found = drawn(np.zeros((50, 3_000), int), before, after, dispersion=0.01)
    assert found.has_sorted_indices and (found.data > 0).all()
    assert found.sum() / (50 * 3_000) == pytest.approx(10, rel=0.01)


def _pooled(seen: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rare numbers together, so that each class expects five cells and more; impossible ones must not be seen."""
    rare = expected < 5
    assert seen[expected < 1e-9].sum() == 0
    parts = [np.append(x[~rare], x[rare].sum()) for x in (seen, expected)]
    if parts[1][-1] < 1e-9:
        parts = [p[:-1] for p in parts]
    return parts[0], parts[1] * parts[0].sum() / parts[1].sum()
