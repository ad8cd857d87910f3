"""Signals that ask a command to stop: it prints one line, requeues the job if it should, and exits with the signal's exit code.

Only the standard library is imported here, so that a command can listen before it loads anything else. While training runs,
`vcell.training.saving` listens instead, and saves first.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# HUP: the terminal is gone; TERM: SLURM or the system; USR1 and USR2: a job's time is nearly up (sbatch --signal, submitit)
STOP = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
REQUEUE = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class Stopped(SystemExit):
    """A command ended by a signal; its exit code is 128 + the signal's number, as the shell has it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class _Held:
    depth = 0
    signal: int | None = None


_held = _Held()


@contextmanager
def held() -> Iterator[None]:
    """Lets a block end before a signal ends the command: HDF5, for one, must not be left in the middle of a write."""
    _held.depth += 1
    try:
        yield
    finally:
        _held.depth -= 1
        if not _held.depth and _held.signal is not None:
            number, _held.signal = _held.signal, None
            raise Stopped(number)


def listen(verb: str) -> None:
    """From now on a stop signal ends the command with one line; partial output is removed or can be resumed."""
    again = f"the same command resumes: python -m vcell.{verb} ..."

    def stop(number: int, _: Any) -> None:
        requeue(number)
        tell(f"stopped by {signal.Signals(number).name}; {again}")
        if _held.depth:
            _held.signal = number
            return
        raise Stopped(number)

    handle(stop)


def handle(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Has `handler` called for every signal to stop; gives the handlers of before. A signal that the caller ignores stays ignored."""
    before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return before  # Python gives signals to the main thread alone
    for number in STOP:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores HUP, a shell's background jobs INT
            before[int(number)] = signal.signal(number, handler)
    return before


def tell(text: str) -> None:
    """A line on stderr, wherever that leads: a terminal that hung up takes none."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123  # or the interpreter would fail to flush it at its end


def requeue(number: int, saved: str = "") -> None:
    """Asks SLURM to run this job again, where the signal says that its time is nearly up, or it makes way for another. Rank 0 asks for all."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or os.environ.get("SLURM_PROCID", "0") not in ("", "0") or not (number in REQUEUE or _preempted(job)):
        return
    saved = f"saved {saved}; " if saved else ""
    try:
        code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
        tell(f"{saved}scontrol requeue {job} ended with exit code {code}")
    except OSError as error:  # in a container, often
        tell(f"{saved}job {job} could not be requeued from here ({error}): submit it again")


def _preempted(job: str) -> bool:
    """Whether SLURM is taking this job's place for another one: it then sends SIGTERM, as it does when the job is cancelled.

    Ending at once, as asked, would end the job before SLURM queues it again.
    """
    try:
        shown = subprocess.run(["scontrol", "show", "job", job], check=False, capture_output=True, text=True).stdout
    except OSError:
        return False
    return bool(re.search(r"PreemptTime=\d", shown)) and "JobState=RUNNING" in shown
