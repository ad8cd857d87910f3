"""Files in, store out: the same counts, whatever the layout; bad files refused with nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.conftest import RELEASE
from vcell.data.files.h5ad import Columns
from vcell.data.files.matrix import Matrix
from vcell.data.gather import Gather
from vcell.data.store import workers
from vcell.data.store.ingest import ingest
from vcell.data.store.panel import GeneChoice
from vcell.data.store.recipe import Recipe
from vcell.data.store.store import CellStore
from vcell.errors import VcellError


def make_cells(n: int = 90, genes: int = 40, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 3.0, genes), (n, genes)).astype(np.float32)
    counts[:, 0] += 1  # no cell is empty
    obs = pd.DataFrame(
        {
            "target_gene": rng.choice(["non-targeting", "G1", "G2"], n),
            "batch": rng.choice(["b1", "b2"], n),
            "cell_type": rng.choice(["K562", "H1"], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]))


def write(cells: ad.AnnData, path: Path) -> Path:
    cells.write_h5ad(path)
    return path


def counts_by_cell(store: CellStore) -> dict[str, np.ndarray]:
    rows = store.rows(np.arange(store.n_cells))
    dense = sparse.csr_matrix((rows.values, rows.indices, rows.indptr), shape=(store.n_cells, store.n_genes)).toarray()
    return dict(zip(store.obs["cell_id"], dense, strict=True))


def assert_same_counts(store: CellStore, cells: ad.AnnData) -> None:
    found = counts_by_cell(store)
    assert len(found) == cells.n_obs
    for name, row in zip(cells.obs_names, cells[:, store.genes].X.toarray(), strict=True):
        np.testing.assert_array_equal(found[name], row)


def scaled(cells: ad.AnnData, total: float) -> sparse.csr_matrix:
    library = np.asarray(cells.X.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags(total / library) @ cells.X)


def layouts(cells: ad.AnnData) -> dict[str, ad.AnnData]:
    found = {}
    for name, matrix in {
        "csr": cells.X,
        "csc": cells.X.tocsc(),
        "dense": cells.X.toarray(),
        "log1p": cells.X.log1p(),
        "csc of log1p of counts per 10,000": scaled(cells, 1e4).log1p().astype(np.float32).tocsc(),
        "log1p of counts per 50,000": scaled(cells, 5e4).log1p().astype(np.float32),
        "dense counts per million": scaled(cells, 1e6).astype(np.float32).toarray(),
        "int64 counts": cells.X.astype(np.int64),
    }.items():
        found[name] = cells.copy()
        found[name].X = matrix
    return found


@pytest.mark.parametrize("layout", list(layouts(make_cells())))
def test_store_holds_the_counts_of_the_file(layout: str, tmp_path: Path):
    cells = make_cells()
    path = write(layouts(cells)[layout], tmp_path / "a.h5ad")
    store = ingest([path], tmp_path / "store")
    assert_same_counts(store, cells)
    total = pd.Series(np.asarray(cells.X.sum(axis=1)).ravel(), index=cells.obs_names)
    np.testing.assert_array_equal(store.library_size, total[store.obs["cell_id"].tolist()])


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("compression", ["gzip", "lzf", "zstd"])
def test_compressed_chunks_are_read(layout: str, compression: str, tmp_path: Path):
    cells = make_cells()
    options = {"compression": compression}
    if compression == "zstd":
        options = {
            "compression": hdf5plugin.FILTERS["zstd"],
            "compression_opts": hdf5plugin.Zstd(clevel=3).filter_options,
        }
    layouts(cells)[layout].write_h5ad(tmp_path / "a.h5ad", **options)
    assert_same_counts(ingest([tmp_path / "a.h5ad"], tmp_path / "store"), cells)


def test_rows_beyond_2_to_the_31_values_are_read(tmp_path: Path):
    """Most of the file's chunks were never written, so that it is small."""
    before = 2**31 + 10
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        group = file.create_group("X")
        group.attrs["encoding-type"], group.attrs["shape"] = "csr_matrix", (3, 50)
        group["indptr"] = np.array([0, before, before + 3, before + 5])
        for name, dtype, values in (("indices", np.int64, [4, 7, 49, 0, 1]), ("data", np.float32, [1, 2, 3, 4, 5])):
            node = group.create_dataset(name, (before + 5,), dtype, chunks=(2**20,))
            node[before:] = values
        matrix = Matrix.open(file, tmp_path / "a.h5ad", "X", 3, 50)
        found = matrix.rows(np.array([1, 2]))
    assert matrix.stored == before + 5
    assert found.indices.tolist() == [4, 7, 49, 0, 1] and found.values.tolist() == [1, 2, 3, 4, 5]


