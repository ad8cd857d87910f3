"""Where results come from: versions, the git commits of the code, the machine, the command line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VERSIONS = ("vcell", "torch", "lightning", "numpy", "scipy", "anndata", "h5py", "hydra-core", "scanpy", "pdex", "numba", "cell-eval", "cell-eval2")  # fmt: skip
PACKAGE = Path(__file__).parents[1]
GIT_S = 5.0


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that numbers can depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """The commit checked out in `folder`, with ``+changes`` where files differ from it; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit + ("+changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command_line() -> str:
    """This process's command, as it could be typed again."""
    name = Path(sys.argv[0])
    if name.parent == PACKAGE or name.name == "__main__.py":
        start = ["python", "-m", f"vcell.{name.stem}"]
    else:
        start = [sys.argv[0] or "python"]
    return shlex.join([*start, *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """Command, time, place, versions and commits, for JSON."""
    return {
        "command": command_line(),
        "folder": str(Path.cwd()),
        "started": now(),
        "host": socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "versions": versions(),
        "commit": {"vcell": git_commit(PACKAGE), "folder": git_commit(Path.cwd())},
    }


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
