"""Signals at any stage of any command: a line, the signal's exit code, and a job that is queued again where its time was up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOADING = """
import os, sys
sys.argv = ["vcell.train", "experiment=demo"]
from vcell.stopping import listen
listen("train")
print("listening", flush=True)
import time
time.sleep(30)  # as torch or the data take their time
"""


@pytest.fixture()
def job(tmp_path: Path) -> dict[str, str]:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/requeued\n")
    scontrol.chmod(0o755)
    return {**os.environ, "SLURM_JOB_ID": "77", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_command_that_loads_is_stopped_in_one_line(name: str, job: dict[str, str], tmp_path: Path):
    number = signal.Signals[name]
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING], env=job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "listening\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number, said
    assert f"stopped by {name}; the same command resumes" in said and "Traceback" not in said
    asked = tmp_path / "requeued"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 77\n" if "USR" in name else "")


def test_a_signal_that_the_caller_ignores_stays_ignored(job: dict[str, str]):
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + LOADING.replace(
        "time.sleep(30)", "time.sleep(0.5)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=job, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "listening\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0
