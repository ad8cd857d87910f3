"""Progress bars for people, sparse lines for logs."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int | None, what: str, unit: str, **options: Any) -> tqdm:
    """A bar with rate and time left; in a log file, where a bar cannot be redrawn, a line every 15 seconds."""
    interval = 0.2 if sys.stderr.isatty() else 15.0
    # maxinterval above mininterval, or tqdm's monitor thread would draw between
    return tqdm(
        total=total, desc=what, unit=unit, unit_scale=True, mininterval=interval, maxinterval=4 * interval,
        dynamic_ncols=True, **options,
    )  # fmt: skip
