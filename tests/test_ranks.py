"""Training by several processes: it equals training by one, and it ends when one of them does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import SMALL, Command, start, train_here, val_rows, wait_for
from vcell.model.checkpoint import read_checkpoint
from vcell.model.trained import TrainedModel

pytestmark = pytest.mark.slow
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]
EVERY_TERM = ["loss.weights.delta=1", "loss.weights.l1=1", "loss.weights.contrastive=1", "loss.weights.sparsity=0.1"]
SAME = [*EVERY_TERM, "model.dropout=0", "trainer.val_check_interval=4", "schedule.decay=constant",
        "data.split.val.perturbations=0.25", "callbacks.best.monitor=val/mae"]  # fmt: skip
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def last(name: str) -> Path:
    return Path(f"runs/{name}/checkpoints/last.ckpt")


@pytest.fixture()
def one(fresh: Path) -> Path:
    """A folder with a run of one process and steps of eight sets."""
    train_here(*SAME, "data.sets.sets_per_step=8", "trainer.max_steps=8", "name=one")
    return fresh


def assert_equals_one(name: str) -> None:
    """The same weights and the same scores as those of the run `one`, but for the order of sums."""
    whole, parts = (read_checkpoint(last(n))["state_dict"] for n in ("one", name))
    for key, weight in whole.items():
        torch.testing.assert_close(parts[key], weight, atol=2e-6, rtol=1e-4)
    ours, theirs = val_rows(f"runs/{name}"), val_rows("runs/one")
    assert ours.keys() == theirs.keys() == {4, 8}
    for step, row in theirs.items():
        for score in (k for k in row if k.startswith("val/")):
            assert ours[step][score] == pytest.approx(row[score], rel=1e-3, abs=1e-5), score


def test_two_ranks_train_like_one_with_twice_the_sets(one: Path, vcell: Command):
    both = [*SMALL, *SAME, "trainer=fsdp", *TWO, "name=fsdp"]  # SMALL has four sets a step
    for steps in (5, 8):  # begun, and resumed
        done = vcell("train", "experiment=demo", *both, f"trainer.max_steps={steps}", cwd=one, env=ONE_THREAD)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("run folder") == 1 and "Initializing" not in done.stderr
    assert_equals_one("fsdp")
    TrainedModel.load(last("fsdp"))


def test_two_ranks_of_torchrun_train_like_one_with_twice_the_sets(one: Path):
    # trainer=ddp, whose other launcher the test above takes for fsdp
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "vcell.train",
        "experiment=demo",
    ]
    arguments = [*SMALL, *SAME, "trainer=ddp", *TWO, "name=torchrun", "trainer.max_steps=8"]
    done = subprocess.run(
        [sys.executable, *command, *arguments], cwd=one, env=ONE_THREAD, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_equals_one("torchrun")


@pytest.mark.parametrize("victim", ["first", "second"] if os.environ.get("VCELL_RELEASE") else ["first"])
def test_a_dead_rank_ends_the_job(victim: str, fresh: Path):
    process = start(
        fresh, "trainer=ddp", *TWO, "trainer.max_steps=1000000", "callbacks.last.every_n_steps=5", OMP_NUM_THREADS="1"
    )
    wait_for(fresh / last("demo"), process)
    second = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()[0])
    os.kill(process.pid if victim == "first" else second, signal.SIGKILL)
    said = process.communicate(timeout=60)[0]  # both have ended: the pipe is closed
    assert process.returncode != 0
    assert "lost contact with another rank" in said or victim == "second"
    until = time.monotonic() + 30
    while Path(f"/proc/{second}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{second}").exists()


def test_a_loss_that_is_not_finite_ends_all_ranks(fresh: Path, vcell: Command):
    wild = ["optimizer.lr=1e30", "schedule.warmup_steps=1", "trainer.gradient_clip_val=0"]
    done = vcell(
        "train",
        "experiment=demo",
        *SMALL,
        *wild,
        "trainer=ddp",
        *TWO,
        "trainer.max_steps=50",
        cwd=fresh,
        env=ONE_THREAD,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "is not finite" in done.stderr and "Traceback" not in done.stderr
