"""Cross-validation: every perturbation is predicted once by a model that has not seen it; stopped, it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from tests.conftest import SMALL
from vcell.cli import compose
from vcell.data.store import CellStore
from vcell.errors import VcellError
from vcell.folds import crossval

OVERRIDES = [
    "experiment=demo", "trainer=cpu", *SMALL, "trainer.max_steps=4", "trainer.val_check_interval=4", "folds=2", "within=[simC]",
    "data.split.val.perturbations=0", "name=cv",
]  # fmt: skip


def cross(*overrides: str) -> None:
    crossval(compose("crossval", [*OVERRIDES, *overrides]))


@pytest.fixture(scope="module")
def done(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both folds of runs/cv, the second begun by a call of its own."""
    folder = tmp_path_factory.mktemp("cv")
    (folder / "data").symlink_to(trained / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cross("fold=1")
        assert not (folder / "runs/cv/crossval.json").exists()
        cross()
    return folder


def test_every_perturbation_is_held_out_once(done: Path):
    splits = [json.loads((done / f"runs/cv/fold_{f}/split.json").read_text()) for f in (0, 1)]
    tests = [{(g["context"], g["perturbation"]) for g in s["groups"] if g["split"] == "test"} for s in splits]
    measured = {
        g for g in CellStore.open(done / "data/demo/store").groups if g[0] == "simC" and g[1] != "non-targeting"
    }
    assert not tests[0] & tests[1] and tests[0] | tests[1] == measured
    scored = [pd.read_csv(done / f"runs/cv/fold_{f}/scores/per_perturbation.csv") for f in (0, 1)]
    for table, held_out in zip(scored, tests, strict=True):
        assert set(table["perturbation"]) == {p for _, p in held_out}


def test_mean_and_spread_are_those_of_the_folds(done: Path):
    folds = [pd.read_csv(done / f"runs/cv/fold_{f}/scores/scores.csv", index_col="predictor") for f in (0, 1)]
    found = json.loads((done / "runs/cv/crossval.json").read_text())
    expected = pd.concat(folds).groupby("predictor")["PDS"]
    for predictor, mean in expected.mean().items():
        assert found["mean"][predictor]["PDS"] == pytest.approx(mean)
        assert found["standard_deviation"][predictor]["PDS"] == pytest.approx(expected.std()[predictor])
    assert {"model", "copied_controls", "perturbation_mean", "cell_mean", "split_half"} <= set(found["mean"])
    assert (done / "runs/cv/crossval.png").stat().st_size > 1000
    assert "fold_1/scores/report.html" in (done / "runs/cv/crossval.html").read_text()


def test_the_measured_cells_are_the_stores(done: Path):
    cells, store = ad.read_h5ad(done / "runs/cv/fold_0/real.h5ad"), CellStore.open(done / "data/demo/store")
    rows = store.rows(cells.obs_names.astype(int).to_numpy())
    np.testing.assert_array_equal(cells.X.data, rows.values)
    assert (
        cells.obs["target_gene"].astype(str)
        == store.obs["perturbation"].astype(str).to_numpy()[cells.obs_names.astype(int)]
    ).all()


def test_what_is_done_is_not_done_again(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(done)
    before = (done / "runs/cv/fold_0/scores/scores.json").stat().st_mtime_ns
    cross()
    said = capsys.readouterr().out
    assert said.count("finished") == 2 and "± " in said and "runs/cv/crossval.html" in said
    assert (done / "runs/cv/fold_0/scores/scores.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["by=context", "within=null"], "other values of.*by"),
        (["folds=1"], "folds=1"),
        (["fold=2"], "fold=2 must be from 0 to 1"),
        (["by=cell"], "must be perturbation, context or both"),
        (["model.hidden=64"], "begun with another configuration: model.hidden"),
    ],
)
def test_bad_plans_are_refused(overrides: list[str], words: str, done: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(done)
    with pytest.raises(VcellError, match=words):
        cross(*overrides)
