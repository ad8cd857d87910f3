"""The Colab notebook runs top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SMALL

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("cell_eval")
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "vcell_colab.ipynb"


@pytest.mark.slow
def test_notebook_runs_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = ["trainer=cpu", "trainer.max_steps=10", "trainer.val_check_interval=5", "trainer.log_every_n_steps=2"]
    monkeypatch.setenv("VCELL_NOTEBOOK_OVERRIDES", " ".join([*SMALL, *few]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "perturbation_mean" in printed and (tmp_path / "pred.h5ad").is_file()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2


def test_notebook_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
