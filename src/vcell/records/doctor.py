"""What a run would find on this machine, and what of it matters."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vcell.errors import VcellError, install
from vcell.records.provenance import PACKAGE, git_commit, versions
from vcell.system import LARGE_NETWORK, cores, fast_bf16, free_memory, gpu_has_bf16, processor

MEGABYTE, GIGABYTE = 1024**2, 1024**3
PROBE = 256 * MEGABYTE
SLOW_DISK = 100  # MB/s: below, reading h5ad files takes longer than everything else of `prepare`
LITTLE_DISK, LITTLE_MEMORY = 20 * GIGABYTE, 6 * GIGABYTE
# extras, the module that shows whether each is there, and what it is for
EXTRAS = {
    "score": ("cell_eval", "official scores of 2025 (vcell evaluate)"),
    "submit": ("vcc", "the official tool of 2026, to upload"),
    "embed": ("transformers", "vcell embed: tables from protein sequences"),
    "losses": ("geomloss", "loss terms sinkhorn and mmd"),
    "lora": ("peft", "finetune=lora"),
    "wandb": ("wandb", "logger=wandb"),
    "tensorboard": ("tensorboard", "logger=tensorboard"),
    "mlflow": ("mlflow", "logger=mlflow"),
    "download": ("pooch", "vcell download"),
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "sweeps as SLURM jobs"),
    "cluster": ("distributed", "vcell prepare on many machines"),
}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, what it means; `attention`: something to act on."""

    topic: str
    found: str
    meaning: str = ""
    attention: bool = False


def examine(folder: Path, disk: bool = True) -> list[Finding]:
    """Everything that is looked at.

    Parameters
    ----------
    folder
        Where data and runs are to lie.
    disk
        Whether to measure its speed, by writing and reading 256 MB.

    Raises
    ------
    VcellError
        If the folder is not there.
    """
    if not folder.is_dir():
        raise VcellError(f"there is no folder {folder}: name the one in which data and runs are to lie, folder=FOLDER")
    found: list[Finding] = []
    looks: list[Callable[[], Iterator[Finding]]] = [_software, _gpu, _processor, _memory, lambda: _disk(folder, disk), _job, _extras]  # fmt: skip
    for look in looks:
        found += look()
    return found


def _software() -> Iterator[Finding]:
    known = versions()
    yield Finding("vcell", f"{known.get('vcell', 'not installed')} in {PACKAGE}", (git_commit(PACKAGE) or "")[:12])
    yield Finding("python", f"{known.pop('python')} ({platform.platform(terse=True)}) in {sys.prefix}")
    rest = ", ".join(f"{name} {version}" for name, version in known.items() if name != "vcell")
    yield Finding("packages", rest, "recorded with every run and every score")


