"""The Python API does what the commands do, says nothing unasked, and costs nothing to import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import vcell
from tests.conftest import SMALL, infer_here, run_here
from vcell.errors import VcellError
from vcell.score.scores import as_others

LAST = "runs/demo/checkpoints/last.ckpt"
REAL = "data/demo/screen/truth/simC_test.h5ad"
TARGETS = "data/demo/screen/pert_counts_Test.csv"


def test_importing_vcell_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import vcell; took = time.perf_counter() - start\n"
        "heavy = {'torch', 'lightning', 'pandas', 'anndata', 'hydra', 'numpy'} & set(sys.modules)\n"
        "print(took < 0.2, sorted(heavy), set(vcell.__all__) <= set(dir(vcell)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[0] == "True [] True", done.stdout + done.stderr


def test_a_checkpoint_loads_and_predicts_without_lightning(in_trained: Path):
    code = (
        "import sys\nsys.modules['lightning'] = None\nimport vcell\n"
        f"print(vcell.load('{LAST}').predict(targets='{TARGETS}', contexts=['simC']).n_obs)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and int(done.stdout) > 50, done.stderr


@pytest.mark.parametrize("controls", ["run", "anndata", "store"])
def test_predict_gives_what_infer_writes(
    controls: str, in_trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    given = {"run": None, "anndata": "data/demo/screen/simC.h5ad", "store": "data/demo/store"}[controls]
    infer_here(
        f"out={tmp_path}/pred.h5ad", f"targets={TARGETS}", "contexts=[simC]", *([f"controls={given}"] if given else [])
    )
    written = ad.read_h5ad(tmp_path / "pred.h5ad")
    capfd.readouterr()
    cells = {"run": None, "anndata": None, "store": None}[controls]
    if controls == "anndata":
        cells = ad.read_h5ad(given)
    elif controls == "store":
        cells = vcell.CellStore.open(given)
    model = vcell.load(LAST)
    assert isinstance(model, vcell.TrainedModel)
    found = model.predict(cells, TARGETS, contexts="simC")
    np.testing.assert_array_equal(found.X.toarray(), written.X.toarray())
    assert found.obs.astype(str).equals(written.obs.astype(str)) and list(found.var_names) == list(written.var_names)
    assert json.loads(found.uns["vcell"]) == json.loads(written.uns["vcell"])
    for context, profile in written.uns["vcell_control_profiles"].items():
        np.testing.assert_array_equal(found.uns["vcell_control_profiles"][context], profile)
    out, err = capfd.readouterr()
    assert out == "" and "predicting" not in err


def test_arguments_may_be_those_of_numpy_and_pandas(in_trained: Path):
    model, names = vcell.load(Path(LAST)), pd.read_csv(TARGETS).iloc[:2, 0]
    plain = model.predict(targets=list(names), contexts="simC", n_cells=4, target_sum=500.0)
    genes = Path("data/demo/screen/gene_names.csv")
    same = model.predict(
        targets=names.astype("category"), contexts=np.array(["simC"]), n_cells=np.int64(4), target_sum=np.float32(500), genes=genes
    )  # fmt: skip
    np.testing.assert_array_equal(same.X.toarray(), plain.X.toarray())
    assert same.obs.equals(plain.obs) and json.loads(same.uns["vcell"]) == json.loads(plain.uns["vcell"])
    with pytest.raises(VcellError, match="controls names no file of control cells"):
        model.predict([], targets=names)


def test_others_to_compare_with_have_names(tmp_path: Path):
    cells = ad.AnnData(np.ones((1, 1)))
    assert as_others(()) == [] and as_others("a/b.h5ad") == [("b", "a/b.h5ad")] == as_others(["a/b.h5ad"])
    assert as_others({"mine/1": Path("x"), "mine_1": cells}) == [("mine_1", Path("x")), ("mine_1_2", cells)]
    assert as_others(cells)[0][0] == "other_1" and as_others(["a.h5ad", cells])[1] == ("other_2", cells)


def test_scores_of_an_anndata_are_those_of_the_command(
    in_trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip("numba")
    pytest.importorskip("cell_eval")
    pred = vcell.load(LAST).predict(targets=TARGETS, contexts=["simC"])
    pred.write_h5ad(tmp_path / "pred.h5ad")
    run_here(
        "evaluate",
        f"pred={tmp_path}/pred.h5ad",
        f"real={REAL}",
        f"out={tmp_path}/scores",
        "engine=fast",
        "pictures=false",
    )
    told = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    capfd.readouterr()
    scores = vcell.score_prediction(pred, ad.read_h5ad(REAL), engine="fast")
    assert capfd.readouterr().out == ""
    assert scores.table.loc["model"].to_dict() == pytest.approx(told["model"]) and set(scores.table.index) == set(told)
    assert {"predictor", "context", "perturbation"} <= set(scores.per_target) and "<table" in scores._repr_html_()
    assert scores.interval.low <= scores.score <= scores.interval.high
    assert len(scores.plot().axes) > 0 and "model" in str(scores)
    page = scores.report(tmp_path / "report")
    assert page.is_file() and (page.parent / "scores.json").is_file()


def test_measured_cells_may_be_a_store(in_trained: Path):
    pytest.importorskip("numba")
    store = vcell.CellStore.open("data/demo/store")
    some = [p for c, p in store.groups if c == "simA" and p != store.control][:3]
    pred = vcell.load(LAST).predict(targets=some, contexts="simA", n_cells=14)
    from_store = vcell.score_prediction(pred, store, engine="fast", allow_leaks=True, pictures=False)
    from_file = vcell.score_prediction(
        pred, "data/demo/screen/simA.h5ad", engine="fast", allow_leaks=True, pictures=False
    )
    assert from_store.table.loc["model"].to_dict() == pytest.approx(from_file.table.loc["model"].to_dict())


def test_describe_shows_a_table(in_trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = "data/demo/screen/simA.h5ad"
    from_file, from_memory = vcell.describe(path), vcell.describe(ad.read_h5ad(path))
    assert capfd.readouterr().out == ""
    assert "<table>" in from_file._repr_html_() and list(from_file.table) == ["what", "found"]
    assert "raw counts" in str(from_file) and from_file.found["labels"] == from_memory.found["labels"]
    renamed = ad.read_h5ad(path)
    renamed.obs = renamed.obs.rename(columns={"target_gene": "knocked_down"})
    del renamed.obs["guide_id"]
    found = vcell.describe(renamed)
    settings = found.settings
    assert settings["data.columns.perturbation"] == "knocked_down" and "vcell.build_store(adata" in str(found)
    assert vcell.build_store(renamed, tmp_path / "renamed", settings=settings).n_cells == renamed.n_obs


def test_a_store_of_anndata_is_that_of_its_file(in_trained: Path, tmp_path: Path):
    path = "data/demo/screen/simA.h5ad"
    from_file = vcell.build_store(path, tmp_path / "file")
    from_memory = vcell.build_store(ad.read_h5ad(path), tmp_path / "memory")
    assert list(from_file.groups) == list(from_memory.groups)
    every = np.arange(from_file.n_cells)
    np.testing.assert_array_equal(from_file.rows(every).values, from_memory.rows(every).values)
    few = vcell.build_store(path, tmp_path / "few", settings={"data.filter.min_cells": 14})
    assert few.n_cells < from_file.n_cells
    with pytest.raises(VcellError, match=r"no setting 'data\.filtre'"):
        vcell.build_store(path, tmp_path / "x", settings={"data.filtre": 1})
    with pytest.raises(VcellError, match="was made from other input"):
        vcell.build_store("data/demo/screen/simB.h5ad", tmp_path / "file")


def test_fit_is_train(fresh: Path, capfd: pytest.CaptureFixture[str]):
    small = {
        k: int(v) for k, v in (s.split("=") for s in SMALL) if k.startswith(("data.sets", "model.")) and v != "null"
    }
    common = {
        "max_steps": 6,
        "validate_every": 3,
        "trainer": "cpu",
        "table": "data/demo/screen/embedding.pt",
        "settings": small,
    }
    run = vcell.fit("data/demo/store", name="api", **common)
    assert capfd.readouterr().out == ""
    overrides = [f"{k}={v}" for k, v in small.items()]
    run_here(
        "train", "experiment=perturb_seq", "trainer=cpu", "name=command", "data.path=null", "data.stores=[data/demo/store]", "trainer.max_steps=6",
        "trainer.val_check_interval=3", "trainer.log_every_n_steps=3", "perturbation.path=data/demo/screen/embedding.pt", *overrides,
    )  # fmt: skip
    one, two = (vcell.load(f"runs/{n}/checkpoints/last.ckpt").model.state_dict() for n in ("api", "command"))
    assert all((one[k] == two[k]).all() for k in one)
    assert run.checkpoint.is_file() and len(run.metrics) == 2 and run.best.name == "best.ckpt"
    from_cells = vcell.fit(ad.read_h5ad("data/demo/screen/simA.h5ad"), name="cells", **{**common, "max_steps": 1})
    assert from_cells.checkpoint.is_file() and (fresh / "data" / "cells" / "store" / "meta.json").is_file()
    with pytest.raises(VcellError, match="started with another configuration"):
        vcell.fit("data/demo/store", name="api", **{**common, "loss": "energy_delta"})


def test_packing_checks_and_packs(in_trained: Path, tmp_path: Path):
    genes = "data/demo/screen/gene_names.csv"
    pred = vcell.load(LAST).predict(targets=TARGETS, contexts=["simC"])
    rules = vcell.Challenge("small", container="cell-eval", n_genes=120)
    packed = vcell.pack_submission(pred, rules, genes=genes, out=tmp_path / "x.vcc")
    assert packed is not None and packed.path.is_file() and len(packed.sha256) == 64
    pred.write_h5ad(tmp_path / "pred.h5ad")
    run_here(
        "package", f"pred={tmp_path}/pred.h5ad", "challenge.container=cell-eval", "challenge.n_genes=120", f"genes={genes}",
        f"out={tmp_path}/y.vcc", "by=vcell",
    )  # fmt: skip
    assert (tmp_path / "y.vcc").read_bytes() == packed.path.read_bytes()
    with pytest.raises(VcellError, match="specify where"):
        vcell.pack_submission(pred, "vcc2025")
    assert vcell.pack_submission(pred, rules, genes=genes, check=True) is None


def test_what_is_given_wrongly_is_refused(in_trained: Path):
    for wrong in (
        lambda: vcell.describe(7),
        lambda: vcell.load("no.ckpt"),
        lambda: vcell.fit("absent.h5ad"),
    ):
        with pytest.raises(VcellError):
            wrong()
    with pytest.raises(AttributeError, match="no attribute 'modle'"):
        vcell.modle  # noqa: B018


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vcell.build_store(3, "s"), "a path, an AnnData, or a list of these, not as int"),
        (lambda: vcell.build_store([], "s"), "no cells are given"),
        (lambda: vcell.fit(None), "or a list of these, not as NoneType"),
        (lambda: vcell.fit("a.h5ad", max_steps="ten"), "max_steps=ten must be a whole number"),
        (
            lambda: vcell.pack_submission("p.h5ad", "vcc2027"),
            "challenge=vcc2027 must be one of none, vcc2025, vcc2026. Did you mean",
        ),
        (lambda: vcell.score_prediction("p.h5ad", "r.h5ad", challenge="vcc"), "challenge=vcc must be one of"),
        (lambda: vcell.describe("absent.h5ad"), "no such file: absent.h5ad .looked from "),
        (lambda: vcell.describe("x" * 300), "xxx cannot be read: "),
        (
            lambda: vcell.describe("a.h5ad", columns={"target": "gene"}),
            "columns=target must be one of perturbation, batch, context, gene",
        ),
        (lambda: vcell.describe("a.h5ad", columns=3), "columns must be a dict of names and values, not 3"),
        (lambda: vcell.describe("a.h5ad", sample=0), "sample=0 must be a whole number of at least 1"),
        (lambda: vcell.build_store("a.h5ad", "s", overwrite="false"), "overwrite must be True or False, not 'false'"),
        (lambda: vcell.build_store("a.h5ad", "s", workers="many"), "workers=many must be a whole number"),
        (lambda: vcell.build_store("a.h5ad", "s", control=["ctrl", None]), "number 2 of them is None"),
        (lambda: vcell.fit("a.h5ad", settings=[("seed", 1)]), "settings must be a dict"),
        (lambda: vcell.fit("s", test={"GENE1": 2}), "test must be a name or a list of names, not a value of type dict"),
        (lambda: vcell.fit("s", model="tny"), "model=tny must be one of .*Did you mean 'tiny'"),
        (lambda: vcell.fit("s", trainer="tpu"), "trainer=tpu must be one of"),
        (lambda: vcell.fit("s", loss=3), "loss must be a name, or an object or class that can be called, not 3"),
        (lambda: vcell.load(None), "ckpt must be one name, not None"),
        (lambda: vcell.score_prediction("p.h5ad", "r.h5ad", challenge=2026), "challenge=2026 must be one of"),
        (lambda: vcell.score_prediction("p.h5ad", "r.h5ad", against=7), "a list of these, not as int"),
        (lambda: vcell.pack_submission("absent.h5ad", "vcc2025"), "no such file: absent.h5ad"),
        (lambda: vcell.pack_submission("p.h5ad", "vcc2025", genes=3.5), "genes must be a name or a list of names"),
        (lambda: vcell.Challenge("mine", contexts=3), "must be lists of contexts, one for each phase"),
        (lambda: vcell.Challenge("mine", target_sum="mean"), "target_sum=mean must be a number above 0 or median"),
    ],
)
def test_what_cannot_be_given_is_refused_in_one_line(call, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VcellError, match=words):
        call()
    assert not list(tmp_path.iterdir())


def test_one_name_is_a_list_of_one(fresh: Path):
    run = vcell.fit("data/demo/store", name="one", test="GENE0040", max_steps=1, settings={"data.sets.set_size": 4})
    groups = json.loads((run.folder / "split.json").read_text())["groups"]
    assert {g["perturbation"] for g in groups if g["split"] == "test"} == {"GENE0040"}
