"""Counts of the scorers as log1p: scanpy's numbers, which the official packages read."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from vcell.data.files.scale import Scale
from vcell.predict.layout import Layout
from vcell.score.grouped import GroupedCells
from vcell.score.rows import InFile, InMemory, LabelledCells
from vcell.score.scaling import log1p_of_counts

scanpy = pytest.importorskip("scanpy")


@pytest.mark.numeric
@pytest.mark.parametrize("target_sum", [1e4, 3633.0, 1234.567])
def test_counts_become_the_log1p_that_scanpy_makes_of_them(target_sum: float):
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(0.3, 3, (50, 300))).astype(np.float32))
    counts.data[slice(*counts.indptr[7:9])] = 0  # a cell without counts
    theirs = ad.AnnData(counts.copy())
    ours = log1p_of_counts(counts, Scale.COUNTS, target_sum, "the cells")
    with pytest.warns(UserWarning, match="zero counts"):
        scanpy.pp.normalize_total(theirs, target_sum=target_sum)
    scanpy.pp.log1p(theirs)
    np.testing.assert_array_equal(ours.toarray(), theirs.X.toarray())
    genes = [f"G{i}" for i in range(300)]
    written = Layout(genes, np.arange(300), "log1p", target_sum).of_counts(counts, np.asarray(counts.sum(1)).ravel())
    np.testing.assert_array_equal(written.toarray(), ours.toarray())


@pytest.mark.parametrize("in_file", [False, True])
def test_control_cells_that_both_files_have_are_the_same_object(tmp_path: Path, in_file: bool):
    """They are held in memory, and analysed, once."""
    cells = sparse.random(6, 9, 0.5, "csr", np.float32, np.random.default_rng(0))
    labels, genes = np.array(["ctrl", "A", "ctrl", "A", "B", "ctrl"]), [f"G{i}" for i in range(9)]

    def grouped(matrix: sparse.csr_matrix, same: sparse.csr_matrix | None = None) -> GroupedCells:
        rows = InFile([matrix], 9, tmp_path) if in_file else InMemory(matrix)
        return GroupedCells.of_labelled(LabelledCells.of(labels, genes, rows), "ctrl", same)

    real = grouped(cells)
    assert grouped(cells.copy(), real.controls).controls is real.controls
    other = cells.copy()
    other.data[0] = np.nextafter(other.data[0], 2, dtype=np.float32)
    assert grouped(other, real.controls).controls is not real.controls
