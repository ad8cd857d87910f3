from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SMALL
from vcell.config import compose
from vcell.errors import VcellError
from vcell.score import ablation, crossval
from vcell.score.options import CrossvalOptions

TABLE = "perturbation.path=data/demo/screen/embedding.pt"


def options(*more: str) -> CrossvalOptions:
    return CrossvalOptions.of(compose("crossval", ["experiment=demo", *SMALL, "folds=2", "name=x", *more]))


def write_scores(folder: Path, shift: float, seed: int) -> None:
    """Two folds of 30 targets: the prediction's scores are `shift` above those of the baseline."""
    rng = np.random.default_rng(seed)
    for fold in range(2):
        targets = [f"G{fold}_{i}" for i in range(30)]
        score = np.random.default_rng(fold).uniform(0.4, 0.6, 30)
        rows = [
            {"predictor": name, "context": "A", "perturbation": t, "genes_seen": np.nan, "PDS": s + add + 0.01 * rng.standard_normal()}
            for name, add in (("model", shift), ("context_mean", 0.0)) for t, s in zip(targets, score, strict=True)
        ]  # fmt: skip
        place = folder / f"fold_{fold}" / "scores"
        place.mkdir(parents=True)
        pd.DataFrame(rows).to_csv(place / "per_perturbation.csv", index=False)


def test_everything_runs_again_with_a_shuffled_table_and_is_compared_by_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    asked: list[CrossvalOptions] = []

    def ran(one: CrossvalOptions) -> bool:
        asked.append(one)
        write_scores(one.folder, 0.2 if one.training["perturbation"]["shuffle"] is None else 0.0, len(asked))
        return True

    monkeypatch.setattr(crossval, "run_folds", ran)
    crossval.crossval(options(TABLE, "ablate=table", "seed=5"))
    assert [one.folder for one in asked] == [Path("runs/x"), Path("runs/x/table_shuffled")]
    run = asked[1].training_of(1)
    assert (
        run.perturbation.shuffle == 5
        and run.run_dir == "runs/x/table_shuffled/fold_1"
        and run.name == "x/table_shuffled/fold_1"
    )
    assert asked[0].training_of(1).perturbation.shuffle is None and asked[0].plan == asked[1].plan
    found = pd.read_csv("runs/x/ablation.csv", index_col="metric").loc["PDS"]
    assert found["difference"] == pytest.approx(0.2, abs=0.01) and 0.19 < found["low"] < found["high"] < 0.21
    assert found["targets"] == 60
    assert "what the table is worth" in capsys.readouterr().out


def test_without_ablation_all_is_as_before(monkeypatch: pytest.MonkeyPatch):
    asked: list[CrossvalOptions] = []
    monkeypatch.setattr(crossval, "run_folds", asked.append)
    crossval.crossval(options(TABLE))
    assert len(asked) == 1 and "ablate" not in asked[0].training and "ablate" not in asked[0].plan


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["ablate=tabel"], "ablate=tabel must be"),
        (["ablate=table", "perturbation.path=null"], "needs a table of vectors"),
        (["ablate=table", TABLE, "perturbation.shuffle=3"], "shuffles the table itself"),
    ],
)
def test_what_cannot_be_ablated_is_said_before_the_first_fold(more: list[str], words: str):
    with pytest.raises(VcellError, match=words):
        ablation.without_table(options(*more))
