"""Rows of cells of one context, wherever they lie: in memory, in a scratch file, in a cell store. Read as they are needed.

The cells of a full context take 6 GB in memory, three times over where they are copied; in a file they take disk.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import sparse

from vcell.data.files.csr import number_type, starts_of
from vcell.data.store.store import Cells
from vcell.system import in_threads

CELLS_AT_ONCE = 512  # memory for so many is used again; that for more is fetched anew from the system each time
Change = Callable[[sparse.csr_matrix], sparse.csr_matrix]


class Rows(Protocol):
    """Cells as CSR, float32 or as they are stored, by their numbers."""

    @property
    def n_cells(self) -> int: ...

    def take(self, numbers: np.ndarray) -> sparse.csr_matrix: ...


@dataclass(frozen=True)
class InMemory:
    """Rows of a matrix."""

    matrix: sparse.csr_matrix

    @property
    def n_cells(self) -> int:
        return self.matrix.shape[0]

    def take(self, numbers: np.ndarray) -> sparse.csr_matrix:
        if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1 and (np.diff(numbers) == 1).all():
            return rows_between(self.matrix, int(numbers[0]), int(numbers[-1]) + 1)
        return self.matrix[numbers]


class InFile:
    """Rows in a file without a name, which is gone with this object; any number of threads may read.

    Parameters
    ----------
    blocks
        Cells in their order, CSR.
    n_genes
        Columns.
    folder
        Where there is room.
    """

    def __init__(self, blocks: Iterable[sparse.csr_matrix], n_genes: int, folder: Path) -> None:
        self.n_genes, self.gene_type = n_genes, number_type(n_genes)
        self.value_type: np.dtype | None = None
        self._files = [tempfile.TemporaryFile(dir=folder, prefix=".vcell-cells-") for _ in range(2)]  # noqa: SIM115
        lengths = [np.zeros(0, np.int64)]
        for block in blocks:
            lengths.append(np.diff(block.indptr).astype(np.int64))
            self.value_type = self.value_type or block.data.dtype
            for file, values, kind in zip(
                self._files, (block.indices, block.data), (self.gene_type, self.value_type), strict=True
            ):
                file.write(np.ascontiguousarray(values, dtype=kind).data)
        for file in self._files:
            file.flush()
        self.starts = starts_of(np.concatenate(lengths))

    @property
    def n_cells(self) -> int:
        return len(self.starts) - 1

    def take(self, numbers: np.ndarray) -> sparse.csr_matrix:
        genes, values = (
            self._read(file, kind, numbers)
            for file, kind in zip(self._files, (self.gene_type, self.value_type or np.dtype(np.float32)), strict=True)
        )
        indptr = starts_of(self.starts[numbers + 1] - self.starts[numbers])
        return sparse.csr_matrix((values, genes.astype(np.int32), indptr), (len(numbers), self.n_genes))

    def _read(self, file: object, kind: np.dtype, numbers: np.ndarray) -> np.ndarray:
        number, parts = file.fileno(), [np.zeros(0, kind)]  # type: ignore[attr-defined]
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else []:
            first, last = self.starts[run[0]] * kind.itemsize, self.starts[run[-1] + 1] * kind.itemsize
            parts.append(np.frombuffer(_read_at(number, int(last - first), int(first)), kind))
        return np.concatenate(parts)


_reading = threading.Lock()


def _read_at(number: int, size: int, at: int) -> bytes:
    """Whole, however large: one call reads 2 GB at most."""
    parts = []
    while size:
        if hasattr(os, "pread"):
            part = os.pread(number, size, at)
        else:  # Windows: threads share the place in the file
            with _reading:
                os.lseek(number, at, os.SEEK_SET)
                part = os.read(number, size)
        if not part:
            raise OSError(f"a scratch file of cells ended {size:,} bytes early")
        parts.append(part)
        size, at = size - len(part), at + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True)
class OfStore:
    """Some cells of a cell store, as counts."""

    store: Cells
    cells: np.ndarray

    @property
    def n_cells(self) -> int:
        return len(self.cells)

    def take(self, numbers: np.ndarray) -> sparse.csr_matrix:
        rows = self.store.rows(self.cells[numbers])
        parts = (rows.values.astype(np.float32), rows.indices.astype(np.int32), rows.indptr)
        return sparse.csr_matrix(parts, shape=(len(numbers), self.store.n_genes))


@dataclass(frozen=True)
class LabelledCells:
    """Cells of one context with the labels of their perturbations.

    Attributes
    ----------
    labels
        Of each cell.
    genes
        Names of the columns.
    rows
        Where the cells lie.
    numbers
        Which of them these are.
    changes
        What is done to cells that are not in memory whenever they are read; to those in memory it is done at once.
    """

    labels: np.ndarray
    genes: list[str]
    rows: Rows
    numbers: np.ndarray
    changes: tuple[Change, ...] = field(default=())

    @classmethod
    def of(cls, labels: np.ndarray, genes: list[str], rows: Rows) -> LabelledCells:
        return cls(np.asarray(labels), genes, rows, np.arange(rows.n_cells))

    @property
    def n_cells(self) -> int:
        return len(self.numbers)

    def take(self, places: np.ndarray) -> sparse.csr_matrix:
        """The cells at `places` of these, CSR."""
        cells = self.rows.take(self.numbers[places])
        for change in self.changes:
            cells = change(cells)
        return cells

    def blocks(self) -> Iterator[sparse.csr_matrix]:
        """All cells, some hundreds at a time."""
        for start in range(0, max(1, self.n_cells), CELLS_AT_ONCE):
            yield self.take(np.arange(start, min(start + CELLS_AT_ONCE, self.n_cells)))

    def changed(self, change: Change) -> LabelledCells:
        """The same cells, each block of them changed."""
        if isinstance(self.rows, InMemory):
            room = self.rows.matrix.nnz
            return LabelledCells.of(
                self.labels, self.genes, InMemory(one_matrix(in_threads(change, self.blocks()), room))
            )
        return replace(self, changes=(*self.changes, change))

    def revalued(self, change: Change) -> LabelledCells:
        """The same as `changed`, where the values change (to float32) and not their places, which are not copied."""
        if not isinstance(self.rows, InMemory):
            return self.changed(change)
        matrix = self.rows.matrix
        values = np.empty(matrix.nnz, np.float32)

        def put(start: int) -> None:
            block = rows_between(matrix, start, min(start + CELLS_AT_ONCE, self.n_cells))
            values[matrix.indptr[start] :][: block.nnz] = change(block).data

        for _ in in_threads(put, range(0, self.n_cells, CELLS_AT_ONCE)):
            pass
        return LabelledCells.of(self.labels, self.genes, InMemory(with_values(matrix, values)))

    def checked(self, check: Callable[[sparse.csr_matrix], None]) -> LabelledCells:
        """The same cells, each block of them looked at by `check`, which raises where it finds a fault."""
        if isinstance(self.rows, InMemory):
            for _ in in_threads(check, self.blocks()):
                pass
            return self

        def passed(cells: sparse.csr_matrix) -> sparse.csr_matrix:
            check(cells)
            return cells

        return replace(self, changes=(*self.changes, passed))

    def in_columns(self, columns: np.ndarray, names: list[str]) -> LabelledCells:
        """Some columns, under these names."""
        return replace(self.changed(lambda cells: cells[:, columns]), genes=names)

    def where(self, kept: np.ndarray) -> LabelledCells:
        """Those for which the mask is true; the same object where that is all."""
        if kept.all():
            return self
        places = np.flatnonzero(kept)
        if isinstance(self.rows, InMemory):
            return LabelledCells.of(self.labels[places], self.genes, InMemory(self.take(places)))
        return replace(self, labels=self.labels[places], numbers=self.numbers[places])

    def relabelled(self, names: dict[str, str]) -> LabelledCells:
        """Labels replaced by others."""
        return replace(self, labels=np.array([names.get(label, label) for label in self.labels]))


def rows_between(matrix: sparse.csr_matrix, begin: int, end: int) -> sparse.csr_matrix:
    """Rows from `begin` to `end`, without copying their values."""
    first, last = matrix.indptr[begin], matrix.indptr[end]
    starts = matrix.indptr[begin : end + 1] - first
    return _made(matrix.data[first:last], matrix.indices[first:last], starts, matrix.shape[1])


def with_values(matrix: sparse.csr_matrix, values: np.ndarray) -> sparse.csr_matrix:
    """Other values at the same places, which are not copied."""
    return _made(values, matrix.indices, matrix.indptr, matrix.shape[1])


def _made(values: np.ndarray, genes: np.ndarray, starts: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    """Not by the matrix's constructor, which copies parts of larger arrays."""
    made = sparse.csr_matrix((len(starts) - 1, n_genes), dtype=values.dtype)
    made.data, made.indices, made.indptr = values, genes, starts
    return made


def one_matrix(blocks: Iterable[sparse.csr_matrix], room: int) -> sparse.csr_matrix:
    """Blocks of cells one after the other, which hold no more than `room` values; none is kept while the next is made."""
    indices, values, lengths, at, n_genes = np.empty(room, np.int32), np.empty(0, np.float32), [np.zeros(0, int)], 0, 0
    for block in blocks:
        if at == 0:
            values = np.empty(room, block.data.dtype)
        end, n_genes = at + block.nnz, block.shape[1]
        indices[at:end], values[at:end] = block.indices, block.data
        lengths.append(np.diff(block.indptr))
        at = end
    starts = starts_of(np.concatenate(lengths))
    return sparse.csr_matrix((values[:at], indices[:at], starts), (len(starts) - 1, n_genes))
