"""Reading h5ad files: opening, labels of cells, names of genes; encodings of old and new anndata."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa

from vcell.data.files.elements import DAMAGED, NUMBERS, array, attribute, element, has, names_in
from vcell.data.files.genes import ENSEMBL, NAMELESS
from vcell.data.files.labels import NO_GUIDE, as_labels, is_without_guide, renamed
from vcell.data.files.paths import is_zarr
from vcell.data.files.zarrstore import as_h5
from vcell.errors import VcellError, nearest, no_such_file

STRINGS_AT_ONCE = 500_000
CHUNK_CACHE = 32 * 2**20  # bytes per data set: neighbouring cells lie in one chunk, which is unpacked once
OTHERWISE = {
    "perturbation": "",
    "guide": ", or null where labels alone say what was perturbed",
    "batch": ", or data.columns.batch=null if each file is one batch",
    "context": ", or data.context=NAME if all files are of one context",
    "dose": ", or null where no perturbation has one",
    "type": ", or null where all are of one",
}


@dataclass(frozen=True)
class Columns:
    """Names of obs columns, and of the var column with gene names.

    `batch=null` puts all cells of a file in one batch; `context=null` needs a constant; `gene=null` means var's index. `guide` is
    the guide of each cell: one without a guide has no perturbation, and with `perturbation=null` guides are the labels. `dose` and
    `type` make perturbations of one name different ones (`conditions`).
    """

    perturbation: str | None = "target_gene"
    batch: str | None = "batch"
    context: str | None = "cell_type"
    gene: str | None = None
    guide: str | None = None
    dose: str | None = None
    type: str | None = None


@contextmanager
def open_h5ad(path: Path) -> Iterator[h5py.File]:
    """An h5ad (or an AnnData zarr store) opened for reading.

    Raises
    ------
    VcellError
        If it is absent, truncated, in use, no permission is given, or it is something else, saying what.
    """
    with suppress(ImportError):  # only files packed with such filters need it
        import hdf5plugin  # noqa: F401  # registers zstd and other filters with HDF5

    if is_zarr(path):
        path = as_h5(path)
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except OSError as error:
        raise VcellError(_why_not(path, error)) from error
    with file:
        yield file


def _why_not(path: Path, error: OSError) -> str:
    """Why a file could not be opened, and what to do."""
    words = str(error)
    if path.is_dir():
        inside = sorted(path.glob("*.h5*"))
        return f"{path} is a folder, not a file." + (f" Name a file in it, such as {inside[0]}" if inside else "")
    if isinstance(error, PermissionError) or "Permission denied" in words:
        return f"no permission to read {path}. Ask its owner for it: chmod a+r {path}"
    if "unable to lock" in words or error.errno in (errno.EAGAIN, errno.ENOLCK):
        return (
            f"{path} is in use: another process holds it open for writing, or its file system has no locks ({words}). Close it there "
            "and try again; where nothing writes to it: export HDF5_USE_FILE_LOCKING=FALSE"
        )
    kind = _other_kind(path)
    if kind:
        return f"{path} is {kind}"
    if "truncated" in words:
        return f"{path} is cut short or damaged: {error}. Download or write it again"
    return f"{path} is not an h5ad (HDF5) file: {error}. Download or write it again"


def _other_kind(path: Path) -> str | None:
    """What a file is that is no HDF5, with what to do; None where that cannot be told."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return None
    if start[:2] == b"\x1f\x8b":
        return f"compressed with gzip. Unpack it first: gunzip {path}"
    if start[:4] == b"\x28\xb5\x2f\xfd":
        return f"compressed with zstd. Unpack it first: zstd -d {path}"
    if start[:2] == b"PK":
        return f"a zip archive. Unpack it first: unzip {path}"
    if start[:3] == b"BZh" or start[:6] == b"\xfd7zXZ\x00":
        return "a compressed file. Unpack it first"
    return None


