"""The notebooks run top to bottom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import BEFORE_RELEASE, PICTURED
from tests.forked import Forked

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("cell_eval")
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


SHORT = ["trainer=cpu", "trainer.max_steps=10", "trainer.val_check_interval=5", "trainer.log_every_n_steps=2"]


@pytest.mark.slow
def test_the_notebooks_code_runs_top_to_bottom(tmp_path: Path):
    overrides = {**os.environ, "VCELL_NOTEBOOK_OVERRIDES": " ".join([*PICTURED, *SHORT])}
    done = Forked("tests.notebook", [str(NOTEBOOKS / "vcell_colab.ipynb")], tmp_path, overrides).completed()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "perturbation_mean" in done.stdout and (tmp_path / "pred.h5ad").is_file()
    assert (tmp_path / "scores" / "scores.png").is_file() and (tmp_path / "pred.vcc").is_file()


@pytest.mark.slow
@BEFORE_RELEASE
def test_the_notebook_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VCELL_NOTEBOOK_OVERRIDES", " ".join([*PICTURED, *SHORT]))
    notebook = nbformat.read(NOTEBOOKS / "vcell_colab.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2  # and those shown while training


@pytest.mark.slow
def test_the_python_notebook_runs_top_to_bottom(tmp_path: Path):
    quick = {**os.environ, "VCELL_QUICK": "1"}
    arguments = [str(NOTEBOOKS / "vcell_python.ipynb"), "shown.json"]
    done = Forked("tests.notebook", arguments, tmp_path, quick).completed()
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / "shown.json").read_text())
    assert not any(cell["printed"] for cell in cells), "nothing is printed unless asked for"
    tables = sum("<table" in cell["types"].get("text/html", "") for cell in cells)
    assert tables >= 3 and any("image/png" in cell["types"] for cell in cells)
    assert (tmp_path / "pred.vcc").is_file() and (tmp_path / "scores" / "report.html").is_file()


def test_the_helper_shows_output_and_the_picture_as_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    cells = {
        c.source.split("\n")[0]: c.source for c in nbformat.read(NOTEBOOKS / "vcell_colab.ipynb", as_version=4).cells
    }
    monkeypatch.chdir(tmp_path)
    setup: dict = {"PYTHON": sys.executable, "os": os, "subprocess": subprocess, "Path": Path}
    exec(cells["import time"], setup)
    shown = []
    setup["display"] = lambda display_id: SimpleNamespace(update=shown.append)
    (tmp_path / "vcell").mkdir()
    (tmp_path / "vcell" / "__init__.py").touch()
    pixel = "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
    (tmp_path / "vcell" / "train.py").write_text(
        f"import sys; print('step 1'); open('c.png', 'wb').write(bytes.fromhex('{pixel}')); sys.exit(len(sys.argv) - 1)"
    )
    setup["vcell"]("train", watch="c.png")
    assert "step 1" in capsys.readouterr().out and len(shown) == 1
    with pytest.raises(RuntimeError, match="exit code 1"):
        setup["vcell"]("train", "x")


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path: Path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
