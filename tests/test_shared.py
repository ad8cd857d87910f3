"""The commands on real data, where it is present."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import RELEASE, SHARED, infer_here
from vcell.config import compose
from vcell.data.files.h5ad import Columns
from vcell.data.store.ingest import ingest

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the checkout"),
]
PAPALEXI = SHARED / "papalexi2021_thp1.h5ad"
EMBEDDING = SHARED / "embeddings" / "go_pfam_svd128.npz"


@pytest.mark.slow
@pytest.mark.parametrize("table", [str(EMBEDDING), "null"] if RELEASE else [str(EMBEDDING)])
def test_papalexi_from_file_to_scores(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from vcell.evaluate import run as evaluate
    from vcell.prepare import run as prepare
    from vcell.training.train import train

    monkeypatch.chdir(tmp_path)
    prepare(compose("prepare", ["data=papalexi", f"data.path={PAPALEXI}"]))
    steps = ["trainer=cpu", "trainer.max_steps=8", "trainer.val_check_interval=8", f"perturbation.path={table}"]
    train(compose("train", ["experiment=papalexi", f"data.path={PAPALEXI}", *steps]))
    infer_here("out=pred.h5ad")
    evaluate(compose("evaluate", ["pred=pred.h5ad", f"real={PAPALEXI}", "engine=fast"]))
    said = capsys.readouterr().out
    assert ("mean response" in said) == (table == "null")
    real, pred = ad.read_h5ad(PAPALEXI), ad.read_h5ad("pred.h5ad")
    held_out = {"IFNGR2", "JAK2", "STAT1", "CUL3", "SMAD4"}
    assert set(pred.obs["target_gene"]) == held_out | {"non-targeting"}
    wanted = real.obs["target_gene"].value_counts()
    assert all(n == wanted[t] for t, n in pred.obs["target_gene"].value_counts().items())
    scores = pd.read_csv("pred_scores/scores.csv", index_col="predictor")
    by_vector = [] if table == "null" else ["ridge", "nearest"]  # which have nothing to go by without a table
    assert list(scores.index) == [
        "model", "copied_controls", "context_mean", "perturbation_mean", *by_vector, "covariance", "wrong_target", "cell_mean", "split_half"
    ]  # fmt: skip
    assert np.isfinite(scores[["SCORE", "DES", "PDS", "MAE"]].to_numpy()).all()
    assert scores.loc["split_half", "DES"] == scores["DES"].max()
    # 8 steps teach little, but the average response to a knock-out is nearer the truth than no response
    assert scores.loc["context_mean", "MAE"] < scores.loc["copied_controls", "MAE"]


@pytest.mark.parametrize("year", [2025, 2026])
def test_our_scores_of_real_cells_are_the_official_ones(year: int):
    pytest.importorskip("cell_eval2")
    scanpy = pytest.importorskip("scanpy")

    from vcell.score.grouped import GroupedCells
    from vcell.score.scoring import SCORERS

    cells = ad.read_h5ad(PAPALEXI)
    if year == 2025:
        scanpy.pp.normalize_total(cells, target_sum=200)
        scanpy.pp.log1p(cells)
    real, pred = GroupedCells.of(cells, "target_gene", "non-targeting").halves(3)
    scorer = SCORERS["cell-eval" if year == 2025 else "cell-eval2"]
    fast, official = scorer.fast(real, torch.device("cpu")), scorer.official(real, 1)
    ours, theirs = fast.score(fast.side(pred)), official.score(pred)
    pd.testing.assert_frame_equal(ours, theirs[ours.columns], check_names=False, rtol=1e-6, atol=1e-6)


COLUMNS = Columns("target_gene", "batch_var", "cell_type")


@pytest.mark.parametrize(
    "name", ["papalexi2021_thp1", "norman_mcfaline_4lines", "kang_pbmc_ifnb", "zhao_gbm_panobinostat"]
)
def test_stores_hold_the_counts_of_real_files(name: str, tmp_path: Path):
    cells = ad.read_h5ad(SHARED / f"{name}.h5ad")
    store = ingest([SHARED / f"{name}.h5ad"], tmp_path / "store", COLUMNS)
    filled = np.asarray(cells.X.sum(axis=1)).ravel() > 0
    assert store.n_cells == filled.sum()
    assert int(store.values.sum()) == int(cells.X.sum())
    assert set(store.groups) == set(zip(cells.obs["cell_type"], cells.obs["target_gene"], strict=True))


@pytest.mark.parametrize("total", [None, 1e4, 5e4])
def test_real_counts_come_back_from_log1p(total: float | None, tmp_path: Path):
    scanpy = pytest.importorskip("scanpy")

    cells = ad.read_h5ad(SHARED / "kang_pbmc_ifnb.h5ad")
    original = int(cells.X.sum())
    if total is not None:
        scanpy.pp.normalize_total(cells, target_sum=total)
    scanpy.pp.log1p(cells)
    cells.write_h5ad(tmp_path / "log1p.h5ad")
    store = ingest([tmp_path / "log1p.h5ad"], tmp_path / "store", COLUMNS)
    assert int(store.values.sum()) == original


@pytest.mark.slow
def test_doubles_are_predicted_from_their_genes_and_scored_by_how_many_were_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from vcell.evaluate import run as evaluate
    from vcell.training.train import train

    monkeypatch.chdir(tmp_path)
    norman = SHARED / "norman_mcfaline_4lines.h5ad"
    doubles = ["KLF1+TGFBR2", "SET+KLF1", "KLF1+MAP2K6"]  # SET is in no other perturbation
    train(compose("train", ["experiment=perturb_seq", "name=d", f"data.path={norman}", "data.columns.batch=batch_var", "model=transfer",
                            "trainer=cpu", f"data.split.test.perturbations=[{','.join(doubles)}]", "data.split.val.perturbations=0"]))  # fmt: skip
    infer_here("ckpt=runs/d/checkpoints/last.ckpt", "out=p.h5ad")
    evaluate(compose("evaluate", ["pred=p.h5ad", f"real={norman}", "engine=fast", "pictures=false", "baselines=[context_mean,sum_of_singles]"]))  # fmt: skip
    said = capsys.readouterr().out
    assert "1 targets of several genes, 1/2 of them seen in training" in said and "2/2 of them seen" in said
    table = pd.read_csv("p_scores/per_perturbation.csv")
    assert dict(zip(table["perturbation"], table["genes_seen"], strict=True))["SET+KLF1"] == "1/2"
    mean = table.groupby("predictor")["PEARSON"].mean()
    assert (
        mean["sum_of_singles"] > mean["context_mean"]
        and mean["transfer" if "transfer" in mean else "model"] > mean["context_mean"]
    )
