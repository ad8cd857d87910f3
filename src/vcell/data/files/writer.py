"""Cells to h5ad, block by block: CSR whose two index arrays have one type, memory bounded by one block.

The file is written under a temporary name and renamed when complete.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from vcell.atomic import sync_file, sync_folder
from vcell.errors import VcellError
from vcell.process.stopping import held

CHUNK = 1 << 18  # stored values per chunk, about 1 MB of float32
MOST_INT32 = 2**31 - 1


class H5adWriter:
    """Writes the cells of `obs`, in its order, to `path`; use it in a ``with`` block.

    Parameters
    ----------
    path
        The h5ad to write.
    obs, genes, uns
        What the file says of its cells, its genes and itself.
    compression
        Of the matrix: ``None``, ``"lzf"`` or ``"gzip"``.
    stored
        The number of stored values, where it is known: an uncompressed matrix then lies in one piece.
    """

    def __init__(
        self,
        path: Path,
        obs: pd.DataFrame,
        genes: list[str],
        uns: dict[str, Any] | None = None,
        compression: str | None = None,
        stored: int | None = None,
    ) -> None:
        self.path, self.scratch = Path(path), Path(path).with_name(f"{Path(path).name}.{os.getpid()}.tmp")
        self.n_cells, self.n_genes = len(obs), len(genes)
        self.lengths = [np.zeros(1, dtype=np.int64)]
        self.written = self.stored = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.sink = _Sink(self.scratch)
        except OSError as error:
            raise VcellError(f"{self.path} cannot be written: {error}") from error
        try:
            with held():
                self._begin(obs, genes, uns, compression, stored)
        except BaseException as error:  # __exit__ would not be called
            self._close(error)

    def _begin(
        self,
        obs: pd.DataFrame,
        genes: list[str],
        uns: dict[str, Any] | None,
        compression: str | None,
        stored: int | None,
    ) -> None:
        self.file = h5py.File(self.sink, "w")
        write_frame(self.file, obs, genes, uns)
        matrix = self.file.create_group("X")
        matrix.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [self.n_cells, self.n_genes]}
        )
        self.in_one_piece = stored is not None and compression is None and stored > 0
        layout: dict[str, Any] = {"shape": (0,), "maxshape": (None,), "chunks": (CHUNK,), "compression": compression}
        if self.in_one_piece:
            layout = {"shape": (stored,)}
        self.data = matrix.create_dataset("data", dtype=np.float32, **layout)
        self.indices = matrix.create_dataset("indices", dtype=index_type(stored or 0), **layout)

    def write(self, cells: np.ndarray | sparse.csr_matrix) -> None:
        """Appends cells, dense or CSR, ``(cells, genes)``; zeros are not stored."""
        block = sparse.csr_matrix(cells)
        block.eliminate_zeros()
        self.append(block.indices, block.data)
        self.end_rows(np.diff(block.indptr))

    def append(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Appends stored values, sorted by gene within each cell; `end_rows` says which cells they are."""
        start, stop = self.stored, self.stored + len(values)
        with held():
            for dataset, array in ((self.data, values), (self.indices, indices)):
                if not self.in_one_piece:
                    dataset.resize((stop,))
                dataset[start:stop] = array
        self.stored = stop
        self.sink.check()

    def end_rows(self, lengths: np.ndarray) -> None:
        """The next cells, by how many of the values appended belong to each."""
        self.lengths.append(lengths.astype(np.int64))
        self.written += len(lengths)

    def __enter__(self) -> H5adWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with held():
            self._close(error)

    def _close(self, error: BaseException | None) -> None:
        if error is None and self.written != self.n_cells:
            error = VcellError(f"only {self.written:,} of {self.n_cells:,} cells were written to {self.path}")
        if error is None:
            self._finish()
        self.file.close()
        try:
            self.sink.close()
        except OSError as failed:
            error = error or failed
        if error is not None:
            self.scratch.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise VcellError(f"{self.path} could not be written: {error}") from error
            raise error
        sync_file(self.scratch)
        self.before_renaming()
        self.scratch.replace(self.path)
        sync_folder(self.path.parent)

    def _finish(self) -> None:
        """Index pointers, in the type of the indices: scipy works with one type, and its int32 code crashes on two."""
        matrix, wanted = self.file["X"], index_type(self.stored)
        if self.indices.dtype != wanted:  # more values came than int32 can count
            _widen(matrix, wanted)
        matrix.create_dataset("indptr", data=np.cumsum(np.concatenate(self.lengths)).astype(wanted))

    def before_renaming(self) -> None:
        """Called when the file is complete but not yet renamed."""


def index_type(stored: int) -> np.dtype:
    """The type of both index arrays of a sparse matrix with so many stored values."""
    return np.dtype(np.int32 if stored <= MOST_INT32 else np.int64)


def write_frame(file: h5py.File, obs: pd.DataFrame, genes: list[str], uns: dict[str, Any] | None = None) -> None:
    """Everything of an h5ad but its matrix."""
    from anndata.io import write_elem  # here: training, which writes none, starts without it

    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    write_elem(file, "obs", obs)
    write_elem(file, "var", pd.DataFrame(index=pd.Index(genes, dtype=object)))
    for name in ("obsm", "varm", "obsp", "varp", "layers"):
        write_elem(file, name, {})
    write_elem(file, "uns", uns or {})


def one_index_type(matrix: h5py.Group) -> None:
    """Gives both index arrays of a CSR matrix in a file one type, as scipy wants it."""
    wanted = index_type(matrix["data"].shape[0])
    if matrix["indices"].dtype != wanted:
        _widen(matrix, wanted)
    if matrix["indptr"].dtype != wanted:
        pointers = matrix["indptr"][:].astype(wanted)
        del matrix["indptr"]
        matrix.create_dataset("indptr", data=pointers)


def _widen(matrix: h5py.Group, wanted: np.dtype) -> None:
    """Writes the indices again in another type, block by block."""
    old = matrix["indices"]
    new = matrix.create_dataset(
        "indices_", shape=old.shape, dtype=wanted, chunks=old.chunks, compression=old.compression
    )
    for start in range(0, len(old), 64 * CHUNK):
        new[start : start + 64 * CHUNK] = old[start : start + 64 * CHUNK]
    del matrix["indices"]
    matrix.move("indices_", "indices")


@contextmanager
def written_h5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file whose write errors are raised as `OSError` when the block ends; HDF5 itself never sees them."""
    sink = _Sink(path)
    try:
        with held(), h5py.File(sink, "w") as file:
            yield file
    finally:
        sink.close()


class _Sink(io.RawIOBase):
    """A file object for HDF5 whose writes never fail.

    HDF5 cannot let go of a file that it could not write: the process ends in a segmentation fault, at a full disk. So the first error
    is kept, HDF5 is told that all went well, and `check` and `close` raise it.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += self.file.write(view[done:]) or 0
        except OSError as error:
            self.error = error
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            n = self.file.readinto(view[done:])
            if not n:
                break
            done += n
        view[done:] = bytes(len(view) - done)
        return len(view)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def flush(self) -> None:
        """There is no buffer."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.file.closed:
            self.file.close()
        super().close()
        error, self.error = self.error, None
        if error is not None:
            raise error
