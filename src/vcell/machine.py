"""What this job may use of the machine: its cores and its memory, not the node's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Processor cores this process may use: the fewest of its affinity, its control group's share, and what SLURM gave the task."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm):
        found.append(int(slurm))
    for group in _groups():
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            found.append(max(1, round(int(quota) / int(period))))
        with suppress(OSError, ValueError):
            quota_us = int((group / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                found.append(max(1, round(quota_us / int((group / "cpu.cfs_period_us").read_text()))))
    return min(found)


def free_memory() -> int | None:
    """Bytes of memory that this job can have without swapping; None where that cannot be told."""
    found = []
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    for group in _groups():
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError, ValueError):  # "max" is no limit
                found.append(max(0, int((group / most).read_text()) - int((group / now).read_text())))
    return min(found, default=None)


def _groups() -> Iterator[Path]:
    """Control groups that this process is in, from its own up to the machine's."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            base = CGROUPS / controllers if controllers else CGROUPS
            path = base / name.lstrip("/")
            while True:
                yield path
                if path in (base, path.parent):
                    break
                path = path.parent
