"""Lists and tables are read as spreadsheets and programs of many countries write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vcell.data.files.h5ad import Columns
from vcell.data.files.lists import read_list, read_matrix, read_table
from vcell.data.files.paths import read_gene_list
from vcell.errors import VcellError
from vcell.predict.request import read_targets
from vcell.predict.table import check_orientation
from vcell.predict.table import read_table as read_profiles

GENES = ["STAT1", "HLA-A", "NA", "MYC"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("header", [[], ["gene_name"], ["Gene"], ["gene_names"]])
def test_gene_lists_of_every_make(encoding: str, end: str, header: list[str], tmp_path: Path):
    (tmp_path / "g.csv").write_bytes(end.join([*header, *GENES, ""]).encode(encoding))
    assert read_gene_list(str(tmp_path / "g.csv")) == GENES


@pytest.mark.parametrize(
    "text",
    [",gene\n0,STAT1\n1,HLA-A\n2,NA\n3,MYC\n", "gene_id;gene_name\nENSG1;STAT1\nENSG2;HLA-A\nENSG3;NA\nENSG4;MYC\n",
     '"STAT1"\n"HLA-A"\n"NA"\n"MYC"\n', "STAT1 \n HLA-A\nNA\n\nMYC\n", "0\tSTAT1\n1\tHLA-A\n2\tNA\n3\tMYC\n"],
)  # fmt: skip
def test_the_names_are_found_among_columns(text: str, tmp_path: Path):
    (tmp_path / "g.csv").write_text(text)
    assert read_list(tmp_path / "g.csv", "genes") == GENES


def test_what_is_no_list_is_refused(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"\x89HDF\0\0\0\0" * 9)
    (tmp_path / "b").write_text("gene\n")
    for name, words in (("a", "is not a text file"), ("b", "is empty"), ("c", "no such file"), (".", "is a folder")):
        with pytest.raises(VcellError, match=words):
            read_list(tmp_path / name, "genes")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_labels_stay_text_and_strange_columns_are_named(
    separator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [
        ["Target_Gene", "n_cells", "batch", "comment"],
        ["NA", "8", "01", "x"],
        ["STAT1 ", "8", "02", ""],
        ["", "3", "03", ""],
    ]
    (tmp_path / "t.csv").write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8-sig")
    table = read_targets(str(tmp_path / "t.csv"))
    assert table.to_dict("list") == {"target_gene": ["NA", "STAT1"], "n_cells": [8, 8], "batch": ["01", "02"]}
    assert "the columns comment are not known here" in capsys.readouterr().out


def test_a_bare_list_of_targets_is_one(tmp_path: Path):
    (tmp_path / "t.csv").write_text("STAT1\nMYC\n")
    assert read_table(tmp_path / "t.csv", "targets", "target_gene")["target_gene"].tolist() == ["STAT1", "MYC"]
    (tmp_path / "t.csv").write_text("goal,n_cells\nSTAT1,4\n")
    with pytest.raises(VcellError, match=r"has no column target_gene\. It has: goal, n_cells"):
        read_targets(str(tmp_path / "t.csv"))


def test_columns_named_as_those_of_the_data_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "t.csv").write_text("gene,cell_type,lane,n_cells\nSTAT1,HeLa,01,4\n")
    table = read_targets(str(tmp_path / "t.csv"), Columns("gene", "lane", "cell_type"))
    assert table.to_dict("list") == {"target_gene": ["STAT1"], "n_cells": [4], "context": ["HeLa"], "batch": ["01"]}
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('target_gene,n_cells\nSTAT1,"1,000"\n', "n_cells '1,000' is ambiguous. Write it without a comma: 1000"),
        ("target_gene,n_cells\nMYC,8\nSTAT1,8,5\n", r"row 3 has 3 cells, the header 2"),
        ("target_gene,n_cells\nSTAT1,8,5\n", r"row 2 has 3 cells, the header 2"),
        ("target_gene,n_cells\nSTAT1,1e18\n", "from 1 to 10,000,000; it is not for STAT1"),
        ("target_gene,n_cells\nSTAT1,many\n", "it is not for STAT1"),
    ],
)
def test_numbers_that_may_mean_another_are_refused(text: str, words: str, tmp_path: Path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(VcellError, match=words):
        read_targets(str(tmp_path / "t.csv"))


def test_a_corner_that_r_leaves_out_shifts_nothing(tmp_path: Path):
    (tmp_path / "t.csv").write_text("target_gene\tn_cells\n1\tSTAT1\t8\n2\tMYC\t9\n")
    assert read_targets(str(tmp_path / "t.csv")).to_dict("list") == {"target_gene": ["STAT1", "MYC"], "n_cells": [8, 9]}


def test_numbers_with_decimal_commas(tmp_path: Path):
    (tmp_path / "p.csv").write_text("target_gene;G1;G2\nSTAT1;0,5;1,25\nMYC;2;0\n")
    frame = read_matrix(tmp_path / "p.csv", "pred")
    assert frame["target_gene"].tolist() == ["STAT1", "MYC"]
    np.testing.assert_array_equal(frame[["G1", "G2"]].to_numpy(), [[0.5, 1.25], [2, 0]])


def test_a_transposed_table_is_refused(tmp_path: Path):
    genes = [f"G{i}" for i in range(40)]
    frame = pd.DataFrame(np.ones((40, 6)), index=pd.Index(genes, name="gene"), columns=genes[:6])
    frame.to_csv(tmp_path / "p.csv")
    with pytest.raises(VcellError, match=r"appears to be transposed.*frame\.T"):
        check_orientation(read_profiles(tmp_path / "p.csv", "target_gene", None), genes)
    frame.T.rename_axis("target_gene").to_csv(tmp_path / "q.csv")
    check_orientation(read_profiles(tmp_path / "q.csv", "target_gene", None), genes)
