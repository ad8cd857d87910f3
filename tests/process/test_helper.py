"""A process beside this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from operator import truediv
from pathlib import Path

import pytest

from vcell.process.helper import Helper


@pytest.fixture(scope="module")
def helper() -> Helper:
    return Helper("colorsys")


def test_another_process_does_the_work(helper: Helper):
    assert helper.submit(os.getpid).result() != os.getpid()
    assert helper.submit(sorted, [3, 1, 2]).result() == [1, 2, 3]


def test_what_is_printed_there_is_no_answer(helper: Helper):
    printed, asked = helper.submit(print, "words"), helper.submit(abs, -2)
    assert (printed.result(), asked.result()) == (None, 2)


def test_an_error_is_raised_where_it_was_asked_for(helper: Helper):
    with pytest.raises(ZeroDivisionError):
        helper.submit(truediv, 1, 0).result()
    assert helper.submit(abs, -2).result() == 2


@pytest.mark.parametrize("modules", [(), ("no_module_of_that_name",)])
def test_without_a_process_this_one_does_the_work(modules: tuple[str, ...], capfd: pytest.CaptureFixture[str]):
    assert Helper(*modules).submit(os.getpid).result() == os.getpid()
    assert not capfd.readouterr().err


def test_where_the_process_was_killed_this_one_does_the_work():
    helper = Helper("colorsys")
    os.kill(helper.submit(os.getpid).result(), signal.SIGKILL)
    assert helper.submit(os.getpid).result() == os.getpid()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(3)"])
def test_it_ends_with_the_process_that_asks(end: str):
    program = (
        "import os, signal, sys; from vcell.process.helper import Helper; helper = Helper('colorsys')\n"
        f"print(helper.submit(os.getpid).result(), flush=True); {end}"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert not said.stderr
    number, deadline = int(said.stdout), time.monotonic() + 30
    while _runs(number):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(number: int) -> bool:
    """Whether there is such a process, other than one that waits to be forgotten."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
