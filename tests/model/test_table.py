from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vcell.errors import VcellError
from vcell.model.table import PerturbationTable


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
