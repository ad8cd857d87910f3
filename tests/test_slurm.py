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
    assert asked == "--kill-on-bad-exit=1 --gpu-bind=none python -m vcell.train experiment=demo seed=3 trainer=slurm\n"


def test_another_trainer_is_kept(tmp_path: Path):
    code, asked = submit(tmp_path, "experiment=demo", "trainer=slurm_fsdp")
    assert code == 0 and asked.endswith("experiment=demo trainer=slurm_fsdp\n")


def test_a_mistyped_key_never_reaches_the_ranks(tmp_path: Path):
    assert submit(tmp_path, "experiment=demo", "sed=3") == (2, "")


def test_a_prediction_is_shared_by_the_ranks(tmp_path: Path):
    code, asked = submit(tmp_path, "challenge=vcc2026", "out=p.h5ad", script="infer.slurm")
    assert code == 0 and asked == "--gpu-bind=none python -m vcell.infer challenge=vcc2026 out=p.h5ad\n"


@pytest.mark.parametrize(
    ("task", "values"),
    [(0, ["lr=0.1", "seed=0"]), (1, ["lr=0.2", "seed=0"]), (2, ["lr=0.1", "seed=1"]), (3, ["lr=0.2", "seed=1"])],
)
def test_a_sweeps_values_are_dealt_to_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: int, values: list[str]
):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
    code, asked = submit(
        tmp_path, "experiment=demo", "optimizer.lr=0.1,0.2", "seed=0,1", "name=a", script="sweep.slurm"
    )
    assert code == 0
    assert asked.endswith(f"vcell.train experiment=demo optimizer.{values[0]} {values[1]} name=a_{task}\n")


def test_a_task_without_a_combination_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert submit(tmp_path, "experiment=demo", "optimizer.lr=0.1,0.2", "seed=0,1", script="sweep.slurm") == (2, "")


def test_the_scripts_are_set_up_for_a_site_in_the_same_way():
    parts = [
        path.read_text().split("# --- edit for your site")[1].split("unset ")[0] for path in SCRIPTS.glob("*.slurm")
    ]
    assert len(parts) == 6 and len(set(parts)) == 1


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
