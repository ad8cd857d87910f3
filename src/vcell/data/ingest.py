"""h5ad files to a cell store: read once, streamed, verified, renamed into place when whole.

Pass one reads each file in blocks of cells, recovers the counts and appends them to a scratch file in the
order read. Pass two copies the cells, ordered by context, batch and perturbation, into the store. Neither
holds the matrix in memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from vcell import __version__
from vcell.data.scale import Scale, detect_scale, recover_counts
from vcell.data.store import FORMAT_VERSION, CellStore
from vcell.errors import VcellError, nearest, shortlist
from vcell.progress import progress_bar

BLOCK_VALUES = 4_000_000  # stored values read at a time: about 50 MB in flight
SAMPLE_CELLS = 500


@dataclass(frozen=True)
class Columns:
    """Names of obs columns. `batch=null` puts all cells of a file in one batch; `context=null` needs a constant."""

    perturbation: str = "target_gene"
    batch: str | None = "batch"
    context: str | None = "cell_type"


@dataclass(frozen=True)
class CsrBlock:
    """Some consecutive cells of a file: CSR rows, `indptr` from 0."""

    start: int
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray


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
    scratch = out.with_name(out.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        _write_store(scratch, files, columns, control, context, matrix, scale, genes, provenance or {})
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    except OSError as error:
        raise VcellError(f"the store {out} could not be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
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
    with RowFile(folder / "rows") as rows:
        tables, scales = [], {}
        for path in files:
            with open_h5ad(path) as file:
                obs = read_obs(file, path, columns, context)
                names = read_genes(file, path, matrix)
                genes = list(genes) if genes is not None else names
                position = align(names, genes, path)
                blocks = read_blocks(file, path, matrix, len(obs), len(names))
                file_scale = _file_scale(file, path, matrix, scale, len(obs), len(names))
                obs["library_size"] = rows.append_file(blocks, position, file_scale, path, obs.index)
                scales[str(path)] = str(file_scale)
                tables.append(obs)
        cells = pd.concat(tables, ignore_index=True)
        _check_labels(cells, control, files, columns)
        kept = _order(cells)
        fingerprint = rows.permute(kept, folder, len(genes or []))
    (folder / "rows").unlink()
    dropped = len(cells) - len(kept)
    cells = cells.iloc[kept].reset_index(drop=True)
    for name in ("context", "batch", "perturbation", "source"):
        cells[name] = cells[name].astype("category")
    cells.to_parquet(folder / "obs.parquet")
    pd.DataFrame({"gene": genes}).to_parquet(folder / "var.parquet")
    for part in (*(genes or []), *cells[["context", "batch", "perturbation"]].astype(str).agg("\t".join, axis=1)):
        fingerprint.update(part.encode() + b"\n")
    meta = {
        "format_version": FORMAT_VERSION,
        "vcell": __version__,
        "cells": len(cells),
        "genes": len(genes or []),
        "stored_values": int(np.load(folder / "counts.indptr.npy", mmap_mode="r")[-1]),
        "control": control,
        "empty_cells_dropped": dropped,
        "scales": scales,
        "fingerprint": fingerprint.hexdigest(),
        "provenance": provenance,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


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


# --- reading h5ad ---------------------------------------------------------------------------------


def open_h5ad(path: Path) -> h5py.File:
    """Opens an h5ad for reading; a `VcellError` where it is absent, truncated or no HDF5 file."""
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise VcellError(f"no such file: {path} (looked from {Path.cwd()})") from error
    except OSError as error:
        reason = "is cut short or damaged" if "truncated" in str(error) else "is not an h5ad (HDF5) file"
        raise VcellError(f"{path} {reason}: {error}. Download or write it again") from error


def read_obs(file: h5py.File, path: Path, columns: Columns, context: str | None) -> pd.DataFrame:
    """context, batch, perturbation, source and cell_id of every cell, as strings."""
    obs = _read(file, "obs", path)

    def column(role: str, name: str) -> pd.Series:
        if name not in obs.columns:
            raise VcellError(
                f"{path} has no obs column {name!r} for the {role}.{nearest(name, obs.columns)} "
                f"It has: {', '.join(map(str, obs.columns))}. Set data.columns.{role}=NAME"
            )
        values = obs[name]
        if values.isna().any():
            raise VcellError(f"{path}: {int(values.isna().sum()):,} cells have no value in obs column {name!r}")
        return values.astype(str).reset_index(drop=True)

    if context is None and columns.context is None:
        raise VcellError(f"{path}: say what context its cells are: data.columns.context=COLUMN or data.context=NAME")
    table = pd.DataFrame({"perturbation": column("perturbation", columns.perturbation)})
    # a constant wins over a column: the user said it of this data set
    table["context"] = context if context is not None else column("context", str(columns.context))
    table["batch"] = column("batch", columns.batch) if columns.batch else "all"
    table["source"] = path.stem
    table["cell_id"] = obs.index.astype(str)
    table.index = pd.Index(table["cell_id"].to_numpy())
    return table


def read_genes(file: h5py.File, path: Path, matrix: str = "X") -> list[str]:
    """Gene names of `matrix`; a `VcellError` where some are duplicated."""
    var = _read(file, "raw/var" if matrix.startswith("raw/") else "var", path)
    names = pd.Index(var.index.astype(str))
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise VcellError(
            f"{path}: {len(twice):,} gene names stand more than once ({shortlist(twice, 5)}). Keep one of each, or "
            "make them distinct: adata.var_names_make_unique()"
        )
    return names.tolist()


def align(names: list[str], genes: Sequence[str], path: Path) -> np.ndarray | None:
    """Where each of the file's genes goes, -1 for nowhere; None when nothing moves."""
    if list(genes) == names:
        return None
    place = {gene: i for i, gene in enumerate(genes)}
    position = np.array([place.get(name, -1) for name in names], dtype=np.int64)
    missing = sorted(set(genes) - set(names))
    if missing:
        raise VcellError(
            f"{path} lacks {len(missing):,} of the {len(genes):,} wanted genes ({shortlist(missing, 5)}). "
            "Give data.genes a list of genes that every file has"
        )
    return position


