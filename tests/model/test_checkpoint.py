from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from vcell.errors import VcellError
from vcell.model.checkpoint import AtomicCheckpointIO, read_checkpoint, read_identity
from vcell.model.find import find_checkpoint
from vcell.model.trained import TrainedModel


def test_a_checkpoint_is_read_without_unpickling_and_is_enough(
    in_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy("runs/demo/checkpoints/last.ckpt", tmp_path / "alone.ckpt")
    monkeypatch.chdir(tmp_path)
    module = TrainedModel.load(tmp_path / "alone.ckpt")
    identity = module.identity
    assert len(identity.genes) == 120 and identity.control == "non-targeting" and identity.target_sum > 0
    assert {split for *_, split in identity.split} == {"train", "val"}
    assert set(module.table.names) == set(identity.genes)


def test_a_bare_name_means_the_newest_run(in_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("old", "new")):
        path = tmp_path / "runs" / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (i, i))
    assert find_checkpoint("last.ckpt").parts[-3] == "new"
    (tmp_path / "last.ckpt").touch()
    assert find_checkpoint("last.ckpt") == Path("last.ckpt")
    with pytest.raises(VcellError, match=r"no checkpoint best\.ckpt"):
        find_checkpoint("best.ckpt")


@pytest.mark.parametrize("given", ["runs/mine", "runs/mine/checkpoints", "mine"])
def test_a_folder_in_place_of_a_checkpoint_is_told_the_file_in_it(tmp_path, monkeypatch, given: str):
    monkeypatch.chdir(tmp_path)
    file = Path("runs", "mine", "checkpoints", "best.ckpt")
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(VcellError, match=rf"name the file: ckpt={file}$"):
        find_checkpoint(given)


def test_damaged_and_foreign_files_are_refused(in_trained: Path, tmp_path: Path):
    whole = Path("runs/demo/checkpoints/last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(VcellError, match="damaged"):
        read_checkpoint(tmp_path / "cut.ckpt")
    with pytest.raises(VcellError, match="not a checkpoint of vcell"):
        read_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("genes", []), ("genes", ["G1", 2]), ("genes", ["G1"]), ("control", None), ("target_sum", 0.0), ("config", {}), ("store", {}),
        ("split", [["K562", ["G1"], "train"]]), ("table", {"names": ["G1"]}), ("sizes", {"n_genes": -1}), ("sizes", {}), ("chosen_for", {"a": 1}),
        ("addition", 2.0), ("own_gene", {"K562": {}}),
    ],
)  # fmt: skip
def test_a_damaged_description_is_refused(in_trained: Path, tmp_path: Path, part: str, value: object):
    checkpoint = read_checkpoint(Path("runs/demo/checkpoints/last.ckpt"))
    checkpoint["vcell"][part] = value
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(VcellError, match="has a damaged description of its run"):
        read_identity(tmp_path / "bad.ckpt")


def test_a_checkpoint_cannot_name_code_to_run(in_trained: Path, tmp_path: Path):
    checkpoint = read_checkpoint(Path("runs/demo/checkpoints/last.ckpt"))
    checkpoint["vcell"]["config"]["model"]["_target_"] = "os.system"
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(VcellError, match=r"asks to run 'os\.system'"):
        TrainedModel.load(tmp_path / "bad.ckpt")


def test_weights_that_do_not_fit_are_named_in_one_line(in_trained: Path, tmp_path: Path):
    checkpoint = read_checkpoint(Path("runs/demo/checkpoints/last.ckpt"))
    weights = checkpoint["state_dict"]
    name = next(name for name, weight in weights.items() if weight.dim() == 2)
    shape = list(weights[name].shape)
    weights[name] = weights[name][:-1]
    weights["model.more"] = weights.pop(next(reversed(weights)))
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(VcellError, match="do not fit the model") as error:
        TrainedModel.load(tmp_path / "bad.ckpt")
    assert f"{name.removeprefix('model.')} is {[shape[0] - 1, shape[1]]}, not {shape}" in str(error.value)
    assert "it lacks " in str(error.value) and "it does not know more" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"vcell": {}, "step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        io.save_checkpoint({"vcell": {}, "bad": lambda: None}, path)
    assert read_checkpoint(path)["step"] == 1
