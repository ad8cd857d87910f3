"""The demo, whole: on held-out perturbations the trained model discriminates better than every baseline."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import Command

pytest.importorskip("cell_eval")


@pytest.mark.slow
def test_demo_beats_the_baselines(vcell: Command, tmp_path: Path):
    # as `make demo`, at half the steps
    steps = [
        ("prepare", "data=demo"),
        ("train", "experiment=demo", "trainer=cpu", "trainer.max_steps=500"),
        ("infer", "ckpt=last.ckpt"),
        ("evaluate", "pred=pred.h5ad", "real=data/demo/screen/truth/simC_test.h5ad", "out=scores"),
    ]
    for step in steps:
        done = vcell(*step, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    scores = pd.read_csv(tmp_path / "scores" / "scores.csv", index_col="predictor")
    baselines = scores.drop(index="model")
    assert scores.loc["model", "PDS"] > baselines["PDS"].max()
    assert scores.loc["model", "MAE"] < baselines["MAE"].min()
    assert baselines.loc["copied_controls", "PDS"] < 0.6
