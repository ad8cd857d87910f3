"""Reading h5ad files: opening, labels of cells, names of genes; encodings of old and new anndata."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa

from vcell.data.genes import ENSEMBL
from vcell.data.labels import NO_GUIDE, as_labels, is_without_guide, renamed
from vcell.errors import VcellError, nearest

STRINGS_AT_ONCE = 500_000
CHUNK_CACHE = 32 * 2**20  # bytes a data set: neighbouring cells lie in one chunk, which is unpacked once
OTHERWISE = {
    "perturbation": "",
    "batch": ", or data.columns.batch=null for one batch a file",
    "context": ", or data.context=NAME for one context in all files",
}


@dataclass(frozen=True)
class Columns:
    """Names of obs columns, and of the var column with gene names.

    `batch=null` puts all cells of a file in one batch; `context=null` needs a constant; `gene=null` means var's index. `guide` is
    the guide of each cell: one without a guide has no perturbation, and with `perturbation=null` guides are the labels.
    """

    perturbation: str | None = "target_gene"
    batch: str | None = "batch"
    context: str | None = "cell_type"
    gene: str | None = None
    guide: str | None = None


@contextmanager
def open_h5ad(path: Path) -> Iterator[h5py.File]:
    """An h5ad opened for reading; a `VcellError` where it is absent, truncated or no HDF5 file."""
    with suppress(ImportError):  # only files packed with such filters need it
        import hdf5plugin  # noqa: F401  # registers zstd and other filters with HDF5

    try:
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
    except FileNotFoundError as error:
        raise VcellError(f"no such file: {path} (looked from {Path.cwd()})") from error
    except OSError as error:
        reason = "is cut short or damaged" if "truncated" in str(error) else "is not an h5ad (HDF5) file"
        raise VcellError(f"{path} {reason}: {error}. Download or write it again") from error
    with file:
        yield file


def read_obs(file: h5py.File, path: Path, columns: Columns, context: str | None) -> pd.DataFrame:
    """context, batch, perturbation (categories) and cell_id of every cell.

    Labels are text without spaces around; a cell without a perturbation has the label `labels.NO_GUIDE`.
    """
    node = _frame(file, "obs", path)
    names = column_names(node)

    def column(role: str, name: str) -> pd.Series:
        if name not in names:
            raise VcellError(
                f"{path} has no obs column {name!r} for the {role}.{nearest(name, names)} "
                f"It has: {', '.join(names)}. Set data.columns.{role}=NAME{OTHERWISE[role]}"
            )
        labels = as_labels(read_column(file, "obs", name, path))
        missing = int((labels == NO_GUIDE).sum())
        if missing and role not in ("perturbation", "guide"):
            raise VcellError(f"{path}: {missing:,} cells have no value in obs column {name!r}")
        return labels

    if context is None and columns.context is None:
        raise VcellError(f"{path}: say what context its cells are: data.columns.context=COLUMN or data.context=NAME")
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
    table["cell_id"] = read_index(file, "obs", path)
    return table


def read_genes(file: h5py.File, path: Path, matrix: str = "X", column: str | None = None) -> list[str]:
    """Gene names of `matrix`, as they stand: var's index, or `column`."""
    key = var_key(file, matrix)
    if column is None:
        return read_index(file, key, path).tolist()
    names = column_names(_frame(file, key, path))
    if column not in names:
        raise VcellError(
            f"{path} has no var column {column!r} with gene names.{nearest(column, names)} It has: "
            f"{', '.join(names) or 'none'}. Set data.columns.gene=NAME, or null for var's index"
        )
    return read_column(file, key, column, path).astype(str).tolist()


def read_ensembl(file: h5py.File, path: Path, matrix: str) -> list[str] | None:
    """Ensembl ids of the genes, from the first var column that holds them; None where none does."""
    key = var_key(file, matrix)
    for name in column_names(_frame(file, key, path)):
        values = read_column(file, key, name, path).astype(str)
        if len(values) and values.head(200).str.match(ENSEMBL).mean() > 0.5:
            return values.tolist()
    return None


def var_key(file: h5py.File, matrix: str) -> str:
    """The table of genes that belongs to `matrix`."""
    raw = next((k for k in ("raw/var", "raw.var") if k in file), "var")
    return raw if matrix.startswith("raw") else "var"


def column_names(node: h5py.Group | h5py.Dataset) -> list[str]:
    """Columns of a table, its index left out."""
    index = _index_name(node)
    if isinstance(node, h5py.Dataset):
        return [n for n in node.dtype.names or () if n != index]
    return [n for n in node if n not in (index, "__categories")]


def read_column(file: h5py.File, key: str, name: str, path: Path) -> pd.Series:
    """One column of a table, however its anndata wrote it."""
    node = _frame(file, key, path)
    try:
        if isinstance(node, h5py.Dataset):  # anndata before 0.7: one structured array, categories in uns
            values = node[name]
            categories = file.get(f"uns/{name}_categories")
            if categories is not None and values.dtype.kind in "iu":
                return pd.Series(pd.Categorical.from_codes(values, _decoded(categories[:])))
            return pd.Series(_decoded(values))
        element = node[name]
        if isinstance(element, h5py.Dataset) and "categories" in element.attrs:  # anndata 0.7
            categories = _decoded(node[element.attrs["categories"]][:])
            return pd.Series(pd.Categorical.from_codes(element[:], categories))
        if isinstance(element, h5py.Dataset) and h5py.check_string_dtype(element.dtype) is not None:
            return _strings(element)
        from anndata.io import read_elem

        return pd.Series(read_elem(element))
    except VcellError:
        raise
    except Exception as error:
        hint = ". It is packed in a way HDF5 cannot read here: pip install hdf5plugin" if "plugin" in str(error) else ""
        raise VcellError(f"{path}: {key}/{name} cannot be read ({type(error).__name__}: {error}){hint}") from error


def read_index(file: h5py.File, key: str, path: Path) -> pd.Series:
    """Names of the cells or genes."""
    node = _frame(file, key, path)
    return read_column(file, key, _index_name(node), path).astype("string[pyarrow]")


def n_rows(file: h5py.File, key: str, path: Path) -> int:
    """Length of a table."""
    node = _frame(file, key, path)
    if isinstance(node, h5py.Dataset):
        return len(node)
    element = node[_index_name(node)]
    return len(element if isinstance(element, h5py.Dataset) else element["values"])


def _frame(file: h5py.File, key: str, path: Path) -> h5py.Group | h5py.Dataset:
    if key not in file:
        raise VcellError(f"{path} has no {key!r}: it is not an AnnData file, or it was cut short")
    return file[key]


def _index_name(node: h5py.Group | h5py.Dataset) -> str:
    if isinstance(node, h5py.Dataset):
        names = node.dtype.names or ("index",)
        return "index" if "index" in names else names[0]
    name = node.attrs.get("_index", "_index")
    return name.decode() if isinstance(name, bytes) else str(name)


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
