"""The console script `vcell VERB ...` is `python -m vcell.VERB ...`, and completes what is typed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vcell.cli.main import VERBS, overview

SOURCE = Path(__file__).parents[2] / "src" / "vcell"


def run(*command: str, cwd: Path = SOURCE.parent, **environment: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, cwd=cwd)


def console(*arguments: str, cwd: Path = SOURCE.parent, **environment: str) -> subprocess.CompletedProcess:
    """Runs the console script; where it is not installed, the function that it calls."""
    script = shutil.which("vcell", path=str(Path(sys.executable).parent))
    start = [script] if script else [sys.executable, "-c", "from vcell.cli.main import console; console()"]
    return run(*start, *arguments, cwd=cwd, **environment)


def test_the_console_script_is_the_module():
    arguments = ["--cfg", "job", "experiment=demo"]
    module = run(sys.executable, "-m", "vcell.train", *arguments)
    assert module.returncode == 0 and console("train", *arguments).stdout == module.stdout


def test_a_command_starts_as_a_file_too():  # an editor's Run button; `inspect.py` beside it must not hide Python's own
    done = run(sys.executable, str(SOURCE / "train.py"), "--cfg", "job", "experiment=demo")
    assert done.returncode == 0 and "experiment" not in done.stderr, done.stderr
    assert done.stdout == run(sys.executable, "-m", "vcell.train", "--cfg", "job", "experiment=demo").stdout


def test_every_command_module_is_a_verb():
    verbs = {path.stem for path in SOURCE.glob("*.py") if re.search(r"vcell\.cli\.main\b.*\bmain\b", path.read_text())}
    assert verbs == set(VERBS) and all(f"  {verb} " in overview() for verb in VERBS)


def test_other_processes_of_a_command_can_be_started_by_its_file(monkeypatch: pytest.MonkeyPatch):
    # Lightning starts the processes of further GPUs as `python sys.argv[0] ...`
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vcell", "train", "experiment=demo"])
    monkeypatch.setattr("vcell.cli.main.main", lambda verb: None)
    from vcell.cli.main import console as entry

    entry()
    assert sys.argv == [str(SOURCE / "train.py"), "experiment=demo"]


def test_an_unknown_command_is_answered():
    done = console("trian")
    assert done.returncode == 2 and "Did you mean 'train'?" in done.stderr and "Traceback" not in done.stderr


def test_completion_knows_commands_keys_and_options():
    assert "complete" in console("-sc", "install=bash").stdout
    for typed, offered in (
        ("vcell in", ["inspect", "infer"]),
        ("vcell train experiment=d", ["experiment=demo"]),
        ("vcell evaluate pds_", ["pds_subset="]),
    ):
        assert console("-sc", "query=bash", COMP_LINE=typed).stdout.split() == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell closes the streams")
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_command_without_a_console_runs(tmp_path: Path, closed: str):
    """As some schedulers start it: what it opens first is not taken for its output."""
    names = tmp_path / "genes.txt"
    names.write_text("STAT1\n")
    command = f"exec {closed}; exec {sys.executable} -m vcell.genes check path={names} out={tmp_path / 'found.csv'}"
    done = run("bash", "-c", command)
    assert done.returncode == 0 and "STAT1" in (tmp_path / "found.csv").read_text(), done.stderr
