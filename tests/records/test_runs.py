"""What is recorded of a run, the list of runs, and their comparison."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import Forked
from vcell.errors import VcellError
from vcell.process.lock import locked
from vcell.process.stopping import Stopped
from vcell.records.compare import as_text as compared_text
from vcell.records.compare import compare
from vcell.records.doctor import examine
from vcell.records.journal import kept, read_starts
from vcell.records.listing import as_text, find_run, find_runs
from vcell.records.provenance import git_commit


def make_run(folder: Path, lr: float = 0.1, steps: int = 10, done: int = 10) -> Path:
    folder.mkdir(parents=True)
    config = {"name": folder.name, "model": {"_target_": "vcell.model.transition.TransitionModel"}, "data": {"name": "demo"},
              "trainer": {"max_steps": steps}, "optimizer": {"lr": lr}}  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text(f"step,train/loss,val/loss\n0,2,\n{done - 1},1,{lr}\n")
    return folder


def test_a_finished_run_keeps_its_log_command_versions_and_commit(tmp_path: Path, capsys: pytest.CaptureFixture):
    with kept(True) as journal:
        print("before the folder was there")
        journal.open(make_run(tmp_path / "a"), device="cpu")
        print("step 1\rstep 2\rstep 3")
        print("a warning", file=sys.stderr)
    log = (tmp_path / "a" / "train.log").read_text()
    assert "before the folder" in log and "a warning" in log and "step 3" in log and "step 1" not in log
    [start] = read_starts(tmp_path / "a")
    assert start["state"] == "finished" and start["host"] == socket.gethostname() and start["device"] == "cpu"
    assert "torch" in start["versions"] and start["command"] and start["started"] <= start["ended"]
    assert "step 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (VcellError("the table is empty"), "failed", "error: the table is empty"),
        (RuntimeError("broken"), "failed", "RuntimeError: broken"),
        (Stopped(15), "stopped", ""),
        (KeyboardInterrupt(), "stopped", ""),
    ],
)
def test_how_a_run_ended_is_recorded(tmp_path: Path, error: BaseException, state: str, said: str):
    with pytest.raises(type(error)), kept(True) as journal:
        journal.open(make_run(tmp_path / "a"))
        raise error
    [run] = find_runs(tmp_path)
    assert run.state == state and said in (tmp_path / "a" / "train.log").read_text()


def test_a_command_that_is_refused_leaves_no_trace(tmp_path: Path):
    make_run(tmp_path / "a")
    with pytest.raises(VcellError), kept(True):
        raise VcellError("another configuration")
    assert not (tmp_path / "a" / "train.log").exists() and not read_starts(tmp_path / "a")


def test_every_start_is_kept(tmp_path: Path):
    folder = make_run(tmp_path / "a")
    for _ in range(2):
        with kept(True) as journal:
            journal.open(folder)
    assert len(read_starts(folder)) == 2 and (folder / "train.log").read_text().count("== ") == 2


def test_the_list_tells_running_from_killed(tmp_path: Path):
    for name in ("alive", "dead"):
        with kept(True) as journal:
            journal.open(make_run(tmp_path / name))
        starts = read_starts(tmp_path / name)
        (tmp_path / name / "run.json").write_text(json.dumps({"starts": [{**starts[0], "state": "running"}]}))
    with locked(tmp_path / "alive", "the run"):
        states = {run.name: run.state for run in find_runs(tmp_path)}
    assert states == {"alive": "running", "dead": "killed"}
    text = as_text(find_runs(tmp_path), tmp_path)
    assert "the same command continues it" in text and "10 of 10" in text


def test_damaged_and_nested_runs_are_listed(tmp_path: Path):
    make_run(tmp_path / "cv" / "fold_0")
    (make_run(tmp_path / "bad") / "metrics.csv").write_text("nonsense\n1\n")
    make_run(tmp_path / "half", steps=20)
    found = {run.name: run.state for run in find_runs(tmp_path)}
    assert found == {"cv/fold_0": "finished", "bad": "damaged", "half": "unknown"}


def test_runs_are_found_by_name_file_or_checkpoint(tmp_path: Path):
    folder = make_run(tmp_path / "runs" / "mine")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    for name in ("mine", str(folder), str(folder / "config.yaml"), str(folder / "checkpoints" / "last.ckpt")):
        assert find_run(name, tmp_path / "runs").resolve() == folder.resolve()
    with pytest.raises(VcellError, match="Did you mean 'mine'"):
        find_run("mind", tmp_path / "runs")


def test_a_comparison_names_what_differs(tmp_path: Path):
    make_run(tmp_path / "a", lr=0.1)
    make_run(tmp_path / "b", lr=0.2)
    found = compare(["a", "b"], tmp_path)
    assert found.settings == {"optimizer.lr": (0.1, 0.2)}
    assert found.numbers["val/loss"] == (0.1, 0.2)
    assert "optimizer.lr" in compared_text(found) and "name" not in found.settings
    with pytest.raises(VcellError, match="name the runs to compare"):
        compare(["a"], tmp_path)


def test_commits_name_uncommitted_changes(tmp_path: Path):
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True, env=environment, capture_output=True)  # fmt: skip

    assert git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "x").write_text("1")
    git("add", "x")
    git("commit", "-q", "-m", "one")
    commit = git_commit(tmp_path)
    assert commit is not None and len(commit) == 40
    (tmp_path / "x").write_text("2")
    assert git_commit(tmp_path) == f"{commit}+changes"


def test_the_commands_answer(fresh: Path):
    make_run(fresh / "runs" / "a", lr=0.1)
    make_run(fresh / "runs" / "b", lr=0.2)
    listed = Forked("vcell.runs", ["json=true"], fresh).completed()
    assert [run["name"] for run in json.loads(listed.stdout)] == ["a", "b"]
    compared = Forked("vcell.runs", ["compare", "a", "b", "out=both.html"], fresh).completed()
    assert compared.returncode == 0, compared.stderr
    assert "optimizer.lr" in compared.stdout and '"split":"val"' in (fresh / "both.html").read_text()
    differing = Forked("vcell.config", ["diff", "a", "b"], fresh).completed()
    assert differing.returncode == 0 and differing.stdout.split() == [
        "key",
        "a",
        "b",
        "optimizer.lr",
        "0.1000",
        "0.2000",
    ]
    doctor = Forked("vcell.doctor", ["disk=false"], fresh).completed()
    assert doctor.returncode == 0 and "processor" in doctor.stdout and "extras" in doctor.stdout


def test_the_doctor_marks_what_needs_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    found = {line.topic: line for line in examine(tmp_path, disk=True)}
    assert found["threads"].attention and "MB/s" in found["disk speed"].found
    assert not list(tmp_path.iterdir())
    with pytest.raises(VcellError, match="there is no folder"):
        examine(tmp_path / "nowhere")


@pytest.mark.parametrize("written", ["word", 3, [None], {"numpy": [1]}, None])
def test_a_record_written_over_does_not_keep_runs_from_being_compared(tmp_path: Path, written: object):
    for name in ("a", "b"):
        make_run(tmp_path / name)
        starts = {
            "starts": [
                {"state": "finished", "versions": written if name == "a" else {"numpy": "2.0"}, "commit": written}
            ]
        }
        (tmp_path / name / "run.json").write_text(json.dumps(starts))
    assert compare(["a", "b"], tmp_path).versions == {"numpy": (None, "2.0")}
