"""Inference: what was asked for, in the genes' order, on the stated scale, the same again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import BEFORE_RELEASE, infer_here
from vcell.data.batch import CellSetBatch
from vcell.data.gather import Gather
from vcell.data.sampler import CellSetSampler
from vcell.data.store.store import CellStore
from vcell.effects.bank import SPACES
from vcell.effects.make import BASELINES, fit_model, make_baselines, observed, training_evidence
from vcell.errors import VcellError
from vcell.model.trained import TrainedModel
from vcell.predict.cells import CountModels, rates_by
from vcell.predict.infer import make_source
from vcell.predict.predictors import transfer_kept
from vcell.predict.request import Wanted

REQUEST = "data/demo/screen/pert_counts_Test.csv"
LAST = "runs/demo/checkpoints/last.ckpt"


def predict(out: Path, *overrides: str) -> ad.AnnData:
    infer_here(f"out={out}", *overrides)
    return ad.read_h5ad(out)


def test_every_target_has_its_cells_and_genes_their_order(in_trained: Path, tmp_path: Path):
    found = predict(tmp_path / "p.h5ad", f"targets={REQUEST}", "contexts=[simC]")
    request = pd.read_csv(REQUEST)
    counted = found.obs["target_gene"].value_counts()
    assert dict(zip(request["target_gene"], request["n_cells"], strict=True)) == counted.drop("non-targeting").to_dict()
    assert counted["non-targeting"] == 60 and set(found.obs["cell_type"]) == {"simC"}
    assert found.var_names.tolist() == Path("data/demo/screen/gene_names.csv").read_text().split()
    assert np.isfinite(found.X.data).all() and found.X.data.min() > 0
    about = json.loads(found.uns["vcell"])
    assert about["scale"] == "log1p" and about["predictor"] == "model"
    store = CellStore.open("data/demo/store")
    expected = Gather(store, about["target_sum"]).log1p(store.controls_of("simC"))
    controls = found[found.obs["target_gene"] == "non-targeting"].X.toarray()
    np.testing.assert_allclose(controls, expected.numpy(), rtol=1e-6)


def test_targets_never_trained_on_are_predicted_from_the_table(in_trained: Path, tmp_path: Path):
    trained = {p for _, p, _ in TrainedModel.load(Path(LAST)).identity.split}
    unseen = [g for g in TrainedModel.load(Path(LAST)).identity.genes if g not in trained][:3]
    found = predict(tmp_path / "p.h5ad", f"targets=[{','.join(unseen)}]", "contexts=[simA,simB]", "n_cells=11")
    assert found.obs.groupby(["target_gene", "cell_type"], observed=True).size()[unseen[0]].to_dict() == {
        "simA": 11,
        "simB": 11,
    }


def test_the_same_seed_gives_the_same_file_whatever_else_is_asked(in_trained: Path, tmp_path: Path):
    target = pd.read_csv(REQUEST)["target_gene"][2]
    whole = predict(tmp_path / "a.h5ad", f"targets={REQUEST}", "contexts=[simC]", "n_cells=12", "sets_per_step=1")
    n = int((whole.obs["target_gene"] == target).sum())
    alone = predict(tmp_path / "b.h5ad", f"targets=[{target}]", "contexts=[simC]", f"n_cells={n}")
    both = [cells[cells.obs["target_gene"] == target].X.toarray() for cells in (whole, alone)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5, atol=1e-6)
    other = predict(tmp_path / "c.h5ad", f"targets=[{target}]", "contexts=[simC]", f"n_cells={n}", "seed=1")
    assert not np.allclose(both[1], other[other.obs["target_gene"] == target].X.toarray())


def test_infer_equals_validation(in_trained: Path, tmp_path: Path):
    """The file holds what the module predicts for the same controls during validation."""
    store, module = CellStore.open("data/demo/store"), TrainedModel.load(Path(LAST))
    groups = [("simC", p) for c, p in store.groups if c == "simC" and p != store.control]
    gather = Gather(store, module.identity.target_sum)
    target = groups[0][1]
    found = predict(tmp_path / "p.h5ad", f"targets=[{target}]", "contexts=[simC]", "n_cells=8", "knockdown=off")
    plan = CellSetSampler(store, groups, 8, 1).controls.plan("simC", target, 8, 8, seed=0)
    with torch.inference_mode():
        expected = module.predict(gather.to_device(gather.fetch(plan)))[0]
    np.testing.assert_allclose(found[:8].X.toarray(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_mean_needs_no_set_of_which_little_is_wanted(in_trained: Path):
    identity, store = TrainedModel.load(Path(LAST)).identity, CellStore.open("data/demo/store")
    source = make_source(store, identity, set(store.control_contexts), 2, 0)
    size, sets = source.set_size, 0

    class Unchanged:
        def predict(self, batch: CellSetBatch) -> torch.Tensor:
            nonlocal sets
            sets += len(batch.control_SCG)
            return batch.control_SCG

    models = CountModels(store, identity.target_sum)
    for n_cells, expected in ((1, 1), (size, 1), (size + 1, 1), (3 * size + size // 2, 4), (4 * size - 1, 4)):
        wanted, sets = Wanted("simC", "X", n_cells), 0
        ((rate_G,),) = rates_by([Unchanged()], source, models, [wanted], "cpu")
        assert sets == expected
        np.testing.assert_array_equal(rate_G, models.of("simC").rate_G)


def test_the_prior_that_a_run_has_fitted_equals_the_baseline_fitted_anew(in_trained: Path):
    model, store = TrainedModel.load(Path(LAST)), CellStore.open("data/demo/store")
    gather, assigned = Gather(store, model.identity.target_sum), model.identity.assigned
    evidence, fitted = training_evidence(gather, assigned), BASELINES["transfer"](store.n_genes)
    fit_model(fitted, evidence, observed(gather, evidence.context_names), model.table)  # as training does
    config = {**model.identity.config, "model": {"prior": "transfer"}}
    identity = replace(model.identity, prior=fitted.get_extra_state(), config=config)
    kept = transfer_kept(identity, {}, Path(LAST))
    anew, again = (
        make_baselines(gather, assigned, model.table, None, store.control_contexts, kept=one) for one in (None, kept)
    )
    assert kept is not None and again["transfer"] is kept and list(anew) == list(again)
    assert all(set(again[name].controls) == set(kept.controls) for name in anew if name != "copied_controls")
    targets = [*[p for c, p in store.groups if c == "simA" and p != store.control][:5], store.genes[-1]]
    for name in anew:
        for space in SPACES:
            np.testing.assert_array_equal(*(some[name].effect(space, "simC", targets) for some in (anew, again)))
    joined = replace(identity, config={**config, "effects": {"elsewhere": "table.csv"}})
    assert transfer_kept(joined, {}, Path(LAST)) is None and transfer_kept(model.identity, {}, Path(LAST)) is None
    with pytest.raises(VcellError, match="damaged prior"):
        transfer_kept(replace(identity, prior={"evidence": {}}), {}, Path(LAST))


def test_target_sum_changes_the_scale_only(in_trained: Path, tmp_path: Path):
    options = ["targets=[GENE0001]", "contexts=[simC]"]
    first, second = predict(tmp_path / "a.h5ad", *options), predict(tmp_path / "b.h5ad", *options, "target_sum=20000")
    ratio = np.expm1(second.X.toarray()).sum() / np.expm1(first.X.toarray()).sum()
    assert ratio == pytest.approx(20000 / json.loads(first.uns["vcell"])["target_sum"], rel=1e-4)


@pytest.mark.parametrize("label", ["non-targeting", "ctrl"])
def test_controls_of_a_new_context_come_from_a_file(label: str, in_trained: Path, tmp_path: Path):
    cells = ad.read_h5ad("data/demo/screen/simA.h5ad")
    cells = cells[cells.obs["target_gene"] == "non-targeting"].copy()[:, ::-1].copy()
    labels = pd.Categorical([label] * cells.n_obs, ["non-targeting", "ctrl"])  # one of them no cell has
    cells.obs = pd.DataFrame({"target_gene": labels}, cells.obs_names)
    cells.write_h5ad(tmp_path / "new.h5ad")
    found = predict(
        tmp_path / "p.h5ad", f"controls={tmp_path / 'new.h5ad'}", "contexts=[new]", "targets=[GENE0001]", "n_cells=9"
    )
    same = predict(tmp_path / "q.h5ad", "contexts=[simA]", "targets=[GENE0001]", "n_cells=9")
    assert set(found.obs["cell_type"]) == {"new"} and found.var_names.equals(same.var_names)
    sums = [c[c.obs["target_gene"] == "non-targeting"].X.sum() for c in (found, same)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda obs: obs.assign(target_gene="blank"), r"no cell is labelled 'non-targeting'.*Labels: 'blank'.*replace"),
        (lambda obs: obs.drop(columns="target_gene"), r"If all are, .*adata\.obs\['target_gene'\] = 'non-targeting'"),
    ],
)
def test_files_without_controls_are_told_how_to_name_them(
    change: Callable[[pd.DataFrame], pd.DataFrame], words: str, in_trained: Path, tmp_path: Path
):
    cells = ad.read_h5ad("data/demo/screen/simA.h5ad")[:20].copy()
    cells.obs = change(cells.obs)
    cells.write_h5ad(tmp_path / "new.h5ad")
    with pytest.raises(VcellError, match=words):
        infer_here(
            f"out={tmp_path / 'p.h5ad'}", f"controls={tmp_path / 'new.h5ad'}", "contexts=[new]", "targets=[GENE0001]"
        )


def test_control_cells_without_counts_are_left_out(
    in_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cells = ad.read_h5ad("data/demo/screen/simA.h5ad")
    controls = cells[cells.obs["target_gene"] == "non-targeting"].copy()
    controls[2:].copy().write_h5ad(tmp_path / "full.h5ad")
    controls.X.data[: controls.X.indptr[2]] = 0
    controls.X.eliminate_zeros()
    controls.write_h5ad(tmp_path / "some_empty.h5ad")
    found = {
        name: predict(
            tmp_path / f"of_{name}.h5ad", f"controls={tmp_path / name}.h5ad", "targets=[GENE0001]", "n_cells=9"
        )
        for name in ("full", "some_empty")
    }
    assert "2 cells without counts are left out of the control cells" in capsys.readouterr().out
    np.testing.assert_array_equal(found["some_empty"].X.toarray(), found["full"].X.toarray())


def test_what_is_predicted_unasked_is_the_request_of_the_data(in_trained: Path, tmp_path: Path):
    unasked = predict(tmp_path / "a.h5ad")
    asked = predict(tmp_path / "b.h5ad", f"targets={REQUEST}", "contexts=[simC]")
    assert unasked.obs.equals(asked.obs)


def test_a_template_is_a_request(in_trained: Path, tmp_path: Path):
    """As STATE's: perturbed labels on copied control cells."""
    template = ad.read_h5ad("data/demo/screen/simC.h5ad")[:25].copy()
    template.obs["target_gene"] = ["non-targeting"] * 3 + ["GENE0005"] * 12 + ["GENE0001"] * 10
    template.write_h5ad(tmp_path / "template.h5ad")
    found = predict(tmp_path / "p.h5ad", f"targets={tmp_path / 'template.h5ad'}")
    counted = found.obs["target_gene"].value_counts().drop("non-targeting")
    assert counted.to_dict() == {"GENE0005": 12, "GENE0001": 10} and set(found.obs["cell_type"]) == {"simC"}


