"""`vcell table show`: neighbours, coverage, and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import run_here
from vcell.cli.arguments import readable
from vcell.errors import VcellError


@pytest.fixture()
def table(tmp_path: Path) -> Path:
    vectors = {
        "STAT1": [1.0, 0.1],
        "STAT2": [0.9, 0.2],
        "MYC": [-1.0, 0.5],
        "MARCHF8": [-0.8, -0.9],
        "IRF1": [0.3, -1.0],
    }
    torch.save({gene: torch.tensor(v) for gene, v in vectors.items()}, tmp_path / "t.pt")
    return tmp_path / "t.pt"


def show(table: Path, *more: str) -> None:
    run_here("table", *readable("table", ["show", str(table), *more]))


def test_neighbours_and_coverage_are_shown(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "targets $_$.csv").write_text("target_gene\nSTAT1\nMARCH8\nMYC+STAT2\nBRD4\n")
    asked = ["genes=[STAT1,MARCH8]", "neighbours=2", f"of={tmp_path / 'targets $_$.csv'}", f"plot={tmp_path / 'a.png'}"]
    show(table, *asked, "json=true")
    found = json.loads(capsys.readouterr().out)
    assert found["vectors"] == 5 and found["width"] == 2 and found["names"] == {"approved": 5}
    assert found["neighbours"]["STAT1"][0][0] == "STAT2" and len(found["neighbours"]["STAT1"]) == 2
    assert "MARCHF8" not in [name for name, _ in found["neighbours"]["MARCH8"]]  # the same gene
    cover = found["coverage"]
    assert cover["by_name"] == ["STAT1"] and cover["missing"] == ["BRD4"]
    assert cover["otherwise"] == {"MARCH8": "MARCHF8", "MYC+STAT2": "MYC+STAT2"}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    show(table, *asked[:-1])
    said = capsys.readouterr().out
    assert "covers       3 of the 4 names" in said and "missing    1: BRD4" in said and "STAT2 0.9" in said


@pytest.mark.parametrize(
    ("more", "words"), [(["genes=[STAT11]"], "Did you mean 'STAT1'"), (["of=absent.csv"], "no such file")]
)
def test_mistakes_are_named(more: list[str], words: str, table: Path):
    with pytest.raises(VcellError, match=words):
        show(table, *more)
