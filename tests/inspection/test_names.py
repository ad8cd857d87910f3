"""`vcell genes`: names looked up, the genes of a file checked, a newer table of HGNC used."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from tests.conftest import SHARED, run_here
from vcell.cli.arguments import readable
from vcell.data.files.genes import gene_names
from vcell.errors import VcellError


def genes(*words: str) -> None:
    run_here("genes", *readable("genes", list(words)))


@pytest.fixture()
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A place for a table of one's own, forgotten afterwards."""
    monkeypatch.setenv("VCELL_HGNC", str(tmp_path / "own" / "hgnc.txt"))
    gene_names.cache_clear()
    yield tmp_path / "own" / "hgnc.txt"
    gene_names.cache_clear()


def test_names_are_looked_up(capsys: pytest.CaptureFixture[str]):
    genes(
        "lookup",
        "QARS",
        "H3.Y",
        "PALM2-AKAP2",
        "ENSG00000115415.3",
        "TAZ",
        "Trp53",
        "Stat1",
        "STAT11",
        "1-Mar",
        "json=true",
    )
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {n: found[n]["symbol"] for n in ("QARS", "H3.Y", "PALM2-AKAP2", "ENSG00000115415.3")} == {
        "QARS": "QARS1", "H3.Y": "H3Y1", "PALM2-AKAP2": "PALM2AKAP2", "ENSG00000115415.3": "STAT1"
    }  # fmt: skip
    assert found["TAZ"]["meaning"] == "ambiguous" and found["TAZ"]["candidates"] == "TAFAZZIN|WWTR1"
    assert (
        found["Trp53"]["meaning"] == found["Stat1"]["meaning"] == "mouse symbol" and "STAT1" in found["Stat1"]["remark"]
    )
    assert "'STAT1'" in found["STAT11"]["remark"] and "spreadsheet" in found["1-Mar"]["meaning"]
    genes("lookup", "TAZ", "QARS")
    said = capsys.readouterr().out
    assert "TAFAZZIN or WWTR1" in said and "HGNC, genenames.org, CC0; downloaded on 20" in said


def test_the_genes_of_a_file_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = ["STAT1", "QARS", "TAZ", "QARS1", "NOT_A_GENE"]
    (tmp_path / "genes.csv").write_text("gene\n" + "\n".join(names) + "\n")
    cells = ad.AnnData(np.ones((2, 5), np.float32), var=pd.DataFrame(index=names))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    said = []
    for path in ("genes.csv", "cells.h5ad"):
        genes("check", str(tmp_path / path), f"out={tmp_path / 'decisions.csv'}")
        said.append(capsys.readouterr().out.replace(str(tmp_path / path), ""))
    assert said[0] == said[1]
    assert "QARS → QARS1" in said[0] and "TAZ (TAFAZZIN or WWTR1)" in said[0] and "several names of one gene" in said[0]
    assert list(pd.read_csv(tmp_path / "decisions.csv")["name"]) == names


def test_a_table_of_ones_own_is_used_by_every_command(own: Path, capsys: pytest.CaptureFixture[str]):
    table = SHARED / "hgnc" / "hgnc_complete_set_2026-06-25.tsv.gz"
    if not table.is_file():
        pytest.skip("HGNC's table is not beside the checkout")
    before = gene_names().meaning("QARS")
    newer = pd.read_csv(table, sep="\t", dtype=str).fillna("")
    newer.loc[newer["symbol"] == "STAT1", ["symbol", "prev_symbol"]] = ["STATONE", "STAT1"]
    newer.to_csv(own.parent.parent / "new.txt", sep="\t", index=False)
    genes("update", str(own.parent.parent / "new.txt"))
    assert "1 are new and 1 gone (STAT1, STATONE)" in capsys.readouterr().out
    assert gene_names().meaning("STAT1").symbol == "STATONE"
    assert gene_names().meaning("QARS") == before
    own.unlink()
    gene_names.cache_clear()
    assert gene_names().meaning("STAT1").how == "approved"


@pytest.mark.parametrize(
    ("text", "words"),
    [("symbol\tname\nA\tB\n", "no column alias_symbol"), ("symbol\tensembl_gene_id\tprev_symbol\talias_symbol\nA\t\t\t\n", "has 1 genes")],
)  # fmt: skip
def test_what_is_not_hgncs_table_is_refused(text: str, words: str, own: Path):
    own.parent.mkdir(parents=True)
    (own.parent / "x.txt").write_text(text)
    with pytest.raises(VcellError, match=words):
        genes("update", str(own.parent / "x.txt"))
    assert not own.exists() and "STAT1" in gene_names().approved


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["lok", "X"], "Did you mean 'lookup'"),
        (["lookup"], "names to look up"),
        (["check"], "the file to check"),
        (["check", "a", "b"], "one file, not 2"),
        (["do=find"], "it has lookup, check, update"),
    ],
)
def test_mistakes_are_named(typed: list[str], words: str):
    with pytest.raises(VcellError, match=words):
        genes(*typed)
