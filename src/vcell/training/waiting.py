"""Ranks that wait for what rank 0 writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from vcell.errors import VcellError

SAY_AFTER_S = 60.0
PATIENCE_S = 6 * 3600.0


def wait_for(files: Sequence[Path], words: str, patience_s: float = PATIENCE_S) -> None:
    """Returns when all `files` are there; says `words` if that takes a while.

    Raises
    ------
    VcellError
        If they are not there in `patience_s` seconds.
    """
    started, said = time.monotonic(), False
    while not all(path.is_file() for path in files):
        waited = time.monotonic() - started
        if waited > patience_s:
            raise VcellError(f"rank 0 has not written {files[0].parent} in {patience_s / 3600:.0f} hours; see its log")
        if not said and waited > SAY_AFTER_S:
            said = True
            print(words, flush=True)
        time.sleep(1.0)
