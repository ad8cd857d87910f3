"""The demo, whole: on held-out perturbations the trained model is better than what knows no target from another, and than single means."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import infer_here
from vcell.config import compose
from vcell.evaluate import run as evaluate
from vcell.training.train import train

pytest.importorskip("numba")


# of the demo, so that it takes half the time
SMALLER = ["data.simulate.genes=700", "data.simulate.targets=120", "data.simulate.controls_per_context=600"]


@pytest.mark.slow
def test_demo_beats_the_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # as `make demo`, with few steps: the model starts from the transfer prior
    monkeypatch.chdir(tmp_path)
    train(
        compose(
            "train",
            ["experiment=demo", "trainer=cpu", "trainer.max_steps=8", "trainer.val_check_interval=8", *SMALLER],
        )
    )
    genes = "data/demo/screen/gene_names.csv"
    infer_here("ckpt=last.ckpt", "challenge=vcc2025", "challenge.n_genes=null", f"genes={genes}")
    real = "data/demo/screen/truth/simC_test.h5ad"
    evaluate(
        compose(
            "evaluate",
            [
                "pred=pred.h5ad",
                f"real={real}",
                "out=scores",
                "engine=fast",
                "pictures=false",
                "baselines=[context_mean,perturbation_mean,additive]",
            ],
        )
    )
    scores = pd.read_csv(tmp_path / "scores" / "scores.csv", index_col="predictor")
    baselines = scores.loc[["copied_controls", "context_mean", "perturbation_mean", "additive", "wrong_target"]]
    for higher in ("SCORE", "PDS"):
        assert scores.loc["model", higher] > baselines[higher].max()
    assert baselines.loc[["copied_controls", "wrong_target"], "PDS"].max() < 0.65
