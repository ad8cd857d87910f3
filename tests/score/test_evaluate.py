"""Scores: equal to the official command's; truth, controls and wrong labels where they belong; traps refused or named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.conftest import assert_refused, infer_here
from tests.score.test_parity import effects, screen
from vcell.config import compose
from vcell.errors import VcellError
from vcell.evaluate import run as evaluate
from vcell.score.evaluation import Evaluation, member_alone
from vcell.score.references import References
from vcell.score.scoring import SCORERS, ContextScorer, ContextScores

pytest.importorskip("cell_eval")
REAL = "data/demo/screen/truth/simC_test.h5ad"


def score(out: Path, *overrides: str) -> pd.DataFrame:
    """What `vcell.evaluate` writes; with two baselines, and without pictures, unless asked for."""
    usual = {"pictures": "false", "baselines": "[context_mean,perturbation_mean]"}
    given = {o.partition("=")[0] for o in overrides}
    evaluate(compose("evaluate", [f"out={out}", *(f"{k}={v}" for k, v in usual.items() if k not in given), *overrides]))
    return pd.read_csv(out / "scores.csv", index_col="predictor")


@pytest.fixture(scope="module")
def pred(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pred") / "pred.h5ad"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        infer_here(f"out={path}", "targets=data/demo/screen/pert_counts_Test.csv", "contexts=[simC]")
    return path


@pytest.fixture(scope="module")
def plain_scores(trained: Path, pred: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        return score(tmp_path_factory.mktemp("plain") / "s", f"pred={pred}", f"real={REAL}", "engine=fast")


def real_as_log1p(target_sum: float) -> ad.AnnData:
    cells = ad.read_h5ad(REAL)
    total = np.asarray(cells.X.sum(axis=1)).ravel()
    cells.X = sparse.csr_matrix(sparse.diags(target_sum / total) @ cells.X).log1p().astype(np.float32)
    return cells


def test_table_equals_the_official_command(
    in_trained: Path,
    pred: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    from cell_eval.__main__ import main as run_official

    scores = score(tmp_path / "ours", f"pred={pred}", f"real={REAL}", "baselines=all")
    said = capsys.readouterr().out
    target_sum = json.loads((tmp_path / "ours" / "scores.json").read_text())["target_sum"]["simC"]
    real_as_log1p(target_sum).write_h5ad(tmp_path / "real.h5ad")
    # in this process, which has compiled its loops for the scores above
    command = ["cell-eval", "run", "-ap", str(pred), "-ar", str(tmp_path / "real.h5ad"), "--pert-col", "target_gene", "--profile", "vcc", "-o", str(tmp_path / "official")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    run_official()
    official = pd.read_csv(tmp_path / "official" / "results.csv").drop(columns="perturbation").mean()
    for ours, theirs in (("DES", "overlap_at_N"), ("PDS", "discrimination_score_l1"), ("MAE", "mae")):
        assert scores.loc["model", ours] == pytest.approx(official[theirs], abs=1e-5)
    assert list(scores.index) == [
        "model", "copied_controls", "context_mean", "perturbation_mean", "additive", "ridge", "nearest", "covariance", "transfer",
        "wrong_target", "cell_mean", "split_half",
    ]  # fmt: skip
    assert "perturbation_mean" in said and "report.html" in said and "runs/demo" in said
    assert "our scorer agrees with the official values" in said
    about = json.loads((tmp_path / "ours" / "scores.json").read_text())
    assert about["scorer"]["package"].startswith("cell-eval") and about["scorer"]["targets"] == 4
    assert about["scorer"]["pdex"]["geometric_mean"] is True and about["fast_scorer_differs_by"] < 1e-6


def test_everything_promised_is_written(in_trained: Path, pred: Path, tmp_path: Path):
    score(tmp_path / "s", f"pred={pred}", f"real={REAL}", "engine=fast", "pictures=true")
    files = {p.name for p in (tmp_path / "s").iterdir()}
    pictures = {"scores.png", "heatmap.png", "deltas.png", "called.png", "knockdown.png", "embedding.png"}
    assert files == {"scores.csv", "by_context.csv", "per_perturbation.csv", "scores.json", "report.html", *pictures}
    table = pd.read_csv(tmp_path / "s" / "per_perturbation.csv")
    assert len(table) == 7 * 4 and set(table["context"]) == {"simC"}
    page = (tmp_path / "s" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page), "nothing of it comes from the network"
    assert "split_half" in page and "95 %" in page and "cell-eval" in page
    about = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert about["config"]["engine"] == "fast" and about["versions"]["numpy"] == np.__version__
    interval = about["intervals"]["model"]["SCORE"]
    assert interval["low"] <= interval["value"] <= interval["high"]
    assert about["intervals"]["model"]["SCORE"]["value"] == about["scores"]["model"]["SCORE"]


def test_references_that_predict_the_same_are_scored_once(
    in_trained: Path, pred: Path, plain_scores: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As the context mean, the perturbation mean and the additive one do for targets that were measured nowhere else."""
    train, add, scored = References._train, ContextScorer.add, []

    def twice(self: References, *arguments: Any) -> None:
        train(self, *arguments)
        self.predictors["again"] = self.predictors["context_mean"]

    def noted(self: ContextScorer, name: str, *arguments: Any, **more: Any) -> Any:
        scored.append(name)
        return add(self, name, *arguments, **more)

    monkeypatch.setattr(References, "_train", twice)
    monkeypatch.setattr(ContextScorer, "add", noted)
    scores = score(tmp_path / "s", f"pred={pred}", f"real={REAL}", "engine=fast")
    assert "again" not in scored and {"context_mean", "perturbation_mean"} < set(scored)
    pd.testing.assert_series_equal(scores.loc["again"], scores.loc["context_mean"], check_names=False)
    pd.testing.assert_frame_equal(scores.drop("again"), plain_scores)


