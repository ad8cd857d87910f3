"""One h5ad file to a part of a store: values verified cell by cell, in the order of the file.

A part is a folder: `rows`, (gene, value) pairs of uint32, a fraction's float32 bits where counts cannot be recovered; `cells`
(labels, library size, values per cell, expression left of the cell's own target); `seen`, genes above 0 anywhere; and
`part.json`. It is written whole or not at all, so that an interrupted preparation resumes with the files that are done.
Everything here can run in another process or on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from vcell.atomic import remove, written_folder
from vcell.data.files.csr import LARGEST, row_of, row_sums
from vcell.data.files.genes import align, gene_names
from vcell.data.files.h5ad import open_h5ad, read_genes, read_obs
from vcell.data.files.labels import NO_GUIDE, renamed
from vcell.data.files.matrix import CsrBlock, Matrix
from vcell.data.files.scale import Scale, is_whole, linear, recover_counts
from vcell.data.store.doses import with_conditions
from vcell.data.store.filters import residual_expression
from vcell.data.store.recipe import Recipe, file_scale
from vcell.data.store.rows import begin_array
from vcell.data.store.store import checksum_of
from vcell.errors import VcellError, nearest, shortlist

MOST_TARGETS = 4  # genes of one perturbation whose own expression is looked at
ROWS_AT_ONCE = 20_000


@dataclass(frozen=True)
class PartJob:
    """A file to read, and where its part goes."""

    path: Path
    source: str
    recipe: Recipe
    position: np.ndarray  # int64 (file genes): the store's gene, -1 for none
    n_genes: int  # of the store
    n_cells: int
    folder: Path
    labels: Mapping[str, str]  # what the file's labels mean


def read_part(job: PartJob, report: Callable[[int], object]) -> None:
    """Reads one file; `report` is told the cells done since last time.

    Raises
    ------
    VcellError
        If a cell cannot be used. No part is left then.
    """
    recipe, path = job.recipe, job.path
    with open_h5ad(path) as file, written_folder(job.folder, "the part", parents=False) as scratch:
        cells = read_obs(file, path, recipe.columns, recipe.context)
        cells["perturbation"] = renamed(cells["perturbation"], job.labels)
        cells = with_conditions(cells, recipe.control_label, str(path))
        names = read_genes(file, path, recipe.matrix, recipe.columns.gene)
        matrix = Matrix.open(file, path, recipe.matrix, len(cells), len(names))
        scale = file_scale(matrix, recipe, path)
        part = _Part(cells, names, scale, job)
        with (scratch / "rows").open("wb") as rows:
            for block in matrix.blocks(scratch):
                rows.write(part.take(block).tobytes())
                report(len(block.indptr) - 1)
        for name in recipe.obsm:
            _copy_embedding(file, path, name, len(cells), scratch)
        part.finish(scratch)


def is_read(job: PartJob) -> bool:
    """Whether the part of a file is there, as it was written; one that has changed since is removed."""
    try:
        noted = json.loads((job.folder / "part.json").read_text())["checksums"]
        if all(checksum_of(job.folder / name) == checksum for name, checksum in noted.items()):
            return True
    except FileNotFoundError:
        return False
    except (VcellError, OSError, ValueError, KeyError):
        pass
    remove(job.folder)
    return False


class _Part:
    """What is gathered while the blocks of a file go by."""

    def __init__(self, cells: pd.DataFrame, names: Sequence[str], scale: Scale, job: PartJob) -> None:
        self.cells, self.scale, self.job = cells, scale, job
        self.control = (cells["perturbation"] == job.recipe.control_label).to_numpy()
        self.context = cells["context"].cat.codes.to_numpy()
        self.lengths = np.zeros(len(cells), np.int64)
        self.library_size = np.zeros(len(cells))
        self.largest = 0.0
        self.seen = np.zeros(job.n_genes, bool)  # genes with a value above 0 anywhere
        columns = target_columns(cells["perturbation"].cat.categories, names, job.recipe.control_label)
        self.place = np.full(len(names), -1, np.int64)  # a gene of the file to its number among the targets' genes
        measured = np.unique(columns[columns >= 0])
        self.place[measured] = np.arange(len(measured))
        self.target = np.where(columns >= 0, self.place[columns], -1)  # (labels, targets)
        self.code = cells["perturbation"].cat.codes.to_numpy()
        # share of the library: of each cell's own targets (cells, targets), and summed over control cells (contexts, genes)
        self.own = np.where(self.target[self.code] >= 0, 0.0, np.nan).astype(np.float32)
        self.control_share = np.zeros((len(cells["context"].cat.categories), max(1, len(measured))))

    def take(self, block: CsrBlock) -> np.ndarray:
        """(gene, value) pairs of a block, uint32, sorted within each cell."""
        values, library_size = self._converted(block)
        too_large = f"holds {{:.4g}}, more than any count can be ({LARGEST:,}). Is the file damaged?"
        self._refuse(values > LARGEST, too_large, values, block)
        n = len(block.indptr) - 1
        here = slice(block.start, block.start + n)
        self._check_filled(library_size, block.start)
        self.library_size[here] = library_size
        row = row_of(block.indptr)
        self._note_targets(block, row, values, np.maximum(library_size, 1e-12))
        genes = self.job.position[block.indices]
        keep = (values > 0) & (genes >= 0)
        row, genes, values = row[keep], genes[keep], values[keep]
        backwards = np.flatnonzero((np.diff(genes) <= 0) & (np.diff(row) == 0))
        if backwards.size:
            order = np.lexsort((genes, row))
            row, genes, values = row[order], genes[order], values[order]
            twice = np.flatnonzero((np.diff(genes) == 0) & (np.diff(row) == 0))
            if twice.size:
                raise VcellError(
                    f"{self.job.path}: cell {self._cell(block.start + int(row[twice[0]]))!r} stores a gene twice. Add them up "
                    "and write the file again: adata.X.sum_duplicates()"
                )
        self.lengths[here] = np.bincount(row, minlength=n)
        self.seen[genes] = True
        self.largest = max(self.largest, float(values.max(initial=0)))
        pairs = np.empty((len(genes), 2), np.uint32)
        pairs[:, 0] = genes
        pairs[:, 1] = values if self.scale.recoverable else values.astype(np.float32).view(np.uint32)
        return pairs

    def finish(self, folder: Path) -> None:
        cells = self.cells.assign(library_size=self.library_size, stored=self.lengths, residual=self._residual())
        cells.to_parquet(folder / "cells.parquet", write_page_checksum=True)
        np.save(folder / "seen.npy", self.seen)
        checksums = {path.name: checksum_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
        about = {"scale": str(self.scale), "largest": self.largest, "path": str(self.job.path), "checksums": checksums}
        (folder / "part.json").write_text(json.dumps(about))

    def _residual(self) -> np.ndarray:
        """Expression left of each cell's own target, as a fraction of the mean of its context's controls in this file."""
        controls = np.bincount(self.context[self.control], minlength=len(self.control_share))
        mean = self.control_share / np.maximum(controls, 1)[:, None]
        own = self.target[self.code]
        control_mean = np.where(own >= 0, mean[self.context[:, None], own], np.nan)
        return residual_expression(self.own, control_mean)

    def _converted(self, block: CsrBlock) -> tuple[np.ndarray, np.ndarray]:
        """Counts, or values with log1p undone where they cannot be recovered, and library sizes; every cell verified."""
        self._check_values(block)
        recipe = self.job.recipe
        if not self.scale.recoverable:
            values = linear(block.values, self.scale)
            return values, row_sums(values, block.indptr)
        found = recover_counts(block.values, block.indptr, self.scale)
        if not found.fine.all():
            failed = int((~found.fine).sum())
            cell = self._cell(block.start + int(np.flatnonzero(~found.fine)[0]))
            raise VcellError(
                f"{self.job.path}: {failed:,} of {len(found.fine):,} cells, {cell!r} first, cannot be recovered as whole counts "
                f"from the scale {self.scale.value!r} of the rest of the file: does the file mix scales?"
            )
        totals = row_sums(found.counts, block.indptr)
        if recipe.normalised_to is None or self.scale not in (Scale.NORMALISED, Scale.LOG1P_NORMALISED):
            return found.counts, totals
        library_size = recipe.normalised_to / found.unit
        off = ~is_whole(library_size) | (np.rint(library_size) < totals)
        wrong = np.flatnonzero(off & (totals > 0))
        if wrong.size:
            raise VcellError(
                f"{self.job.path}: cell {self._cell(block.start + int(wrong[0]))!r} was not scaled to {recipe.normalised_to:,.0f}: it "
                f"would have {library_size[wrong[0]]:,.2f} counts, of which {totals[wrong[0]]:,.0f} are in the file. Set "
                "data.normalised_to=TOTAL, or null"
            )
        return found.counts, np.where(totals > 0, np.rint(library_size), 0.0)

    def _check_values(self, block: CsrBlock) -> None:
        """A `VcellError` naming the first cell with an impossible value."""
        for bad, words in (
            (~np.isfinite(block.values), "holds {}; values must be finite"),
            (block.values < 0, "holds the negative value {:.4g}; z-scored or batch-corrected values cannot be used. Give raw "
             "counts (data.matrix=layers/counts, data.matrix=raw/X)"),
        ):  # fmt: skip
            self._refuse(bad, words, block.values, block)

    def _refuse(self, bad: np.ndarray, words: str, values: np.ndarray, block: CsrBlock) -> None:
        """A `VcellError` naming the first cell of a block with such a value, where there is one."""
        if bad.any():
            where = int(np.flatnonzero(bad)[0])
            cell = self._cell(block.start + int(np.searchsorted(block.indptr, where, side="right")) - 1)
            raise VcellError(f"{self.job.path}: cell {cell!r} {words.format(values[where])}")

    def _check_filled(self, library_size: np.ndarray, start: int) -> None:
        empty = np.flatnonzero(library_size <= 0)
        if empty.size and self.job.recipe.empty_cells == "refuse":
            raise VcellError(
                f"{self.job.path}: cell {self._cell(start + int(empty[0]))!r} has no counts ({empty.size:,} such cells among "
                f"the {len(library_size):,} read with it). To leave them out: data.empty_cells=drop"
            )

    def _note_targets(self, block: CsrBlock, row: np.ndarray, values: np.ndarray, library_size: np.ndarray) -> None:
        """Expression of each cell's own target genes, and the control cells' sums."""
        gene = self.place[block.indices]
        some = np.flatnonzero(gene >= 0)
        gene, cell = gene[some], block.start + row[some]
        share = values[some] / library_size[row[some]]
        for k in range(self.target.shape[1]):
            match = self.target[self.code[cell], k] == gene
            self.own[cell[match], k] = share[match]
        control = self.control[cell]
        np.add.at(self.control_share, (self.context[cell[control]], gene[control]), share[control])

    def _cell(self, number: int) -> str:
        return str(self.cells["cell_id"].iloc[number])


def target_columns(labels: Sequence[str], names: Sequence[str], control: str) -> np.ndarray:
    """int64 ``(labels, targets)``: the file's columns of the genes that each label names; -1 for none."""
    known = frozenset(names)
    genes = [
        () if label in (control, NO_GUIDE) else gene_names().targets(str(label), known)[:MOST_TARGETS]
        for label in labels
    ]
    distinct = sorted({gene for some in genes for gene in some})
    place = {gene: i for i, gene in enumerate(names)}
    if not known.issuperset(distinct):
        place = dict(zip(distinct, align(distinct, names).position.tolist(), strict=True))
    columns = np.full((len(genes), max([1, *map(len, genes)])), -1, np.int64)
    for i, some in enumerate(genes):
        columns[i, : len(some)] = [place[gene] for gene in some]
    return columns


def _copy_embedding(file: h5py.File, path: Path, name: str, n_cells: int, folder: Path) -> None:
    known = list(file.get("obsm", {}))
    node = file.get(f"obsm/{name}")
    if not isinstance(node, h5py.Dataset) or node.ndim != 2 or len(node) != n_cells:
        what = "none of that name" if node is None else "not a dense array with one row per cell"
        raise VcellError(
            f"{path}: obsm/{name} is {what}.{nearest(name, known)} obsm has: {shortlist(known) or 'nothing'}. Set data.obsm"
        )
    with begin_array(folder / f"obsm.{name}.npy", np.dtype(np.float32), node.shape) as out:
        for start in range(0, n_cells, ROWS_AT_ONCE):
            rows = node[start : start + ROWS_AT_ONCE].astype(np.float32)
            if not np.isfinite(rows).all():
                raise VcellError(f"{path}: obsm/{name} holds NaN or infinity")
            out.write(rows.tobytes())