@pytest.mark.parametrize("predictor", ["copied_controls", "context_mean", "perturbation_mean"])
def test_baselines_predict_through_the_same_command(predictor: str, in_trained: Path, tmp_path: Path):
    found = predict(tmp_path / "p.h5ad", f"targets={REQUEST}", "contexts=[simC]", f"predictor={predictor}")
    assert json.loads(found.uns["vcell"])["predictor"] == predictor


@BEFORE_RELEASE  # `test_package` has its container compared with ours
def test_official_prep_accepts_the_file(in_trained: Path, tmp_path: Path):
    pytest.importorskip("cell_eval")
    if not (shutil.which("zstd") and shutil.which("tar")):
        pytest.skip("cell-eval prep needs zstd and tar")
    predict(tmp_path / "p.h5ad", f"targets={REQUEST}", "contexts=[simC]")
    command = [sys.executable, "-m", "cell_eval", "prep", "-i", str(tmp_path / "p.h5ad"), "-g", "data/demo/screen/gene_names.csv"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.prep.vcc").stat().st_size > 1000


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["targets=[GENE001]"], "lacks 1 perturbations: GENE001;.*Did you mean 'GENE"),
        (["targets=absent.csv"], r"no such file: absent\.csv"),
        (["targets=[GENE0001,GENE0001]"], "lists twice GENE0001"),
        (["targets=[GENE0001]", "contexts=[simc]"], "Did you mean 'simC'"),
        (["targets=[GENE0001]", "contexts=null"], r"contexts=\[simC\]"),
        (["targets=[GENE0001]", "challenge=vcc2025"], "requires 18,080 genes"),
        (["targets=[GENE0001]", "challenge.max_cells=50"], "110 too many"),
        (["targets=[GENE0001]", "store=absent"], "store absent.*store=FOLDER"),
        (["targets=[GENE0001]", "predictor=modle"], "Did you mean 'model'"),
        (["targets=[GENE0001]", "predictor=null"], "predictor=null must be one of model, copied_controls"),
        (["targets=[GENE0001]", "predictor={}"], "predictor={} must be one of model, copied_controls"),
        (["targets=[GENE0001]", "predictor={model: half}"], r"predictor\.model=half must be a number"),
        (["targets=[GENE0001]", "addition=true"], "addition=true must be a number from 0 to 1 or auto"),
        (["targets=[GENE0001]", "devices=true"], "devices=true must be a whole number from 1 to 4,096 or auto"),
    ],
)
def test_impossible_requests_are_refused(overrides: list[str], words: str, in_trained: Path, tmp_path: Path):
    with pytest.raises(VcellError, match=words):
        infer_here(f"out={tmp_path / 'p.h5ad'}", "contexts=[simC]", *overrides)
    assert not list(tmp_path.iterdir())


def test_cell_numbers_are_checked(in_trained: Path, tmp_path: Path):
    (tmp_path / "t.csv").write_text("target_gene,n_cells\nGENE0001,0\n")
    with pytest.raises(VcellError, match="whole number from 1 to 10,000,000; it is not for GENE0001"):
        infer_here(f"out={tmp_path / 'p.h5ad'}", f"targets={tmp_path / 't.csv'}", "contexts=[simC]")


def test_an_existing_file_is_not_overwritten_unasked(in_trained: Path, tmp_path: Path):
    (tmp_path / "p.h5ad").write_text("mine")
    with pytest.raises(VcellError, match="exists already"):
        infer_here(f"out={tmp_path / 'p.h5ad'}", "targets=[GENE0001]", "contexts=[simC]")
    assert (tmp_path / "p.h5ad").read_text() == "mine"
