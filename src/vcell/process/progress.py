"""Progress bars on a terminal, one line per minute in logs, and nothing where Python code asks for silence."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

LOG = logging.getLogger("vcell")
EVERY_S = 60.0  # between lines where a bar cannot be redrawn


_silenced = False


@contextlib.contextmanager
def spoken(verbose: bool) -> Iterator[None]:
    """With `verbose`, what a block says is printed, with its bars; without, it goes to the logger ``vcell``, line by line: warnings as such."""
    global _silenced
    if verbose:
        yield
        return
    before, _silenced = _silenced, True
    try:
        with contextlib.redirect_stdout(_ToLog()):
            yield
    finally:
        _silenced = before


class _ToLog(io.TextIOBase):
    """A stream whose lines are logged."""

    def __init__(self) -> None:
        self.rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if line.strip():
                LOG.log(logging.WARNING if line.startswith("warning") else logging.INFO, line)
        return len(text)


def progress_bar(total: int | None, what: str, unit: str, **options: Any) -> tqdm:
    """A bar with rate and time left on a terminal; elsewhere, as in a job's log, one plain line per minute."""
    kind, interval = (tqdm, 0.2) if sys.stderr is not None and sys.stderr.isatty() else (Lines, 1.0)
    options["disable"] = options.get("disable", False) or _silenced
    # maxinterval above mininterval, or tqdm's monitor thread would draw between
    return kind(
        total=total, desc=what, unit=unit, unit_scale=True, mininterval=interval, maxinterval=4 * interval,
        dynamic_ncols=True, **options,
    )  # fmt: skip


class Lines(tqdm):
    """The same figures in whole lines, of which work that takes less than a minute prints none."""

    def __init__(self, **options: Any) -> None:
        self.last_line = time.monotonic()
        self.printed = False
        super().__init__(**{**options, "dynamic_ncols": False, "ncols": 0})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if time.monotonic() - self.last_line >= EVERY_S:
            self._line(msg)

    def close(self) -> None:
        if not self.disable and self.printed:
            self._line(None)
        self.disable = True

    def _line(self, msg: str | None) -> None:
        self.last_line, self.printed = time.monotonic(), True
        print(msg or str(self), file=sys.stderr, flush=True)
