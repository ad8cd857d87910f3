"""Names to genes: approved symbols win, one meaning is taken, several are reported and never guessed."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SHARED
from vcell.data.files.genes import align, gene_names


@pytest.mark.parametrize(
    ("name", "how", "symbol"),
    [
        ("TAFAZZIN", "approved", "TAFAZZIN"),
        ("CCDC84", "previous", "CENATAC"),
        ("QARS", "previous", "QARS1"),  # also a previous symbol of EPRS1
        ("DUSP27", "previous", "STYXL2"),  # also an alias of DUSP29
        ("MPP6", "previous", "PALS2"),  # also an alias of MPHOSPH6
        ("SEPT2", "previous", "SEPTIN2"),
        ("SSU72P8", "previous", "SSU72L6"),
        ("DUSP13", "previous", "DUSP13B"),
        ("HIST1H2AI", "previous", "H2AC13"),
        ("PALM2-AKAP2", "previous", "PALM2AKAP2"),
        ("H3.Y", "alias", "H3Y1"),
        ("ENSG00000102125", "ensembl", "TAFAZZIN"),
        ("ENSG00000102125.17", "ensembl", "TAFAZZIN"),
        ("ENSG99999999999", "unknown", None),
        ("GENE0001", "unknown", None),
    ],
)
def test_a_name_with_one_meaning_is_taken(name: str, how: str, symbol: str | None):
    meaning = gene_names().meaning(name)
    assert (meaning.how, meaning.symbol) == (how, symbol)


@pytest.mark.parametrize(
    ("name", "candidates"),
    [("TAZ", ("TAFAZZIN", "WWTR1")), ("DEC1", ("BHLHE40", "DELEC1")), ("SIP1", ("GEMIN2", "SCAF11", "ZEB2"))],
)
def test_a_name_with_several_meanings_is_never_guessed(name: str, candidates: tuple[str, ...]):
    meaning = gene_names().meaning(name)
    assert meaning.how == "ambiguous" and meaning.symbol is None and meaning.candidates == candidates
    found = align([name, "STAT1"], ["STAT1", *candidates])
    assert found.position.tolist() == [-1, 0]
    (decision,) = found.decisions.to_dict("records")
    assert decision == {"gene": name, "decision": "ambiguous", "became": "", "candidates": "|".join(candidates)}


def test_an_ambiguous_name_is_settled_by_its_ensembl_id_or_by_the_user_or_by_being_the_same():
    wanted = ["WWTR1", "TAFAZZIN"]
    assert align(["TAZ"], wanted, ensembl=["ENSG00000102125.4"]).position.tolist() == [1]
    assert align(["TAZ"], wanted, rename={"TAZ": "WWTR1"}).position.tolist() == [0]
    assert align(["TAZ"], ["TAZ", "WWTR1"]).position.tolist() == [0]


def test_lists_old_and_new_and_ensembl_meet():
    names = ["CCDC84", "ENSG00000115415.20", "IRF1", "NOT_A_GENE"]
    found = align(names, ["STAT1", "CENATAC", "IRF1", "MYC"])
    assert found.position.tolist() == [1, 0, 2, -1]
    assert found.measured(4).tolist() == [True, True, True, False]
    assert dict(zip(found.decisions["gene"], found.decisions["decision"], strict=True)) == {
        "CCDC84": "by previous",
        "ENSG00000115415.20": "by ensembl",
    }
    assert align(["CENATAC"], ["CCDC84"]).position.tolist() == [0]  # a present symbol in the file, the old one wanted


def test_two_names_of_one_gene_are_both_left_out_unless_one_is_the_same():
    found = align(["CCDC84", "ENSG00000186166"], ["CENATAC"])
    assert found.position.tolist() == [-1, -1]
    assert set(found.decisions["decision"]) == {"left out: several names of one gene"}
    assert align(["CCDC84", "CENATAC"], ["CENATAC"]).position.tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("label", "targets"),
    [
        ("STAT1", ("STAT1",)),
        ("KLF1+MAP2K3", ("KLF1", "MAP2K3")),
        ("KLF1_MAP2K3", ("KLF1", "MAP2K3")),
        ("KLF1+ctrl", ("KLF1",)),
        ("STAT1_sg2", ("STAT1",)),
        ("STAT1 | IRF1", ("STAT1", "IRF1")),
        ("HLA-A", ("HLA-A",)),
        ("some_drug", ("some_drug",)),
        ("G1_G2", ("G1", "G2")),
    ],
)
def test_labels_are_taken_apart_where_every_piece_is_a_gene(label: str, targets: tuple[str, ...]):
    assert gene_names().targets(label, known={"G1", "G2"}) == targets


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the checkout")
def test_the_table_is_hgncs_and_resolves_the_challenges_genes():
    with gzip.open(SHARED / "hgnc/hgnc_complete_set_2026-06-25.tsv.gz", "rt") as file:
        table = pd.read_csv(file, sep="\t", keep_default_na=False)
    assert set(table["symbol"]) == gene_names().approved
    genes = [line.strip() for line in (SHARED / "vcc/gene_names_2025.csv").read_text().splitlines()]
    how = pd.Series([gene_names().meaning(gene).how for gene in genes]).value_counts()
    assert how["approved"] == 17_526 and how["unknown"] == 62 and how["ambiguous"] == 4
    # the challenge's list found in a file of present symbols, whatever the order
    present = pd.Series([gene_names().meaning(gene).symbol or gene for gene in genes])
    present = present.where(~present.duplicated(keep=False), genes).tolist()  # two of the list are one gene today
    found = align(present[::-1], genes)
    np.testing.assert_array_equal(found.position, np.arange(len(genes))[::-1])
