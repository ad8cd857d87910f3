"""Rows of the parts, in any order, to the arrays of a store: plain reads and writes, so that memory stays bounded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vcell.data.files.csr import number_type, positions, ranges, starts_of
from vcell.data.files.matrix import BLOCK_VALUES
from vcell.process.progress import progress_bar

PAIR_BYTES = 8


class PartRows:
    """The (gene, value) pairs of a part's cells."""

    def __init__(self, path: Path, lengths: np.ndarray) -> None:
        self.path, self.lengths = path, lengths
        self.starts = starts_of(lengths)

    def read(self, file: BinaryIO, cells: np.ndarray) -> np.ndarray:
        """Pairs of `cells`, in their order, ``(values, 2)`` uint32."""
        out = np.empty((int(self.lengths[cells].sum()), 2), np.uint32)
        if not out.size:
            return out
        buffer, done = memoryview(out).cast("B"), 0
        for run in np.split(cells, np.flatnonzero(np.diff(cells) != 1) + 1):  # neighbours are read at once
            size = int(self.starts[run[-1] + 1] - self.starts[run[0]]) * PAIR_BYTES
            file.seek(int(self.starts[run[0]]) * PAIR_BYTES)
            file.readinto(buffer[done : done + size])  # type: ignore[attr-defined]
            done += size
        return out


def write_rows(
    folder: Path, parts: Sequence[PartRows], fractions: Sequence[bool], order: np.ndarray, n_genes: int, largest: float
) -> Any:
    """Writes ``counts.*.npy`` with the cells in `order`, numbered through the parts; returns a running checksum.

    Parameters
    ----------
    fractions
        Per part, whether its values are float32 bits: then all values are stored as float32.
    largest
        The largest value, which decides how wide whole counts are stored.
    """
    lengths = np.concatenate([part.lengths for part in parts])[order]
    indptr = starts_of(lengths)
    np.save(folder / "counts.indptr.npy", indptr)
    values_type = np.dtype(np.float32) if any(fractions) else number_type(largest)
    types = {"indices": number_type(n_genes), "values": values_type}
    # one checksum an array: blocks of another size must not change it
    checksums = {name: hashlib.blake2b(digest_size=16) for name in types}
    files = {name: begin_array(folder / f"counts.{name}.npy", types[name], (int(indptr[-1]),)) for name in types}
    sources = [part.path.open("rb") for part in parts]
    try:
        with progress_bar(len(order), "writing the store", "cells") as progress:
            for first, last in ranges(indptr, BLOCK_VALUES):
                block = _block(parts, sources, fractions, order[first:last], lengths[first:last], values_type)
                for name, array in zip(types, block, strict=True):
                    data = array.astype(types[name], copy=False).tobytes()
                    files[name].write(data)
                    checksums[name].update(data)
                progress.update(last - first)
    finally:
        for file in (*files.values(), *sources):
            file.close()
    return hashlib.blake2b(b"".join([indptr.tobytes(), *(c.digest() for c in checksums.values())]), digest_size=16)


def _block(
    parts: Sequence[PartRows],
    sources: Sequence[BinaryIO],
    fractions: Sequence[bool],
    cells: np.ndarray,
    lengths: np.ndarray,
    values_type: np.dtype,
) -> tuple[np.ndarray, np.ndarray]:
    """Genes and values of `cells`, numbered through the parts."""
    bounds = starts_of([len(part.lengths) for part in parts])
    which = np.searchsorted(bounds, cells, side="right") - 1
    starts = starts_of(lengths)
    genes, values = np.empty(starts[-1], np.uint32), np.empty(starts[-1], values_type)
    for p in np.unique(which):
        here = np.flatnonzero(which == p)
        pairs = parts[p].read(sources[p], cells[here] - bounds[p])
        at = positions(starts[here], lengths[here])
        genes[at] = pairs[:, 0]
        values[at] = np.ascontiguousarray(pairs[:, 1]).view(np.float32) if fractions[p] else pairs[:, 1]
    return genes, values


def begin_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> BinaryIO:
    """A .npy file opened behind its header, to be written row by row."""
    file = path.open("wb")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
