"""What training finds around it: the launcher of its processes, and an account of Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from vcell.errors import VcellError, install
from vcell.system import slurm_tasks

LOGGERS = ("wandb", "tensorboard", "mlflow")  # by the names of their packages, and of our extras
# set by what starts a command on several machines, or by hand
STARTED_ELSEWHERE = {"MASTER_ADDR", "NODE_RANK", "GROUP_RANK", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}


def cluster_environment(nodes: int, devices: Any) -> ClusterEnvironment | None:
    """What assigns ranks to processes: torchrun, srun or nothing; None: Lightning finds out.

    A shell or a script inside a SLURM job is not one of its tasks, and a job may run several tasks of ours.

    Raises
    ------
    VcellError
        If srun has started a different number of tasks than the trainer expects, or nothing those of other machines.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if not os.environ.get("SLURM_NTASKS"):
        if nodes > 1 and not STARTED_ELSEWHERE & os.environ.keys():
            raise VcellError(
                f"trainer.num_nodes={nodes}, but this command was started on one machine alone: start it with srun (trainer=slurm) or torchrun"
            )
        return LightningEnvironment() if "SLURM_JOB_ID" in os.environ else None
    tasks = slurm_tasks()
    if tasks == 1:
        return LightningEnvironment()  # alone, or started without srun
    if isinstance(devices, int) and devices > 0 and devices * nodes != tasks:
        raise VcellError(
            f"srun has started {tasks} tasks, and the trainer expects {devices} devices on {nodes} nodes. Use trainer=slurm, which follows "
            "the shape of the job, or start one task: srun --ntasks=1"
        )
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(tasks // nodes))
    return SLURMEnvironment(auto_requeue=False)  # KeepLast saves and requeues


def check_logger(name: str) -> None:
    """Refuses a logger whose package is not installed, saying how to install it.

    Raises
    ------
    VcellError
        If it is not there.
    """
    if name in LOGGERS and importlib.util.find_spec(name) is None:
        raise VcellError(f"logger={name} needs {name}: {install(name)}")


def check_wandb(offline: bool) -> None:
    """Refuses to log to Weights & Biases where that would fail, or prompt, hours later.

    Raises
    ------
    VcellError
        If you are not logged in where that is needed.
    """
    mode = os.environ.get("WANDB_MODE", "").lower()
    online = not offline and mode not in ("offline", "disabled", "dryrun")
    if online and not (os.environ.get("WANDB_API_KEY") or _wandb_key()):
        raise VcellError(
            "logger=wandb: you are not logged in. Run: wandb login. Or keep the curves on this machine for now: "
            "logger.wandb.offline=true (wandb sync uploads them later)"
        )


def _wandb_key() -> str | None:
    """The key that `wandb login` stored, without prompting."""
    import netrc
    from urllib.parse import urlparse

    import wandb

    settings = wandb.setup().settings
    if settings.api_key:
        return settings.api_key
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        path = Path(name or "").expanduser()
        if name and path.is_file():
            with suppress(OSError, netrc.NetrcParseError):
                found = netrc.netrc(str(path)).authenticators(urlparse(settings.base_url).hostname or "")
                return found[2] if found else None
    return None
