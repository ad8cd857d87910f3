"""A process beside this one: what Python itself does in a thread holds up all other threads of its process."""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

Result = TypeVar("Result")
# not by multiprocessing, which would carry out the user's script anew
PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from vcell.process.helper import serve; serve()"
)


class Helper:
    """Carries out one function after another, in the background.

    It does so in a process that ends with this one, however that ends. Where there is none (it could not start, was killed, or failed in
    what it was asked to do) this process carries the function out: what that raises is raised here.

    Parameters
    ----------
    modules
        What the process loads while nothing is asked of it. None: no process is started.
    """

    def __init__(self, *modules: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="helper")
        self._process: Future[subprocess.Popen[bytes] | None] = self._thread.submit(_start, modules)

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """`function`, to be found by its module and name, of these arguments."""
        return self._thread.submit(self._carry_out, function, args)

    def _carry_out(self, function: Callable[..., Result], args: tuple[Any, ...]) -> Result:
        process = self._process.result()
        if process is not None:
            with suppress(EOFError, OSError, pickle.UnpicklingError):  # it was killed
                _send(process.stdin, (function, args))
                done, result = pickle.load(process.stdout)  # type: ignore[arg-type]
                if done:
                    return result
        return function(*args)


def _start(modules: tuple[str, ...]) -> subprocess.Popen[bytes] | None:
    if not modules:
        return None
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process
        )
        atexit.register(_end, process)
        _send(process.stdin, sys.path)
        _send(process.stdin, modules)
    except OSError:
        return None
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(OSError):
        process.communicate()


def _send(stream: Any, what: object) -> None:
    pickle.dump(what, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


def serve() -> None:
    """What the process does, until the one that asks has ended."""
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no answer
    with suppress(Exception):  # the process that asks has ended, or does the work itself
        for module in pickle.load(asked):
            import_module(module)
        while True:
            function, args = pickle.load(asked)
            try:
                answer = (True, function(*args))
            except Exception:  # the process that asks raises it
                answer = (False, None)
            _send(answers, answer)
