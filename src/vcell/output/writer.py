"""Cells to h5ad, block by block: CSR with 64-bit index pointers, memory bounded by one block.

The file is written under a temporary name and renamed when whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from vcell.errors import VcellError
from vcell.whole import sync_file, sync_folder

CHUNK = 1 << 18  # stored values a chunk, about 1 MB of float32


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
        skeleton = ad.AnnData(obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=object)), uns=uns or {})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            skeleton.write_h5ad(self.scratch)
            self.file = h5py.File(self.scratch, "r+")
        except OSError as error:
            raise VcellError(f"{self.path} cannot be written: {error}") from error
        if "X" in self.file:
            del self.file["X"]
        matrix = self.file.create_group("X")
        matrix.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [self.n_cells, self.n_genes]}
        )
        self.in_one_piece = stored is not None and compression is None and stored > 0
        layout: dict[str, Any] = {"shape": (0,), "maxshape": (None,), "chunks": (CHUNK,), "compression": compression}
        if self.in_one_piece:
            layout = {"shape": (stored,)}
        self.data = matrix.create_dataset("data", dtype=np.float32, **layout)
        self.indices = matrix.create_dataset("indices", dtype=np.int32, **layout)

    def write(self, cells: np.ndarray | sparse.csr_matrix) -> None:
        """Appends cells, dense or CSR, ``(cells, genes)``; zeros are not stored."""
        block = sparse.csr_matrix(cells)
        block.eliminate_zeros()
        self.append(block.indices, block.data)
        self.end_rows(np.diff(block.indptr))

    def append(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Appends stored values, sorted by gene within each cell; `end_rows` says which cells they are."""
        start, stop = self.stored, self.stored + len(values)
        for dataset, array in ((self.data, values), (self.indices, indices)):
            if not self.in_one_piece:
                dataset.resize((stop,))
            dataset[start:stop] = array
        self.stored = stop

    def end_rows(self, lengths: np.ndarray) -> None:
        """The next cells, by how many of the values appended belong to each."""
        self.lengths.append(lengths.astype(np.int64))
        self.written += len(lengths)

    def __enter__(self) -> H5adWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None and self.written != self.n_cells:
            error = VcellError(f"{self.written:,} of {self.n_cells:,} cells of {self.path} came")
        if error is None:
            self.file["X"].create_dataset("indptr", data=np.cumsum(np.concatenate(self.lengths)))
        self.file.close()
        if error is not None:
            self.scratch.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise VcellError(f"{self.path} could not be written: {error}") from error
            raise error
        sync_file(self.scratch)
        self.scratch.replace(self.path)
        sync_folder(self.path.parent)
