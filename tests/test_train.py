"""Training: it learns, it resumes exactly, it survives being killed, and it refuses to mix runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import SMALL, Command, assert_refused, train_here
from vcell.data.store import CellStore
from vcell.errors import VcellError
from vcell.model.checkpoint import read_checkpoint
from vcell.model.metrics import read_metrics

LAST = Path("runs/demo/checkpoints/last.ckpt")


@pytest.fixture()
def fresh(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data, without a run."""
    shutil.copytree(trained / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(path: Path = LAST) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def test_a_run_leaves_what_it_promises(in_trained: Path):
    run = Path("runs/demo")
    assert {p.name for p in run.iterdir()} == {"config.yaml", "split.json", "checkpoints", "metrics.csv", "curves.png"}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    rows = read_metrics(run / "metrics.csv")
    assert {"train/loss", "train/energy", "val/loss", "val/delta_correlation", "lr-AdamW"} <= {
        k for r in rows for k in r
    }
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]


def test_resume_equals_no_interruption(fresh: Path):
    # dropout, so that random numbers count
    options = ["model.dropout=0.2", "model.decoder_layers=2", "trainer.val_check_interval=7"]
    train_here(*options, "trainer.max_steps=16", "schedule.decay=constant")
    whole = weights()
    shutil.rmtree("runs")
    train_here(*options, "trainer.max_steps=9", "schedule.decay=constant")
    assert read_checkpoint(LAST)["global_step"] == 9
    train_here(*options, "trainer.max_steps=16", "schedule.decay=constant")
    resumed = weights()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "vcell.train", "experiment=demo", "trainer=cpu", *SMALL, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment})  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until, process.stdout.read()  # type: ignore[union-attr]
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_continues_and_says_so(fresh: Path, vcell: Command):
    often = "callbacks.last.every_n_steps=5"
    process = start(fresh, often, "trainer.max_steps=100000")
    wait_for(fresh / LAST, process)
    process.kill()
    process.wait()
    step = read_checkpoint(fresh / LAST)["global_step"]
    done = vcell("train", "experiment=demo", "trainer=cpu", *SMALL, often, f"trainer.max_steps={step + 3}", cwd=fresh)
    assert done.returncode == 0, done.stderr
    assert f"continuing   from {LAST} at step {step}" in done.stdout.replace(",", "")
    assert read_checkpoint(fresh / LAST)["global_step"] == step + 3
    assert not list((fresh / LAST).parent.glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_asked_to_stop_saves_first(asked: signal.Signals, fresh: Path):
    scontrol = fresh / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ > {fresh}/requeued\n")
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    process = start(fresh, "callbacks.last.every_n_steps=20", "trainer.max_steps=100000", **job)
    wait_for(fresh / LAST, process)
    process.send_signal(asked)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + asked, said
    # SIGUSR1 is SLURM's warning before the end; SIGTERM may be the user's own word
    assert (fresh / "requeued").exists() == (asked == signal.SIGUSR1)
    if asked == signal.SIGUSR1:
        assert (fresh / "requeued").read_text() == "requeue 77\n"
    saved = int(re.search(r"saved at step ([\d,]+)", said)[1].replace(",", ""))  # type: ignore[index]
    assert read_checkpoint(fresh / LAST)["global_step"] == saved


def test_a_finished_run_is_left_as_it_is(in_trained: Path, capsys: pytest.CaptureFixture[str]):
    before = LAST.stat().st_mtime_ns
    train_here("trainer.max_steps=40", "trainer.val_check_interval=20", "trainer.log_every_n_steps=5")
    assert "at step 40 already" in capsys.readouterr().out and LAST.stat().st_mtime_ns == before


def test_another_configuration_is_refused_by_its_keys(in_trained: Path):
    with pytest.raises(VcellError, match=r"optimizer\.lr \(0\.001 then, 0\.01 now\).*seed \(0 then, 5 now\)"):
        train_here("optimizer.lr=0.01", "seed=5", "trainer.val_check_interval=20")
    with pytest.raises(VcellError, match="resume=never"):
        train_here("resume=never", "trainer.val_check_interval=20")


def test_overwrite_begins_anew(fresh: Path):
    train_here("trainer.max_steps=3")
    train_here("trainer.max_steps=2", "seed=1", "overwrite=true")
    assert read_checkpoint(LAST)["global_step"] == 2


def test_a_damaged_last_checkpoint_falls_back_on_a_sound_one(fresh: Path, capsys: pytest.CaptureFixture[str]):
    options = ["trainer.val_check_interval=4", "trainer.max_steps=6"]
    train_here(*options)
    LAST.write_bytes(LAST.read_bytes()[:1000])
    train_here(*options)
    said = capsys.readouterr().out
    assert "damaged" in said and "best.ckpt at step 4" in said
    assert read_checkpoint(LAST)["global_step"] == 6


def test_bad_data_leaves_no_run_behind(fresh: Path):
    torch.save({"GENE0001": torch.ones(12)}, "small.pt")
    with pytest.raises(VcellError, match="lacks"):
        train_here("perturbation.path=small.pt")
    with pytest.raises(VcellError, match="NOPE"):
        train_here("data.split.test.perturbations=[NOPE]")
    assert not Path("runs").exists()


def test_one_hot_says_what_it_cannot_know(fresh: Path, capsys: pytest.CaptureFixture[str]):
    train_here("perturbation.path=null", "data.split.val.within=null", "trainer.max_steps=2")
    said = capsys.readouterr().out
    assert "one-hot: 20 perturbations" in said and "held out everywhere" in said


def test_wandb_works_offline_without_an_account(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    train_here("logger=wandb", "logger.wandb.offline=true", "trainer.max_steps=3", "trainer.log_every_n_steps=1")
    assert list(Path("runs/demo/wandb").glob("offline-run-*")) and Path("runs/demo/metrics.csv").exists()


@pytest.mark.slow
def test_two_processes_train_together(fresh: Path, vcell: Command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=4"]
    done = vcell("train", "experiment=demo", *SMALL, *two, cwd=fresh, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_checkpoint(fresh / LAST)["global_step"] == 4
    assert done.stdout.count("run folder") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_trains_in_bf16(fresh: Path, vcell: Command):
    done = vcell("train", "experiment=demo", *SMALL, "trainer=gpu", "trainer.max_steps=5", cwd=fresh)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.sets.set_size=0", r"data\.sets\.set_size=0 must be"),
        ("data.target_sum=mean", r"data\.target_sum=mean"),
        ("loss.weights.energy=0", "no term"),
        ("optimizer.lr=-1", "Invalid learning rate"),
        ("model.heads=half", "refused"),
    ],
)
def test_impossible_values_are_refused(override: str, words: str, fresh: Path):
    with pytest.raises(VcellError, match=words):
        train_here(override)
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_said_so(fresh: Path):
    with pytest.raises(VcellError, match="trainer=cpu"):
        train_here("trainer=gpu")


def test_mistakes_end_with_code_2(fresh: Path, vcell: Command):
    shutil.copytree("data/demo/store", "elsewhere/store")
    (fresh / "elsewhere" / "store" / "meta.json").write_text("{")
    done = vcell("train", "experiment=demo", *SMALL, "data.store=elsewhere/store", cwd=fresh)
    assert_refused(done, "elsewhere/store is damaged")


def test_excluded_perturbations_train_nothing(fresh: Path):
    first = sorted({p for c, p in CellStore.open("data/demo/store").groups if p != "non-targeting"})[0]
    train_here(f"data.exclude=[{first}]", "data.split.val.perturbations=0.2", "trainer.max_steps=1")
    assert first not in {p for _, p, _ in read_checkpoint(LAST)["vcell"]["split"]}
    with pytest.raises(VcellError, match=r"data\.exclude names NOPE"):
        train_here("data.exclude=[NOPE]", "name=other")