def rewrite_as_of_0_6(path: Path) -> None:
    """obs and var as structured arrays, categories in uns, as anndata wrote them before 0.7."""
    with h5py.File(path, "r+") as file:
        obs = {name: file["obs"][name] for name in file["obs"].attrs["column-order"]}
        codes = {name: node["codes"][:].astype("i1") for name, node in obs.items()}
        index = np.char.encode(file["obs/_index"].asstr()[:].astype(str))
        table = np.empty(len(index), [("index", index.dtype), *((name, "i1") for name in codes)])
        table["index"] = index
        for name, code in codes.items():
            table[name] = code
            file[f"uns/{name}_categories"] = obs[name]["categories"].asstr()[:].astype("S")
        genes = np.char.encode(file["var/_index"].asstr()[:].astype(str))
        del file["obs"], file["var"]
        file["obs"] = table
        file["var"] = genes.astype([("index", genes.dtype)])
        for key in list(file["X"].attrs):
            del file["X"].attrs[key]
        file["X"].attrs["h5sparse_format"], file["X"].attrs["h5sparse_shape"] = b"csr", (len(table), len(genes))


def rewrite_as_of_0_7(path: Path) -> None:
    """Categories beside the codes, by reference, as anndata 0.7 wrote them."""
    with h5py.File(path, "r+") as file:
        for name in file["obs"].attrs["column-order"]:
            codes, categories = file[f"obs/{name}/codes"][:], file[f"obs/{name}/categories"].asstr()[:]
            del file[f"obs/{name}"]
            file[f"obs/__categories/{name}"] = categories
            file[f"obs/{name}"] = codes
            file[f"obs/{name}"].attrs["categories"] = file[f"obs/__categories/{name}"].ref
        file["obs"].attrs["encoding-version"] = "0.1.0"


@pytest.mark.parametrize("rewrite", [rewrite_as_of_0_6, rewrite_as_of_0_7])
def test_old_encodings_are_read(rewrite, tmp_path: Path):
    cells = make_cells()
    path = write(cells, tmp_path / "a.h5ad")
    expected = ingest([path], tmp_path / "new")
    rewrite(path)
    store = ingest([path], tmp_path / "old")
    assert store.fingerprint == expected.fingerprint
    assert_same_counts(store, cells)


@pytest.mark.parametrize("total", [1e4, 5e4, 12345.0])
def test_library_sizes_come_back_where_genes_were_dropped_after_scaling_to_a_known_total(total: float, tmp_path: Path):
    cells = make_cells()
    library = dict(zip(cells.obs_names, np.asarray(cells.X.sum(axis=1)).ravel(), strict=True))
    kept = cells.copy()
    kept.X = scaled(cells, total).log1p().astype(np.float32)
    kept = kept[:, ::2].copy()
    path = write(kept, tmp_path / "a.h5ad")
    store = ingest([path], tmp_path / "store", Recipe(normalised_to=total))
    assert_same_counts(store, cells)
    assert all(size == library[cell] for cell, size in zip(store.obs["cell_id"], store.library_size, strict=True))
    with pytest.raises(VcellError, match="was not scaled to 777"):
        ingest([path], tmp_path / "wrong", Recipe(normalised_to=777.0))


def test_layers_and_raw_are_read(tmp_path: Path):
    cells = make_cells()
    odd = cells.copy()
    odd.raw = cells
    odd.layers["counts"] = cells.X.copy()
    odd.X = sparse.csr_matrix(np.full(cells.shape, 0.37, dtype=np.float32))
    path = write(odd, tmp_path / "a.h5ad")
    for i, matrix in enumerate(["layers/counts", "raw/X"]):
        assert_same_counts(ingest([path], tmp_path / f"store{i}", Recipe(matrix=matrix)), cells)


