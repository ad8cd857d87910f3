"""The SLURM scripts: the configuration is checked once, then every rank runs the same command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vcell.config import compose

SCRIPTS = Path(__file__).parents[1] / "scripts"


def submit(folder: Path, *arguments: str, script: str = "train.slurm") -> tuple[int, str]:
    """Runs a script as a job would, with an srun that only notes what it is asked to run."""
    srun = folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\n')
    srun.chmod(0o755)
    path = f"{srun.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", SCRIPTS / script, *arguments], cwd=folder, env={**os.environ, "PATH": path}, timeout=120
    )
    asked = folder / "asked"
    return done.returncode, asked.read_text() if asked.exists() else ""


def test_ranks_run_the_command(tmp_path: Path):
    code, asked = submit(tmp_path, "experiment=demo", "seed=3")
    assert code == 0
    assert asked == "--kill-on-bad-exit=1 python -m vcell.train experiment=demo seed=3 trainer=slurm\n"


def test_another_trainer_is_kept(tmp_path: Path):
    code, asked = submit(tmp_path, "experiment=demo", "trainer=slurm_fsdp")
    assert code == 0 and asked.endswith("experiment=demo trainer=slurm_fsdp\n")


def test_a_mistyped_key_never_reaches_the_ranks(tmp_path: Path):
    assert submit(tmp_path, "experiment=demo", "sed=3") == (2, "")


def test_a_prediction_is_shared_by_the_ranks(tmp_path: Path):
    code, asked = submit(tmp_path, "challenge=vcc2026", "out=p.h5ad", script="infer.slurm")
    assert code == 0 and asked == "python -m vcell.infer challenge=vcc2026 out=p.h5ad\n"


def test_the_trainer_takes_the_shape_of_the_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    monkeypatch.setenv("SLURM_NNODES", "2")
    trainer = OmegaConf.to_container(compose("train", ["trainer=slurm"]).trainer, resolve=True)
    assert (trainer["devices"], trainer["num_nodes"], trainer["strategy"]) == (4, 2, "ddp")


def test_a_sweep_asks_slurm_for_jobs_that_save_in_time():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    command = [
        sys.executable,
        "-m",
        "vcell.train",
        "hydra/launcher=slurm",
        "experiment=demo",
        "--cfg",
        "hydra",
        "-p",
        "hydra.launcher",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    launcher = OmegaConf.create(done.stdout)
    assert launcher._target_.endswith("SlurmLauncher") and launcher.signal_delay_s == 120
    assert launcher.additional_parameters.requeue and launcher.gpus_per_node == 1
