"""Reading h5ad files in blocks of cells: labels, genes, and counts on whatever scale they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from vcell.data.scale import Scale, detect_scale, recover_counts
from vcell.errors import VcellError, nearest, shortlist

BLOCK_VALUES = 4_000_000  # stored values read at a time: about 50 MB in flight
SAMPLE_CELLS = 500
OTHERWISE = {
    "perturbation": "",
    "batch": ", or data.columns.batch=null for one batch a file",
    "context": ", or data.context=NAME for one context in all files",
}


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
    """context, batch, perturbation and cell_id of every cell, as strings."""
    obs = _read(file, "obs", path)

    def column(role: str, name: str) -> pd.Series:
        if name not in obs.columns:
            raise VcellError(
                f"{path} has no obs column {name!r} for the {role}.{nearest(name, obs.columns)} "
                f"It has: {', '.join(map(str, obs.columns))}. Set data.columns.{role}=NAME{OTHERWISE[role]}"
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
    """The matrix in blocks of cells, from CSR or dense storage.

    Raises
    ------
    VcellError
        If its parts do not fit together, or cannot be read.
    """
    try:
        yield from _blocks(file, path, matrix, n_cells, n_genes)
    except (OSError, KeyError) as error:
        raise VcellError(f"{path}: {matrix} is damaged ({error}). Download or write the file again") from error


def _blocks(file: h5py.File, path: Path, matrix: str, n_cells: int, n_genes: int) -> Iterator[CsrBlock]:
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


def file_scale(file: h5py.File, path: Path, matrix: str, scale: str, n_cells: int, n_genes: int) -> Scale:
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