def read_blocks(file: h5py.File, path: Path, matrix: str, n_cells: int, n_genes: int) -> Iterator[CsrBlock]:
    """The matrix in blocks of cells, from CSR or dense storage."""
    node = _matrix(file, path, matrix)
    if isinstance(node, h5py.Dataset):
        if node.shape != (n_cells, n_genes):
            raise VcellError(f"{path}: {matrix} has shape {node.shape}, not cells × genes {(n_cells, n_genes)}")
        step = max(1, BLOCK_VALUES // max(1, n_genes))
        for start in range(0, n_cells, step):
            yield dense_block(node[start : start + step], start)
        return
    indptr = node["indptr"][:].astype(np.int64)
    if len(indptr) != n_cells + 1 or indptr[-1] != len(node["data"]):
        raise VcellError(f"{path}: {matrix} is damaged: its index pointer does not fit {n_cells:,} cells")
    start = 0
    while start < n_cells:
        stop = int(np.searchsorted(indptr, indptr[start] + BLOCK_VALUES, side="right")) - 1
        stop = min(max(stop, start + 1), n_cells)
        low, high = indptr[start], indptr[stop]
        indices = node["indices"][low:high].astype(np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= n_genes):
            raise VcellError(f"{path}: {matrix} is damaged: a gene index lies outside 0 to {n_genes - 1}")
        yield CsrBlock(start, indptr[start : stop + 1] - low, indices, node["data"][low:high])
        start = stop


def dense_block(values: np.ndarray, start: int) -> CsrBlock:
    """A dense block as CSR, zeros left out."""
    row, gene = np.nonzero(values)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(values)))]).astype(np.int64)
    return CsrBlock(start, indptr, gene, values[row, gene])


