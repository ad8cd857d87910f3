"""The matrix of an h5ad in blocks of cells, whatever its layout: CSR, CSC or dense, in any chunks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vcell.data.files.csr import ranges, row_of, starts_of
from vcell.data.files.elements import NUMBERS, array, attribute, element, has, members
from vcell.errors import VcellError, nearest

BLOCK_VALUES = 4_000_000  # stored values read at a time: about 50 MB in flight
BUCKET_FILES = 200  # scratch files that a CSC matrix is sorted into, at most open at a time
PAIR = np.dtype([("cell", np.int64), ("gene", np.uint32), ("value", np.float64)])


@dataclass(frozen=True)
class CsrBlock:
    """Some consecutive cells of a file: CSR rows, `indptr` from 0."""

    start: int
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Sample:
    """Some cells of a file as CSR rows. A CSC matrix is sampled by genes: then not every gene of a cell is there."""

    cells: np.ndarray  # ascending
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    all_genes: bool


@dataclass(frozen=True)
class Matrix:
    """An opened matrix of counts or expression, cells × genes. Make one with `Matrix.open`."""

    node: h5py.Dataset | h5py.Group
    what: str  # file and name, for messages
    layout: str  # csr, csc or dense
    shape: tuple[int, int]
    indptr: np.ndarray | None  # int64; None for a dense matrix

    @classmethod
    def open(cls, file: h5py.File, path: Path, name: str, n_cells: int, n_genes: int) -> Matrix:
        """The matrix called `name` (``X``, ``layers/NAME``, ``raw/X``).

        Raises
        ------
        VcellError
            If there is none, its layout is unknown, or its parts do not fit together.
        """
        if not has(file, name):
            known = matrix_names(file, path)
            raise VcellError(
                f"{path} has no matrix {name!r}.{nearest(name, known)} It has: {', '.join(known) or 'none'}. Set data.matrix=NAME"
            )
        node, what, shape = element(file, name, path), f"{path}: {name}", (n_cells, n_genes)
        check_not_empty(path, n_cells, n_genes)
        if isinstance(node, h5py.Dataset):
            if node.shape != shape:
                raise VcellError(f"{what} has shape {node.shape}, not cells × genes {shape}")
            if node.dtype.kind not in NUMBERS:
                raise VcellError(f"{what} holds values of type {node.dtype}, not numbers")
            return cls(node, what, "dense", shape, None)
        encodings = [attribute(node, name, path) for name in ("encoding-type", "h5sparse_format")]
        layout = next((name for name in encodings if isinstance(name, str)), "").removesuffix("_matrix")
        if layout not in ("csr", "csc"):
            raise VcellError(f"{what} is stored as {layout or 'an unknown layout'}; CSR, CSC and dense can be read")
        given = attribute(node, "shape", path)
        given = attribute(node, "h5sparse_shape", path) if given is None else given
        if given is not None and np.ravel(given).tolist() != list(shape):
            raise VcellError(f"{what} has shape {tuple(np.ravel(given).tolist())}, not cells × genes {shape}")
        values, indices = (array(node, part, path, NUMBERS) for part in ("data", "indices"))
        indptr = _index_pointer(array(node, "indptr", path, NUMBERS), what)
        _check_indptr(indptr, len(values), len(indices), what, shape[layout == "csc"])
        return cls(node, what, layout, shape, indptr)

    @property
    def stored(self) -> int:
        """Values stored."""
        return int(self.indptr[-1]) if self.indptr is not None else self.shape[0] * self.shape[1]

    def stored_of(self, cells: np.ndarray) -> int:
        """The most values that some cells hold."""
        if self.layout == "csr" and self.indptr is not None:
            return int((self.indptr[cells + 1] - self.indptr[cells]).sum())
        return self.stored if self.layout == "csc" else len(cells) * self.shape[1]

    @property
    def cells_in_chunk(self) -> int:
        """About how many cells a chunk of the file holds; 0 where it has none."""
        chunks = self.values_node.chunks
        if chunks is None:
            return 0
        return chunks[0] if self.layout == "dense" else chunks[0] * self.shape[0] // max(1, self.stored)

    @property
    def values_node(self) -> h5py.Dataset:
        """The dataset that holds the values."""
        return self.node if isinstance(self.node, h5py.Dataset) else self.node["data"]

    def blocks(self, scratch: Path) -> Iterator[CsrBlock]:
        """All cells in order, in blocks of bounded size; a CSC matrix is first sorted into files below `scratch`.

        Raises
        ------
        VcellError
            If the matrix is damaged.
        """
        try:
            yield from {"dense": self._dense_blocks, "csr": self._csr_blocks, "csc": lambda: self._csc_blocks(scratch)}[
                self.layout
            ]()
        except (OSError, KeyError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's own, such as no space left
            if "filter" in str(error) or "plugin" in str(error):
                raise VcellError(
                    f"{self.what} is compressed in a way that HDF5 cannot read here ({error}): pip install hdf5plugin"
                ) from error
            raise VcellError(f"{self.what} is damaged ({error}). Download or write the file again") from error

    def rows(self, cells: np.ndarray, kind: type[np.signedinteger] = np.int64) -> Sample:
        """The given cells, ascending, genes as whole numbers of `kind`; not for CSC."""
        parts = [self._some_of_run(run, kind) for run in self._runs(cells)]
        lengths = np.concatenate([np.diff(p.indptr) for p in parts]) if parts else np.empty(0, np.int64)
        indices, values = (_joined([getattr(p, k) for p in parts]) for k in ("indices", "values"))
        return Sample(cells, starts_of(lengths), indices.astype(kind, copy=False), values, all_genes=True)

    def _runs(self, cells: np.ndarray) -> list[np.ndarray]:
        """Cells that are read at once: neighbours, and those that share a chunk."""
        apart = np.diff(cells) > 1
        chunks = self.values_node.chunks
        if chunks is not None and self.indptr is not None:
            chunk = self.indptr[cells] // chunks[0]
            apart &= np.diff(chunk) > 0
        return np.split(cells, np.flatnonzero(apart) + 1) if len(cells) else []

    def _some_of_run(self, cells: np.ndarray, kind: type[np.signedinteger]) -> CsrBlock:
        block = self._run(int(cells[0]), int(cells[-1]) + 1, kind)
        if len(block.indptr) - 1 == len(cells):
            return block
        lengths = np.diff(block.indptr)
        taken = np.isin(np.arange(block.start, block.start + len(lengths)), cells)
        keep = np.repeat(taken, lengths)
        return CsrBlock(block.start, starts_of(lengths[taken]), block.indices[keep], block.values[keep])

    def column(self, gene: int) -> tuple[np.ndarray, np.ndarray]:
        """Cells with a value of `gene`, and the values; of a CSC matrix."""
        assert self.indptr is not None and self.layout == "csc"
        low, high = self.indptr[gene], self.indptr[gene + 1]
        return self.indices(low, high).astype(np.int64), self._values(low, high)

    def _run(self, start: int, stop: int, kind: type[np.signedinteger] = np.int64) -> CsrBlock:
        if self.indptr is None:
            return dense_block(as_numbers(self.node[start:stop]), start)
        low, high = self.indptr[start], self.indptr[stop]
        indices = self.indices(low, high)
        return CsrBlock(
            start, self.indptr[start : stop + 1] - low, indices.astype(kind, copy=False), self._values(low, high)
        )

    def _values(self, low: int, high: int) -> np.ndarray:
        return as_numbers(self.values_node[low:high])

    def _dense_blocks(self) -> Iterator[CsrBlock]:
        step = max(1, BLOCK_VALUES // max(1, self.shape[1]))
        for start in range(0, self.shape[0], step):
            yield self._run(start, min(start + step, self.shape[0]))

    def _csr_blocks(self) -> Iterator[CsrBlock]:
        assert self.indptr is not None
        for start, stop in ranges(self.indptr, BLOCK_VALUES):
            yield self._run(start, stop)

    def _csc_blocks(self, scratch: Path) -> Iterator[CsrBlock]:
        """Two passes over the disk, with bounded memory: values go to the file of their cells' block, then each file is sorted."""
        assert self.indptr is not None
        cells = self.shape[0]
        lengths = np.zeros(cells, np.int64)
        for low, high in self._value_ranges():
            lengths += np.bincount(self.indices(low, high), minlength=cells)
        size = max(BLOCK_VALUES, -(-self.stored // BUCKET_FILES))
        bounds = np.unique(np.append(np.searchsorted(starts_of(lengths), np.arange(0, self.stored, size)), [0, cells]))
        files = [(scratch / f"cells_{first}").open("w+b") for first in bounds[:-1]]
        try:
            for low, high in self._value_ranges():
                pairs = np.empty(high - low, PAIR)
                pairs["cell"], pairs["value"] = self.indices(low, high), self._values(low, high)
                pairs["gene"] = np.searchsorted(self.indptr, np.arange(low, high), side="right") - 1
                pairs = pairs[np.argsort(pairs["cell"], kind="stable")]
                cuts = np.searchsorted(pairs["cell"], bounds)
                for file, a, b in zip(files, cuts[:-1], cuts[1:], strict=True):
                    file.write(pairs[a:b].tobytes())
            for file, first, last in zip(files, bounds[:-1], bounds[1:], strict=True):
                file.seek(0)
                pairs = np.frombuffer(file.read(), PAIR)
                pairs = pairs[np.argsort(pairs["cell"], kind="stable")]  # genes came in order, and stay so
                yield CsrBlock(
                    int(first), starts_of(lengths[first:last]), pairs["gene"].astype(np.int64), pairs["value"]
                )
        finally:
            for file in files:
                file.close()
                Path(file.name).unlink(missing_ok=True)

    def _value_ranges(self) -> Iterator[tuple[int, int]]:
        for low in range(0, self.stored, BLOCK_VALUES):
            yield low, min(low + BLOCK_VALUES, self.stored)

    def indices(self, low: int, high: int) -> np.ndarray:
        """The gene of each of some values, the cell in a CSC matrix; each within the matrix."""
        limit = self.shape[self.layout == "csr"]
        indices = _whole_numbers(self.node["indices"][low:high], self.what)
        if indices.size and (indices.min() < 0 or indices.max() >= limit):
            kind = "genes" if self.layout == "csr" else "cells"
            raise VcellError(f"{self.what} is damaged: it stores {kind} outside 0 to {limit - 1:,}")
        return indices


def read_dense(file: h5py.File, path: Path, name: str, shape: tuple[int, int]) -> np.ndarray:
    """A small matrix whole, float64 ``(rows, columns)``; values that are stored twice are summed."""
    matrix, values = Matrix.open(file, path, name, *shape), np.zeros(shape)
    with tempfile.TemporaryDirectory() as scratch:
        for block in matrix.blocks(Path(scratch)):
            np.add.at(values, (block.start + row_of(block.indptr), block.indices), block.values)
    return values


def check_not_empty(path: Path, n_cells: int, n_genes: int) -> None:
    """Refuses a file without cells or genes."""
    if not (n_cells and n_genes):
        raise VcellError(
            f"{path} is empty: {n_cells:,} cells, {n_genes:,} genes. Was too much filtered out before it was written?"
        )


def matrix_names(file: h5py.File, path: Path) -> list[str]:
    """Matrices of a file that hold cells × genes."""
    names = [name for name in ("X", "raw/X", "raw.X") if has(file, name)]
    return [*names, *(f"layers/{layer}" for layer in members(file, "layers", path))]


def as_numbers(values: np.ndarray) -> np.ndarray:
    """The same values in a type that scipy and compiled loops take: this machine's byte order, no bool, no half or extended precision."""
    other = {"b1": np.uint8, "f2": np.float32}.get(values.dtype.str[1:])
    if other is None and values.dtype.kind == "f" and values.dtype.itemsize > 8:
        other = np.float64
    return values.astype(other or values.dtype.newbyteorder("="), copy=False)


def dense_block(values: np.ndarray, start: int) -> CsrBlock:
    """A dense block as CSR, zeros left out."""
    row, gene = np.nonzero(values)
    return CsrBlock(start, starts_of(np.bincount(row, minlength=len(values))), gene, values[row, gene])


def _whole_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """Indices as they are; as whole numbers where R or Matlab wrote them as doubles."""
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (np.floor(values) == values)
        if not whole.all():
            raise VcellError(f"{what} is damaged: an index is {values[~whole][0]:g}, no whole number")
        return values.astype(np.int64)
    return values


def _index_pointer(node: h5py.Dataset, what: str) -> np.ndarray:
    try:
        return _whole_numbers(node[:], what).astype(np.int64)
    except OSError as error:
        raise VcellError(
            f"{what} is damaged: its index pointer cannot be read ({error}). Download or write the file again"
        ) from error


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One after the other; the only one itself, without a copy."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0)])


def _check_indptr(indptr: np.ndarray, values: int, indices: int, what: str, rows: int) -> None:
    if indptr.size and (np.diff(indptr) < 0).any():
        raise VcellError(
            f"{what} is damaged: its index pointer decreases, which happens to 32-bit pointers beyond 2^31 stored values. Write "
            "the file again with 64-bit pointers: adata.X.indptr = adata.X.indptr.astype('int64'), before it overflows"
        )
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != values or values != indices:
        raise VcellError(f"{what} is damaged: its index pointer does not fit its {rows:,} rows and stored values")
