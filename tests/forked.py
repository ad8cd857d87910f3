"""Commands in processes forked from one that has loaded everything: they cost their work, not ten seconds of imports.

They have their own working folder, environment, signals and exit code, as a command started by a shell has.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import TextIO

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["vcell.training.train", "vcell.predict.infer", "vcell.score.evaluation", "tests.forked"])


class Forked:
    """`python -m MODULE ARGUMENTS...`, with what `subprocess.Popen` offers of it. With `together`, errors are printed among the output."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        largest_file: int | None = None,
        together: bool = False,
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="forked"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.out, self.err = folder / "out", folder / ("out" if together else "err")
        for path in (self.out, self.err):
            path.touch()
        environment = dict(os.environ if env is None else env)
        self.arguments = [module, *arguments]
        self.process = SERVER.Process(
            target=_run, args=(self.arguments, str(cwd), environment, str(self.out), str(self.err), largest_file)
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    @property
    def stdout(self) -> TextIO:
        return self.out.open(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 300) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutExpired(self.arguments, timeout, self.out.read_bytes(), self.err.read_bytes())
        return self.process.exitcode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in (self.out, self.err))
        return out, err

    def completed(self, timeout: float = 300) -> CompletedProcess:
        out, err = self.communicate(timeout)
        return CompletedProcess(self.arguments, self.wait(), out, err)


def _run(
    arguments: list[str], cwd: str, environment: dict[str, str], out: str, err: str, largest_file: int | None
) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdout, sys.stderr = (
        os.fdopen(1, "w", encoding=encoding, closefd=False),
        os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False),
    )
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if "RANK" in environment:  # which Lightning reads when it is imported
        from lightning.pytorch.utilities import rank_zero_only

        rank_zero_only.rank = int(environment["RANK"])  # type: ignore[attr-defined]
    sys.path.insert(0, cwd)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