def test_the_truth_gets_the_best_score_copied_controls_the_worst_and_wrong_labels_chance(
    in_trained: Path, tmp_path: Path
):
    real_as_log1p(700.0).write_h5ad(tmp_path / "truth.h5ad")
    scores = score(tmp_path / "s", f"pred={tmp_path / 'truth.h5ad'}", f"real={REAL}")
    assert scores.loc["prediction", "PDS"] == 1.0 and scores.loc["prediction", "MAE"] == pytest.approx(0, abs=1e-6)
    assert scores.loc["prediction", "DES"] == scores["DES"].max()
    assert scores.loc["prediction", "SCORE"] == scores["SCORE"].max()
    assert scores.loc["copied_controls", "DES"] < 0.2 and scores.loc["cell_mean", "SCORE"] == 0
    assert (
        scores.loc["wrong_target", "PDS"] < 0.8 and scores.loc["split_half", "PDS"] > scores.loc["wrong_target", "PDS"]
    )
    # no run is known to make the others from
    assert list(scores.index) == ["prediction", "copied_controls", "wrong_target", "cell_mean", "split_half"]


def as_2026(cells: ad.AnnData) -> ad.AnnData:
    """Whole counts of one context named A, without controls."""
    kept = cells[cells.obs["target_gene"] != "non-targeting"].copy()
    kept.obs["context"] = "A"
    return kept


@pytest.fixture()
def real_2026(tmp_path: Path) -> Path:
    """Measured counts of ten targets, with effects that a repetition would find again."""
    rng = np.random.default_rng(3)
    cells = screen(rng, effects(rng), 60, 150).anndata("target_gene")
    cells.obs["context"] = "A"
    cells.write_h5ad(tmp_path / "real26.h5ad")
    return tmp_path / "real26.h5ad"


