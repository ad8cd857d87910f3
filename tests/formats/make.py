"""Writes the files of this folder: what a released vcell leaves on disk, for later versions to open, continue and predict from.

    python tests/formats/make.py        (with the vcell that is to be remembered)

Kept beside this script: `screen/*.h5ad` (simulated), `store/` (a cell store), `runs/first/` (a run of 6 steps), `pred.h5ad`
(what it predicted) and `expected.json` (the commands, and the keys of that file). They are never made again for a new version: that they still work is the test.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py

from vcell import __version__

HERE = Path(__file__).parent
SCREEN = [
    "genes=40", "contexts=[simA,simB]", "targets=8", "test_targets=2", "cells_per_target=6",
    "controls_per_context=16", "batches=2", "library_size=300", "embedding=6",
]  # fmt: skip
TRAIN = [
    "experiment=perturb_seq", "trainer=cpu", "name=first", "data.path=screen/*.h5ad", "data.store=store", "perturbation.path=null",
    "data.split.test.perturbations=[GENE0001]", "data.split.val.perturbations=0.2", "data.sets.set_size=4", "data.sets.sets_per_step=2",
    "model=tiny", "model.hidden=8", "model.heads=1", "model.head_width=8", "model.feed_forward=8", "model.layers=1",
    "trainer.val_check_interval=3", "trainer.log_every_n_steps=3", "callbacks.last.every_n_steps=3", "data.sets.resident=false",
]  # fmt: skip
INFER = ["ckpt=runs/first/checkpoints/last.ckpt", "targets=[{target}]", "n_cells=5", "contexts=[simA]", "device=cpu"]


def run(verb: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"vcell.{verb}", *arguments], check=True, cwd=HERE)


def main() -> None:
    run("simulate", "out=made", *SCREEN)
    (HERE / "screen").mkdir()
    for path in (HERE / "made").glob("sim*.h5ad"):
        path.rename(HERE / "screen" / path.name)
    target = ad.read_h5ad(HERE / "screen" / "simA.h5ad").obs["target_gene"].astype(str)
    target = sorted(set(target) - {"non-targeting"})[0]
    train = [a.replace("GENE0001", target) for a in TRAIN]
    run("train", *train, "trainer.max_steps=6")
    run("infer", *[a.format(target=target) for a in INFER], "out=pred.h5ad")
    pred = ad.read_h5ad(HERE / "pred.h5ad")
    about = {
        "vcell": __version__, "train": train, "infer": [a.format(target=target) for a in INFER], "target": target,
        "uns": sorted(pred.uns), "about": sorted(json.loads(pred.uns["vcell"])),
    }  # fmt: skip
    (HERE / "expected.json").write_text(json.dumps(about, indent=1) + "\n")
    with h5py.File(HERE / "pred.h5ad", "r+") as file:  # paths of this machine mean nothing on another
        attributes = dict(file["uns/vcell"].attrs)
        elsewhere = {**json.loads(pred.uns["vcell"]), "ckpt": "runs/first/checkpoints/last.ckpt", "store": ["store"]}
        del file["uns/vcell"]
        file.create_dataset("uns/vcell", data=json.dumps(elsewhere), dtype=h5py.string_dtype()).attrs.update(attributes)
    shutil.rmtree(HERE / "made")
    for name in ("curves.png", "checkpoints/best.ckpt"):  # large, or the same again
        (HERE / "runs" / "first" / name).unlink()


if __name__ == "__main__":
    main()
