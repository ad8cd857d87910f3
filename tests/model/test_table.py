from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from vcell.errors import VcellError
from vcell.model.run_table import table_for
from vcell.model.table import PerturbationTable, decision_lines
from vcell.model.table_file import read_table_file


class Harm:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (print, ("harm",))


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture()
def table(tmp_path: Path) -> PerturbationTable:
    vectors = {"STAT1": torch.tensor([1.0, 2.0]), "MYC": torch.tensor([3.0, -2.0]), "TP53": torch.zeros(2)}
    return PerturbationTable.load(save(tmp_path / "t.pt", vectors))


def test_challenge_table_is_read_and_looked_up_in_order(table: PerturbationTable):
    assert table.lookup(["MYC", "STAT1", "MYC"]).tolist() == [[3, -2], [1, 2], [3, -2]]


def test_half_precision_tables_become_float32(tmp_path: Path):
    loaded = PerturbationTable.load(save(tmp_path / "t.pt", {"A": torch.ones(3, dtype=torch.bfloat16)}))
    assert loaded.vectors.dtype == torch.float32


def test_missing_perturbations_are_named_with_a_suggestion(table: PerturbationTable):
    with pytest.raises(VcellError, match=r"lacks 2 perturbations: STAT11, XYZ9.*Did you mean 'STAT1'"):
        table.lookup(["MYC", "STAT11", "XYZ9"])


def test_one_hot_tells_perturbations_apart_and_says_what_it_cannot():
    table = PerturbationTable.one_hot(["B", "A"], held_out=["C"])
    assert torch.equal(table.lookup(["A", "B"]), torch.eye(2))
    assert table.lookup(["C"]).abs().sum() == 0 and table.silent_on(["A", "C"]) == ["C"]
    with pytest.raises(VcellError, match="one-hot table covers only"):
        table.lookup(["D"])


def test_npz_tables_are_read(tmp_path: Path):
    np.savez(tmp_path / "t.npz", genes=np.array(["A", "B"]), emb=np.eye(2, dtype=np.float16))
    assert PerturbationTable.load(tmp_path / "t.npz").lookup(["B"]).tolist() == [[0, 1]]