def test_2026_the_truth_is_at_the_ceiling_and_the_mean_response_at_the_floor(real_2026: Path, tmp_path: Path):
    as_2026(ad.read_h5ad(real_2026)).write_h5ad(tmp_path / "truth.h5ad")
    scores = score(tmp_path / "s", f"pred={tmp_path / 'truth.h5ad'}", f"real={real_2026}", "challenge=vcc2026")
    assert scores.loc["prediction", "SCORE"] > 1 == scores.loc["split_half", "SCORE"]
    assert scores.loc["prediction", ["PDS", "FIDELITY", "REACH", "JACCARD"]].tolist() == [1.0] * 4
    assert scores.loc["prediction", "NMAE"] == 0 and scores.loc["prediction", "MSE"] < 0.01
    assert scores.loc["mean_response", "SCORE"] == pytest.approx(0, abs=1e-12)
    assert scores.loc["copied_controls", "SCORE"] < 0.1 and scores.loc["wrong_target", "SCORE"] < 0.1
    assert scores.loc["wrong_target", "PDS"] < 0.7
    about = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert about["scorer"]["package"].startswith("cell-eval2") and about["scorer"]["de"]["fdr_scope"] == "per_pert"


def test_2026_takes_whole_counts_only(real_2026: Path, tmp_path: Path):
    cells = as_2026(ad.read_h5ad(real_2026))
    cells.X = cells.X.log1p()
    cells.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(VcellError, match="whole counts"):
        score(tmp_path / "s", f"pred={tmp_path / 'p.h5ad'}", f"real={real_2026}", "challenge=vcc2026")


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path):
    for name in ("pred.h5ad", "r.h5ad"):
        (tmp_path / name).touch()
    hidden = "import sys; sys.modules['cell_eval'] = None; from vcell.cli.launch import launch; from vcell.evaluate import run; sys.argv = ['x', 'real=r.h5ad']; launch('evaluate', run)"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert_refused(done, "pip install 'cell-eval", "'cell-eval==0.8.2'")


@pytest.mark.parametrize("challenge", ["vcc2025", "vcc2026"])
def test_scores_do_not_depend_on_where_the_cells_lie(
    real_2026: Path, tmp_path: Path, challenge: str, monkeypatch: pytest.MonkeyPatch
):
    """In memory, or in scratch files as those of large contexts."""
    real = ad.read_h5ad(real_2026)
    order = np.random.default_rng(0).permutation(real.n_obs)
    real[order].copy().write_h5ad(tmp_path / "r.h5ad")
    pred = real[:, ::-1].copy()  # other order of genes, and one that was not measured
    pred.var_names = [*pred.var_names[:-1], "other"]
    pred.write_h5ad(tmp_path / "p.h5ad")
    options = [
        f"pred={tmp_path / 'p.h5ad'}",
        f"real={tmp_path / 'r.h5ad'}",
        f"challenge={challenge}",
        "engine=fast",
        "pictures=false",
    ]
    score(tmp_path / "memory", *options)
    monkeypatch.setattr("vcell.score.cells.MOST_IN_MEMORY", 0)
    monkeypatch.setattr("vcell.score.cells.CELLS_AT_ONCE", 7)
    monkeypatch.setattr("vcell.score.rows.CELLS_AT_ONCE", 11)
    score(tmp_path / "file", *options)
    one, two = ((tmp_path / place / "per_perturbation.csv").read_text() for place in ("memory", "file"))
    assert one == two
    assert not [*tmp_path.glob(".vcell-cells-*")]


def test_contexts_weigh_the_same(real_2026: Path, tmp_path: Path):
    real = ad.read_h5ad(real_2026)
    few = real[real.obs["target_gene"].isin(["G0", "G7", "non-targeting"])].copy()
    few.obs["context"] = "B/2"
    both = ad.concat([real, few], index_unique="-")
    both.write_h5ad(tmp_path / "r.h5ad")
    both[both.obs["target_gene"] != "non-targeting"].copy().write_h5ad(tmp_path / "p.h5ad")
    options = [f"pred={tmp_path / 'p.h5ad'}", f"real={tmp_path / 'r.h5ad'}", "challenge=vcc2026", "engine=fast"]
    scores = score(tmp_path / "s", *options, "pictures=true")
    table = pd.read_csv(tmp_path / "s" / "per_perturbation.csv")
    wrong = table[table["predictor"] == "wrong_target"].groupby("context")["PDS"].mean()
    by_context = pd.read_csv(tmp_path / "s" / "by_context.csv", index_col=["predictor", "context"])
    assert scores.loc["wrong_target", "SCORE"] == pytest.approx(by_context.loc["wrong_target", "SCORE"].mean())
    assert set(wrong.index) == {"A", "B/2"} and scores.loc["wrong_target", "PDS"] == pytest.approx(wrong.mean())
    assert (tmp_path / "s" / "called_B_2.png").is_file() and not any(p.is_dir() for p in (tmp_path / "s").iterdir())


