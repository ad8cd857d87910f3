"""A submission against the rules of its challenge: every rule of the official validator, and what it cannot see.

Labels, genes and layout are checked first, from the file's tables alone; then every stored value, once, block by block. The
first rule that is broken is said, with the cells, genes or labels that break it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from vcell.challenge import Challenge
from vcell.data.files.h5ad import open_h5ad, read_index
from vcell.data.files.matrix import Matrix
from vcell.errors import VcellError, nearest, shortlist
from vcell.submission.labels import CONVERT, Findings, Labels, read_labels
from vcell.submission.values import check_values


def check_submission(
    path: Path,
    challenge: Challenge,
    genes: Sequence[str] | None,
    targets: Mapping[str, int | None] | None,
    control: str,
    profiles: Callable[[], Mapping[str, np.ndarray] | None] = lambda: None,
) -> Findings:
    """Checks the h5ad `path`.

    Parameters
    ----------
    genes, targets
        The challenge's lists; a rule that needs one that is None is not checked, and the findings say so.
    control
        The label of control cells.
    profiles
        Gives those of real control cells by context (`predict.profile`), by which swapped contexts are found; called when all else is
        right, for reading many control cells takes a while.

    Raises
    ------
    VcellError
        Naming the first rule that is broken, and where.
    """
    with open_h5ad(path) as file:
        names = read_index(file, "var", path).astype(str).tolist()
        labels = read_labels(file, path, challenge)
        matrix = open_matrix(file, path, len(labels.target), len(names))
        check_genes(names, genes, challenge, path)
        findings = check_labels(labels, matrix, challenge, targets, control)
        check_values(matrix, labels, names, challenge, control, findings, profiles, path)
    if genes is None and challenge.n_genes is not None:
        findings.notes.append("names and order of the genes were not checked: set genes=gene_names.csv")
    if targets is None and challenge.n_targets is not None:
        findings.notes.append("targets were not checked against the challenge's list: set targets=FILE.csv")
    return findings


def open_matrix(file: h5py.File, path: Path, n_cells: int, n_genes: int) -> Matrix:
    """X, as CSR of float32 with indices in order: what the official tools write, and read without a copy."""
    if n_cells == 0:
        raise VcellError(f"{path} holds no cells")
    matrix = Matrix.open(file, path, "X", n_cells, n_genes)
    if matrix.layout != "csr":
        layout = {"csc": "CSC (by genes)", "dense": "a dense array"}[matrix.layout]
        raise VcellError(f"{path}: X is stored as {layout}; a submission is CSR (by cells). {CONVERT}")
    if matrix.values_node.dtype != np.float32:
        raise VcellError(f"{path}: X holds {matrix.values_node.dtype} values; a submission is float32. {CONVERT}")
    return matrix


def check_genes(names: Sequence[str], genes: Sequence[str] | None, challenge: Challenge, path: Path) -> None:
    """Names and order of the genes."""
    nameless = [number for number, name in enumerate(names, 1) if name in ("", "<NA>")]
    if nameless:
        raise VcellError(f"{path}: {len(nameless):,} genes have no name in var's index, number {nameless[0]:,} first")
    index = pd.Index(names)
    if not index.is_unique:
        raise VcellError(f"{path}: genes are duplicated: {shortlist(index[index.duplicated()].unique(), 5)}")
    if genes is not None:
        parts = []
        known, here = set(genes), set(names)
        if missing := [gene for gene in genes if gene not in here]:
            parts.append(f"{len(missing):,} of the list's {len(genes):,} genes are missing: {shortlist(missing, 5)}")
        if extra := [gene for gene in names if gene not in known]:
            parts.append(f"{len(extra):,} are not in the list: {shortlist(extra, 5)}")
        if parts:
            raise VcellError(f"{path}: the genes are not the challenge's. {'; '.join(parts)}")
        first = next((i for i, (a, b) in enumerate(zip(names, genes, strict=True)) if a != b), None)
        if first is not None:
            raise VcellError(
                f"{path}: the genes are in another order than the challenge's list: number {first + 1:,} is {names[first]}, not "
                f"{genes[first]}. {CONVERT}"
            )
    elif challenge.n_genes is not None and len(names) != challenge.n_genes:
        raise VcellError(f"{path} has {len(names):,} genes; challenge={challenge.name} requires {challenge.n_genes:,}")


def check_labels(
    labels: Labels, matrix: Matrix, challenge: Challenge, targets: Mapping[str, int | None] | None, control: str
) -> Findings:
    """Controls, contexts, targets, cell numbers and sizes."""
    counted = np.bincount(labels.target.codes, minlength=len(labels.target.categories))
    by_label = {str(label): int(n) for label, n in zip(labels.target.categories, counted, strict=True) if n}
    n_controls = by_label.get(control, 0)
    if challenge.controls == "forbidden" and n_controls:
        raise VcellError(
            f"{n_controls:,} control cells ({control!r}) are in the file; challenge={challenge.name} allows none: it scores against its "
            "own. convert=true leaves them out"
        )
    if challenge.controls == "required" and not n_controls:
        raise VcellError(
            f"no control cells ({control!r}) are in the file; challenge={challenge.name} scores differences from them."
            f"{nearest(control, by_label)} Labels: {shortlist(by_label, 5)}"
        )
    number, names = labels.group
    sizes = np.bincount(number, minlength=len(names))
    cells = {name: int(n) for name, n in zip(names, sizes, strict=True) if name[1] != control}
    if not cells:
        raise VcellError("the file holds control cells only")
    contexts = challenge.phase(context for context, _ in cells)
    challenge.check_labels(cells, targets)
    challenge.check_size(len(labels.target), matrix.stored)
    return Findings(len(labels.target), matrix.stored, contexts, cells, n_controls, True, np.zeros(len(labels.target)))
