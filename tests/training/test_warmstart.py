"""Warm start: what two runs have in common is carried over by name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import train_here
from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError
from vcell.model.checkpoint import Identity, read_checkpoint
from vcell.model.table import PerturbationTable
from vcell.model.trained import TrainedModel
from vcell.model.transition import TransitionModel
from vcell.training.module import TransitionModule
from vcell.training.warmstart import carry_over

SHAPE = {"hidden": 16, "layers": 1, "heads": 2, "head_width": 8, "feed_forward": 16, "encoder_layers": 2, "decoder_layers": 2}  # fmt: skip
GENES, TARGETS = [f"G{i}" for i in range(12)], ["P", "Q", "R"]
TABLE = PerturbationTable(TARGETS, torch.randn(3, 5), "table.pt")
STORE = {"paths": ["store"], "fingerprint": ""}


def make(
    genes: list[str], table: PerturbationTable, covariates: dict | None = None, **shape: object
) -> TransitionModule:
    sizes = {"n_genes": len(genes), "perturbation_width": table.width, "input_width": None, "seen_genes": None,
             "n_contexts": len(covariates["contexts"]) if covariates else 0, "n_batches": 0}  # fmt: skip
    torch.manual_seed(len(genes))
    model = TransitionModel(**{**SHAPE, **shape}, **sizes, covariates=["context"] if covariates else [])
    about = {
        "origin": table.origin,
        "width": table.width,
        "names": list(table.names),
        "fingerprint": table.fingerprint,
        "vectors": None,
    }
    data = {"sets": {"set_size": 4}, "columns": {}, "input": None, "request": {}}
    identity = Identity("0", {"data": data}, genes, "NT", 1e4, sizes, covariates, STORE, [], about)
    return TransitionModule(TrainedModel(model, table, identity)).eval()


def saved(module: TransitionModule, path: Path) -> Path:
    torch.nn.init.normal_(module.model.decoder[-1].weight, std=0.3)
    torch.save({"state_dict": module.state_dict(), "global_step": 7, "vcell": module.identity.plain()}, path)
    return path


def predict(module: TransitionModule, genes: list[str], perturbation: str) -> dict[str, torch.Tensor]:
    """Prediction for one set, gene by gene; the cells of a gene are the same however it is placed."""
    cells = [torch.linspace(0.5, 2.5, 4).roll(int(g[1:])) for g in genes]
    batch = CellSetBatch(["A"], [perturbation], torch.stack(cells, -1).unsqueeze(0), None, context_S=torch.tensor([0]))
    with torch.no_grad():
        return dict(zip(genes, module.predict(batch)[0].unbind(-1), strict=True))


def test_the_same_run_is_carried_over_whole(tmp_path: Path):
    old, new = make(GENES, TABLE), make(GENES, TABLE)
    said = carry_over(new, saved(old, tmp_path / "a.ckpt"))[0]
    assert all(torch.equal(v, new.state_dict()[k]) for k, v in old.state_dict().items())
    assert said[0].endswith("step 7") and "genes: all 12 carried over" in said


def test_genes_in_another_order_predict_the_same(tmp_path: Path):
    old, shuffled = make(GENES, TABLE), GENES[::-1]
    new = make(shuffled, TABLE)
    carry_over(new, saved(old, tmp_path / "a.ckpt"))
    before, after = predict(old, GENES, "Q"), predict(new, shuffled, "Q")
    for gene in GENES:
        torch.testing.assert_close(after[gene], before[gene], atol=1e-5, rtol=1e-5)


def test_new_genes_change_nothing_yet(tmp_path: Path):
    old, more = make(GENES, TABLE), ["G50", *GENES, "G51"]
    new = make(more, TABLE)
    said = carry_over(new, saved(old, tmp_path / "a.ckpt"))[0]
    before, after = predict(old, GENES, "P"), predict(new, more, "P")
    for gene in GENES:
        torch.testing.assert_close(after[gene], before[gene], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after["G50"], torch.linspace(0.5, 2.5, 4).roll(50))  # their control value
    assert "genes: 12 carried over, 2 new, 0 left out" in said


def test_one_hot_perturbations_are_matched_by_name(tmp_path: Path):
    old = make(GENES, PerturbationTable.one_hot(["P", "Q", "R"]))
    new = make(GENES, PerturbationTable.one_hot(["O", "Q", "R", "S"]))
    said = carry_over(new, saved(old, tmp_path / "a.ckpt"))[0]
    for name in ("Q", "R"):
        before, after = predict(old, GENES, name), predict(new, GENES, name)
        torch.testing.assert_close(after["G3"], before["G3"], atol=1e-5, rtol=1e-5)
    assert "perturbations: 2 carried over, 2 new, 1 left out" in said


def test_another_table_begins_its_layer_anew_or_is_remarked_on(tmp_path: Path):
    path = saved(make(GENES, TABLE), tmp_path / "a.ckpt")
    wider = make(GENES, PerturbationTable(TARGETS, torch.randn(3, 9), "wide.pt"))
    assert any("starts untrained" in line for line in carry_over(wider, path)[0])
    other = make(GENES, PerturbationTable(TARGETS, torch.randn(3, 5), "other.pt"))
    assert any("assumed to mean the same" in line for line in carry_over(other, path)[0])


def test_contexts_are_matched_by_name(tmp_path: Path):
    old = make(GENES, TABLE, {"contexts": ["A", "B"], "batches": []})
    new = make(GENES, TABLE, {"contexts": ["B", "C"], "batches": []})
    said = carry_over(new, saved(old, tmp_path / "a.ckpt"))[0]
    assert torch.equal(new.model.context.weight[0], old.model.context.weight[1])
    assert "contexts: 1 carried over, 1 new, 1 left out" in said
    without = make(GENES, TABLE)
    assert "left out: context.weight" in carry_over(without, tmp_path / "a.ckpt")[0]


@pytest.mark.parametrize("shape", [{"hidden": 32}, {"layers": 2}, {"decoder_layers": 1}], ids=str)
def test_a_model_of_another_shape_is_refused(shape: dict, tmp_path: Path):
    path = saved(make(GENES, TABLE), tmp_path / "a.ckpt")
    with pytest.raises(VcellError, match="another shape"):
        carry_over(make(GENES, TABLE, **shape), path)


def test_lora_trains_low_rank_changes_alone(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("peft")
    train_here("trainer.max_steps=6", "name=whole")
    whole = Path("runs/whole/checkpoints/last.ckpt")
    tuned = [
        f"init_from={whole}",
        "finetune=lora",
        "lora.rank=2",
        "name=tuned",
        "trainer.val_check_interval=2",
        "schedule.decay=constant",
    ]
    train_here(*tuned, "trainer.max_steps=8")
    uninterrupted = read_checkpoint(Path("runs/tuned/checkpoints/last.ckpt"))["state_dict"]
    shutil.rmtree("runs/tuned")
    for steps in (3, 8):
        train_here(*tuned, f"trainer.max_steps={steps}")
    found = read_checkpoint(Path("runs/tuned/checkpoints/last.ckpt"))["state_dict"]
    assert all(torch.equal(weight, uninterrupted[name]) for name, weight in found.items())
    before = read_checkpoint(whole)["state_dict"]
    kept = {name: w for name, w in found.items() if ".lora_" not in name}
    assert all(torch.equal(w, before[name.replace(".base_layer.", ".")]) for name, w in kept.items())
    assert any(w.abs().max() > 0 for name, w in found.items() if ".lora_B" in name)

    # it is read without peft, as a network of the same shape
    monkeypatch.setitem(sys.modules, "peft", None)
    one, other = (
        TrainedModel.load(path).model.state_dict() for path in (whole, Path("runs/tuned/checkpoints/last.ckpt"))
    )
    assert one.keys() == other.keys() and any(not torch.equal(one[name], other[name]) for name in one)
    changed = other["decoder.0.weight"] - one["decoder.0.weight"]
    assert int(torch.linalg.matrix_rank(changed.double(), rtol=1e-4)) <= 2


def test_lora_needs_weights_to_start_from(fresh: Path):
    with pytest.raises(VcellError, match=r"init_from=FILE\.ckpt"):
        train_here("finetune=lora", "trainer.max_steps=2")
    with pytest.raises(VcellError, match="finetune=lara must be lora"):
        train_here("finetune=lara", "trainer.max_steps=2")