def test_two_predictions_are_compared_on_the_same_targets(in_trained: Path, pred: Path, tmp_path: Path, capsys):
    worse = ad.read_h5ad(pred)
    labels = worse.obs["target_gene"].astype(str).to_numpy()
    targets = sorted(set(labels) - {"non-targeting"})
    swap = dict(zip(targets, [*targets[1:], targets[0]], strict=True))
    worse.obs["target_gene"] = [swap.get(label, label) for label in labels]
    worse.write_h5ad(tmp_path / "shuffled.h5ad")
    score(tmp_path / "s", f"pred={pred}", f"against={tmp_path / 'shuffled.h5ad'}", f"real={REAL}", "engine=fast")
    about = json.loads((tmp_path / "s" / "scores.json").read_text())
    difference = about["compared"]["shuffled"]["PDS"]
    assert difference["value"] == pytest.approx(about["scores"]["model"]["PDS"] - about["scores"]["shuffled"]["PDS"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert "compared " in capsys.readouterr().out
    # against itself, nothing
    copy = tmp_path / "same.h5ad"
    copy.write_bytes(pred.read_bytes())
    score(tmp_path / "t", f"pred={pred}", f"against={copy}", f"real={REAL}", "engine=fast")
    same = json.loads((tmp_path / "t" / "scores.json").read_text())["compared"]["same"]["SCORE"]
    assert same == {"value": 0, "low": 0, "high": 0}
    assert "do not differ significantly" in capsys.readouterr().out


def test_targets_that_were_trained_on_are_refused(in_trained: Path, tmp_path: Path):
    infer_here(f"out={tmp_path / 'p.h5ad'}", "targets=data/demo/screen/pert_counts_Training.csv", "contexts=[simA]")
    options = [f"pred={tmp_path / 'p.h5ad'}", "real=data/demo/screen/simA.h5ad", "engine=fast"]
    with pytest.raises(VcellError, match=r"was trained on the measured cells of targets to be scored.*simA"):
        score(tmp_path / "s", *options)
    assert not (tmp_path / "s").exists()
    score(tmp_path / "s", *options, "allow_leaks=true")


def test_a_store_that_is_asked_for_is_not_left_out(in_trained: Path, pred: Path, tmp_path: Path):
    options = [f"pred={pred}", f"real={REAL}", "engine=fast", "pictures=false"]
    with pytest.raises(
        VcellError, match=r"the cell store absent, .* does not exist\. Specify where it is with store=FOLDER$"
    ):
        score(tmp_path / "s", *options, "store=absent")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("columns.perturbation=target_gen", r"no such obs column in .*pred\.h5ad and .*\. Did you mean 'target_gene'\? There are: batch"),
        ("columns.context=line", "columns.context=line: there is no such obs column"),
        ("real_columns.context=line", r"real_columns.context=line: there is no such obs column in [^ ]*simC_test\.h5ad\."),
        ("real_matrix=", r"has no matrix ''\. It has: X"),
        ("control=GFP", "control=GFP: no cell of .* has this label. Control cells there are labelled non-targeting"),
    ],
)  # fmt: skip
def test_what_is_asked_for_by_name_is_not_replaced_by_what_is_usual(
    asked: str, words: str, in_trained, pred: Path, tmp_path: Path
):
    with pytest.raises(VcellError, match=words):
        score(tmp_path / "s", f"pred={pred}", f"real={REAL}", "engine=fast", "pictures=false", asked)
    assert not (tmp_path / "s").exists()


