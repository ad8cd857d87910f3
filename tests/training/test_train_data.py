"""Training and predicting on every kind of input that a store can give."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from tests.conftest import infer_here
from tests.data.store.test_ingest import as_fractions, make_cells, write
from tests.data.store.test_panel import two_panels
from vcell.config import compose
from vcell.data.files.genes import gene_names
from vcell.data.store.ensure import ensure_store
from vcell.data.store.options import StoreOptions
from vcell.errors import VcellError
from vcell.training.train import train

TINY = [
    "data=perturb_seq", "name=run", "trainer=cpu", "trainer.max_steps=4", "trainer.val_check_interval=2", "model.hidden=16",
    "model.heads=2", "model.head_width=8", "model.feed_forward=16", "data.sets.set_size=4", "data.sets.sets_per_step=2",
    "data.split.test.perturbations=[G1]", "data.split.test.within=[H1]", "data.split.val.perturbations=0",
]  # fmt: skip


def train_tiny(*overrides: str) -> dict:
    """Trains in the working folder and returns what the checkpoint says of itself."""
    train(compose("train", [*TINY, *overrides]))
    return torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)["vcell"]


@pytest.fixture()
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a.h5ad, which has an embedding."""
    monkeypatch.chdir(tmp_path)
    cells = make_cells(n=200)
    cells.obsm["X_state"] = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32)
    write(cells, tmp_path / "a.h5ad")
    return tmp_path


def test_variable_genes_are_what_the_model_knows_and_predicts(here: Path):
    identity = train_tiny("data.path=a.h5ad", "data.hvg=12")
    assert len(identity["genes"]) == 12
    infer_here("out=pred.h5ad", "ckpt=runs/run/checkpoints/last.ckpt")
    assert ad.read_h5ad("pred.h5ad").var_names.tolist() == identity["genes"]


def test_an_embedding_is_seen_in_place_of_expression(here: Path, capsys):
    identity = train_tiny("data.path=a.h5ad", "data.input=X_state")
    assert identity["sizes"]["input_width"] == 7 and "obsm/X_state of the control cells" in capsys.readouterr().out
    weights = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert next(v.shape for k, v in weights.items() if "cell_encoder" in k and v.ndim == 2) == (16, 7)
    infer_here("out=pred.h5ad", "ckpt=runs/run/checkpoints/last.ckpt")
    assert ad.read_h5ad("pred.h5ad").n_vars == 40
    infer_here(
        "out=other.h5ad", "controls=a.h5ad", "targets=[G1]", "contexts=[H1]", "ckpt=runs/run/checkpoints/last.ckpt"
    )
    with pytest.raises(VcellError, match=r"holds no embedding 'X_pca'|obsm/X_pca is none"):
        train_tiny("data.path=a.h5ad", "data.input=X_pca", "name=other", "data.store=other")


def test_stores_of_different_panels_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, path in zip("ab", two_panels(tmp_path), strict=True):
        ensure_store(
            StoreOptions.of(compose("prepare", ["data=perturb_seq", f"data.path={path}", f"data.store={name}"]).data)
        )
    identity = train_tiny("data.stores=[a,b]", "data.split.test.within=[A]")
    assert len(identity["genes"]) == 50 and "were not measured in every source" in capsys.readouterr().out
    infer_here("out=pred.h5ad", "ckpt=runs/run/checkpoints/last.ckpt")
    assert ad.read_h5ad("pred.h5ad").n_vars == 50


def test_the_split_is_in_the_run_folder_and_leaks_are_refused(here: Path):
    cells = make_cells(n=200)
    cells.obs["target_gene"] = np.where(np.arange(200) % 7 == 0, "G1+G2", cells.obs["target_gene"].astype(str))
    write(cells, here / "double.h5ad")
    with pytest.raises(VcellError, match=r"G1\+G2 \(H1\) reveals G1.*data\.split\.leaks=drop"):
        train_tiny("data.path=double.h5ad")
    assert not (here / "runs").exists()
    train_tiny("data.path=double.h5ad", "data.split.leaks=drop")
    groups = json.loads((here / "runs/run/split.json").read_text())["groups"]
    assert {(g["context"], g["perturbation"]): g["split"] for g in groups} == {
        ("H1", "G1"): "test", ("H1", "G2"): "train", ("K562", "G1"): "train", ("K562", "G2"): "train", ("K562", "G1+G2"): "train",
    }  # fmt: skip


def test_different_scales_are_refused_until_reconciled(here: Path, capsys):
    write(as_fractions(make_cells(n=200, seed=1)), here / "b.h5ad")
    both = ["data.path=[a.h5ad,b.h5ad]"]
    with pytest.raises(VcellError, match=r"on different scales.*data\.reconcile=proportions"):
        train_tiny(*both)
    assert not (here / "runs").exists()
    train_tiny(*both, "data.reconcile=proportions")
    assert "data.reconcile" in capsys.readouterr().out


def test_folds_and_weights_go_through_the_command(here: Path):
    identity = train_tiny(
        "data.path=a.h5ad", "overwrite=true", "data.split.folds.number=2", "data.split.folds.by=context",
        "data.split.test.perturbations=0", "data.split.test.within=null", "data.sets.weights.perturbations={G1: 2}",
    )  # fmt: skip
    assert len({c for c, _, split in identity["split"] if split == "test"}) == 1


def test_the_resident_store_trains_to_the_same_weights(here: Path):
    def weights(name: str, resident: str) -> dict:
        train(compose("train", [*TINY, "data.path=a.h5ad", f"name={name}", f"data.sets.resident={resident}"]))
        return torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]

    fetched, resident = weights("fetched", "false"), weights("resident", "true")
    for key, value in fetched.items():
        torch.testing.assert_close(resident[key], value, rtol=0, atol=0)


