"""A prediction in parts: each written completely or not at all, by any process, and joined to one h5ad.

A part holds the cells of some targets: a folder of raw arrays in ``OUT.parts/``, written under another name and renamed when
complete. The content of a part depends only on its number, so an interrupted prediction resumes with the missing parts,
several processes share the work without communicating, and the joined file is identical to the byte in every case.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from vcell.atomic import remove, remove_leftovers, sync, sync_folder, write_text
from vcell.data.files.csr import number_type
from vcell.data.files.writer import H5adWriter
from vcell.data.store.store import checksum_of
from vcell.errors import VcellError
from vcell.process.progress import progress_bar
from vcell.system import Rank

CHECKSUMS = "checksums.json"  # of the files of a part
PATIENCE_S = 3600  # of ranks that wait for rank 0
VALUES_AT_ONCE = 8_000_000
STORED_BYTES = 8  # of a stored value in the joined file: int32 gene, float32 value


@dataclass(frozen=True)
class PartsFolder:
    """The parts of the h5ad `out`; `key` tells this prediction from others.

    Parameters
    ----------
    out
        The file they will make up.
    key
        A checksum of everything that the prediction depends on (`predict.key`).
    sizes
        Cells of each part, in order; known once the prediction is planned.
    n_genes
        Of the file.
    """

    out: Path
    key: str
    sizes: Sequence[int] = ()
    n_genes: int = 0

    @cached_property
    def folder(self) -> Path:
        return self.out.with_name(self.out.name + ".parts")

    @cached_property
    def index_type(self) -> np.dtype:
        return number_type(self.n_genes)

    def holding(self, sizes: Sequence[int], n_genes: int) -> PartsFolder:
        """The same folder, with the sizes of its parts."""
        return replace(self, sizes=list(sizes), n_genes=n_genes)

    def finished(self) -> bool:
        """Whether this very prediction was joined already and only its parts are left, which are then removed."""
        if Rank.here().number or not self._is_joined():
            return False
        self.clear()
        print(f"written      {self.out}, by the command that was interrupted", flush=True)
        return True

    def claim(self, rank: Rank, started: float) -> bool:
        """Makes the folder, or finds that of an interrupted prediction; on other ranks waits for it.

        False where the others have finished already.

        Raises
        ------
        VcellError
            If it cannot be written, or rank 0 does not come to it.
        """
        if rank.number == 0:
            remove_leftovers(self.out)
            self._begin()
            return True
        while not self._is_begun():
            if self.out.exists() and self.out.stat().st_mtime > started:
                return False
            if time.time() - started > PATIENCE_S:
                raise VcellError(f"rank 0 has not started {self.out} in {PATIENCE_S / 60:.0f} minutes; see its log")
            time.sleep(0.2)
        return True

    @contextmanager
    def cleared(self, rank: Rank) -> Iterator[None]:
        """After an error that the same command would meet again, the parts are removed; after any other they stay."""
        try:
            yield
        except VcellError as error:
            if rank.number == 0 and not isinstance(error.__cause__, OSError):
                self.clear()
            raise

    def clear(self) -> None:
        """Removes the folder."""
        remove(self.folder)

    def has(self, number: int) -> bool:
        return self._of(number).is_dir()

    def missing(self) -> list[int]:
        """Numbers of the parts that are not written yet."""
        return [number for number in range(len(self.sizes)) if not self.has(number)]

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
            scratch.replace(self._of(number))
        except OSError as error:
            # another process may have written the same part, or joined them all already
            if not self.has(number) and self.folder.is_dir():
                raise VcellError(
                    f"{self.out} could not be written: {error}. The parts written so far are kept in {self.folder}: free some space, "
                    "and run the same command to resume"
                ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def check_space(self, number: int) -> None:
        """Stops if the disk cannot hold the remaining parts, judged by the part `number`."""
        here = sum(path.stat().st_size for path in self._of(number).iterdir())
        stored = np.load(self._of(number) / "lengths.npy").sum()
        share = sum(self.sizes) / self.sizes[number]
        needed = int(stored * STORED_BYTES * share + here * share * (1 - self.cells_done / sum(self.sizes)))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise VcellError(
                f"{self.out} and its parts will take about {needed / 1e9:,.1f} GB more, and {free / 1e9:,.1f} GB are free in "
                f"{self.folder.parent}. Choose a place with more space: out=FOLDER/{self.out.name}"
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
            writer.before_renaming = lambda: self._note_joined(writer.scratch)  # type: ignore[method-assign]
            for number, length in enumerate(lengths):
                self._append(writer, number, length)
                progress.update(len(length))
        self.clear()

    def _append(self, writer: H5adWriter, number: int, lengths: np.ndarray) -> None:
        folder, left = self._of(number), int(lengths.sum())
        with (folder / "indices").open("rb") as indices, (folder / "values").open("rb") as values:
            while left:
                n = min(left, VALUES_AT_ONCE)
                some = np.fromfile(indices, self.index_type, n), np.fromfile(values, np.float32, n)
                if any(len(array) != n for array in some):
                    remove(folder)
                    raise VcellError(
                        f"{folder} is cut short; it has been removed. Run the same command again, which rewrites it"
                    ) from OSError()
                writer.append(*some)
                left -= n
        writer.end_rows(lengths)

    def _of(self, number: int) -> Path:
        return self.folder / f"{number:06d}"

    def _note_joined(self, whole: Path) -> None:
        """Records which file the parts were joined to, by its inode, which does not change when it is renamed."""
        (self.folder / "joined.json").write_text(json.dumps(whole.stat().st_ino))
        sync_folder(self.folder)

    def _is_joined(self) -> bool:
        """Whether `out` was joined from the parts of this prediction, but the parts were not removed."""
        try:
            return self._is_begun() and json.loads((self.folder / "joined.json").read_text()) == self.out.stat().st_ino
        except (OSError, ValueError):
            return False

    def _is_begun(self) -> bool:
        """Whether the folder is there, for this prediction."""
        try:
            return json.loads((self.folder / "prediction.json").read_text()) == {"key": self.key}
        except (OSError, ValueError):
            return False

    def _begin(self) -> None:
        """Makes the folder, or finds that of an interrupted prediction; parts of another one are removed."""
        folder = self.folder
        try:
            then = json.loads((folder / "prediction.json").read_text()) if folder.exists() else None
        except (OSError, ValueError):
            then = {}
        if then == {"key": self.key}:
            self._say_what_is_kept()
            return
        if then is not None:
            print(f"starting     over: {folder} holds parts of another prediction, or of other input", flush=True)
            self.clear()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VcellError(f"{self.out} cannot be written: {error}") from error
        write_text(folder / "prediction.json", json.dumps({"key": self.key}))

    def _say_what_is_kept(self) -> None:
        found = [path for path in self.folder.iterdir() if path.is_dir() and path.name.isdigit()]
        damaged = [path for path in found if not _sound(path)]
        for path in damaged:
            remove(path)
        if damaged:
            print(f"note         {len(damaged):,} damaged parts are written again", flush=True)
        if len(found) > len(damaged):
            print(f"resuming     with {len(found) - len(damaged):,} parts written before the interruption", flush=True)


Parts = PartsFolder  # its name until 0.1


def checksums_in(part: Path) -> dict[str, str]:
    return {path.name: checksum_of(path) for path in sorted(part.iterdir()) if path.name != CHECKSUMS}


def _sound(part: Path) -> bool:
    try:
        return json.loads((part / CHECKSUMS).read_text()) == checksums_in(part)
    except (OSError, ValueError, VcellError):
        return False
