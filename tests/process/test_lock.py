"""One process at a time writes a folder; a dead one's lock is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vcell.errors import VcellError
from vcell.process import lock
from vcell.process.lock import Holder, locked

HOLD = "import sys, time; from pathlib import Path; from vcell.process.lock import locked\nwith locked(Path(sys.argv[1]), 'the run'):\n    print('held', flush=True); time.sleep(60)"


@pytest.fixture()
def other(tmp_path: Path):
    """Another process that holds the lock of `tmp_path`/x."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_holder_is_named_and_a_dead_one_is_taken_over(other: subprocess.Popen, tmp_path: Path):
    with (
        pytest.raises(VcellError, match=rf"the run .*x is being written by process {other.pid} on .*x\.lock"),
        locked(tmp_path / "x", "the run"),
    ):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path / "x", "the run"):
        assert json.loads((tmp_path / "x.lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_waiting_ends_when_the_holder_does(other: subprocess.Popen, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other.kill()  # ends within the first look or two
    with locked(tmp_path / "x", "the store", wait=True):
        pass
    assert not list(tmp_path.iterdir())


def test_a_process_may_take_its_own_lock_again(tmp_path: Path):
    with locked(tmp_path / "new" / "x", "it"), locked(tmp_path / "new" / "x", "it"):
        pass
    assert not list(tmp_path.iterdir())  # the folder was made for the lock alone


@pytest.mark.parametrize("age_s", [1.0, 120.0])
def test_a_holder_on_another_machine_is_judged_by_its_heartbeat(age_s: float, tmp_path: Path):
    holder = Holder("node7", "another boot", 1, "vcell.train", "abc")
    (tmp_path / "x.lock").write_text(json.dumps(holder.__dict__))
    os.utime(tmp_path / "x.lock", (time.time() - age_s,) * 2)
    if age_s < lock.STALE_S:
        with pytest.raises(VcellError, match="process 1 on node7"), locked(tmp_path / "x", "the run"):
            pass
    else:
        with locked(tmp_path / "x", "the run"):
            pass


def test_the_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with locked(tmp_path / "x", "the run"):
        os.utime(tmp_path / "x.lock", (0, 0))
        until = time.monotonic() + 5
        while (tmp_path / "x.lock").stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_many_processes_hold_it_one_after_the_other(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from vcell.process.lock import locked\n"
        "for _ in range(5):\n with locked(Path(sys.argv[1]), 'it', wait=True):\n"
        "  f = Path(sys.argv[1] + '.inside'); f.touch(exist_ok=False); n = Path(sys.argv[1] + '.n')\n"
        "  n.write_text(str(int(n.read_text()) + 1)); f.unlink()"
    )
    (tmp_path / "x.n").write_text("0")
    many = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")]) for _ in range(4)]
    assert [process.wait(60) for process in many] == [0] * 4
    assert (tmp_path / "x.n").read_text() == "20"