def read_obs(file: h5py.File, path: Path, columns: Columns, context: str | None) -> pd.DataFrame:
    """context, batch, perturbation (categories) and cell_id of every cell; dose and type as text, where they have columns.

    Labels are text without spaces around; a cell without a perturbation has the label `labels.NO_GUIDE`.
    """
    names = column_names(file, "obs", path)

    def column(role: str, name: str) -> pd.Series:
        if name not in names:
            raise VcellError(
                f"{path} has no obs column {name!r} for the {role}.{nearest(name, names)} "
                f"It has: {', '.join(names) or 'none'}. Set data.columns.{role}=NAME{OTHERWISE[role]}"
            )
        labels = as_labels(read_column(file, "obs", name, path))
        missing = int((labels == NO_GUIDE).sum())
        if missing and role not in ("perturbation", "guide", "dose", "type"):  # control cells have no dose
            raise VcellError(f"{path}: {missing:,} cells have no value in obs column {name!r}")
        return labels

    if context is None and columns.context is None:
        raise VcellError(f"{path}: specify the context of its cells: data.columns.context=COLUMN or data.context=NAME")
    if columns.perturbation is None and columns.guide is None:
        raise VcellError(f"{path}: specify the column of perturbations: data.columns.perturbation=COLUMN")
    guide = column("guide", columns.guide) if columns.guide else None
    table = pd.DataFrame(
        {"perturbation": guide if columns.perturbation is None else column("perturbation", columns.perturbation)}
    )
    if guide is not None and columns.perturbation is not None:
        without = {name: NO_GUIDE for name in guide.cat.categories if is_without_guide(name)}
        lost = (renamed(guide, without) == NO_GUIDE).to_numpy()
        table["perturbation"] = as_labels(table["perturbation"].where(~lost))
    # a constant wins over a column: the user said it of this data set
    table["context"] = (
        _constant(context, len(table)) if context is not None else column("context", str(columns.context))
    )
    table["batch"] = column("batch", columns.batch) if columns.batch else _constant("all", len(table))
    for role, name in (("dose", columns.dose), ("type", columns.type)):
        if name is not None:
            table[role] = column(role, name).astype(str)
    table["cell_id"] = read_index(file, "obs", path)
    return table


def read_genes(file: h5py.File, path: Path, matrix: str = "X", column: str | None = None) -> list[str]:
    """Gene names of `matrix`: var's index, or `column`, where a gene without a name there goes by the index.

    Spaces around names are taken off; a gene without any name is "".
    """
    key = var_key(file, matrix)
    index = [_gene_name(name) for name in read_index(file, key, path)]
    if column is None:
        return index
    names = column_names(file, key, path)
    if column not in names:
        raise VcellError(
            f"{path} has no var column {column!r} with gene names.{nearest(column, names)} It has: "
            f"{', '.join(names) or 'none'}. Set data.columns.gene=NAME, or null for var's index"
        )
    return [_gene_name(name) or other for name, other in zip(read_column(file, key, column, path), index, strict=True)]


def _gene_name(value: Any) -> str:
    """A name as text; "" for what is none."""
    name = "" if value is None or value is pd.NA or value != value else str(value).strip()
    return "" if name.lower() in NAMELESS else name


def read_ensembl(file: h5py.File, path: Path, matrix: str) -> list[str] | None:
    """Ensembl ids of the genes, from the first var column that holds them; None where none does."""
    key = var_key(file, matrix)
    for name in column_names(file, key, path):
        values = read_column(file, key, name, path).astype(str)
        if len(values) and values.head(200).str.match(ENSEMBL).mean() > 0.5:
            return values.tolist()
    return None


def var_key(file: h5py.File, matrix: str) -> str:
    """The table of genes that belongs to `matrix`."""
    raw = next((k for k in ("raw/var", "raw.var") if k in file), "var")
    return raw if matrix.startswith("raw") else "var"


def column_names(file: h5py.File, key: str, path: Path) -> list[str]:
    """Columns of a table, its index left out."""
    node = _frame(file, key, path)
    index = _index_name(node, path)
    if isinstance(node, h5py.Dataset):
        return [n for n in node.dtype.names or () if n != index]
    order = attribute(node, "column-order", path)
    listed = set() if order is None else set(names_in(order))
    # a column called "S/G2M" lies in a group "S" that is no column
    plain = [n for n in node if n not in (index, "__categories") and (n in listed or _is_column(node, n))]
    nested = [n for n in sorted(listed) if "/" in n and has(node, n)]
    return [*plain, *nested]


def _is_column(node: h5py.Group, name: str) -> bool:
    if isinstance(node.get(name, getlink=True), h5py.SoftLink | h5py.ExternalLink):
        return True  # said where it is read
    found = node.get(name)
    return isinstance(found, h5py.Dataset) or (isinstance(found, h5py.Group) and "encoding-type" in found.attrs)


def read_column(file: h5py.File, key: str, name: str, path: Path) -> pd.Series:
    """One column of a table, however its anndata wrote it; as long as the table."""
    column, rows = _column(file, key, name, path), n_rows(file, key, path)
    if len(column) != rows:
        raise VcellError(f"{path}: {key}/{name} has {len(column):,} values, where {key} has {rows:,} rows: {DAMAGED}")
    return column