def test_shifted_controls_are_reported(in_trained: Path, pred: Path, tmp_path: Path, capsys):
    cells = ad.read_h5ad(pred)
    rows = np.flatnonzero(cells.obs["target_gene"] == "non-targeting")
    x = cells.X.toarray()
    x[np.ix_(rows, np.arange(40))] += 0.4
    x[rows] = np.log1p(np.expm1(x[rows]) * (np.expm1(x[rows[:1]]).sum() / np.expm1(x[rows]).sum(1, keepdims=True)))
    cells.X = sparse.csr_matrix(x)
    del cells.uns["vcell"]
    cells.write_h5ad(tmp_path / "p.h5ad")
    score(tmp_path / "s", f"pred={tmp_path / 'p.h5ad'}", f"real={REAL}", "engine=fast")
    assert "control cells of the prediction differ from the measured ones" in capsys.readouterr().out
    score(tmp_path / "t", f"pred={pred}", f"real={REAL}", "engine=fast")
    assert "control cells of the prediction are the measured ones" in capsys.readouterr().out


def test_the_discrimination_score_among_fewer_targets(in_trained: Path, pred: Path, tmp_path: Path, capsys):
    score(tmp_path / "s", f"pred={pred}", f"real={REAL}", "engine=fast", "pds_subset=4")
    same = float(pd.read_csv(tmp_path / "s" / "scores.csv", index_col=0).loc["model", "PDS"])
    assert f"With 4 targets drawn at random it would be about {same:.4f}" in capsys.readouterr().out
    with pytest.raises(VcellError, match="pds_subset=5 is more than the 4 targets"):
        score(tmp_path / "s", f"pred={pred}", f"real={REAL}", "engine=fast", "pds_subset=5")


def test_measured_cells_may_be_on_any_scale(in_trained: Path, pred: Path, tmp_path: Path):
    real_as_log1p(5e4).write_h5ad(tmp_path / "real.h5ad")
    first = score(tmp_path / "a", f"pred={pred}", f"real={REAL}", "engine=fast")
    second = score(tmp_path / "b", f"pred={pred}", f"real={tmp_path / 'real.h5ad'}", "engine=fast")
    pd.testing.assert_frame_equal(first, second, atol=1e-4)


def test_measured_genes_may_be_in_another_order(in_trained: Path, pred: Path, tmp_path: Path):
    ad.read_h5ad(REAL)[:, ::-1].copy().write_h5ad(tmp_path / "real.h5ad")
    first = score(tmp_path / "a", f"pred={pred}", f"real={REAL}", "engine=fast")
    second = score(tmp_path / "b", f"pred={pred}", f"real={tmp_path / 'real.h5ad'}", "engine=fast")
    pd.testing.assert_frame_equal(first, second)


def change(path: Path, pred: Path, how) -> Path:
    cells = ad.read_h5ad(pred)
    cells = how(cells) or cells
    cells.write_h5ad(path)
    return path


def without_controls(cells: ad.AnnData) -> ad.AnnData:
    return cells[cells.obs["target_gene"] != "non-targeting"].copy()


def controls_only(cells: ad.AnnData) -> ad.AnnData:
    return cells[cells.obs["target_gene"] == "non-targeting"].copy()


def other_genes(cells: ad.AnnData) -> None:
    cells.var_names = [f"OTHER{i}" for i in range(cells.n_vars)]


def too_large(cells: ad.AnnData) -> None:
    cells.X.data *= 10


def all_zero(cells: ad.AnnData) -> None:
    cells.X = sparse.csr_matrix(cells.shape, dtype=np.float32)
    del cells.uns["vcell"]


def mostly_zero(cells: ad.AnnData) -> None:
    kept = np.arange(cells.n_obs) % 3 == 0
    cells.X = sparse.csr_matrix(np.round(cells.X.expm1()).multiply(kept[:, None]))
    del cells.uns["vcell"]


def not_finite(cells: ad.AnnData) -> None:
    cells.X.data[3] = np.nan


