"""Scores: equal to the official command's, the truth on top, copied controls at the bottom."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.conftest import infer_here
from vcell.cli import compose
from vcell.errors import VcellError
from vcell.score.evaluation import evaluate

pytest.importorskip("cell_eval")
REAL = "data/demo/screen/truth/simC_test.h5ad"


def score(out: Path, *overrides: str) -> pd.DataFrame:
    evaluate(compose("evaluate", [f"out={out}", *overrides]))
    return pd.read_csv(out / "scores.csv", index_col="predictor")


@pytest.fixture(scope="module")
def pred(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pred") / "pred.h5ad"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        infer_here(f"out={path}", "targets=data/demo/screen/pert_counts_Test.csv", "contexts=[simC]")
    return path


def real_as_log1p(target_sum: float) -> ad.AnnData:
    cells = ad.read_h5ad(REAL)
    total = np.asarray(cells.X.sum(axis=1)).ravel()
    cells.X = sparse.csr_matrix(sparse.diags(target_sum / total) @ cells.X).log1p().astype(np.float32)
    return cells


def test_table_equals_the_official_command(
    in_trained: Path, pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    scores = score(tmp_path / "ours", f"pred={pred}", f"real={REAL}")
    target_sum = json.loads((tmp_path / "ours" / "scores.json").read_text())["target_sum"]
    real_as_log1p(target_sum).write_h5ad(tmp_path / "real.h5ad")
    command = [sys.executable, "-m", "cell_eval", "run", "-ap", str(pred), "-ar", str(tmp_path / "real.h5ad"), "--pert-col", "target_gene", "--profile", "vcc", "-o", str(tmp_path / "official")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    official = pd.read_csv(tmp_path / "official" / "results.csv").drop(columns="perturbation").mean()
    for ours, theirs in (("DES", "overlap_at_N"), ("PDS", "discrimination_score_l1"), ("MAE", "mae")):
        assert scores.loc["model", ours] == pytest.approx(official[theirs], abs=1e-5)
    assert list(scores.index) == ["model", "copied_controls", "context_mean", "perturbation_mean"]
    said = capsys.readouterr().out
    assert "perturbation_mean" in said and "report.html" in said and "runs/demo" in said


def test_everything_promised_is_written(in_trained: Path, pred: Path, tmp_path: Path):
    score(tmp_path / "s", f"pred={pred}", f"real={REAL}")
    files = {p.name for p in (tmp_path / "s").iterdir()}
    assert files == {"scores.csv", "per_perturbation.csv", "scores.json", "scores.png", "report.html"}
    table = pd.read_csv(tmp_path / "s" / "per_perturbation.csv")
    assert len(table) == 4 * 4 and set(table["context"]) == {"simC"}
    page = (tmp_path / "s" / "report.html").read_text()
    assert "data:image/png;base64" in page and "http" not in page.replace("http-equiv", "")
    about = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert about["scorer"]["package"].startswith("cell-eval") and about["scorer"]["targets"] == 4


def test_the_truth_gets_the_best_score_and_copied_controls_the_worst(in_trained: Path, tmp_path: Path):
    real_as_log1p(700.0).write_h5ad(tmp_path / "truth.h5ad")
    scores = score(tmp_path / "s", f"pred={tmp_path / 'truth.h5ad'}", f"real={REAL}")
    assert scores.loc["prediction", "PDS"] == 1.0 and scores.loc["prediction", "MAE"] == pytest.approx(0, abs=1e-6)
    assert scores.loc["prediction", "DES"] == scores["DES"].max()
    assert scores.loc["copied_controls", "DES"] < 0.2
    assert set(scores.index) == {"prediction", "copied_controls"}  # no run is known to make the others from


def test_measured_cells_may_be_on_any_scale(in_trained: Path, pred: Path, tmp_path: Path):
    real_as_log1p(5e4).write_h5ad(tmp_path / "real.h5ad")
    first = score(tmp_path / "a", f"pred={pred}", f"real={REAL}")
    second = score(tmp_path / "b", f"pred={pred}", f"real={tmp_path / 'real.h5ad'}")
    pd.testing.assert_frame_equal(first, second, atol=1e-4)


def test_measured_genes_may_be_in_another_order(in_trained: Path, pred: Path, tmp_path: Path):
    ad.read_h5ad(REAL)[:, ::-1].copy().write_h5ad(tmp_path / "real.h5ad")
    first = score(tmp_path / "a", f"pred={pred}", f"real={REAL}")
    pd.testing.assert_frame_equal(first, score(tmp_path / "b", f"pred={pred}", f"real={tmp_path / 'real.h5ad'}"))


def change(path: Path, pred: Path, how) -> Path:
    cells = ad.read_h5ad(pred)
    cells = how(cells) or cells
    cells.write_h5ad(path)
    return path


def without_controls(cells: ad.AnnData) -> ad.AnnData:
    return cells[cells.obs["target_gene"] != "non-targeting"].copy()


def other_genes(cells: ad.AnnData) -> None:
    cells.var_names = ["OTHER", *cells.var_names[1:]]


def too_large(cells: ad.AnnData) -> None:
    cells.X.data *= 10


def not_finite(cells: ad.AnnData) -> None:
    cells.X.data[3] = np.nan


def other_column(cells: ad.AnnData) -> None:
    cells.obs = cells.obs.rename(columns={"target_gene": "target_genes"})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (without_controls, "no control cells"),
        (other_genes, "1 only in the prediction \\(OTHER\\)"),
        (too_large, "neither whole counts nor log1p"),
        (not_finite, "NaN"),
        (other_column, "Did you mean 'target_genes'"),
    ],
)
def test_bad_predictions_are_refused(how, words: str, in_trained: Path, pred: Path, tmp_path: Path):
    bad = change(tmp_path / "bad.h5ad", pred, how)
    with pytest.raises(VcellError, match=words):
        score(tmp_path / "s", f"pred={bad}", f"real={REAL}")
    assert not (tmp_path / "s").exists()


def test_a_file_that_is_not_scaled_to_one_total_is_refused(in_trained: Path, tmp_path: Path):
    cells = ad.read_h5ad(REAL)
    cells.X = cells.X.log1p() * np.float32(0.9)  # neither log1p of counts nor scaled
    cells.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(VcellError, match="not scaled to one total"):
        score(tmp_path / "s", f"pred={tmp_path / 'p.h5ad'}", f"real={REAL}")
