"""Cross-validation: every perturbation is predicted once by a model that has not seen it; stopped, it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SMALL
from vcell.config import compose
from vcell.crossval import run as crossval
from vcell.data.store.store import CellStore
from vcell.errors import VcellError
from vcell.model.checkpoint import read_identity
from vcell.score import ways
from vcell.score.evaluation import measured_cells
from vcell.score.fold import score_options
from vcell.score.options import CrossvalOptions

OVERRIDES = [
    "experiment=demo", "trainer=cpu", *SMALL, "trainer.max_steps=4", "trainer.val_check_interval=4", "folds=2", "within=[simC]",
    "data.split.val.perturbations=0", "name=cv",
]  # fmt: skip
RUN = Path("runs/cv")


def cross(*overrides: str) -> None:
    crossval(compose("crossval", [*OVERRIDES, *overrides]))


def test_two_folds(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    # one test, for the folds take a while: each of the checks below stands for itself
    (tmp_path / "data").symlink_to(trained / "data")
    monkeypatch.chdir(tmp_path)
    cross("fold=1")
    assert "folds still missing: 0" in capsys.readouterr().out and not (RUN / "crossval.json").exists()
    cross()
    assert capsys.readouterr().out.count("finished") == 1  # fold 1 was there
    every_perturbation_is_held_out_once()
    mean_and_spread_are_those_of_the_folds()
    the_measured_cells_are_the_stores()
    before = (RUN / "fold_0/scores/scores.json").stat().st_mtime_ns
    cross()
    said = capsys.readouterr().out
    assert said.count("finished") == 2 and "± " in said and "runs/cv/crossval.html" in said
    assert (RUN / "fold_0/scores/scores.json").stat().st_mtime_ns == before
    for overrides, words in (
        (["by=context", "within=null"], "other values of.*by"),
        (["model.hidden=64"], "started with another configuration: model.hidden"),
    ):
        with pytest.raises(VcellError, match=words):
            cross(*overrides)


def every_perturbation_is_held_out_once() -> None:
    splits = [json.loads((RUN / f"fold_{f}/split.json").read_text()) for f in (0, 1)]
    tests = [{(g["context"], g["perturbation"]) for g in s["groups"] if g["split"] == "test"} for s in splits]
    groups = CellStore.open("data/demo/store").groups
    assert not tests[0] & tests[1]
    assert tests[0] | tests[1] == {g for g in groups if g[0] == "simC" and g[1] != "non-targeting"}
    for fold, held_out in enumerate(tests):
        table = pd.read_csv(RUN / f"fold_{fold}/scores/per_perturbation.csv")
        assert set(table["perturbation"]) == {p for _, p in held_out}


def mean_and_spread_are_those_of_the_folds() -> None:
    folds = [pd.read_csv(RUN / f"fold_{f}/scores/scores.csv", index_col="predictor") for f in (0, 1)]
    found = json.loads((RUN / "crossval.json").read_text())
    expected = pd.concat(folds).groupby("predictor")["PDS"]
    for predictor, mean in expected.mean().items():
        assert found["mean"][predictor]["PDS"] == pytest.approx(mean)
        assert found["standard_deviation"][predictor]["PDS"] == pytest.approx(expected.std()[predictor])
    assert {"model", "copied_controls", "perturbation_mean", "cell_mean", "split_half"} <= set(found["mean"])
    assert (RUN / "crossval.png").stat().st_size > 1000
    assert "fold_1/scores/report.html" in (RUN / "crossval.html").read_text()


def the_measured_cells_are_the_stores() -> None:
    store, ckpt = CellStore.open("data/demo/store"), RUN / "fold_0/checkpoints/last.ckpt"
    options = CrossvalOptions.of(compose("crossval", OVERRIDES))
    asked = score_options(options, read_identity(ckpt), ckpt, RUN / "fold_0/pred.h5ad", RUN / "x")
    cells = measured_cells(asked).cells_of("simC")
    labels = cells.labels
    assert set(labels) == {p for _, p in read_identity(ckpt).held_out} | {"non-targeting"}
    for label in set(labels):
        rows = store.rows(store.groups["simC", label])
        np.testing.assert_array_equal(
            cells.where(labels == label).take(np.arange((labels == label).sum())).data, rows.values
        )
    assert not (RUN / "fold_0" / "real.h5ad").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("folds=1", "folds=1"),
        ("fold=2", "fold=2 must be a whole number from 0 to 1"),
        ("by=cell", "must be one of perturbation, context, both"),
        ("engine=official2", "engine=official2 must be one of auto, official, fast"),
        ("draw=maybe", "draw=maybe must be one of null, true, false"),
        ("use=best", "use=best must end in .ckpt: best.ckpt or last.ckpt"),
    ],
)
def test_bad_plans_are_refused(override: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VcellError, match=words):
        cross(override)
    assert not list(tmp_path.iterdir())


def test_a_plan_of_which_nothing_came_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    cells = ["experiment=perturb_seq", "data.path=absent.h5ad", "name=cv"]
    for plan in ("folds=2", "folds=3"):
        with pytest.raises(VcellError, match=r"absent\.h5ad"):
            crossval(compose("crossval", [*cells, plan]))
        assert not RUN.exists()


def test_ways_of_drawing_counts_are_compared(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "data").symlink_to(trained / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ways, "WAYS", {way: ways.WAYS[way] for way in ("counts=donors", "counts=moments pool=4")})
    small = [key for key in OVERRIDES if not key.startswith("model.")]
    crossval(
        compose(
            "crossval",
            [
                *small,
                "model=additive",
                "challenge=vcc2026",
                "challenge.perturbation=target_gene",
                "challenge.context=cell_type",
                "compare=counts",
            ],
        )
    )
    table = pd.read_csv(RUN / "ways.csv", index_col="way")
    # cells without an effect are the control cells themselves, and pools of them are not
    assert table.loc["counts=donors", "false_calls"] <= table.loc["counts=moments pool=4", "false_calls"]
    assert f"best         vcell.infer {table['SCORE'].idxmax()}" in capsys.readouterr().out
    assert not list(RUN.glob("ways/*/*/*.h5ad"))


def test_ways_are_compared_where_counts_are_drawn():
    with pytest.raises(VcellError, match="ways of drawing whole counts: challenge=vcc2026"):
        cross("compare=counts")
    with pytest.raises(VcellError, match="compare=count must be null or counts"):
        cross("compare=count")
