"""Perturbation tables as files: the challenge's ``.pt``, ``.npz``, tables of text, Parquet, h5ad, word2vec text (gene2vec), GenePT's pickle,
STRING's HDF5.

Nothing but tensors, arrays, numbers and text is ever loaded: a file that would run code is refused without being run.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vcell.atomic import check_zip
from vcell.data.files.elements import NUMBERS
from vcell.errors import VcellError, no_such_file, shortlist
from vcell.model.plain_pickle import PlainUnpickler

Named = tuple[list[str], Tensor]
HUMAN = "9606"  # of species, in STRING


def read_table_file(path: Path) -> Named:
    """Names and vectors ``(names, width)`` of a file, float32, whatever its kind.

    Raises
    ------
    VcellError
        If it is absent, empty, of no kind that is known, or would run code.
    """
    if not path.is_file():
        raise no_such_file(path, " Set perturbation.path", "perturbation table")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise VcellError(
            f"{path} is no perturbation table that vcell reads: {', '.join(sorted(READERS))}, with genes as rows or a dict from gene to vector"
        )
    names, vectors = reader(path)
    if not names:
        raise VcellError(f"the perturbation table {path} is empty")
    if vectors.ndim == 2 and len(vectors) != len(names):
        raise VcellError(f"the perturbation table {path} holds {len(names):,} names and {len(vectors):,} vectors")
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise VcellError(f"the perturbation table {path} holds no vectors: {len(names):,} names, no numbers")
    return names, vectors


def _read_pt(path: Path) -> Named:
    try:
        check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise VcellError(f"no permission to read {path}. Ask its owner for it: chmod a+r {path}") from error
    except pickle.UnpicklingError as error:
        raise VcellError(
            f"{path} holds more than tensors, and loading it could run code. Save a plain dict from gene "
            "to tensor: torch.save({gene: tensor, ...}, path)"
        ) from error
    except Exception as error:
        raise VcellError(f"{path} cannot be read as a torch file ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise VcellError(f"{path} must contain a dict from gene to tensor; it contains {type(content).__name__}")
    odd = [
        str(k) for k, v in content.items() if v.layout != torch.strided or v.is_complex() or v.is_quantized or v.is_meta
    ]
    if odd:
        raise VcellError(
            f"{path} must contain plain tensors of real numbers; those of {shortlist(odd, 3)} are sparse, complex, quantized or without "
            "values. Save vector.to_dense().float()"
        )
    return _of_mapping(path, {str(k): v.detach().reshape(-1).float().numpy() for k, v in content.items()})


def _read_npz(path: Path) -> Named:
    try:
        with np.load(path, allow_pickle=False) as content:
            names, vectors = content["genes"], content["emb"]
            if names.ndim != 1 or vectors.dtype.kind not in NUMBERS:
                raise ValueError("genes is a list of names, emb (genes, width) of numbers")
            return names.astype(str).tolist(), torch.from_numpy(vectors.astype(np.float32))
    except Exception as error:  # of zip, zlib and numpy: as many as there are damages
        raise VcellError(
            f"{path} must contain the arrays 'genes' and 'emb' without pickled objects: {error}"
        ) from error


def _read_pickle(path: Path) -> Named:
    """A dict from gene to a list or array of numbers, as GenePT publishes its embeddings."""
    try:
        content = PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except VcellError:
        raise
    except Exception as error:
        raise VcellError(f"{path} cannot be read as a pickle ({type(error).__name__}: {error})") from error
    if not isinstance(content, Mapping):
        raise VcellError(f"{path} must contain a dict from gene to vector; it contains {type(content).__name__}")
    try:
        return _of_mapping(path, {str(k): np.asarray(v, np.float32).reshape(-1) for k, v in content.items()})
    except (TypeError, ValueError) as error:
        raise VcellError(f"{path} must contain a dict from gene to numbers: {error}") from error


def _of_mapping(path: Path, vectors: Mapping[str, np.ndarray]) -> Named:
    lengths = sorted({v.size for v in vectors.values()})
    if len(lengths) > 1:
        raise VcellError(f"the vectors of {path} differ in length: {shortlist(map(str, lengths))}")
    stacked = np.stack(list(vectors.values())) if vectors else np.empty((0, 0), np.float32)
    return list(vectors), torch.from_numpy(stacked.astype(np.float32, copy=False))


def _read_text(path: Path) -> Named:
    """A table of text: names in the first column, numbers in the others; also word2vec's format, which begins with the table's size."""
    from vcell.data.files.lists import HEADERS, numbers, read_rows

    rows = read_rows(path, "perturbation.path")
    first = " ".join(rows[0]).split() if rows else []
    if len(first) == 2 and all(word.isdigit() for word in first):
        return _of_words(path, [" ".join(row) for row in rows[1:]], int(first[0]), int(first[1]))
    corner = rows[0][0].lower() if rows else ""
    if rows and (
        len(rows[0]) < len(rows[-1]) or corner in {"", *HEADERS} or numbers(pd.Series(rows[0][1:])).isna().any()
    ):
        rows = rows[1:]  # names of the columns
    if uneven := [row[0] for row in rows if len(row) != len(rows[0])]:
        raise VcellError(f"{path}: the vector of {uneven[0]} is not as long as that of {rows[0][0]}")
    columns = [numbers(pd.Series(column)) for column in list(zip(*rows, strict=True))[1:]]
    for column in columns:
        if column.isna().all():
            raise VcellError(
                f"{path} holds text where numbers are expected: genes in the first column, their vectors in the others"
            )
    vectors = np.array(columns, np.float32).T if columns else np.empty((len(rows), 0), np.float32)
    return [row[0] for row in rows], torch.from_numpy(np.ascontiguousarray(vectors))


def _of_words(path: Path, lines: Sequence[str], number: int, width: int) -> Named:
    rows = [line.split() for line in lines if line.strip()]
    bad = next((row for row in rows if len(row) != width + 1), None)
    if len(rows) != number or bad is not None:
        found = f"a row of {len(bad) - 1}" if bad is not None else f"{len(rows):,} rows"
        raise VcellError(f"{path} promises {number:,} vectors of {width} in its first line, and has {found}")
    try:
        return [row[0] for row in rows], torch.from_numpy(np.array([row[1:] for row in rows], np.float32))
    except ValueError as error:
        raise VcellError(f"{path} holds vectors that are no numbers: {error}") from error


def _read_frame(path: Path) -> Named:
    try:
        frame = pd.read_parquet(path)
    except Exception as error:
        raise VcellError(f"{path} cannot be read as Parquet ({type(error).__name__}: {error})") from error
    named = [column for column in frame.columns if not pd.api.types.is_numeric_dtype(frame[column])]
    if len(named) > 1 or (named and not isinstance(frame.index, pd.RangeIndex)):
        raise VcellError(
            f"{path} has several columns that are no numbers: {shortlist(map(str, named))}. Keep one, with the genes"
        )
    if named:
        frame = frame.set_index(named[0])
    return [str(name) for name in frame.index], torch.from_numpy(frame.to_numpy(np.float32))


def _read_h5ad(path: Path) -> Named:
    """Genes as rows (obs), their vectors in X."""
    from vcell.data.files.elements import has
    from vcell.data.files.h5ad import n_rows, open_h5ad, read_index
    from vcell.data.files.matrix import read_dense

    with open_h5ad(path) as file:
        names = read_index(file, "obs", path).astype(str).tolist()
        if not has(file, "X"):
            raise VcellError(f"{path} has no X: a table of vectors has genes as rows and their vectors in X")
        vectors = read_dense(file, path, "X", (len(names), n_rows(file, "var", path)))
    return names, torch.from_numpy(vectors.astype(np.float32))


def _read_string(path: Path) -> Named:
    """Embeddings of proteins as STRING publishes them (Hu et al. 2025), of one species or of all, by the proteins' preferred names."""
    try:
        with h5py.File(path, "r") as content:
            group = content.get(f"species/{HUMAN}", content)
            if not isinstance(group, h5py.Group) or not {"proteins", "embeddings"} <= set(group):
                raise VcellError(
                    f"{path} is no file of STRING's embeddings: it has no datasets 'proteins' and 'embeddings', of one species or under species/{HUMAN}"
                )
            proteins = [one.decode() if isinstance(one, bytes) else str(one) for one in group["proteins"][:]]
            vectors = group["embeddings"][:].astype(np.float32)
    except (OSError, TypeError, ValueError) as error:
        raise VcellError(f"{path} cannot be read as HDF5 ({type(error).__name__}: {error})") from error
    names = _preferred_names(path)
    # a gene of several proteins goes by the first, as STRING has one to a gene
    rows = {names[protein]: row for row, protein in reversed(list(enumerate(proteins))) if protein in names}
    if not rows:
        raise VcellError(
            f"the names of STRING's proteins beside {path} name none of its proteins ({shortlist(proteins, 2)})"
        )
    order = sorted(rows.values())
    by_row = {row: name for name, row in rows.items()}
    return [by_row[row] for row in order], torch.from_numpy(vectors[order])


def _preferred_names(path: Path) -> dict[str, str]:
    """Symbols by STRING's ids of proteins, from the file of names that STRING has beside the embeddings."""
    from vcell.data.files.lists import read_rows

    found = sorted(path.parent.glob(f"{HUMAN}.protein.info.*.txt*"))
    if not found:
        raise VcellError(
            f"{path} names proteins by STRING's ids: put its file of names, {HUMAN}.protein.info.v12.0.txt.gz (string-db.org, Download), in the same folder"
        )
    rows = read_rows(found[-1], "perturbation.path")
    return {row[0]: row[1] for row in rows if len(row) > 1 and row[0].startswith(f"{HUMAN}.")}


READERS: dict[str, Callable[[Path], Named]] = {
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".npz": _read_npz,
    ".pickle": _read_pickle,
    ".pkl": _read_pickle,
    ".csv": _read_text,
    ".tsv": _read_text,
    ".txt": _read_text,
    ".gz": _read_text,
    ".parquet": _read_frame,
    ".h5ad": _read_h5ad,
    ".h5": _read_string,
}
