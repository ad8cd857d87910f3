"""Folders that are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vcell.errors import VcellError


@contextmanager
def written_whole(out: Path, what: str) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its place when the block ends well, and vanishes when it does not.

    Raises
    ------
    VcellError
        If the place cannot be written; what lay at `out` is then still there.
    """
    scratch = out.with_name(out.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    except OSError as error:
        raise VcellError(f"{what} {out} could not be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
