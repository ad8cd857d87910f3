"""Files and folders are written completely or not at all: under a temporary name, synced to disk, then renamed."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vcell.errors import VcellError

MOST_LETTERS = 50  # of a label in a file's name, which takes 255 bytes


@contextmanager
def written_folder(out: Path, what: str, parents: bool = True) -> Iterator[Path]:
    """A scratch folder next to `out` that replaces it if the block succeeds, and is removed if it fails.

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
        sync(scratch)
        if out.exists():
            remove(out)
        scratch.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise VcellError(f"{what} {out} could not be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def written_file(out: Path) -> Iterator[Path]:
    """A path next to `out` to write the file to; it replaces `out` if the block succeeds.

    Raises
    ------
    VcellError
        If it cannot be written; what lay at `out` is then still there, and nothing else is left.
    """
    scratch = out.with_name(f"{out.stem}.{os.getpid()}.tmp{out.suffix}")  # many a library goes by the suffix
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        sync_file(scratch)
        scratch.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise VcellError(f"{out} could not be written: {error}") from error
    finally:
        with suppress(NotADirectoryError):  # a file lies where the folder should be
            scratch.unlink(missing_ok=True)


def check_folder(folder: Path, key: str) -> None:
    """Refuses a folder, the value of the setting `key`, in which nothing could be written, before work of hours is lost."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise VcellError(f"{key}={folder} cannot be a folder: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise VcellError(f"{key}={folder}: there is no permission to write in {there}")


def remove_leftovers(out: Path) -> None:
    """Removes partial files that killed processes left when writing `out`; call it only while holding its lock."""
    for path in [
        *out.parent.glob(f"{glob.escape(out.stem)}.*.tmp{out.suffix}"),
        *out.parent.glob(f"{glob.escape(out.name)}.*.tmp"),
    ]:
        if path.is_file():
            path.unlink(missing_ok=True)


def write_text(out: Path, text: str) -> None:
    """Writes a text file, UTF-8, whole or not at all."""
    with written_file(out) as scratch:
        scratch.write_text(text, encoding="utf-8")


def names_of_files(labels: Sequence[str]) -> list[str]:
    """For each label a part of a file's name, no two alike: without what a file's name may not hold anywhere, and not too long."""
    names: dict[str, str] = {}  # by what macOS and Windows take them for
    for label in labels:
        name = plain = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", label)[:MOST_LETTERS]
        number = 2
        while name.casefold() in names:
            name, number = f"{plain}_{number}", number + 1
        names[name.casefold()] = name
    return list(names.values())


def sync(folder: Path) -> None:
    """Waits until everything in `folder` is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
    sync_folder(folder)


def sync_file(path: Path) -> None:
    """Waits until a file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the directory entries of `folder` are on disk; file systems that do not support this are trusted."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(folder: Path) -> None:
    """Removes `folder`, even while processes on another machine still write into it.

    They address it by its name: once it is renamed they cannot add to it, and their writes fail.
    """
    doomed = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_zip(path: Path) -> None:
    """Verifies the checksums of a zip file (as written by `torch.save` and `numpy.savez`), which torch does not do.

    Raises
    ------
    ValueError
        If a part of it has changed; `zipfile.BadZipFile` if it is cut short. Files that are no zip are passed over.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it is not what was written")
