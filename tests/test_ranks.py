"""Training by several processes: it equals training by one, and it ends when one of them does."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch

from tests.conftest import RELEASE, SMALL, Command, train_here, val_rows, wait_for
from tests.forked import Forked
from vcell.model.checkpoint import read_checkpoint
from vcell.model.trained import TrainedModel

pytestmark = pytest.mark.slow
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]
EVERY_TERM = ["loss.weights.delta=1", "loss.weights.l1=1", "loss.weights.contrastive=1", "loss.weights.sparsity=0.1"]
SAME = [*EVERY_TERM, "model.prior=transfer", "model.dropout=0", "trainer.val_check_interval=4", "schedule.decay=constant",
        "data.split.val.perturbations=0.25", "callbacks.best.monitor=val/mae"]  # fmt: skip
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def last(name: str) -> Path:
    return Path(f"runs/{name}/checkpoints/last.ckpt")


def ranks(folder: Path, *arguments: str) -> list[Forked]:
    """Two processes of a run, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    job |= {"TORCHELASTIC_RUN_ID": "1", **ONE_THREAD}
    of_rank = [{**job, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    return [Forked("vcell.train", arguments, folder, environment, together=True) for environment in of_rank]


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
    both = ["experiment=demo", *SMALL, *SAME, *TWO]  # SMALL has four sets a step
    begun = ["trainer=fsdp", "name=fsdp", "trainer.max_steps=5"]
    done = vcell("train", *both, *begun, cwd=one, env=ONE_THREAD)  # by Lightning's own launcher
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("run folder") == 1 and "Initializing" not in done.stderr
    for strategy in ("fsdp", "ddp"):
        for rank in ranks(one, *both, f"trainer={strategy}", f"name={strategy}", "trainer.max_steps=8"):
            assert rank.wait(120) == 0, rank.stdout.read()
    assert_equals_one("fsdp")
    TrainedModel.load(last("fsdp"))
    assert_equals_one("ddp")


@pytest.mark.parametrize("victim", [0, 1] if RELEASE else [0])
def test_a_dead_rank_ends_the_job(victim: int, fresh: Path):
    endless = [*SMALL, "trainer=ddp", *TWO, "trainer.max_steps=1000000", "callbacks.last.every_n_steps=5"]
    both = ranks(fresh, "experiment=demo", *endless)
    wait_for(fresh / last("demo"), both[0])
    both[victim].kill()
    survivor = both[1 - victim]
    assert survivor.wait(60) != 0
    assert "lost contact with another rank" in survivor.stdout.read()


def test_a_launcher_ends_with_its_ranks(fresh: Path, vcell: Command):
    """Lightning's own launcher."""
    wild = ["optimizer.lr=1e30", "schedule.warmup_steps=1", "trainer.gradient_clip_val=0"]
    two = ["trainer=ddp", *TWO, "trainer.max_steps=50"]
    done = vcell("train", "experiment=demo", *SMALL, *wild, *two, cwd=fresh, env=ONE_THREAD)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "is not finite" in done.stderr and "Traceback" not in done.stderr
