"""How much of its own gene's expression each perturbation leaves, on a bounded sample of cells."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vcell.data.files.csr import row_of
from vcell.data.files.matrix import Matrix
from vcell.data.files.sample import cheap_cells
from vcell.data.files.scale import Scale, linear, smallest_positive
from vcell.data.store.part import target_columns

MOST_VALUES, MOST_CELLS = 20_000_000, 12_000  # read at most: seconds, whatever the file
SHARE_FOR_CONTROLS = 0.2
FEWEST_CELLS = 5
CELLS_AT_ONCE = 500
WELL_EXPRESSED = 10.0  # counts expected in the sampled cells, below which nothing can be said
UNSILENCED = 0.30  # fraction of the controls' expression, as in cell-load


def knockdown(matrix: Matrix, scale: Scale, perturbation: pd.Series, control: str, names: list[str]) -> pd.DataFrame:
    """Expression left of each target's gene.

    Returns
    -------
    One row a perturbation with a gene in the file: `residual` (fraction of the mean share of the library in controls; of
    several genes the least silenced), `cells` (sampled), `expected` (counts of the gene that as many control cells would
    have), `judged`.
    """
    labels = perturbation.cat.categories
    targets = target_columns(labels, names, control)
    codes = perturbation.cat.codes.to_numpy()
    judged = [i for i, label in enumerate(labels) if label != control and (targets[i] >= 0).any()]
    if not judged or control not in labels:
        return pd.DataFrame(columns=["residual", "cells", "expected", "judged"])
    control_code = labels.get_loc(control)
    chosen = _chosen(matrix, codes, judged, control_code)
    measured = np.unique(targets[judged][targets[judged] >= 0])
    share, total = _expression(matrix, scale, chosen, measured)
    code = codes[chosen]
    is_control = code == control_code
    rows = {}
    if not is_control.any():
        return pd.DataFrame(columns=["residual", "cells", "expected", "judged"])
    for i in judged:
        mine = code == i
        genes = np.searchsorted(measured, [g for g in targets[i] if g >= 0]).tolist()
        expected = {g: share[g][is_control].mean() * total[mine].sum() for g in genes}
        left = {g: share[g][mine].mean() / share[g][is_control].mean() for g in genes if expected[g] > 0 and mine.any()}
        worst = max(left, key=lambda g: left[g]) if left else None
        rows[labels[i]] = {
            "residual": left[worst] if worst is not None else np.nan,
            "cells": int(mine.sum()),
            "expected": expected[worst] if worst is not None else 0.0,
            "judged": bool(worst is not None and expected[worst] >= WELL_EXPRESSED and mine.sum() >= FEWEST_CELLS),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _chosen(matrix: Matrix, codes: np.ndarray, judged: list[int], control: int) -> np.ndarray:
    """Cells to read: as many of each perturbation as the budget allows, and controls; ascending."""
    cheap = cheap_cells(matrix, MOST_VALUES, also=np.flatnonzero(codes == control))
    if matrix.layout == "dense" and len(cheap) < len(codes):
        return cheap  # whole chunks of rows: picking some of them would unpack no less
    mean = max(1, matrix.stored // max(1, matrix.shape[0]))
    budget = len(codes) if matrix.layout == "csc" else max(2, min(MOST_CELLS, MOST_VALUES // mean))
    n_controls = max(1, int(budget * SHARE_FOR_CONTROLS))
    each = max(FEWEST_CELLS, (budget - n_controls) // len(judged))
    ordered = cheap[np.argsort(codes[cheap], kind="stable")]
    bounds = np.searchsorted(codes[ordered], np.arange(codes.max() + 2))

    def some(code: int, number: int) -> np.ndarray:
        cells = ordered[bounds[code] : bounds[code + 1]]
        return cells[np.linspace(0, len(cells) - 1, min(number, len(cells))).astype(np.int64)]

    parts = [some(control, n_controls)]
    for code in judged:
        if sum(map(len, parts)) < budget:
            parts.append(some(code, each))
    return np.sort(np.concatenate(parts))


def _expression(matrix: Matrix, scale: Scale, cells: np.ndarray, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the library of some genes, ``(genes, cells)``, and the cells' libraries in counts (or as values sum)."""
    share, total = np.zeros((len(genes), len(cells)), np.float32), np.ones(len(cells))
    if matrix.layout == "csc":  # columns are at hand, libraries are not: values as they are
        place = np.full(matrix.shape[0], -1, np.int64)
        place[cells] = np.arange(len(cells))
        for g, gene in enumerate(genes):
            rows, values = matrix.column(int(gene))
            at = place[rows]
            share[g, at[at >= 0]] = linear(values, scale)[at >= 0]
        return share, total
    place = np.full(matrix.shape[1], -1, np.int64)
    place[genes] = np.arange(len(genes))
    for start in range(0, len(cells), CELLS_AT_ONCE):
        some = matrix.rows(cells[start : start + CELLS_AT_ONCE])
        values = linear(some.values, scale)
        row = row_of(some.indptr)
        sums = np.maximum(np.bincount(row, values, len(some.cells)), 1e-12)
        total[start : start + len(sums)] = sums / smallest_positive(values, some.indptr)  # the smallest is one count
        at = place[some.indices]
        keep = at >= 0
        share[at[keep], start + row[keep]] = values[keep] / sums[row[keep]]
    return share, total
