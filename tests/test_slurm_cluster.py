"""The SLURM scripts on a real SLURM of one node, started by the test: submit, preempt, requeue, resume, sweep.

Needs slurmctld, slurmd, munged and the right to start them (root): Debian's packages slurmctld, slurmd, slurm-client, munge. VCELL_RELEASE=1 runs it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import BEFORE_RELEASE, SMALL
from vcell.model.checkpoint import read_checkpoint
from vcell.records.journal import read_starts

NEEDED = ("slurmctld", "slurmd", "sbatch", "scontrol", "munged")
SCRIPTS = Path(__file__).parents[1] / "scripts"
SOURCE = Path(__file__).parents[1] / "src"
pytestmark = [
    pytest.mark.slow,
    BEFORE_RELEASE,  # SLURM itself waits a minute before it starts a requeued job again
    pytest.mark.skipif(
        not all(map(shutil.which, NEEDED)) or os.geteuid() != 0, reason="needs SLURM's daemons, and root"
    ),
]
# what stands in for GPUs and large nodes: nothing, and this machine
HERE = ["--gres=none", "--mem=0", "--cpus-per-task=1"]


def port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Runs a command of SLURM's in its cluster of one node, with a partition whose jobs take the place of another's."""
    place = Path(tmp_path_factory.mktemp("slurm"))
    for name in ("state", "spool", "munge"):
        (place / name).mkdir(mode=0o700)
    (place / "key").write_bytes(os.urandom(1024))
    (place / "key").chmod(0o600)
    host, cores = socket.gethostname(), max(2, os.cpu_count() or 2)
    (place / "slurm.conf").write_text(f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port()}
SlurmdPort={port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60 OverSubscribe=NO
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 OverSubscribe=NO
""")
    environment = {**os.environ, "SLURM_CONF": str(place / "slurm.conf")}
    started = [
        subprocess.Popen([*command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={place}/key", f"--socket={place}/munge.socket",
             f"--pid-file={place}/munge.pid", f"--log-file={place}/munge.log", f"--seed-file={place}/munge.seed"],
            ["slurmctld", "-D"], ["slurmd", "-D", "-N", host],
        )
    ]  # fmt: skip

    def run(*command: str, cwd: Path | None = None, **more: str) -> str:
        done = subprocess.run(command, env={**environment, **more}, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout.strip()

    try:
        until(
            lambda: "idle" in _quietly(run, "sinfo", "--noheader"),
            30,
            lambda: (place / "slurmctld.log").read_text()[-2000:],
        )
        yield run
    finally:
        _quietly(run, "scancel", "--user=root")
        time.sleep(1)
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(20)


def _quietly(run: Callable[..., str], *command: str) -> str:
    try:
        return run(*command)
    except (AssertionError, subprocess.SubprocessError):
        return ""


def until(holds: Callable[[], bool], seconds: float, told: Callable[[], str] = lambda: "") -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            pytest.fail(f"did not come to pass in {seconds:.0f} s\n{told()}")
        time.sleep(0.3)


@pytest.fixture
def submit(cluster: Callable[..., str], fresh: Path) -> Callable[..., str]:
    """Submits a script from a folder with the demo's data; gives the job's number."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(SOURCE),
        "ENVIRONMENT": "none",  # python is that of the tests
    }

    def submitted(script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        command = ["sbatch", "--parsable", *HERE, *options, str(SCRIPTS / script), *arguments]
        return cluster(*command, cwd=fresh, **environment)

    return submitted


def state(cluster: Callable[..., str], job: str) -> str:
    shown = cluster("scontrol", "show", "job", job)
    return shown.split("JobState=")[1].split()[0]


def log(fresh: Path) -> str:
    return "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in fresh.glob("*.log"))


DEMO = ["experiment=demo", "trainer=cpu", *SMALL]


def test_a_run_that_is_preempted_saves_requeues_and_is_resumed(
    cluster: Callable[..., str], submit: Callable[..., str], fresh: Path
):
    job = submit("train_1gpu.slurm", *DEMO, "name=preempted", "trainer.max_steps=1500", "trainer.val_check_interval=500", options=("--signal=USR1@30", "--partition=low", "--exclusive"))  # fmt: skip
    metrics = fresh / "runs" / "preempted" / "metrics.csv"
    until(metrics.is_file, 30, lambda: log(fresh) + cluster("scontrol", "show", "job", job) + cluster("sinfo", "-R"))
    other = cluster(
        "sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 3", cwd=fresh
    )
    until(lambda: state(cluster, other) == "COMPLETED", 90, lambda: log(fresh))
    until(lambda: state(cluster, job) == "COMPLETED", 180, lambda: log(fresh) + cluster("scontrol", "show", "job", job))
    starts = read_starts(fresh / "runs" / "preempted")
    assert [start["state"] for start in starts] == ["stopped", "finished"], log(fresh)
    assert all(start["job"] == job for start in starts)
    assert read_checkpoint(fresh / "runs" / "preempted" / "checkpoints" / "last.ckpt")["global_step"] == 1500
    assert "continuing" in (fresh / "runs" / "preempted" / "train.log").read_text()


def test_a_store_is_prepared_and_two_tasks_train_together(
    cluster: Callable[..., str], submit: Callable[..., str], fresh: Path
):
    prepare = submit("prepare.slurm", "data=demo", *(s for s in SMALL if s.startswith("data.") and ".sets." not in s))
    until(lambda: state(cluster, prepare) in ("COMPLETED", "FAILED"), 90, lambda: log(fresh))
    job = submit("train.slurm", "experiment=demo", *SMALL, "trainer=slurm", "trainer.accelerator=cpu", "name=two", "trainer.max_steps=4", "trainer.val_check_interval=2", options=("--ntasks-per-node=2",))  # fmt: skip
    until(lambda: state(cluster, job) in ("COMPLETED", "FAILED"), 120, lambda: log(fresh))
    assert state(cluster, prepare) == "COMPLETED" and state(cluster, job) == "COMPLETED", log(fresh)
    assert len(read_starts(fresh / "runs" / "two")) == 1, "one of the two tasks keeps the record"
    predict = submit(
        "infer.slurm",
        "ckpt=runs/two/checkpoints/last.ckpt",
        "device=cpu",
        "out=pred.h5ad",
        options=("--ntasks-per-node=2",),
    )
    until(lambda: state(cluster, predict) in ("COMPLETED", "FAILED"), 120, lambda: log(fresh))
    assert (fresh / "pred.h5ad").is_file(), log(fresh)


def test_an_array_deals_the_values_of_a_sweep(cluster: Callable[..., str], submit: Callable[..., str], fresh: Path):
    job = submit("sweep.slurm", *DEMO, "name=lr", "optimizer.lr=1e-3,1e-4", "trainer.max_steps=2", "trainer.val_check_interval=2", options=("--array=0-1",))  # fmt: skip
    done = [fresh / "runs" / f"lr_{task}" for task in (0, 1)]
    until(
        lambda: all(read_starts(run) and read_starts(run)[-1]["state"] == "finished" for run in done),
        150,
        lambda: log(fresh),
    )
    rates = [
        line
        for run in done
        for line in (run / "config.yaml").read_text().splitlines()
        if line.strip().startswith("lr:")
    ]
    assert rates == ["  lr: 0.001", "  lr: 0.0001"] and job