def scaled(cells: ad.AnnData) -> None:
    cells.X.data -= 1


def other_column(cells: ad.AnnData) -> None:
    cells.obs = cells.obs.rename(columns={"target_gene": "target_genes"})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (without_controls, "no control cells"),
        (controls_only, "control cells only"),
        (other_genes, "only 0 of the prediction's .* missing are OTHER0"),
        (too_large, "neither whole counts nor log1p"),
        (all_zero, "all values of X are 0"),
        (mostly_zero, "holds no counts: half of its cells"),
        (not_finite, "NaN"),
        (scaled, "negative values, as scanpy.pp.scale makes them"),
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


def renamed_real(cells: ad.AnnData) -> None:
    cells.obs = cells.obs.rename(columns={"target_gene": "gene", "cell_type": "cell_line", "batch": "gem_group"})
    cells.obs["gene"] = cells.obs["gene"].astype(str).replace({"non-targeting": "NT"})


def counts_in_a_layer(cells: ad.AnnData) -> None:
    cells.layers["counts"] = cells.X.copy()
    cells.X = sparse.csr_matrix(cells.X.toarray() * 0.37 + (cells.X.toarray() > 0) * 0.011)


def by_genes(cells: ad.AnnData) -> None:
    cells.X = sparse.csc_matrix(cells.X)


def more_genes(cells: ad.AnnData) -> None:
    cells.var_names = [*cells.var_names[:-1], "EXTRA"]


def spaced_labels(cells: ad.AnnData) -> None:
    cells.obs["target_gene"] = pd.Categorical(cells.obs["target_gene"].astype(str) + " ")


@pytest.mark.parametrize("how", [renamed_real, counts_in_a_layer, by_genes, spaced_labels])
def test_measured_cells_are_read_however_they_are_laid_out(
    how, in_trained: Path, pred: Path, plain_scores: pd.DataFrame, tmp_path: Path
):
    cells = ad.read_h5ad(REAL)
    how(cells)
    cells.write_h5ad(tmp_path / "real.h5ad")
    other = score(tmp_path / "s", f"pred={pred}", f"real={tmp_path / 'real.h5ad'}", "engine=fast")
    pd.testing.assert_frame_equal(plain_scores, other)


