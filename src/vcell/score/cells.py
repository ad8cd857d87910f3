"""Predicted and measured cells as they lie: h5ad files whose labels are read by their meaning, and cell stores."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from vcell.data.files.elements import has
from vcell.data.files.genes import check_unique
from vcell.data.files.h5ad import column_names, n_rows, open_h5ad, read_column, read_genes
from vcell.data.files.labels import NO_GUIDE, LabelRules, as_labels, is_control, read_labels, renamed, usual_controls
from vcell.data.files.matrix import Matrix, matrix_names
from vcell.data.splits import Group
from vcell.data.store.store import Cells
from vcell.errors import NO_ROOM, VcellError, nearest, shortlist
from vcell.inspection.columns import USUAL
from vcell.inspection.values import look_at
from vcell.predict.inside import about_in
from vcell.process.progress import progress_bar
from vcell.score.rows import CELLS_AT_ONCE, InFile, InMemory, LabelledCells, OfStore, Rows, one_matrix

SAMPLE_CELLS = 500
CHUNKS = 4  # that are read at least, where they are large: one that is read in part is unpacked again
STORED_BYTES = 8  # of a value and its gene in memory
MOST_IN_MEMORY = 1_000_000_000  # bytes of one file's cells of a context; more lie in a scratch file
CONTEXT_COLUMNS = ("context", "cell_type", "cell_line")


@dataclass(frozen=True)
class Columns:
    """obs columns of target and context, and the label of control cells."""

    perturbation: str
    context: str | None
    control: str


class ReadCells(Protocol):
    """Cells with labels, read context by context: of a file or of a store."""

    path: Path
    genes: list[str]
    labels: np.ndarray  # of the perturbations, `columns.control` for controls
    contexts: np.ndarray | None  # None where all cells are of one context without a name
    about: dict[str, Any]  # what a file written by vcell says of itself

    def cells_of(self, context: str | None) -> LabelledCells: ...


class CellFile:
    """An h5ad whose labels are read at once and whose cells are read context by context.

    Columns are looked for under the names given, then under those that challenges and screens usually have: prediction and measured
    cells need not call them alike. Labels are read by their meaning (`data.files.labels`).

    Parameters
    ----------
    matrix
        ``X``, ``layers/NAME``, ``raw/X``; None: X, or another one where X holds no counts and that does.
    folder
        Where scratch files of cells may lie that are too many for memory.

    Raises
    ------
    VcellError
        If it cannot be read, or has no column or control cells of that name.
    """

    def __init__(
        self, path: Path, columns: Columns, needs_controls: bool, matrix: str | None = None, folder: Path | None = None
    ) -> None:
        self.path, self.columns, self.folder = path, columns, folder
        with open_h5ad(path) as file:
            self.obs_columns = known = column_names(file, "obs", path)
            name = _first([columns.perturbation, "target_gene", *USUAL["perturbation"]], known)
            if name is None:
                raise VcellError(
                    f"{path} has no obs column {columns.perturbation!r}.{nearest(columns.perturbation, known)} "
                    f"It has: {', '.join(known) or 'none'}. Set columns.perturbation=NAME"
                )
            if not matrix_names(file, path):
                raise VcellError(f"{path} has no X")
            if matrix is not None and not has(file, matrix):
                raise VcellError(
                    f"{path} has no matrix {matrix!r}. It has: {', '.join(matrix_names(file, path))}. Set real_matrix=NAME"
                )
            self.matrix = matrix or best_matrix(file, path)
            self.genes = read_genes(file, path, self.matrix)
            # what its shape tells is said first
            Matrix.open(file, path, self.matrix, n_rows(file, "obs", path), len(self.genes))
            check_unique(self.genes, str(path), "Keep one of each")
            labels = as_labels(read_column(file, "obs", name, path))
            wanted = [columns.context, *CONTEXT_COLUMNS, *USUAL["context"]] if columns.context is not None else []
            self.context_column = _first(wanted, [n for n in known if n != name])
            contexts = None
            if self.context_column is not None:
                contexts = as_labels(read_column(file, "obs", self.context_column, path)).astype(str).to_numpy()
            self.contexts = contexts
            self.about = about_in(file, path)
        self.perturbation = name
        self.labels = self._by_meaning(labels, needs_controls).astype(str).to_numpy()

    def _by_meaning(self, labels: pd.Series, needs_controls: bool) -> pd.Series:
        counted = {str(label): int(n) for label, n in labels.value_counts().items()}
        control = self.columns.control
        others = usual_controls([label for label, cells in counted.items() if cells], control)
        self.has_control, self.other_controls = others == {}, sorted(others or ())
        if others is None:
            if needs_controls:
                raise VcellError(
                    f"{self.path} has no control cells {control!r}: scores are differences from controls."
                    f"{nearest(control, [label for label, cells in counted.items() if cells])} Set control=LABEL"
                )
            return labels
        table = read_labels({str(self.path): counted}, control, LabelRules(rename=others), self.genes, "control")
        return renamed(labels, table.meaning[str(self.path)])

    def rows(self, context: str | None) -> np.ndarray:
        """Rows of a context, all where it is None; cells without a perturbation are left out."""
        labelled = self.labels != NO_GUIDE
        return np.flatnonzero(
            labelled if context is None or self.contexts is None else labelled & (self.contexts == context)
        )

    def cells_of(self, context: str | None) -> LabelledCells:
        """Cells of a context, values checked: in memory where that is small, else in a scratch file."""
        rows = self.rows(context)
        with open_h5ad(self.path) as file, tempfile.TemporaryDirectory(prefix="vcell-cells-") as scratch:
            matrix = Matrix.open(file, self.path, self.matrix, len(self.labels), len(self.genes))
            size = matrix.stored * STORED_BYTES * len(rows) // max(1, len(self.labels))
            blocks = map(self._checked, matrix_blocks(matrix, rows, Path(scratch)))
            try:
                if size <= MOST_IN_MEMORY:
                    found: Rows = InMemory(one_matrix(blocks, matrix.stored_of(rows)))
                else:
                    what = f"reading {self.path.name}" + (f", {context}" if context else "")
                    with progress_bar(len(rows), what, "cells") as progress:
                        found = InFile(counted(blocks, progress), len(self.genes), self.folder or Path(scratch))
            except (OSError, KeyError) as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise
                raise VcellError(
                    f"{self.path}: {self.matrix} cannot be read ({type(error).__name__}: {error})"
                ) from error
        cells = LabelledCells.of(self.labels[rows], self.genes, found)
        if len(rows) and not any(block.data.any() for block in cells.blocks()):
            raise VcellError(f"{self.path}: all values of {self.matrix} are 0{f' in {context}' if context else ''}")
        return cells

    def _checked(self, cells: sparse.csr_matrix) -> sparse.csr_matrix:
        if not np.isfinite(cells.data).all():
            raise VcellError(
                f"{self.path}: {self.matrix} holds NaN or infinite values: no score can be computed from it"
            )
        if (cells.data < 0).any():
            raise VcellError(
                f"{self.path}: {self.matrix} holds negative values, as scanpy.pp.scale makes them: give counts, or log1p of counts"
            )
        return cells


def check_asked(files: Sequence[CellFile], asked: Mapping[str, str | None], control: str | None = None) -> None:
    """Refuses what was asked for by name and is in none of the files. Only where nothing is asked for, usual names stand in.

    Parameters
    ----------
    asked
        Names of obs columns, by the setting that gave them.
    control
        The label of control cells.
    """
    paths = " and ".join(str(file.path) for file in files)
    for key, name in asked.items():
        if name is not None and not any(name in file.obs_columns for file in files):
            known = list(dict.fromkeys(column for file in files for column in file.obs_columns))
            raise VcellError(
                f"{key}={name}: there is no such obs column in {paths}.{nearest(name, known)} There are: {', '.join(known)}"
            )
    others = sorted({label for file in files for label in file.other_controls})
    # of usual names, any stands for any
    if control is not None and not is_control(control) and not any(file.has_control for file in files):
        raise VcellError(
            f"control={control}: no cell of {paths} has this label. Control cells there are labelled {shortlist(others)}"
        )


def _first(wanted: Sequence[str | None], known: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in known), None)


def best_matrix(file: h5py.File, path: Path) -> str:
    """X; or, where counts cannot be recovered from it and another matrix of the file has them, that one."""
    names = matrix_names(file, path)
    if len(names) == 1 or "X" not in names:
        return names[0]
    looked = [look_at(file, path, name, SAMPLE_CELLS) for name in names]
    if looked[0].scale is not None and looked[0].scale.recoverable:
        return "X"
    better = [values for values in looked[1:] if values.scale is not None and values.scale.recoverable]
    return min(better, key=lambda values: values.rank).name if better else "X"


def matrix_blocks(matrix: Matrix, rows: np.ndarray, scratch: Path) -> Iterator[sparse.csr_matrix]:
    """Rows of a matrix, ascending, some at a time, whatever its layout."""
    if matrix.layout != "csc":
        step = max(CELLS_AT_ONCE, CHUNKS * matrix.cells_in_chunk)
        for start in range(0, len(rows), step) or [0]:
            found = matrix.rows(rows[start : start + step], np.int32)
            yield _csr(found.values, found.indices, found.indptr, matrix.shape[1])
        return
    wanted = np.zeros(matrix.shape[0], bool)
    wanted[rows] = True
    for block in matrix.blocks(scratch):
        here = _csr(block.values, block.indices, block.indptr, matrix.shape[1])
        yield here[wanted[block.start : block.start + here.shape[0]]]


def counted(blocks: Iterator[sparse.csr_matrix], progress: Any) -> Iterator[sparse.csr_matrix]:
    for block in blocks:
        yield block
        progress.update(block.shape[0])


def _csr(values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    made = sparse.csr_matrix((values, indices, indptr), shape=(len(indptr) - 1, n_genes))
    made.sum_duplicates()
    return made


class StoreCells:
    """Some groups of a cell store as measured cells, with their controls; their values are counts.

    Parameters
    ----------
    groups
        The (context, perturbation) to score; None: all of the store.
    """

    def __init__(self, store: Cells, columns: Columns, groups: Iterable[Group] | None = None) -> None:
        self.store, self.columns = store, columns
        wanted = [g for g in store.groups if g[1] != store.control] if groups is None else list(groups)
        contexts = [c for c in dict.fromkeys(c for c, _ in wanted) if c in store.control_contexts]
        self.groups = [
            *((c, store.control) for c in contexts),
            *(g for g in wanted if g[0] in contexts and g in store.groups),
        ]
        cells = [store.groups[g] for g in self.groups]
        self.cells, sizes = np.concatenate([np.zeros(0, np.int64), *cells]), [len(c) for c in cells]
        names = [columns.control if p == store.control else p for _, p in self.groups]
        self.path, self.genes, self.about = Path(store.name), store.genes, dict[str, Any]()
        self.labels = np.repeat(np.array(names, object), sizes).astype(str)
        self.contexts = None if columns.context is None else np.repeat([c for c, _ in self.groups], sizes)

    def cells_of(self, context: str | None) -> LabelledCells:
        """Cells of a context, as counts, read from the store as they are needed."""
        here = np.full(len(self.cells), True) if context is None or self.contexts is None else self.contexts == context
        rows = OfStore(self.store, self.cells[here])
        small = self.store.stored_values * STORED_BYTES * rows.n_cells // self.store.n_cells <= MOST_IN_MEMORY
        where = InMemory(rows.take(np.arange(rows.n_cells))) if small else rows
        return LabelledCells.of(self.labels[here], self.genes, where)
