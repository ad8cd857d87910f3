"""Progress bars for people, a line a minute for logs."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

EVERY_S = 60.0  # between lines where a bar cannot be redrawn


def progress_bar(total: int | None, what: str, unit: str, **options: Any) -> tqdm:
    """A bar with rate and time left on a terminal; elsewhere, as in a job's log, a plain line a minute."""
    kind, interval = (tqdm, 0.2) if sys.stderr is not None and sys.stderr.isatty() else (Lines, 1.0)
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