def test_scores_are_on_the_genes_that_both_files_have(
    in_trained: Path, pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cells = ad.read_h5ad(REAL)
    more_genes(cells)
    cells.write_h5ad(tmp_path / "real.h5ad")
    score(tmp_path / "s", f"pred={pred}", f"real={tmp_path / 'real.h5ad'}", "engine=fast")
    assert "scored on the 119 of 120 predicted genes that real.h5ad has" in capsys.readouterr().out


def test_contexts_that_were_not_measured_are_named(
    in_trained: Path, pred: Path, plain_scores: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one = ad.read_h5ad(pred)
    two = one.copy()
    two.obs["cell_type"] = "simZ"
    both = ad.concat([one, two], index_unique="-")
    both.uns = one.uns
    both.write_h5ad(tmp_path / "both.h5ad")
    together = score(tmp_path / "s", f"pred={tmp_path / 'both.h5ad'}", f"real={REAL}", "engine=fast")
    assert "scored in simC; no cells of simZ were measured" in capsys.readouterr().out
    pd.testing.assert_frame_equal(together.loc[["model"]], plain_scores.loc[["model"]])


def test_few_targets_get_an_interval_over_cells_and_a_loud_note(
    in_trained: Path, pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cells = ad.read_h5ad(REAL)
    first = next(t for t in cells.obs["target_gene"].unique() if t != "non-targeting")
    cells[cells.obs["target_gene"].isin([first, "non-targeting"])].copy().write_h5ad(tmp_path / "one.h5ad")
    score(tmp_path / "s", f"pred={pred}", f"real={tmp_path / 'one.h5ad'}", "engine=fast", "pictures=true")
    said = capsys.readouterr().out
    assert "FEWER THAN 10 TARGETS" in said and "95 % over cells" in said
    about = json.loads((tmp_path / "s" / "scores.json").read_text())
    interval = about["intervals"]["model"]["MAE"]
    assert interval["low"] < interval["value"] < interval["high"]
    assert "interval over cells" in (tmp_path / "s" / "report.html").read_text()


@pytest.mark.parametrize(
    ("better", "said"), [({"PDS": 1.0}, "comes from PDS alone"), ({"PDS": 1.0, "DES": 0.5}, None), ({}, None)]
)
def test_a_score_of_one_member_alone_says_so(better: dict[str, float], said: str | None):
    floor, top = {"DES": 0.2, "PDS": 0.5, "MAE": 0.1}, {"DES": 1.0, "PDS": 1.0, "MAE": 0.0}
    values = {"DES": 0.1, "PDS": 0.4, "MAE": 0.2} | better
    scores = ContextScores("c", {"p": pd.DataFrame([values], index=["T"])}, floor, top)
    note = member_alone(Evaluation(SCORERS["cell-eval"], "p", [], [scores]))
    assert note is None if said is None else said in str(note)


def test_a_prediction_of_another_tool_beside_measured_controls_is_scored(in_trained: Path, pred: Path, tmp_path: Path):
    cells = ad.read_h5ad(pred)
    x = cells.X.toarray()
    predicted = (cells.obs["target_gene"] != "non-targeting").to_numpy()
    x[predicted] = np.maximum(x[predicted] * 0.97 + 0.004, 0)  # what a network says: log1p of nothing that was counted
    cells.X = sparse.csr_matrix(x)
    del cells.uns["vcell"]
    cells.write_h5ad(tmp_path / "other.h5ad")
    table = score(tmp_path / "s", f"pred={tmp_path / 'other.h5ad'}", f"real={REAL}", "engine=fast")
    assert np.isfinite(table.loc["prediction", "PDS"])


def test_scores_of_files_load_neither_torch_nor_anndata(tmp_path: Path):
    """They take two seconds, a third of what a small evaluation takes; torch is for references of a run, and for GPUs."""
    rng = np.random.default_rng(0)
    screen(rng, effects(rng), each=6, controls=30).anndata("target_gene").write_h5ad(tmp_path / "cells.h5ad")
    code = (
        "import sys, runpy\n"
        "sys.argv = ['vcell.evaluate', 'pred=cells.h5ad', 'real=cells.h5ad', 'challenge=vcc2026', 'engine=fast', 'out=scores', 'pictures=false']\n"
        "runpy.run_module('vcell.evaluate', run_name='__main__')\n"
        "loaded = {'torch', 'anndata', 'lightning'} & set(sys.modules)\nassert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and (tmp_path / "scores/scores.json").is_file(), done.stderr


@pytest.mark.parametrize(("challenge", "overall"), [("vcc2025", True), ("vcc2026", False)])
def test_cells_that_cannot_be_halved_are_scored_without_a_ceiling(
    tmp_path: Path, capsys: pytest.CaptureFixture, challenge: str, overall: bool
):
    """One measured cell of each target, as small contexts have; only the scale of 2026 needs the ceiling."""
    rng = np.random.default_rng(0)
    cells = screen(rng, effects(rng), each=3, controls=20).anndata("target_gene")
    cells.write_h5ad(tmp_path / "pred.h5ad")
    once = ~cells.obs["target_gene"].duplicated() | (cells.obs["target_gene"] == "non-targeting")
    cells[once.to_numpy()].copy().write_h5ad(tmp_path / "real.h5ad")
    given = [f"{key}={tmp_path / key}.h5ad" for key in ("pred", "real")]
    table = score(tmp_path / "s", *given, "engine=fast", f"challenge={challenge}", "challenge.n_genes=null")
    said = capsys.readouterr().out
    assert "there is no ceiling" in said and "cannot distinguish" not in said
    assert table.loc["split_half"].drop("SCORE").isna().all() and np.isfinite(table.loc["prediction", "PDS"])
    assert bool(np.isfinite(table.loc["prediction", "SCORE"])) is overall
