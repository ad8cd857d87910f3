"""Runs in a folder: what state each is in, how far it came, what it scored, when it last changed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vcell.config import RECORD
from vcell.errors import VcellError, nearest
from vcell.process.lock import is_held
from vcell.records.journal import FAILED, FINISHED, KILLED, RUNNING, STOPPED, read_starts
from vcell.records.metrics import read_metrics

DAMAGED, UNKNOWN = "damaged", "unknown"
DEEPEST = 3  # folders below `runs`: folds are runs/NAME/fold_0
# what a state means for the reader
ADVICE = {
    STOPPED: "the same command continues it",
    KILLED: "ended without a word (out of memory, a time limit, a power cut); the same command continues it",
    FAILED: "see the end of its train.log",
    DAMAGED: "its config.yaml or metrics.csv cannot be read",
}


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells.

    Attributes
    ----------
    name
        Its path below the folder of runs.
    state
        running, finished, stopped, failed, killed, damaged; unknown: begun before states were recorded.
    step, steps
        The last one logged, and the configured number; None where there are none (models that are fitted).
    validation
        The last validation's scores, by name.
    scores
        SCORE of each evaluation in its folder, by the evaluation's name.
    changed
        Time of its newest file, in seconds since 1970.
    """

    name: str
    path: Path
    state: str
    step: int | None
    steps: int | None
    model: str
    data: str
    validation: dict[str, float]
    scores: dict[str, float]
    changed: float
    command: str | None
    message: str | None

    def plain(self) -> dict[str, Any]:
        return {**self.__dict__, "path": str(self.path)}


def find_runs(runs: Path) -> list[RunRecord]:
    """Runs in a folder, the newest last.

    Raises
    ------
    VcellError
        If the folder is not there.
    """
    if not runs.is_dir():
        raise VcellError(f"there is no folder {runs} here ({Path.cwd()}): name the folder of your runs, runs=FOLDER")
    found = [
        read_run(path.parent, runs)
        for depth in range(1, DEEPEST + 1)
        for path in sorted(runs.glob("/".join(["*"] * depth + [RECORD])))
    ]
    return sorted(found, key=lambda run: run.changed)


def find_run(name: str, runs: Path) -> Path:
    """The folder of a run: its name in `runs`, or a path to it, to its config.yaml or to a checkpoint in it.

    Raises
    ------
    VcellError
        If there is no such run, with the nearest name.
    """
    for path in (runs / name, Path(name).expanduser()):
        for folder in (path, path.parent, path.parent.parent):
            if path.exists() and (folder / RECORD).is_file():
                return folder
    known = [run.name for run in find_runs(runs)] if runs.is_dir() else []
    raise VcellError(
        f"there is no run {name} in {runs} ({Path.cwd()}).{nearest(name, known)} vcell runs lists those that are there"
    )


def read_run(folder: Path, runs: Path) -> RunRecord:
    """One run."""
    starts = read_starts(folder)
    last = starts[-1] if starts else {}
    try:
        config, rows, sound = read_config(folder), read_metrics(folder / "metrics.csv"), True
    except VcellError:
        config, rows, sound = {}, [], False
    steps = _get(config, "trainer", "max_steps")
    step = int(rows[-1]["step"]) + 1 if rows else None
    return RunRecord(
        name=str(folder.relative_to(runs)) if folder.is_relative_to(runs) else str(folder),
        path=folder,
        state=_state(folder, last, sound, step is not None and step == steps),
        step=step,
        steps=int(steps) if step is not None and isinstance(steps, int) else None,
        model=str(_get(config, "model", "_target_") or "").rsplit(".", 1)[-1],
        data=str(_get(config, "data", "name") or ""),
        validation=last_validation(rows),
        scores=scores_of(folder),
        changed=max((p.stat().st_mtime for p in folder.rglob("*") if p.is_file()), default=folder.stat().st_mtime),
        command=last.get("command"),
        message=last.get("message"),
    )


def _state(folder: Path, last: dict[str, Any], sound: bool, complete: bool) -> str:
    if is_held(folder):
        return RUNNING
    if not sound:
        return DAMAGED
    state = str(last.get("state", FINISHED if complete else UNKNOWN))
    return KILLED if state == RUNNING else state


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration a run was begun with.

    Raises
    ------
    VcellError
        If it cannot be read.
    """
    path = folder / RECORD
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # of YAML, OmegaConf or the disk
        raise VcellError(
            f"{path} is damaged ({type(error).__name__}): it should hold the configuration the run was started with. Restore it "
            "from a copy, or start another run with name=NEW_NAME"
        ) from error
    if not isinstance(found, dict):
        raise VcellError(f"{path} is damaged: it holds no configuration. Start another run with name=NEW_NAME")
    return {str(key): value for key, value in found.items()}


def last_validation(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The newest value of every validation metric, by its name."""
    return {key: row[key] for row in rows for key in sorted(row) if key.startswith("val/")}


def scores_of(folder: Path) -> dict[str, float]:
    """SCORE of the model in each evaluation that lies in the run's folder."""
    found = {}
    for path in sorted(folder.glob("*/scores.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            name = next(iter(content["intervals"]))
            found[path.parent.name] = float(content["scores"][name]["SCORE"])
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            continue
    return found


def as_text(found: Sequence[RunRecord], runs: Path) -> str:
    """A table for the terminal, and what the states in it ask for."""
    if not found:
        return f"no runs in {runs} yet: python -m vcell.train begins one"
    head = ("name", "state", "step", "val loss", "val PDS", "SCORE", "model", "data", "changed")
    lines = aligned([head, *(_row(run) for run in found)])
    said = [f"{state:<9} {ADVICE[state]}" for state in ADVICE if any(run.state == state for run in found)]
    return "\n".join([*lines, *([""] if said else []), *said])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(run: RunRecord) -> tuple[str, ...]:
    steps = "–" if run.step is None else f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    score = ", ".join(f"{value:.3f}" for value in run.scores.values()) or "–"
    return (
        run.name, run.state, steps, _number(run.validation.get("val/loss")), _number(run.validation.get("val/discrimination")),
        score, run.model, run.data, ago(run.changed),
    )  # fmt: skip


def ago(moment: float) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, time.time() - moment)
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            number = int(seconds / size)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _get(settings: Any, *keys: str) -> Any:
    for key in keys:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings
