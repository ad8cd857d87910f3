"""An h5ad of predicted cells rewritten in the form of a submission, where that changes no value."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vcell.challenge import Challenge
from vcell.data.files.csr import row_of
from vcell.data.files.genes import align
from vcell.data.files.h5ad import open_h5ad, read_index
from vcell.data.files.matrix import CsrBlock, Matrix
from vcell.data.files.writer import H5adWriter
from vcell.errors import VcellError, shortlist
from vcell.predict.inside import about_in, as_uns, profiles_in
from vcell.predict.profile import in_genes
from vcell.process.progress import progress_bar
from vcell.submission.labels import read_labels


def convert(path: Path, out: Path, challenge: Challenge, genes: Sequence[str] | None, control: str) -> list[str]:
    """Writes the cells of `path` to `out`: CSR, float32, the challenge's genes in order, controls only where wanted.

    Genes are matched as in reading data (`data.files.genes`); a gene of the list that the file lacks is an error.

    Returns
    -------
    What was changed.
    """
    with open_h5ad(path) as file, tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        names = read_index(file, "var", path).astype(str).tolist()
        labels = read_labels(file, path, challenge, strip=True)
        matrix = Matrix.open(file, path, "X", len(labels.target), len(names))
        place, changes = _places(names, genes, path)
        keep = np.ones(len(labels.target), bool)
        if challenge.controls == "forbidden":
            keep = np.asarray(labels.target != control)
            changes += [f"{int((~keep).sum()):,} control cells left out"] if not keep.all() else []
        if matrix.layout != "csr" or matrix.values_node.dtype != np.float32:
            changes.append(f"{matrix.layout} of {matrix.values_node.dtype} written as CSR of float32")
        obs = pd.DataFrame({challenge.perturbation: labels.target[keep]})
        if challenge.context is not None and list(labels.context.categories) != [""]:
            obs[challenge.context] = labels.context[keep]
        obs.index = obs.index.astype(str)
        profiles = profiles_in(file, path, len(names))
        found = {context: in_genes(found_G, place, len(genes or names)) for context, found_G in profiles.items()}
        uns = as_uns(about_in(file, path), found)
        with (
            H5adWriter(out, obs, list(genes or names), uns) as writer,
            progress_bar(len(keep), f"rewriting {path.name}", "cells") as progress,
        ):
            for block in matrix.blocks(Path(scratch)):
                stop = block.start + len(block.indptr) - 1
                _write(writer, block, place, keep[block.start : stop])
                progress.update(stop - block.start)
    return changes


def _places(names: Sequence[str], genes: Sequence[str] | None, path: Path) -> tuple[np.ndarray, list[str]]:
    """Where the file's genes go in the list, -1 for those that are not in it."""
    if genes is None or list(names) == list(genes):
        return np.arange(len(names)), []
    place = align(list(names), list(genes)).position
    missing = np.setdiff1d(np.arange(len(genes)), place)
    if missing.size:
        raise VcellError(
            f"{path}: {missing.size:,} of the list's {len(genes):,} genes are missing: {shortlist([genes[i] for i in missing], 5)}. "
            "Predict them too: values that were not predicted cannot be filled in"
        )
    extra, renamed = int((place < 0).sum()), sum(names[i] != genes[p] for i, p in enumerate(place) if p >= 0)
    changes = ["genes put in the challenge's order"]
    changes += [f"{extra:,} genes that are not in the list left out"] if extra else []
    return place, changes + ([f"{renamed:,} genes under their other names"] if renamed else [])


def _write(writer: H5adWriter, block: CsrBlock, place: np.ndarray, keep: np.ndarray) -> None:
    row, genes = row_of(block.indptr), place[block.indices]
    kept = keep[row] & (genes >= 0) & (block.values != 0)
    row, genes, values = row[kept], genes[kept], block.values[kept]
    order = np.lexsort((genes, row))
    row, genes, values = row[order], genes[order], values[order]
    if ((np.diff(row) == 0) & (np.diff(genes) == 0)).any():  # stored twice: the sum is meant, as scipy has it
        first = np.concatenate([[True], (np.diff(row) != 0) | (np.diff(genes) != 0)])
        starts = np.flatnonzero(first)
        row, genes, values = row[first], genes[first], np.add.reduceat(values, starts)
    lengths = np.bincount(row, minlength=len(keep))[keep]
    writer.append(genes.astype(np.int32), values.astype(np.float32))
    writer.end_rows(lengths)
