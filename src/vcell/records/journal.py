"""`run.json` and `train.log` in a run's folder: how it was started each time, how that ended, and everything it printed."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from vcell.atomic import write_text
from vcell.errors import VcellError
from vcell.process.stopping import Stopped, held
from vcell.records.provenance import now, provenance

JOURNAL = "run.json"
LOG = "train.log"
RUNNING, FINISHED, STOPPED, FAILED, KILLED = "running", "finished", "stopped", "failed", "killed"


class Journal:
    """The record of one start of a run. Until `open` nothing is written: a command that is refused leaves no trace.

    It never stands in the way of training: a full disk costs the record, not the run.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.entry: dict[str, Any] = {}
        self.early: list[str] = []  # lines printed before the folder was there
        self.log: TextIO | None = None

    def open(self, folder: Path, **more: Any) -> None:
        """Begins the record in `folder`, which is there; `more` is noted with it."""
        self.folder, self.entry = folder, {**provenance(), "state": RUNNING, **more}
        with suppress(OSError):
            self.log = (folder / LOG).open("a", encoding="utf-8", errors="replace")
            self.log.write(f"== {self.entry['started']}  {self.entry['command']}\n")
        for line in self.early:
            self.line(line)
        # the run is locked: an earlier start that seems to be running was killed
        earlier = [
            {**start, "state": KILLED} if start.get("state") == RUNNING else start for start in read_starts(folder)
        ]
        self._write([*earlier, self.entry])

    def line(self, text: str) -> None:
        """A line that was printed."""
        if self.log is None:
            if self.folder is None:
                self.early.append(text)
            return
        with suppress(OSError, ValueError):
            self.log.write(text + "\n")
            self.log.flush()

    def close(self, error: BaseException | None) -> None:
        """Notes how it ended."""
        if self.folder is None or not self.folder.is_dir():  # never begun, or removed: nothing had been saved
            return
        state, message = _outcome(error)
        if state == FAILED and isinstance(error, VcellError):
            self.line(f"error: {message}")
        elif state == FAILED and error is not None:
            self.line("".join(traceback.format_exception(error)).rstrip())
        self.entry.update(state=state, ended=now(), **({"message": message} if message else {}))
        self._write([*read_starts(self.folder)[:-1], self.entry])
        if self.log is not None:
            with suppress(OSError):
                self.log.close()

    def _write(self, starts: list[dict[str, Any]]) -> None:
        with suppress(OSError, VcellError):
            write_text(self.folder / JOURNAL, json.dumps({"starts": starts}, indent=1))  # type: ignore[operator]


def _outcome(error: BaseException | None) -> tuple[str, str | None]:
    if error is None:
        return FINISHED, None
    if isinstance(error, Stopped):
        return STOPPED, f"by signal {error.number}"
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, "interrupted"
    if isinstance(error, SystemExit) and not error.code:
        return STOPPED, None
    return FAILED, str(error) if isinstance(error, VcellError) else f"{type(error).__name__}: {error}"


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Starts of a run, the first first; none where they were not recorded or cannot be read."""
    try:
        found = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))["starts"]
        return [_sound(start) for start in found if isinstance(start, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _sound(start: dict[str, Any]) -> dict[str, Any]:
    """A start whose versions are text by name, whatever was written over them."""
    tables = {
        key: start[key] if isinstance(start.get(key), dict) else {} for key in ("versions", "commit") if key in start
    }
    return start | {
        key: {name: value for name, value in table.items() if isinstance(value, str)} for key, table in tables.items()
    }


@contextmanager
def kept(keep: bool) -> Iterator[Journal]:
    """A journal; what the block prints is written to it too, if `keep`."""
    journal = Journal()
    if not keep:
        yield journal
        return
    out, err = sys.stdout, sys.stderr
    # a process without a console has no streams
    sys.stdout, sys.stderr = (stream and Doubled(stream, journal) for stream in (out, err))
    try:
        yield journal
    except BaseException as error:
        sys.stdout, sys.stderr = out, err
        with held():  # a scheduler may send its signal twice
            journal.close(error)
        raise
    else:
        sys.stdout, sys.stderr = out, err
        journal.close(None)


class Doubled:
    """A stream whose whole lines are kept in a journal as well; of a progress bar, its last state."""

    def __init__(self, stream: TextIO, journal: Journal) -> None:
        self._stream, self._journal, self._begun = stream, journal, ""

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            shown = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
            if shown:
                self._journal.line(shown)
        self._begun = self._begun.rsplit("\r", 1)[-1] if "\r" in self._begun[:-1] else self._begun
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)