def test_cells_are_ordered_by_context_batch_perturbation(tmp_path: Path):
    store = ingest([write(make_cells(), tmp_path / "a.h5ad")], tmp_path / "store", Columns())
    labels = store.obs[["context", "batch", "perturbation"]].astype(str)
    assert labels.equals(labels.sort_values(["context", "batch", "perturbation"], kind="stable"))


def test_blocks_do_not_change_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(make_cells(), tmp_path / "a.h5ad")
    whole = ingest([path], tmp_path / "whole", Columns())
    for module in ("matrix", "rows"):
        monkeypatch.setattr(f"vcell.data.{module}.BLOCK_VALUES", 37)
    assert ingest([path], tmp_path / "blocks", Columns()).fingerprint == whole.fingerprint
    cells = make_cells()
    cells.X = cells.X.tocsc()
    by_genes = ingest([write(cells, tmp_path / "csc.h5ad")], tmp_path / "csc")
    np.testing.assert_array_equal(by_genes.values, whole.values)
    assert not list(tmp_path.glob("*.parts"))


def test_genes_are_matched_by_name_across_files(tmp_path: Path):
    first, second = make_cells(seed=1), make_cells(seed=2)
    second.obs_names = [f"second{i}" for i in range(second.n_obs)]
    backwards = second[:, ::-1].copy()
    files = [write(first, tmp_path / "a.h5ad"), write(backwards, tmp_path / "b.h5ad")]
    store = ingest(files, tmp_path / "store", Columns())
    assert store.genes == first.var_names.tolist()
    found = counts_by_cell(store)
    for name, row in zip(second.obs_names, second.X.toarray(), strict=True):
        np.testing.assert_array_equal(found[name], row)


def test_library_size_is_summed_before_genes_are_chosen(tmp_path: Path):
    cells = make_cells()
    path = write(cells, tmp_path / "a.h5ad")
    store = ingest([path], tmp_path / "store", genes=GeneChoice(["G3", "G0", "G7"]))
    assert store.genes == ["G3", "G0", "G7"]
    assert_same_counts(store, cells)
    assert store.library_size.sum() == cells.X.sum()


def test_cells_without_counts_are_refused_or_dropped_and_counted(tmp_path: Path):
    cells = make_cells()
    matrix = cells.X.tolil()
    matrix[5] = 0
    cells.X = matrix.tocsr()
    with pytest.raises(VcellError, match=r"'cell5' has no counts.*empty_cells=drop"):
        ingest([write(cells, tmp_path / "a.h5ad")], tmp_path / "store")
    store = ingest([tmp_path / "a.h5ad"], tmp_path / "store", Recipe(empty_cells="drop"))
    assert store.n_cells == 89 and store.meta["empty_cells_dropped"] == 1


def test_counts_above_65535_are_kept(tmp_path: Path):
    cells = make_cells()
    cells.X[0, 0] = 70_000
    store = ingest([write(cells, tmp_path / "a.h5ad")], tmp_path / "store", Columns())
    assert store.values.dtype == np.uint32
    assert_same_counts(store, cells)


def break_values(value: float):
    def change(cells: ad.AnnData) -> None:
        cells.X.data[7] = value

    return change


def mixed_scales(cells: ad.AnnData) -> None:
    cells.X.data[: cells.X.indptr[60]] = np.log1p(cells.X.data[: cells.X.indptr[60]])
    cells.X.data[cells.X.indptr[60] :] += 0.4


def twice(cells: ad.AnnData) -> None:
    cells.var_names = ["G0", "G0", *cells.var_names[2:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_values(np.nan), "holds nan"),
        (break_values(np.inf), "holds inf"),
        (break_values(-1.0), "negative value -1"),
        (break_values(1.5), "whole counts"),
        (mixed_scales, "several scales.*log1p of raw counts"),
        (twice, "duplicated \\(G0\\)"),
        (lambda cells: cells.obs.drop(columns="batch", inplace=True), "no obs column 'batch'"),
        (
            lambda cells: cells.obs.replace("non-targeting", "mCherry", inplace=True),
            "no cell in .* is labelled as control 'non-targeting'",
        ),
    ],
)
def test_bad_files_are_refused_and_nothing_is_left(change, words: str, tmp_path: Path):
    cells = make_cells()
    change(cells)
    path = write(cells, tmp_path / "a.h5ad")
    with pytest.raises(VcellError, match=words):
        ingest([path], tmp_path / "store", Columns())
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


