"""`check=true` says which predictor suits the data at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SMALL
from vcell.config import compose
from vcell.training.train import train

PRIOR = [key for key in SMALL if not key.startswith("model.")]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.split.test.contexts=[simC]"], "1 test contexts were never trained on: model=transfer"),
        (["data.split.test.perturbations=0.2", "perturbation.path=null"], "no predictor can beat the context mean"),
        (["data.split.test.perturbations=0.2"], "model=ridge or model=transfer, from their vectors"),
        ([], "hold out a context first"),
    ],
)
def test_the_advice_fits_what_is_held_out(
    in_trained: Path, capsys: pytest.CaptureFixture, overrides: list[str], said: str
):
    train(
        compose(
            "train",
            ["experiment=demo", "trainer=cpu", *PRIOR, "model=transfer", "name=check", "check=true", *overrides],
        )
    )
    assert said in capsys.readouterr().out
    assert not (in_trained / "runs/check").exists()
