"""A prediction in parts: each written whole or not at all, by whichever process gets to it, and joined to one h5ad.

A part is what some targets' cells are: a folder of raw arrays in ``OUT.parts/``, written under another name and renamed when
whole. What a part holds depends on its number alone, so an interrupted prediction goes on with the parts it lacks, several
processes share the work without speaking to each other, and the joined file is the same to the byte in every case.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from vcell.atomic import remove, sync, sync_folder
from vcell.data.files.csr import number_type
from vcell.data.files.writer import H5adWriter
from vcell.data.store.store import checksum_of
from vcell.errors import VcellError
from vcell.progress import progress_bar

CHECKSUMS = "checksums.json"  # of the files of a part
VALUES_AT_ONCE = 8_000_000
STORED_BYTES = 8  # of a stored value in the joined file: int32 gene, float32 value


@dataclass(frozen=True)
class Parts:
    """The parts of the h5ad `out`.

    Parameters
    ----------
    out
        The file they will make up.
    sizes
        Cells of each part, in order.
    n_genes
        Of the file.
    """

    out: Path
    sizes: Sequence[int]
    n_genes: int

    @cached_property
    def folder(self) -> Path:
        return parts_folder(self.out)

    @cached_property
    def index_type(self) -> np.dtype:
        return number_type(self.n_genes)

    def has(self, number: int) -> bool:
        return self._of(number).is_dir()

    @property
    def cells_done(self) -> int:
        return sum(size for number, size in enumerate(self.sizes) if self.has(number))

    def write(self, number: int, blocks: Iterable[sparse.csr_matrix]) -> None:
        """Writes a part from its cells, block by block.

        Raises
        ------
        VcellError
            If it cannot be written; the other parts are kept.
        """
        scratch = self._of(number).with_suffix(f".{socket.gethostname()}.{os.getpid()}.tmp")
        try:
            scratch.mkdir()
            lengths = [np.zeros(0, np.int64)]
            with (scratch / "indices").open("wb") as indices, (scratch / "values").open("wb") as values:
                for block in blocks:
                    lengths.append(np.diff(block.indptr).astype(np.int64))
                    indices.write(block.indices.astype(self.index_type))
                    values.write(block.data.astype(np.float32))
            np.save(scratch / "lengths.npy", np.concatenate(lengths))
            sync(scratch)
            (scratch / CHECKSUMS).write_text(json.dumps(checksums_in(scratch)))
            scratch.rename(self._of(number))
        except OSError as error:
            # another process may have written the same part, or joined them all already
            if not self.has(number) and self.folder.is_dir():
                raise VcellError(
                    f"{self.out} could not be written: {error}. The parts written so far are kept in {self.folder}: make room, "
                    "and the same command goes on"
                ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def check_space(self, number: int) -> None:
        """Refuses to go on where the disk cannot hold what is to come, judged by the part `number`."""
        here = sum(path.stat().st_size for path in self._of(number).iterdir())
        stored = np.load(self._of(number) / "lengths.npy").sum()
        share = sum(self.sizes) / self.sizes[number]
        needed = int(stored * STORED_BYTES * share + here * share * (1 - self.cells_done / sum(self.sizes)))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise VcellError(
                f"{self.out} and its parts will take about {needed / 1e9:,.1f} GB more, and {free / 1e9:,.1f} GB are free in "
                f"{self.folder.parent}. Name a place with more room: out=FOLDER/{self.out.name}"
            )

    def join(self, obs: pd.DataFrame, genes: list[str], uns: dict[str, Any], compression: str | None) -> None:
        """Writes the file from its parts, and removes them."""
        lengths = [np.load(self._of(number) / "lengths.npy", allow_pickle=False) for number in range(len(self.sizes))]
        stored = int(sum(length.sum() for length in lengths))
        with (
            H5adWriter(self.out, obs, genes, uns, compression, stored) as writer,
            progress_bar(len(obs), f"writing {self.out.name}", "cells") as progress,
        ):
            # a kill between the renaming of the file and the removal of its parts is then known for what it was
            writer.before_renaming = lambda: note_joined(self.folder, writer.scratch)  # type: ignore[method-assign]
            for number, length in enumerate(lengths):
                self._append(writer, number, length)
                progress.update(len(length))
        remove(self.folder)

    def _append(self, writer: H5adWriter, number: int, lengths: np.ndarray) -> None:
        folder, left = self._of(number), int(lengths.sum())
        with (folder / "indices").open("rb") as indices, (folder / "values").open("rb") as values:
            while left:
                n = min(left, VALUES_AT_ONCE)
                some = np.fromfile(indices, self.index_type, n), np.fromfile(values, np.float32, n)
                if any(len(array) != n for array in some):
                    remove(folder)
                    raise VcellError(
                        f"{folder} is cut short; it has been removed. Run the same command again, which writes it anew"
                    ) from OSError()
                writer.append(*some)
                left -= n
        writer.end_rows(lengths)

    def _of(self, number: int) -> Path:
        return self.folder / f"{number:06d}"


def parts_folder(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def checksums_in(part: Path) -> dict[str, str]:
    return {path.name: checksum_of(path) for path in sorted(part.iterdir()) if path.name != CHECKSUMS}


def note_joined(folder: Path, whole: Path) -> None:
    """Notes which file the parts have become; its number in the file system outlasts its renaming."""
    (folder / "joined.json").write_text(json.dumps(whole.stat().st_ino))
    sync_folder(folder)


def is_joined(out: Path, key: str) -> bool:
    """Whether `out` is what the parts of this prediction became, though they were not removed any more."""
    try:
        return is_begun(out, key) and json.loads((parts_folder(out) / "joined.json").read_text()) == out.stat().st_ino
    except (OSError, ValueError):
        return False


def _sound(part: Path) -> bool:
    try:
        return json.loads((part / CHECKSUMS).read_text()) == checksums_in(part)
    except (OSError, ValueError, VcellError):
        return False


def begin(out: Path, key: str) -> None:
    """Makes the folder of parts, or finds that of an interrupted prediction; parts of another one are removed.

    `key` tells one prediction from another.
    """
    folder = parts_folder(out)
    try:
        then = json.loads((folder / "prediction.json").read_text()) if folder.exists() else None
    except (OSError, ValueError):
        then = {}
    if then == {"key": key}:
        found = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
        damaged = [path for path in found if not _sound(path)]
        for path in damaged:
            remove(path)
        if damaged:
            print(f"note         {len(damaged):,} parts were damaged and are written anew", flush=True)
        if len(found) > len(damaged):
            print(f"resuming     with {len(found) - len(damaged):,} parts written before the interruption", flush=True)
        return
    if then is not None:
        print(f"starting     anew: {folder} holds parts of another prediction, or of other input", flush=True)
        remove(folder)
    try:
        folder.mkdir(parents=True)
        scratch = folder / "prediction.tmp"
        scratch.write_text(json.dumps({"key": key}))
        scratch.rename(folder / "prediction.json")
    except OSError as error:
        raise VcellError(f"{out} cannot be written: {error}") from error


def is_begun(out: Path, key: str) -> bool:
    """Whether the folder of parts is there, for this prediction."""
    try:
        return json.loads((parts_folder(out) / "prediction.json").read_text()) == {"key": key}
    except (OSError, ValueError):
        return False