def _column(file: h5py.File, key: str, name: str, path: Path) -> pd.Series:
    node = _frame(file, key, path)
    try:
        if isinstance(node, h5py.Dataset):  # anndata before 0.7: one structured array, categories in uns
            values = node[name]
            categories = file.get(f"uns/{name}_categories")
            if categories is not None and values.dtype.kind in "iu":
                return pd.Series(pd.Categorical.from_codes(values, _decoded(categories[:])))
            return pd.Series(_decoded(values))
        stored = element(node, name, path)
        if isinstance(stored, h5py.Dataset) and "categories" in stored.attrs:  # anndata 0.7
            categories = _decoded(node[stored.attrs["categories"]][:])
            return pd.Series(pd.Categorical.from_codes(stored[:], categories))
        if isinstance(stored, h5py.Dataset) and h5py.check_string_dtype(stored.dtype) is not None:
            return _strings(stored)
        if isinstance(stored, h5py.Dataset) and stored.dtype.kind in NUMBERS:
            return pd.Series(stored[()])
        if _is_categorical(stored, path):
            categories, codes = array(stored, "categories", path)[:], array(stored, "codes", path, "iu")[:]
            ordered = bool(attribute(stored, "ordered", path))
            return pd.Series(pd.Categorical.from_codes(codes, _decoded(categories), ordered=ordered))
        from anndata.io import read_elem  # here: it takes half a second to load, for columns with missing values

        return pd.Series(read_elem(stored))
    except VcellError:
        raise
    except Exception as error:
        hint = (
            ". It is compressed in a way that HDF5 cannot read here: pip install hdf5plugin"
            if "plugin" in str(error)
            else ""
        )
        raise VcellError(f"{path}: {key}/{name} cannot be read ({type(error).__name__}: {error}){hint}") from error


def _is_categorical(stored: h5py.Group | h5py.Dataset, path: Path) -> bool:
    if not isinstance(stored, h5py.Group) or not has(stored, "categories"):
        return False
    return isinstance(element(stored, "categories", path), h5py.Dataset)


def read_index(file: h5py.File, key: str, path: Path) -> pd.Series:
    """Names of the cells or genes."""
    return read_column(file, key, _index_name(_frame(file, key, path), path), path).astype("string[pyarrow]")


def n_rows(file: h5py.File, key: str, path: Path) -> int:
    """Length of a table."""
    node = _frame(file, key, path)
    if isinstance(node, h5py.Dataset):
        return len(node)
    index = _index_name(node, path)
    stored = element(node, index, path)
    if isinstance(stored, h5py.Group):
        index += "/codes" if has(stored, "codes") else "/values"
    return len(array(node, index, path))


def _frame(file: h5py.File, key: str, path: Path) -> h5py.Group | h5py.Dataset:
    if not has(file, key):
        raise VcellError(no_anndata(file, key, path))
    node = element(file, key, path)
    if isinstance(node, h5py.Dataset) and node.dtype.names is None:
        raise VcellError(f"{path}: {key} is not a table, so this is not an AnnData file")
    return node


def no_anndata(file: h5py.File, key: str, path: Path) -> str:
    """That a file lacks the part `key` of AnnData, what it is instead, and what to do."""
    what = f"the zarr store {path}" if is_zarr(path) else str(path)
    kind = "it is not an AnnData file, or it was cut short"
    if has(file, "mod"):
        kind = "it is a MuData file (.h5mu) of several modalities. Write the one you want: mudata.read_h5mu(FILE)['rna'].write_h5ad('rna.h5ad')"
    elif has(file, "row_attrs") and has(file, "col_attrs"):
        kind = "it is a loom file. Read it with scanpy.read_loom and write_h5ad"
    elif has(file, "matrix"):
        kind = (
            "it is a 10x matrix without cell labels. Read it with scanpy.read_10x_h5, add obs columns, and write_h5ad"
        )
    return f"{what} has no {key!r}: {kind}"


def _index_name(node: h5py.Group | h5py.Dataset, path: Path) -> str:
    if isinstance(node, h5py.Dataset):
        names = node.dtype.names or ("index",)
        return "index" if "index" in names else names[0]
    name = attribute(node, "_index", path)
    if name is not None and not (isinstance(name, str) and name):
        raise VcellError(f"{path}: {str(node.name).strip('/')}: its attribute _index is no name of a column: {DAMAGED}")
    return "_index" if name is None else str(name)


def _strings(element: h5py.Dataset) -> pd.Series:
    """Strings in Arrow's compact form, read in parts: Python's own would take ten times the memory."""
    parts = [
        pa.array(element.asstr()[start : start + STRINGS_AT_ONCE].tolist(), pa.string())
        for start in range(0, len(element), STRINGS_AT_ONCE)
    ]
    return pd.Series(pd.arrays.ArrowStringArray(pa.chunked_array(parts, pa.string())))


def _decoded(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "S" or (values.dtype.kind == "O" and values.size and isinstance(values[0], bytes)):
        return np.array([v.decode() for v in values.tolist()], dtype=object)
    return values


def _constant(value: str, length: int) -> pd.Categorical:
    return pd.Categorical.from_codes(np.zeros(length, np.int8), [value])


def stems(files: Sequence[Path]) -> list[str]:
    """A short name for each file: its stem where that is one file's only, else its path."""
    names = [path.stem for path in files]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, files, strict=True)]
