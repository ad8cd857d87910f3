"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vcell.errors import VcellError


@contextmanager
def written_whole(out: Path, what: str, parents: bool = True) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its place when the block ends well, and vanishes when it does not.

    Parameters
    ----------
    what
        What is written, for messages.
    parents
        Whether the folder around `out` is made where it is not there.

    Raises
    ------
    VcellError
        If the place cannot be written; what lay at `out` is then still there.
    """
    scratch = out.with_name(out.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=parents)
        yield scratch
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    except OSError as error:
        raise VcellError(f"{what} {out} could not be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes `folder`, for good even while processes of another machine still write into it.

    They know it by its name; under another one nothing can be added, and what they try fails.
    """
    doomed = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