def _gpu() -> Iterator[Finding]:
    import torch

    from vcell.data.resident import SHARE_FOR_STORE

    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        if driver and torch.version.cuda is None:
            yield Finding(
                "gpu",
                f"none that torch {torch.__version__} can use",
                "this torch is built without CUDA: install one with it",
                True,
            )
        elif driver:
            yield Finding(
                "gpu", f"none that torch {torch.__version__} can use",
                f"the driver may be too old for CUDA {torch.version.cuda}, or the job was given no GPU: compare nvidia-smi", True,
            )  # fmt: skip
        else:
            yield Finding(
                "gpu", "none", "training runs on the CPU: model=tiny and transfer take minutes, state_sm hours"
            )
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free, whole = torch.cuda.mem_get_info(number)
        built = f"sm_{about.major}{about.minor}"
        yield Finding(
            f"gpu {number}", f"{about.name}, {free / GIGABYTE:.0f} of {whole / GIGABYTE:.0f} GiB free, {built}",
            f"{'bf16' if gpu_has_bf16(torch.device('cuda', number)) else 'fp16, no fast bf16'}; stores up to {SHARE_FOR_STORE * free / GIGABYTE:.0f} GiB are kept on it",
        )  # fmt: skip
        arches = torch.cuda.get_arch_list()
        if arches and not any(int(a.split("_")[1].rstrip("af")) // 10 == about.major for a in arches if "_" in a):
            yield Finding(f"gpu {number}", f"torch {torch.__version__} is built for {', '.join(arches)}", f"not for {built}: install a newer torch", True)  # fmt: skip
    if importlib.util.find_spec("triton") is None:
        yield Finding(
            "triton", "not installed", "cells are made dense by plain torch, with ten times the memory traffic", True
        )


def _processor() -> Iterator[Finding]:
    name, _ = processor()
    number, machine = cores(), os.cpu_count() or 1
    yield Finding(
        "processor",
        f"{name}; {number} of {machine} cores are this job's" if number < machine else f"{name}; {number} cores",
    )
    fast = fast_bf16()
    meaning = (
        f"networks from {LARGE_NETWORK / 1e6:.0f} M weights on train in bf16 here"
        if fast
        else "training on it stays in float32"
    )
    yield Finding("bf16 on it", "fast" if fast else "not fast", meaning)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > number:
        yield Finding(
            "threads", f"OMP_NUM_THREADS={threads}", f"more than the {number} cores of this job: unset it", True
        )


def _memory() -> Iterator[Finding]:
    free = free_memory()
    if free is None:
        yield Finding("memory", "cannot be told on this system")
        return
    little = free < LITTLE_MEMORY
    meaning = (
        "little for full-size scores, which peak at 6 GB a context"
        if little
        else "enough for full-size scores (6 GB a context)"
    )
    yield Finding("memory", f"{free / GIGABYTE:.1f} GiB free for this job", meaning, little)


def _disk(folder: Path, measure: bool) -> Iterator[Finding]:
    where = folder.resolve()
    try:
        free = shutil.disk_usage(where).free
    except OSError as error:
        yield Finding("disk", f"{where}: {error.strerror}", "choose another folder", True)
        return
    yield Finding(
        "disk", f"{free / GIGABYTE:.0f} GiB free in {where}",
        "little: a prediction for 2026 at full size takes 15.5 GB, its container 3.4 GB" if free < LITTLE_DISK else "", free < LITTLE_DISK,
    )  # fmt: skip
    if not measure:
        return
    if free < 4 * PROBE:
        yield Finding("disk speed", "not measured: the disk is nearly full")
        return
    try:
        write, read = _speed(where)
    except OSError as error:
        yield Finding("disk speed", f"cannot be written: {error.strerror}", "choose another folder=FOLDER", True)
        return
    slow = min(write, read) < SLOW_DISK
    meaning = (
        "slow: keep the cell store on a local disk, data.store=/LOCAL/store" if slow else "fast enough to train from"
    )
    yield Finding("disk speed", f"{write:,.0f} MB/s written, {read:,.0f} MB/s read", meaning, slow)


def _speed(folder: Path) -> tuple[float, float]:
    """MB per second of writing and reading one file, by the disk and not by memory where the system allows."""
    block = os.urandom(16 * MEGABYTE)
    with tempfile.TemporaryDirectory(prefix=".vcell-doctor-", dir=folder) as place:
        path = Path(place) / "probe"
        start = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(PROBE // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter() - start
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while file.read(len(block)):
                pass
            read = time.perf_counter() - start
    return PROBE / 1e6 / written, PROBE / 1e6 / read


def _job() -> Iterator[Finding]:
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        yield Finding(
            "slurm",
            f"job {job}, {os.environ.get('SLURM_NTASKS', '1')} tasks",
            "runs save and requeue themselves before the time limit",
        )
    elif shutil.which("sbatch"):
        yield Finding("slurm", "a login node: sbatch is here", "sbatch scripts/train.slurm experiment=NAME")


def _extras() -> Iterator[Finding]:
    missing = []
    for extra, (module, purpose) in EXTRAS.items():
        with suppress(ImportError, ValueError):
            if importlib.util.find_spec(module) is not None:
                continue
        missing.append((extra, purpose))
    there = [extra for extra in EXTRAS if extra not in dict(missing)]
    yield Finding("extras", ", ".join(there) or "none installed")
    for extra, purpose in missing:
        yield Finding("", f"not installed: {extra}, for {purpose}", install(extra))


def as_text(found: list[Finding]) -> str:
    """For the terminal; lines to act on are marked."""
    width = max(len(line.topic) for line in found)
    lines = []
    for line in found:
        lines.append(f"{'!' if line.attention else ' '} {line.topic:<{width}}  {line.found}")
        if line.meaning:
            lines.append(f"  {'':<{width}}  {line.meaning}")
    number = sum(line.attention for line in found)
    told = (
        f"{number} line{'s' if number > 1 else ''} marked ! need attention"
        if number
        else "nothing here needs attention"
    )
    return "\n".join([*lines, "", told])