def test_standardised_columns_have_mean_0_and_variance_1(table: PerturbationTable):
    vectors = table.standardised().vectors
    torch.testing.assert_close(vectors.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors.var(0, correction=0), torch.ones(2))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"A": Harm()}, "more than tensors"),
        ([torch.ones(2)], "dict from gene to tensor"),
        ({"A": torch.ones(2).to_sparse()}, "plain tensors of real numbers.*those of A"),
        ({"A": torch.ones(2, dtype=torch.complex64)}, "plain tensors of real numbers.*those of A"),
        ({"A": [1.0]}, "dict from gene to tensor"),
        ({"A": torch.ones(2), "B": torch.ones(3)}, "differ in length"),
        ({"A": torch.tensor([1.0, float("nan")])}, "NaN or infinity for A"),
        ({}, "is empty"),
    ],
)
def test_other_files_are_refused(content: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(VcellError, match=words):
        PerturbationTable.load(save(tmp_path / "t.pt", content))
    assert "harm" not in capsys.readouterr().out


def test_damaged_and_absent_files_are_refused(tmp_path: Path):
    (tmp_path / "t.pt").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(VcellError, match="cannot be read"):
        PerturbationTable.load(tmp_path / "t.pt")
    with pytest.raises(VcellError, match="no such perturbation table"):
        PerturbationTable.load(tmp_path / "absent.pt")


def test_aliases_name_rows_of_the_table(table: PerturbationTable):
    renamed = table.with_aliases({"ISGF-3": "STAT1"})
    assert renamed.lookup(["ISGF-3"]).equal(table.lookup(["STAT1"]))
    with pytest.raises(VcellError, match="lacks 1 perturbations: STAT9"):
        table.with_aliases({"X": "STAT9"})
    with pytest.raises(VcellError, match="has already"):
        table.with_aliases({"MYC": "STAT1"})


VECTORS = {"STAT1": [1.0, 2.0, 0.5], "MARCHF8": [3.0, -2.0, 0.25], "HOXA1": [0.0, 1.0, -1.5]}


def written(folder: Path, kind: str) -> Path:
    """The table of `VECTORS` as a file of a kind."""
    path = folder / f"t.{kind.split()[0]}"
    frame = pd.DataFrame.from_dict(VECTORS, orient="index")
    if kind == "pt":
        torch.save({gene: torch.tensor(v) for gene, v in VECTORS.items()}, path)
    elif kind == "npz":
        np.savez(path, genes=np.array(list(VECTORS)), emb=frame.to_numpy(np.float32))
    elif kind == "csv with header":
        frame.rename_axis("gene").to_csv(path)
    elif kind == "csv of numbered columns":
        frame.to_csv(path)
    elif kind == "csv without header":
        frame.to_csv(path, header=False)
    elif kind == "txt of gene2vec":
        path.write_text("3 3\n" + "".join(f"{g} {' '.join(map(str, v))} \n" for g, v in VECTORS.items()))
    elif kind == "parquet by index":
        frame.rename(columns=str).to_parquet(path)
    elif kind == "parquet by column":
        frame.rename(columns=str).rename_axis("gene").reset_index().to_parquet(path)
    elif kind == "h5ad":
        ad.AnnData(sparse.csr_matrix(frame.to_numpy(np.float32)), obs=pd.DataFrame(index=list(VECTORS))).write_h5ad(
            path
        )
    elif kind == "pickle of lists":
        path.write_bytes(pickle.dumps(VECTORS))
    elif kind == "pkl of arrays":
        path.write_bytes(pickle.dumps({gene: np.array(v) for gene, v in VECTORS.items()}))
    return path


KINDS = ["pt", "npz", "csv with header", "csv of numbered columns", "csv without header", "txt of gene2vec", "parquet by index", "parquet by column",
         "h5ad", "pickle of lists", "pkl of arrays"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read(kind: str, tmp_path: Path):
    found = PerturbationTable.load(written(tmp_path, kind))
    assert found.names == list(VECTORS)
    torch.testing.assert_close(found.vectors, torch.tensor(list(VECTORS.values())))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "as_stored",
    [
        lambda v: np.array(v, np.float32), lambda v: np.array(v, np.float16), lambda v: np.array(v, ">f8"), lambda v: np.array([v, v], order="F"),
        lambda v: [np.float32(x) for x in v], lambda v: np.array(v)[::-1],
    ],
)  # fmt: skip
def test_pickled_arrays_are_read_as_numpy_reads_them(tmp_path: Path, protocol: int, as_stored: Callable):
    path, given = tmp_path / "t.pkl", {gene: as_stored(vector) for gene, vector in VECTORS.items()}
    path.write_bytes(pickle.dumps(given, protocol))
    names, vectors = read_table_file(path)
    assert names == list(given)
    np.testing.assert_array_equal(vectors.numpy(), np.array([np.ravel(v) for v in given.values()], np.float32))


def test_a_damaged_pickle_is_refused_or_read(tmp_path: Path):
    """Numpy's own reading of one can end the process."""
    path, whole, rng = (
        tmp_path / "t.pkl",
        pickle.dumps({gene: np.array(v) for gene, v in VECTORS.items()}),
        np.random.default_rng(0),
    )
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged)
        with suppress(VcellError):
            read_table_file(path)


