"""Labels are read by their meaning, and every decision is on record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.data.store.test_ingest import make_cells, write
from vcell.data.files import genes, labels
from vcell.data.files.genes import GeneNames, gene_names
from vcell.data.files.h5ad import Columns
from vcell.data.files.labels import (
    NO_GUIDE,
    LabelRules,
    as_labels,
    genes_of,
    is_control,
    is_untreated,
    is_without_guide,
    read_labels,
    resolve,
)
from vcell.data.leaks import find_leaks
from vcell.data.store.ingest import ingest
from vcell.data.store.recipe import Recipe
from vcell.errors import VcellError

NT = "non-targeting"


def meaning(labels: dict[str, int] | list[str], control: str | list[str] = NT, **rules: object) -> dict[str, str]:
    counted = labels if isinstance(labels, dict) else dict.fromkeys(labels, 5)
    return dict(read_labels({"a.h5ad": counted}, control, LabelRules(**rules)).meaning["a.h5ad"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "label",
    ["non-targeting", "Non-Targeting", "non_targeting_00123", "nontargeting", "NT", "NTC", "NTC_3", "ctrl", "control", "NegCtrl0",
     "neg_control_12", "scrambled", "safe-targeting-4", "INTERGENIC216151", "NT_NT", "ctrl+ctrl", "NTg1", "NegCtrl0_NegCtrl1", "lacZ"],
)  # fmt: skip
def test_names_of_non_targeting_guides_are_known(label: str):
    assert is_control(label) and not is_without_guide(label)


@pytest.mark.parametrize(
    "label", ["STAT1", "WT1", "NTN1", "CTRL1X", "AAVS1", "STAT1+ctrl", "SAFB", "CTRC", "Negative", ""]
)
def test_genes_and_cells_without_guides_are_no_controls(label: str):
    assert not is_control(label)


@pytest.mark.parametrize(
    "label", ["", "nan", "NaN", "None", "unassigned", "no guide", "no_gRNA", "N/A", "unknown", "multiplet", "<NA>"]
)
def test_cells_without_a_guide_are_known(label: str):
    assert is_without_guide(label) and not is_control(label)


def test_an_approved_gene_is_always_that_gene():
    approved = gene_names().approved
    assert not [g for g in approved if is_control(g) or is_untreated(g) or is_without_guide(g)]


def test_the_table_of_genes_is_read_only_where_a_label_needs_it(monkeypatch: pytest.MonkeyPatch):
    assert not [
        g for g in gene_names().approved if not any(map(str.isupper, g))
    ]  # as labels without capitals are no genes

    def never() -> tuple[pd.DataFrame, str]:
        raise AssertionError("read")

    monkeypatch.setattr(genes, "gene_names", lambda: GeneNames(never))
    monkeypatch.setattr(labels, "gene_names", lambda: GeneNames(never))
    found = read_labels({"a": {NT: 3, "ctrl+ctrl": 1, "STAT1": 2}}, NT, genes=["STAT1"])
    assert found.meaning["a"] == {NT: NT, "ctrl+ctrl": NT, "STAT1": "STAT1"}
    with pytest.raises(AssertionError, match="read"):
        read_labels({"a": {NT: 3, "NT": 1}}, NT, genes=["STAT1"])


@pytest.mark.parametrize(
    ("label", "genes"),
    [("STAT1g1", {"STAT1"}), ("sgMYC-2", {"MYC"}), ("NKX2-1-1", {"NKX2-1"}), ("NKX2-1_sg3", {"NKX2-1"}), ("Stat1", {"STAT1"}),
     ("STAT1_+_191878866.23-P1P2", {"STAT1"}), ("IRF1_ACGTACGTACGTACGTACGT", {"IRF1"}), ("STAT1+ctrl", {"STAT1"}), ("ctrl+GATA1", {"GATA1"}),
     ("KLF1+MAP2K6", {"KLF1", "MAP2K6"}), ("KLF1_MAP2K6", {"KLF1", "MAP2K6"}), ("HLA-A", {"HLA-A"}), ("H1-1", {"H1-1"}), ("drug-7", {"drug-7"})],
)  # fmt: skip
def test_labels_name_genes(label: str, genes: set[str]):
    assert set(genes_of(label)) == genes


def test_every_approved_gene_survives_the_marks_of_a_guide():
    for gene in sorted(gene_names().approved)[::97]:
        for mark in ("_sg2", "-1", "_3", " sg1", "_ACGTACGTACGTACGTACGT"):
            assert (
                genes_of(gene + mark) == (gene,)
                or genes_of(gene + mark) == (gene + mark,)
                or gene + mark in gene_names().approved
            )
        assert genes_of(gene) == (gene,)


def test_what_means_the_same_is_one_label():
    found = meaning([NT, "NT", " non-targeting", "STAT1 ", "Stat1", "STAT1g1", "sgSTAT1-2", "STAT1+ctrl", "A+B", "B+A"])
    assert {found[label] for label in (NT, "NT", " non-targeting")} == {NT}
    assert {found[label] for label in found if "stat1" in label.lower()} == {"STAT1"}


def test_doubles_in_either_order_are_one():
    found = meaning({NT: 9, "KLF1+MAP2K6": 3, "MAP2K6+KLF1": 7, "KLF1": 2})
    assert found["KLF1+MAP2K6"] == found["MAP2K6+KLF1"] == "MAP2K6+KLF1" and found["KLF1"] == "KLF1"


def test_rules_override_decisions():
    assert meaning([NT, "STAT1g1"], guides="keep")["STAT1g1"] == "STAT1g1"
    assert meaning([NT, "NT"], controls="listed")["NT"] == "NT"
    assert meaning([NT, "nan"], no_guide="control")["nan"] == NT
    assert meaning([NT, "odd"], rename={"odd": "STAT1"})["odd"] == "STAT1"
    # a label may be made the control
    assert meaning(["odd", "unperturbed", "STAT1"], NT, rename={"odd": NT}) == {
        "odd": NT,
        "unperturbed": NO_GUIDE,
        "STAT1": "STAT1",
    }
    with pytest.raises(VcellError, match=r"5 cells have no guide \('nan'\).*data\.labels\.no_guide=drop"):
        meaning([NT, "nan"], no_guide="refuse")
    with pytest.raises(VcellError, match=r"data\.labels\.guides=genes must be one of gene, keep"):
        LabelRules(guides="genes")


def test_several_labels_may_be_controls():
    assert set(meaning(["mCherry", "GFP", "STAT1"], ["mCherry", "GFP"]).values()) == {"mCherry", "STAT1"}
    with pytest.raises(VcellError, match=r"labelled as control 'GPF'\. Did you mean 'GFP'"):
        meaning(["mCherry", "GFP"], ["mCherry", "GPF"])


def test_non_targeting_guides_beat_untreated_cells():
    assert meaning([NT, "Negative", "STAT1"])["Negative"] == NO_GUIDE
    files = {"a": {NT: 5, "STAT1": 5}, "b": {"unperturbed": 5, "MYC": 5}}
    assert read_labels(files, NT).meaning["b"]["unperturbed"] == NT


def test_no_decision_is_silent():
    table = read_labels({"a": {NT: 9, "NT": 4, "nan": 3, "STAT1g1": 2, "MYC": 1}}, NT)
    assert dict(zip(table.decisions["label"], table.decisions["cells"], strict=True)) == {
        "NT": 4,
        "nan": 3,
        "STAT1g1": 2,
    }
    said = " ".join(table.notes())
    assert "'NT'" in said and "'nan'" in said and "'STAT1g1' → STAT1" in said


def test_names_are_resolved_as_labels_are():
    known = ["STAT1", "MYC", "3", "KLF1+MAP2K6"]
    assert resolve(["stat1 ", "sgMYC-1", 3, "MAP2K6+KLF1", "NOPE"], known) == [
        "STAT1",
        "MYC",
        "3",
        "KLF1+MAP2K6",
        "NOPE",
    ]


@pytest.mark.parametrize("values", [[1, 2, 1], [1.0, 2.0, 1.0], [b"1", b"2", b"1"], ["1 ", "2", " 1"]])
def test_any_column_is_text(values: list):
    assert as_labels(pd.Series(values)).astype(str).tolist() == ["1", "2", "1"]


def test_missing_values_have_the_empty_label():
    assert as_labels(pd.Series(["A", None, np.nan])).astype(str).tolist() == ["A", NO_GUIDE, NO_GUIDE]


@pytest.mark.parametrize(
    "pair",
    [("STAT1g1", "STAT1g2"), ("sgMYC-1", "sgMYC-2"), ("NKX2-1-1", "NKX2-1-2"), ("Stat1", "STAT1"), ("A1CF", "a1cf")],
)
def test_guides_and_spellings_of_a_held_out_gene_leak(pair: tuple[str, str]):
    assert find_leaks({("K562", pair[0]): "test", ("K562", pair[1]): "train", ("K562", "GATA1"): "train"}) == {
        ("K562", pair[1]): ("K562", pair[0])
    }


def test_a_store_holds_what_labels_mean(tmp_path: Path):
    cells = make_cells()
    labels = cells.obs["target_gene"].astype(str).to_numpy().astype(object)
    labels[labels == "G2"] = np.where(np.arange((labels == "G2").sum()) % 2, "G2 ", "g2")
    labels[:4] = ["", "nan", "unassigned", "NTC"]
    cells.obs["target_gene"] = pd.Categorical(labels)
    store = ingest([write(cells, tmp_path / "a.h5ad")], tmp_path / "store", Columns())
    assert set(store.obs["perturbation"].astype(str)) == {"G1", "G2", NT} and store.n_cells == 87
    listed = pd.read_csv(store.path / "labels.csv", keep_default_na=False)
    assert set(listed["label"]) == {"", "nan", "unassigned", "NTC", "g2"}
    assert any("without a guide" in note for note in store.meta["labels"])


def test_guides_may_have_a_column_of_their_own(tmp_path: Path):
    cells = make_cells()
    label = cells.obs["target_gene"].astype(str)
    cells.obs["guide"] = [
        ("" if i < 3 else f"{g}_sg{i % 2}" if g != NT else f"NTC_{i % 5}") for i, g in enumerate(label)
    ]
    path = write(cells, tmp_path / "a.h5ad")
    both = ingest([path], tmp_path / "both", Columns(guide="guide"))
    alone = ingest([path], tmp_path / "alone", Recipe(Columns(perturbation=None, guide="guide"), control="NTC_0"))
    assert both.n_cells == alone.n_cells == 87
    assert set(alone.obs["perturbation"].astype(str)) == {"G1", "G2", "NTC_0"}


@pytest.mark.parametrize("control", ["", [], ["NT", ""], None])
def test_controls_need_a_label(control: str | list[str] | None):
    with pytest.raises(VcellError, match=r"name the label of control cells: data\.control=LABEL"):
        read_labels({"a.h5ad": {"NT": 5, "STAT1": 3}}, control)
