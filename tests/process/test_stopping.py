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
from vcell.process.stopping import listen
listen("train")
print("listening", flush=True)
import time
time.sleep(30)  # as torch or the data take their time
"""


@pytest.fixture()
def job(tmp_path: Path) -> dict[str, str]:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\n[ "$1" = show ] || echo $@ >> {tmp_path}/requeued\n')
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


def test_a_file_that_is_being_written_is_closed_first(tmp_path: Path):
    code = """
import os, signal, sys
from pathlib import Path
from vcell.process.stopping import listen
listen("infer")
import numpy as np, pandas as pd
from vcell.data.files import writer
write, calls = writer._Sink.write, []
def asked(self, data):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGTERM)  # in the midst of HDF5
    return write(self, data)
writer._Sink.write = asked
with writer.H5adWriter(Path(sys.argv[1]), pd.DataFrame(index=list("abc")), ["G"]) as cells:
    for _ in range(3):
        cells.write(np.ones((1, 1)))
"""
    for call in (1, 4, 12):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "x.h5ad"), str(call)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 128 + signal.SIGTERM and "Traceback" not in done.stderr, done.stderr
    assert all(path.name == "x.h5ad" for path in tmp_path.iterdir())