@pytest.mark.parametrize("suffix", ["pt", "npz", "csv", "txt", "parquet", "h5ad", "pickle", "pkl"])
def test_code_in_place_of_a_table_is_refused_and_not_run(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(pickle.dumps({"STAT1": Harm()}))
    with pytest.raises(VcellError):
        PerturbationTable.load(path)
    assert "harm" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "gene,0,1\nA,1,2\nB,1\n", "vector of B is not as long"),
        ("t.csv", "gene,0,1\nA,x,y\nB,z,w\n", "text where numbers are expected"),
        ("t.csv", "gene,0,1\nA,1,2\nA,1,3\n", "several vectors of A"),
        ("t.csv", "gene,0,1\nA,1,\nB,1,3\n", "NaN or infinity for A"),
        ("t.txt", "3 2\nA 1 2\nB 3 4\n", "promises 3 vectors of 2"),
        ("t.xlsx", "", "no perturbation table that vcell reads"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(name: str, text: str, words: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(VcellError, match=words):
        PerturbationTable.load(tmp_path / name)


def settings(path: Path | None, **changes: object) -> dict[str, object]:
    start = {
        "path": None if path is None else str(path),
        "standardise": False,
        "aliases": None,
        "combine": "sum",
        "missing": "error",
        "shuffle": None,
    }
    return {**start, **changes}


def test_genes_are_found_under_their_other_names(tmp_path: Path):
    path = written(tmp_path, "pt")
    table = table_for(settings(path), ["STAT1", "MARCH8"], ["ENSG00000115415"])
    assert table.lookup(["MARCH8", "ENSG00000115415"]).tolist() == [VECTORS["MARCHF8"], VECTORS["STAT1"]]
    assert [(d.name, d.how, d.of) for d in table.decisions] == [
        ("ENSG00000115415", "by name", "STAT1"),
        ("MARCH8", "by name", "MARCHF8"),
    ]
    assert "2 perturbations under another name of their gene" in decision_lines(table.decisions)[0]


def test_genes_are_found_in_other_case_where_one_alone_is_meant(tmp_path: Path):
    """Mouse symbols, and tables in lower case."""
    vectors = {"Myc": torch.ones(1), "GATA1": torch.zeros(1), "Hoxa1": torch.ones(1), "hoxa1": torch.ones(1)}
    table = table_for(settings(save(tmp_path / "t.pt", vectors)), ["MYC", "Gata1", "HOXA1"], [])
    assert {d.name: d.of for d in table.decisions} == {"MYC": "Myc", "Gata1": "GATA1"}
    assert "HOXA1" not in table.row


@pytest.mark.parametrize("combine", ["sum", "mean"])
def test_doubles_are_made_of_their_genes_in_any_order(combine: str, tmp_path: Path):
    table = table_for(
        settings(written(tmp_path, "pt"), combine=combine), ["STAT1+HOXA1", "HOXA1+STAT1", "HOXA1_MARCH8"], []
    )
    both = torch.tensor(VECTORS["STAT1"]) + torch.tensor(VECTORS["HOXA1"])
    expected = both if combine == "sum" else both / 2
    torch.testing.assert_close(table.lookup(["STAT1+HOXA1", "HOXA1+STAT1"]), torch.stack([expected, expected]))
    assert "HOXA1_MARCH8" in table.row
    with pytest.raises(VcellError, match=r"lacks 1 perturbations: HOXA1\+STAT1"):
        table_for(settings(written(tmp_path, "pt"), combine=None), ["HOXA1+STAT1"], []).require(["HOXA1+STAT1"])


def test_a_one_hot_table_knows_doubles_by_their_genes():
    table = table_for(settings(None), ["KLF1", "MAP2K6", "KLF1+GATA1"], ["KLF1+MAP2K6", "MYC", "MYC+KLF1"])
    assert table.width == 3  # GATA1, KLF1, MAP2K6
    single, other, both, half = table.lookup(["KLF1", "MAP2K6", "KLF1+MAP2K6", "MYC+KLF1"])
    assert torch.equal(both, single + other) and torch.equal(half, single)
    assert table.silent_on(["KLF1", "KLF1+MAP2K6", "MYC", "MYC+KLF1"]) == ["MYC"]
    before = table_for(
        {"path": None, "standardise": True, "aliases": None}, ["KLF1", "KLF1+GATA1"], []
    )  # of a checkpoint from before
    assert before.width == 2


def test_what_the_table_lacks_is_an_error_its_mean_or_that_of_the_family(tmp_path: Path):
    path = written(tmp_path, "pt")
    wanted = ["STAT1", "HOXA7", "XYZ"]
    with pytest.raises(VcellError, match="lacks 2 perturbations: HOXA7, XYZ"):
        table_for(settings(path), wanted, []).require(wanted)
    mean = torch.tensor(list(VECTORS.values())).mean(0)
    torch.testing.assert_close(table_for(settings(path, missing="mean"), wanted, []).lookup(["XYZ"])[0], mean)
    family = table_for(settings(path, missing="family"), wanted, [])
    assert family.lookup(["HOXA7"]).tolist() == [VECTORS["HOXA1"]]
    assert any("HOXA7 = HOXA1" in line for line in decision_lines(family.decisions))
    with pytest.raises(VcellError, match="missing=men"):
        table_for(settings(path, missing="men"), wanted, [])


def test_a_shuffled_table_has_the_same_vectors_under_other_names(tmp_path: Path):
    path = written(tmp_path, "pt")
    plain, one, same = (table_for(settings(path, shuffle=seed), ["STAT1"], []) for seed in (None, 3, 3))
    assert torch.equal(one.vectors, same.vectors) and not torch.equal(one.vectors, plain.vectors)
    assert sorted(one.vectors.tolist()) == sorted(plain.vectors.tolist()) and "shuffled, seed 3" in one.origin


def test_what_the_table_lacks_may_be_learnt_in_a_column_of_its_own(tmp_path: Path):
    path = written(tmp_path, "pt")
    table = table_for(settings(path, missing="learned"), ["STAT1", "XYZ"], ["ABC"])
    width = len(VECTORS["STAT1"])
    assert table.width == width + 1 and "ABC" not in table.row  # of which nothing can be learnt
    assert table.lookup(["XYZ"]).tolist() == [[0.0] * width + [1.0]]
    assert table.lookup(["STAT1"]).tolist() == [[*VECTORS["STAT1"], 0.0]]
    assert any(
        "1 perturbations are missing, and what they do is learnt" in line for line in decision_lines(table.decisions)
    )


def test_how_genes_act_together_may_be_learnt_from_their_product(tmp_path: Path):
    table = table_for(settings(written(tmp_path, "pt"), combine="learned"), ["STAT1", "STAT1+HOXA1"], ["HOXA1_STAT1"])
    one, other = torch.tensor(VECTORS["STAT1"]), torch.tensor(VECTORS["HOXA1"])
    single, both, turned = table.lookup(["STAT1", "STAT1+HOXA1", "HOXA1_STAT1"])
    assert torch.equal(single, torch.cat([one, torch.zeros_like(one)])) and torch.equal(both, turned)
    torch.testing.assert_close(both, torch.cat([one + other, one * other]))
    later = table.covering(["MARCHF8+STAT1"], "learned")
    torch.testing.assert_close(later.lookup(["MARCHF8+STAT1"])[0, len(one) :], one * torch.tensor(VECTORS["MARCHF8"]))
    hot = table_for(settings(None, combine="learned"), ["KLF1", "KLF1+GATA1"], [])
    assert hot.lookup(["KLF1+GATA1"]).sum() == 2


def test_tables_may_be_standardised_over_training_perturbations_and_weighted(tmp_path: Path):
    path, trained = tmp_path / "t.csv", ["STAT1", "HOXA1", "MARCH8"]
    rows = {**VECTORS, "MYC": [9.0, -4.0, 2.0], "KLF1": [7.0, 8.0, -5.0]}
    path.write_text("".join(f"{gene},{','.join(map(str, vector))}\n" for gene, vector in rows.items()))
    table = table_for(settings(path, standardise="training"), trained, [])
    some = table.lookup(trained)
    torch.testing.assert_close(some.mean(0), torch.zeros(table.width), atol=1e-6, rtol=0)
    assert not torch.allclose(table_for(settings(path, standardise=True), trained, []).lookup(trained), some)
    two = {**settings(path), "path": [str(path), str(path)]}
    twice = table_for({**two, "weights": [1, 0.5]}, trained, [])
    torch.testing.assert_close(twice.vectors[:, table.width :], 0.5 * twice.vectors[:, : table.width])
    with pytest.raises(VcellError, match=r"perturbation.weights=\[1\] must be a number for each of the 2 tables"):
        table_for({**two, "weights": [1]}, trained, [])
    with pytest.raises(VcellError, match="standardise=all must be one of true, false, training"):
        table_for(settings(path, standardise="all"), trained, [])


@pytest.mark.parametrize("place", ["", "species/9606/"])
def test_embeddings_of_string_are_read_by_preferred_names(place: str, tmp_path: Path):
    path = tmp_path / "protein.network.embeddings.v12.0.h5"
    proteins, vectors = ["9606.ENSP1", "9606.ENSP2", "9606.ENSP3"], np.arange(6, dtype=np.float16).reshape(3, 2)
    with h5py.File(path, "w") as content:
        content[f"{place}proteins"], content[f"{place}embeddings"] = proteins, vectors
    with pytest.raises(VcellError, match=r"9606\.protein\.info\.v12\.0\.txt\.gz"):
        PerturbationTable.load(path)
    with gzip.open(tmp_path / "9606.protein.info.v12.0.txt.gz", "wt") as names:
        names.write("#string_protein_id\tpreferred_name\tprotein_size\n9606.ENSP1\tSTAT1\t1\n9606.ENSP3\tMYC\t2\n")
    table = PerturbationTable.load(path)
    assert table.names == ["STAT1", "MYC"] and table.vectors.tolist() == [[0, 1], [4, 5]]


def test_other_hdf5_is_no_table(tmp_path: Path):
    with h5py.File(tmp_path / "x.h5", "w") as content:
        content["P12345"] = np.zeros(3)
    with pytest.raises(VcellError, match="no datasets 'proteins' and 'embeddings'"):
        PerturbationTable.load(tmp_path / "x.h5")
    (tmp_path / "y.h5").write_text("nothing")
    with pytest.raises(VcellError, match="cannot be read as HDF5"):
        PerturbationTable.load(tmp_path / "y.h5")