def test_a_run_is_not_continued_on_other_cells(here: Path):
    train_tiny("data.path=a.h5ad")
    cells = make_cells(n=200)
    cells.obs["target_gene"] = cells.obs["target_gene"].to_numpy()[::-1]
    write(cells, here / "a.h5ad")
    ensure_store(StoreOptions.of(compose("prepare", ["data=perturb_seq", "data.path=a.h5ad"]).data), overwrite=True)
    with pytest.raises(VcellError, match=r"the cells are not what the run was started with.*overwrite=true"):
        train_tiny("data.path=a.h5ad", "trainer.max_steps=8")


def test_a_model_may_see_variable_genes_only_and_predicts_all(here: Path, capsys):
    identity = train_tiny("data.path=a.h5ad", "data.input=12")
    assert len(identity["sizes"]["seen_genes"]) == 12 and len(identity["genes"]) == 40
    assert "the 12 most variable genes of the control cells" in capsys.readouterr().out
    infer_here("out=pred.h5ad", "ckpt=runs/run/checkpoints/last.ckpt")
    assert ad.read_h5ad("pred.h5ad").n_vars == 40
    with pytest.raises(VcellError, match=r"data\.input=50 must be"):
        train_tiny("data.path=a.h5ad", "data.input=50", "name=other")


def test_contexts_and_batches_are_embedded_and_unknown_ones_said(here: Path, capsys):
    identity = train_tiny("data.path=a.h5ad", "model.covariates=[context,batch]")
    assert identity["covariates"]["contexts"] == ["H1", "K562"] and len(identity["covariates"]["batches"]) > 1
    infer_here("out=pred.h5ad", "ckpt=runs/run/checkpoints/last.ckpt")
    assert "were not trained on" not in capsys.readouterr().out
    cells = ad.read_h5ad("a.h5ad")
    cells.obs["cell_type"] = "other"
    cells.write_h5ad("b.h5ad")
    infer_here("out=b_pred.h5ad", "controls=b.h5ad", "targets=[G1]", "ckpt=runs/run/checkpoints/last.ckpt")
    said = capsys.readouterr().out
    assert "the contexts other and the batches of" in said and "the mean embedding is used for them" in said


@pytest.fixture()
def dosed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ad.AnnData:
    """Cells whose perturbations have doses and types, in a.h5ad; control cells have neither."""
    monkeypatch.chdir(tmp_path)
    cells = make_cells(n=240)
    perturbed = (cells.obs["target_gene"] != "non-targeting").to_numpy()
    rng = np.random.default_rng(1)
    cells.obs["dose"] = np.where(perturbed, rng.choice(["0.2 uM", "1 uM"], 240), "vehicle")
    cells.obs["kind"] = np.where(
        perturbed & (cells.obs["cell_type"] == "H1"), "CRISPRa", np.where(perturbed, "CRISPRi", "")
    )
    write(cells, tmp_path / "a.h5ad")
    return cells


def test_doses_and_types_make_perturbations_of_their_own(dosed: ad.AnnData, tmp_path: Path):
    columns = ["data.path=a.h5ad", "data.columns.dose=dose", "data.columns.type=kind"]
    held_out = "data.split.test.perturbations=[G1@1@CRISPRa]"
    with pytest.raises(VcellError, match=r"G1@0\.2@CRISPRa .H1. reveals G1@1@CRISPRa"):
        train_tiny(*columns, held_out)
    identity = train_tiny(*columns, held_out, "data.split.leaks=allow")
    groups = {(c, p) for c, p, _ in identity["split"]}
    assert groups == {
        (c, f"{g}@{d}@{t}")
        for c, t in (("H1", "CRISPRa"), ("K562", "CRISPRi"))
        for g in ("G1", "G2")
        for d in ("0.2", "1")
    }
    names, vectors = identity["table"]["names"], identity["table"]["vectors"]
    row = dict(zip(names, vectors.tolist(), strict=True))
    assert row["G2@0.2@CRISPRi"] == pytest.approx([0, 1, np.log1p(0.2), 0, 1])  # G1, G2, dose, CRISPRa, CRISPRi
    # a dose that was never measured, for which the network has a vector all the same
    infer_here(
        "out=pred.h5ad", "ckpt=runs/run/checkpoints/last.ckpt", "targets=[G2@0.5@CRISPRa]", "contexts=[H1]", "n_cells=5"
    )
    assert (ad.read_h5ad("pred.h5ad").obs["target_gene"] == "G2@0.5@CRISPRa").sum() == 5
    with pytest.raises(VcellError, match=r"lacks 1 perturbations: G2@0\.5@KO"):
        infer_here(
            "out=x.h5ad", "ckpt=runs/run/checkpoints/last.ckpt", "targets=[G2@0.5@KO]", "contexts=[H1]", "n_cells=5"
        )


def test_a_dose_that_is_none_is_refused(dosed: ad.AnnData):
    dosed.obs["dose"] = dosed.obs["dose"].replace("1 uM", "much")
    write(dosed, Path("a.h5ad"))
    with pytest.raises(VcellError, match="perturbed cells have no dose that begins with a number of at least 0: much"):
        train_tiny("data.path=a.h5ad", "data.columns.dose=dose")


def test_the_knockdown_of_a_target_is_known_at_any_dose():
    names = gene_names()
    assert names.targets("STAT1@0.2@CRISPRi") == ("STAT1",) and names.targets("KLF1+MAP2K6@CRISPRa") == (
        "KLF1",
        "MAP2K6",
    )
