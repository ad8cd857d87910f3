"""What an earlier vcell left on disk (`tests/formats/make.py`) opens, continues and predicts as it did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from tests.conftest import infer_here, val_rows
from vcell.config import compose
from vcell.training.train import train

FORMATS = Path(__file__).parent / "formats"
EXPECTED = json.loads((FORMATS / "expected.json").read_text())


@pytest.fixture()
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the working folder."""
    folder = tmp_path / "former"
    shutil.copytree(FORMATS, folder)
    monkeypatch.chdir(folder)
    return folder


def test_a_former_run_predicts_as_it_did(former: Path):
    infer_here(*EXPECTED["infer"], "store=store", "out=again.h5ad")
    then, now = ad.read_h5ad("pred.h5ad"), ad.read_h5ad("again.h5ad")
    # float32 sums of at most 40 terms, taken in another order: 40 rounding errors of values below 8
    np.testing.assert_allclose(now.X.toarray(), then.X.toarray(), atol=40 * 8 * np.finfo(np.float32).eps, rtol=0)
    assert now.obs.astype(str).equals(then.obs.astype(str)) and list(now.var_names) == list(then.var_names)
    assert EXPECTED["uns"] == sorted(now.uns) and set(EXPECTED["about"]) <= json.loads(now.uns["vcell"]).keys()


def test_a_former_run_continues(former: Path, capsys: pytest.CaptureFixture):
    train(compose("train", [*EXPECTED["train"], "trainer.max_steps=9"]))
    assert "at step 6 of 9" in capsys.readouterr().out
    assert sorted(val_rows("runs/first")) == [3, 6, 9]


def test_a_former_prediction_is_scored(former: Path):
    pytest.importorskip("numba")
    from vcell.evaluate import run as evaluate

    evaluate(
        compose("evaluate", ["pred=pred.h5ad", "real=screen/simA.h5ad", "out=scores", "engine=fast", "pictures=false"])
    )
    scores = json.loads((former / "scores" / "scores.json").read_text())["scores"]
    assert {"model", "copied_controls", "context_mean", "perturbation_mean", "split_half"} <= scores.keys()