def test_files_that_are_no_h5ad_are_refused(tmp_path: Path):
    (tmp_path / "text.h5ad").write_text("no")
    with pytest.raises(VcellError, match="not an h5ad"):
        ingest([tmp_path / "text.h5ad"], tmp_path / "store", Columns())
    whole = write(make_cells(), tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VcellError, match="cut short"):
        ingest([tmp_path / "cut.h5ad"], tmp_path / "store", Columns())
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["x"] = 1
    with pytest.raises(VcellError, match="not an AnnData file"):
        ingest([tmp_path / "other.h5ad"], tmp_path / "store", Columns())


def test_a_failed_rewrite_keeps_the_old_store(tmp_path: Path):
    good = write(make_cells(), tmp_path / "good.h5ad")
    store = ingest([good], tmp_path / "store", Columns())
    (tmp_path / "bad.h5ad").write_text("no")
    with pytest.raises(VcellError):
        ingest([tmp_path / "bad.h5ad"], tmp_path / "store", Columns())
    assert CellStore.open(tmp_path / "store").fingerprint == store.fingerprint


def test_a_folder_that_is_no_store_is_left_alone(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    path = write(make_cells(), tmp_path / "a.h5ad")
    with pytest.raises(VcellError, match="not changed"):
        ingest([path], tmp_path / "mine", Columns())
    assert (tmp_path / "mine" / "thesis.txt").exists()


def as_fractions(cells: ad.AnnData) -> ad.AnnData:
    """Ambient-corrected, then scaled and logged: no whole counts behind it."""
    out = cells.copy()
    values = cells.X.toarray() * np.random.default_rng(0).uniform(0.8, 1.0, cells.shape)
    out.X = np.log1p(1e4 * values / values.sum(axis=1, keepdims=True)).astype(np.float32)
    out.obs_names = [f"fraction_{name}" for name in cells.obs_names]
    return out


def test_values_that_are_no_counts_are_kept_with_their_scale_and_not_mixed_unasked(tmp_path: Path):
    fractions = as_fractions(make_cells())
    files = [write(make_cells(), tmp_path / "counts.h5ad"), write(fractions, tmp_path / "fractions.h5ad")]
    alone = ingest(files[1:], tmp_path / "alone")
    alone.check_one_scale(None)
    both = ingest(files, tmp_path / "both")
    assert sorted(map(str, both.scales.values())) == ["counts", "log1p_fractional"]
    with pytest.raises(
        VcellError, match=r"counts\.h5ad: raw counts; fractions\.h5ad: log1p.*data\.reconcile=proportions"
    ):
        both.check_one_scale(None)
    both.check_one_scale("proportions")
    # read back at the total they were scaled to, they are the numbers of the file
    gather = Gather(both, 1e4)
    cells = np.flatnonzero(both.obs["source"] == "fractions")
    np.testing.assert_allclose(gather.log1p(cells), fractions[both.obs["cell_id"].iloc[cells].tolist()].X, atol=1e-5)


def test_values_that_nobody_can_name_are_not_trained_on(tmp_path: Path):
    cells = make_cells()
    cells.X = np.random.default_rng(0).gamma(1.0, 1.0, cells.shape).astype(np.float32)
    store = ingest([write(cells, tmp_path / "a.h5ad")], tmp_path / "store")
    for reconcile in (None, "proportions"):
        with pytest.raises(VcellError, match=r"the scale of the values in a\.h5ad could not be determined"):
            store.check_one_scale(reconcile)
    ingest([tmp_path / "a.h5ad"], tmp_path / "said", Recipe(scale={"a.h5ad": "fractional"})).check_one_scale(None)


def test_embeddings_are_taken_along_in_the_order_of_the_store(tmp_path: Path):
    cells = make_cells()
    cells.obsm["X_state"] = np.arange(90 * 3, dtype=np.float64).reshape(90, 3)
    store = ingest([write(cells, tmp_path / "a.h5ad")], tmp_path / "store", Recipe(obsm=("X_state",)))
    expected = pd.DataFrame(cells.obsm["X_state"], index=cells.obs_names).loc[store.obs["cell_id"].tolist()]
    np.testing.assert_array_equal(store.embedding("X_state", np.arange(90)), expected)
    with pytest.raises(VcellError, match=r"no embedding 'X_pca'"):
        store.embedding("X_pca", np.arange(3))
    with pytest.raises(VcellError, match=r"obsm/X_sate is none.*Did you mean 'X_state'"):
        ingest([tmp_path / "a.h5ad"], tmp_path / "other", Recipe(obsm=("X_sate",)))


def three_files(folder: Path) -> list[Path]:
    files = []
    for seed in range(3):
        cells = make_cells(seed=seed)
        cells.obs_names = [f"{seed}_{name}" for name in cells.obs_names]
        files.append(write(cells, folder / f"file{seed}.h5ad"))
    return files


def test_files_read_side_by_side_give_the_same_store(tmp_path: Path):
    files = three_files(tmp_path)
    alone = ingest(files, tmp_path / "alone")
    assert ingest(files, tmp_path / "together", workers=2).fingerprint == alone.fingerprint


def test_a_dask_cluster_gives_the_same_store(tmp_path: Path):
    distributed = pytest.importorskip("distributed")
    files = three_files(tmp_path)
    alone = ingest(files, tmp_path / "alone")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        together = ingest(files, tmp_path / "together", cluster=address)
        assert together.fingerprint == alone.fingerprint
        (tmp_path / "bad.h5ad").write_bytes(files[0].read_bytes())
        with h5py.File(tmp_path / "bad.h5ad", "r+") as file:
            file["X/data"][5] = -1.0
        with pytest.raises(VcellError, match="negative value"):
            ingest([*files, tmp_path / "bad.h5ad"], tmp_path / "bad", cluster=address)
    assert not (tmp_path / "bad").exists() and not (tmp_path / "bad.parts").exists()


def test_what_still_reads_elsewhere_after_an_error_leaves_nothing(tmp_path: Path, monkeypatch):
    """A worker of a cluster cannot be stopped in the midst of a file."""
    jobs = []

    def refused(left, *_):
        jobs.extend(left)
        raise VcellError("one of them is bad")

    monkeypatch.setattr("vcell.data.store.ingest.read_parts", refused)
    with pytest.raises(VcellError, match="one of them"):
        ingest(three_files(tmp_path), tmp_path / "store")
    assert not (tmp_path / "store.parts").exists()
    with pytest.raises(VcellError, match="could not be written"):
        workers.read_part(jobs[0], lambda cells: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file0.h5ad", "file1.h5ad", "file2.h5ad"]


def test_an_interrupted_preparation_goes_on_with_the_files_it_had_read(tmp_path: Path, monkeypatch, capsys):
    files = three_files(tmp_path)
    expected = ingest(files, tmp_path / "whole").fingerprint
    whole_part, read = workers.read_part, []

    def interrupted(job, report):
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(job.path.name)
        whole_part(job, report)

    monkeypatch.setattr(workers, "read_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ingest(files, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    again = []
    monkeypatch.setattr(
        workers, "read_part", lambda job, report: (again.append(job.path.name), whole_part(job, report))
    )
    assert ingest(files, tmp_path / "store").fingerprint == expected
    assert again == ["file2.h5ad"] and "2 of 3 files" in capsys.readouterr().out
    assert not (tmp_path / "store.parts").exists()


MEASURE = """
import resource, sys
from pathlib import Path
from vcell.data.files import matrix
from vcell.data.store import ingest, rows
matrix.BLOCK_VALUES = rows.BLOCK_VALUES = 300_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ingest.ingest([Path(sys.argv[1])], Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("layout", ["csr", "csc", "dense"] if RELEASE else ["csc"])
def test_memory_does_not_grow_with_the_file(layout: str, tmp_path: Path):
    """A matrix of 20 million values: 160 MB in memory as CSR, and twice that while it is sorted."""
    cells = make_cells(n=10_000, genes=2_000)
    cells.X = cells.X + sparse.csr_matrix(np.ones((1, 2_000), np.float32)[np.zeros(10_000, int)])
    cells.X = {"csr": cells.X, "csc": cells.X.tocsc(), "dense": cells.X.toarray()}[layout]
    path = write(cells, tmp_path / "a.h5ad")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path, tmp_path / "store"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) < 120_000  # kB