def checked_counts(block: CsrBlock, scale: Scale, path: Path, cells: pd.Index) -> np.ndarray:
    """Counts of a block, every cell verified; a `VcellError` naming the first cell that fails."""

    def cell_of(position: int) -> str:
        return str(cells[block.start + int(np.searchsorted(block.indptr, position, side="right")) - 1])

    bad = ~np.isfinite(block.values)
    if bad.any():
        where = int(np.flatnonzero(bad)[0])
        raise VcellError(f"{path}: cell {cell_of(where)!r} holds {block.values[where]}; counts must be finite")
    if (block.values < 0).any():
        where = int(np.flatnonzero(block.values < 0)[0])
        raise VcellError(
            f"{path}: cell {cell_of(where)!r} holds the negative value {block.values[where]:.4g}; z-scored or "
            "batch-corrected values cannot be used. Give raw counts (data.matrix=layers/counts, data.matrix=raw/X)"
        )
    counts, recovered = recover_counts(block.values, block.indptr, scale)
    if not recovered.all():
        cell = cells[block.start + int(np.flatnonzero(~recovered)[0])]
        raise VcellError(
            f"{path}: {int((~recovered).sum()):,} of {len(recovered):,} cells, {cell!r} first, do not come back as "
            f"whole counts from the scale {scale.value!r} of the rest of the file: are several scales mixed in it?"
        )
    return counts


def _file_scale(file: h5py.File, path: Path, matrix: str, scale: str, n_cells: int, n_genes: int) -> Scale:
    """The scale asked for, or the one found on cells spread over the file."""
    if scale != "auto":
        if scale not in list(Scale):
            raise VcellError(f"data.scale={scale!r} is none of: auto, {', '.join(Scale)}.{nearest(scale, Scale)}")
        return Scale(scale)
    node = _matrix(file, path, matrix)
    spread = np.unique(np.linspace(0, n_cells - 1, min(n_cells, SAMPLE_CELLS)).astype(int)) if n_cells else ()
    values, lengths = [], []
    for cell in spread:
        if isinstance(node, h5py.Dataset):
            row = node[cell]
            row = row[row != 0]
        else:
            low, high = node["indptr"][cell : cell + 2]
            row = node["data"][low:high]
        values.append(row)
        lengths.append(len(row))
    sample = np.concatenate(values) if values else np.empty(0)
    if not np.isfinite(sample).all() or (sample < 0).any():
        return Scale.COUNTS  # the full reading names the cell
    try:
        return detect_scale(sample, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    except VcellError as error:
        raise VcellError(f"{path}: in {matrix}, {error}") from error


def _matrix(file: h5py.File, path: Path, matrix: str) -> h5py.Dataset | h5py.Group:
    if matrix not in file:
        layers = [f"layers/{k}" for k in file.get("layers", {})]
        raise VcellError(f"{path} has no matrix {matrix!r}; it has: {', '.join(['X', *layers])}. Set data.matrix=NAME")
    node = file[matrix]
    if isinstance(node, h5py.Dataset):
        return node
    encoding = node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", ""))
    encoding = encoding.decode() if isinstance(encoding, bytes) else str(encoding)
    if not encoding.startswith("csr"):
        raise VcellError(
            f"{path}: {matrix} is stored as {encoding or 'an unknown layout'}; cells are read by rows. Convert it once: "
            "adata.X = adata.X.tocsr(); adata.write_h5ad(...)"
        )
    return node


def _read(file: h5py.File, key: str, path: Path) -> pd.DataFrame:
    if key not in file:
        raise VcellError(f"{path} has no {key!r}: it is not an AnnData file, or it was cut short")
    try:
        return read_elem(file[key])
    except Exception as error:
        raise VcellError(f"{path}: {key!r} cannot be read ({type(error).__name__}: {error})") from error


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
