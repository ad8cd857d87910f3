"""h5ad files to a cell store: read once, streamed, verified, renamed into place when whole.

Pass one reads each file in blocks of cells, recovers the counts and appends them to a scratch file in the
order read. Pass two copies the cells, ordered by context, batch and perturbation, into the store. Neither
holds the matrix in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcell import __version__
from vcell.data.h5ad import (
    BLOCK_VALUES,
    Columns,
    CsrBlock,
    align,
    checked_counts,
    file_scale,
    open_h5ad,
    read_blocks,
    read_genes,
    read_obs,
)
from vcell.data.scale import Scale
from vcell.data.store import FORMAT_VERSION, CellStore
from vcell.errors import VcellError, nearest, shortlist
from vcell.progress import progress_bar
from vcell.whole import written_whole


def ingest(
    files: Sequence[Path],
    out: Path,
    columns: Columns,
    control: str = "non-targeting",
    context: str | None = None,
    matrix: str = "X",
    scale: str = "auto",
    genes: Sequence[str] | None = None,
    provenance: dict[str, Any] | None = None,
) -> CellStore:
    """Reads h5ad `files` into a new cell store at `out`; a store that lay there is replaced once this one is whole.

    Parameters
    ----------
    columns, control
        Which obs columns say what; the label of control cells.
    context
        The context of all cells, for files that have no column for it.
    matrix
        Where the values lie: ``X``, ``layers/NAME`` or ``raw/X``.
    scale
        ``auto`` or a `Scale`; every cell is verified either way.
    genes
        The genes to keep, in this order; by default those of the first file. Every file must have them all.

    Raises
    ------
    VcellError
        If a file cannot be read, lacks a column, has no control cells, NaN, negative or infinite values,
        duplicated genes, or values whose counts do not come back. Nothing is left behind.
    """
    if out.exists() and not (out / "meta.json").is_file():
        raise VcellError(f"{out} exists and is no cell store; it is left alone. Name another folder: data.store=FOLDER")
    with written_whole(out, "the store") as scratch:
        _write_store(scratch, files, columns, control, context, matrix, scale, genes, provenance or {})
    return CellStore.open(out)


def _write_store(
    folder: Path,
    files: Sequence[Path],
    columns: Columns,
    control: str,
    context: str | None,
    matrix: str,
    scale: str,
    genes: Sequence[str] | None,
    provenance: dict[str, Any],
) -> None:
    stems = [path.stem for path in files]
    with RowFile(folder / "rows") as rows:
        tables, scales = [], {}
        for path in files:
            with open_h5ad(path) as file:
                obs = read_obs(file, path, columns, context)
                obs["source"] = path.stem if stems.count(path.stem) == 1 else str(path)
                names = read_genes(file, path, matrix)
                genes = list(genes) if genes is not None else names
                position = align(names, genes, path)
                blocks = read_blocks(file, path, matrix, len(obs), len(names))
                scale_here = file_scale(file, path, matrix, scale, len(obs), len(names))
                obs["library_size"] = rows.append_file(blocks, position, scale_here, path, obs.index)
                scales[str(path)] = str(scale_here)
                tables.append(obs)
        cells = pd.concat(tables, ignore_index=True)
        _check_labels(cells, control, files, columns)
        kept = _order(cells)
        checksum = rows.permute(kept, folder, len(genes or []))
    (folder / "rows").unlink()
    meta = {
        "control": control,
        "empty_cells_dropped": len(cells) - len(kept),
        "scales": scales,
        "provenance": provenance,
    }
    _write_tables(folder, cells.iloc[kept].reset_index(drop=True), list(genes or []), checksum, meta)


def _write_tables(folder: Path, cells: pd.DataFrame, genes: list[str], checksum: Any, meta: dict[str, Any]) -> None:
    """obs.parquet, var.parquet and meta.json; labels and genes go into the checksum of the counts."""
    for name in ("context", "batch", "perturbation", "source"):
        cells[name] = cells[name].astype("category")
    cells.to_parquet(folder / "obs.parquet")
    pd.DataFrame({"gene": genes}).to_parquet(folder / "var.parquet")
    for part in (*genes, *cells[["context", "batch", "perturbation"]].astype(str).agg("\t".join, axis=1)):
        checksum.update(part.encode() + b"\n")
    sizes = {
        "format_version": FORMAT_VERSION,
        "vcell": __version__,
        "cells": len(cells),
        "genes": len(genes),
        "stored_values": int(np.load(folder / "counts.indptr.npy", mmap_mode="r")[-1]),
        "fingerprint": checksum.hexdigest(),
    }
    (folder / "meta.json").write_text(json.dumps({**sizes, **meta}, indent=1))


class RowFile:
    """Counts of the cells read so far, in the order read, in one scratch file of (gene, count) pairs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.lengths: list[np.ndarray] = []  # stored values per cell, block by block
        self.largest = 0  # count

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def append_file(
        self, blocks: Iterator[CsrBlock], position: np.ndarray | None, scale: Scale, path: Path, cells: pd.Index
    ) -> np.ndarray:
        """Appends every cell of a file; returns counts per cell over all the file's genes."""
        library_size = np.zeros(len(cells))
        with progress_bar(len(cells), f"reading {path.name}", "cells") as progress:
            for block in blocks:
                values = checked_counts(block, scale, path, cells)
                n = len(block.indptr) - 1
                row = np.repeat(np.arange(n), np.diff(block.indptr))
                library_size[block.start : block.start + n] = np.bincount(row, weights=values, minlength=n)
                genes = block.indices if position is None else position[block.indices]
                keep = (values > 0) & (genes >= 0)
                row, genes, values = row[keep], genes[keep], values[keep]
                order = np.lexsort((genes, row))
                pairs = np.empty((len(order), 2), dtype=np.uint32)
                pairs[:, 0], pairs[:, 1] = genes[order], values[order]
                self.file.write(pairs.tobytes())
                self.lengths.append(np.bincount(row, minlength=n))
                self.largest = max(self.largest, int(pairs[:, 1].max(initial=0)))
                progress.update(n)
        return library_size

    def permute(self, order: np.ndarray, folder: Path, n_genes: int) -> Any:
        """Writes the store's arrays with the cells in `order`; returns a running checksum of them."""
        self.file.flush()
        lengths = np.concatenate(self.lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        indptr = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
        np.save(folder / "counts.indptr.npy", indptr)
        pairs = np.memmap(self.path, dtype=np.uint32, mode="r").reshape(-1, 2) if indptr[-1] else np.empty((0, 2))
        small = 2**16 - 1
        out = {
            "indices": _new_array(folder, "indices", np.uint16 if n_genes <= small else np.uint32, indptr[-1]),
            "values": _new_array(folder, "values", np.uint16 if self.largest <= small else np.uint32, indptr[-1]),
        }
        # one checksum an array: blocks of another size must not change it
        checksums = {name: hashlib.blake2b(digest_size=16) for name in out}
        bounds = np.searchsorted(indptr, np.arange(0, indptr[-1] + BLOCK_VALUES, BLOCK_VALUES))
        for first, last in zip(bounds[:-1], np.minimum(bounds[1:], len(order)), strict=True):
            source = order[first:last]
            offset = np.arange(indptr[last] - indptr[first]) - np.repeat(
                indptr[first:last] - indptr[first], lengths[source]
            )
            block = pairs[np.repeat(starts[source], lengths[source]) + offset]
            for column, (name, array) in enumerate(out.items()):
                array[indptr[first] : indptr[last]] = block[:, column]
                checksums[name].update(array[indptr[first] : indptr[last]].tobytes())
        for array in out.values():
            if isinstance(array, np.memmap):
                array.flush()
        return hashlib.blake2b(b"".join([indptr.tobytes(), *(c.digest() for c in checksums.values())]), digest_size=16)


def _new_array(folder: Path, name: str, dtype: Any, length: int) -> np.ndarray:
    path = folder / f"counts.{name}.npy"
    if length == 0:  # an empty file cannot be memory-mapped
        np.save(path, np.empty(0, dtype))
        return np.empty(0, dtype)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(int(length),))


def _check_labels(cells: pd.DataFrame, control: str, files: Sequence[Path], columns: Columns) -> None:
    if (cells["perturbation"] == control).any():
        return
    common = cells["perturbation"].value_counts().index
    raise VcellError(
        f"no cell in {shortlist(map(str, files), 3)} is labelled as control {control!r} in obs column "
        f"{columns.perturbation!r}.{nearest(control, common)} Most frequent labels: {shortlist(common, 5)}. "
        "Set data.control=LABEL"
    )


def _order(cells: pd.DataFrame) -> np.ndarray:
    """Cells with counts, ordered by context, batch (of its file) and perturbation."""
    codes = [pd.factorize(cells[name], sort=True)[0] for name in ("perturbation", "batch", "source", "context")]
    order = np.lexsort(codes)
    return order[cells["library_size"].to_numpy()[order] > 0]
