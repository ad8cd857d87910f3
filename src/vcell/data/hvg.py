"""Highly variable genes, chosen on training cells only, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vcell.data.gather import BLOCK_CELLS, Gather
from vcell.data.splits import Group
from vcell.errors import VcellError
from vcell.process.progress import progress_bar

BINS = 20


def choose_hvg(gather: Gather, assigned: Mapping[Group, str], number: int, key: str = "data.hvg") -> list[str]:
    """The `number` genes whose dispersion among training cells and their controls is highest, in the store's order.

    Held-out groups take no part, and a gene is judged on the cells of sources that measured it.

    Raises
    ------
    VcellError
        If `number` is not between 1 and the number of genes.
    """
    store = gather.store
    if not isinstance(number, int) or not 1 <= number <= store.n_genes:
        raise VcellError(f"{key}={number} must be a whole number from 1 to {store.n_genes:,}, or null for all genes")
    training = [group for group, split in assigned.items() if split == "train"]
    controls = [(context, store.control) for context in {context for context, _ in training}]
    cells = np.sort(np.concatenate([store.groups[group] for group in (*training, *controls) if group in store.groups]))
    mean, variance = _moments(gather, cells)
    score = normalised_dispersion(mean, variance)
    # ties, and genes that are 0 everywhere, in the order of the store
    chosen = np.sort(np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")[:number])
    return [store.genes[i] for i in chosen]


def normalised_dispersion(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Log variance-to-mean ratio of each gene, standardised among genes of similar mean; NaN for a gene without any.

    The same numbers as ``scanpy.pp.highly_variable_genes(flavor="seurat")`` (Satija et al. 2015).

    Parameters
    ----------
    mean, variance
        Of counts per target sum (not log1p), ``(genes)``; the variance with one degree of freedom taken off.
    """
    mean = np.where(mean == 0, 1e-12, mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = np.log(np.where(variance / mean == 0, np.nan, variance / mean))
    bins = pd.Series(pd.cut(np.log1p(mean), bins=BINS))
    grouped = pd.Series(dispersion).groupby(bins, observed=True)
    centre, spread = grouped.transform("mean").to_numpy(), grouped.transform("std").to_numpy()
    alone = np.isnan(spread)  # one gene in its bin: it gets 1
    return (dispersion - np.where(alone, 0.0, centre)) / np.where(alone, centre, spread)


def _moments(gather: Gather, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance over `cells` of counts per target sum, ``(genes)``."""
    store = gather.store
    total, squares = np.zeros(store.n_genes), np.zeros(store.n_genes)
    with progress_bar(len(cells), "variable genes", "cells") as progress:
        for start in range(0, len(cells), BLOCK_CELLS):
            rows = store.rows(cells[start : start + BLOCK_CELLS])
            values = rows.values * np.repeat(
                gather.target_sum / rows.library_size.astype(np.float64), np.diff(rows.indptr)
            )
            total += np.bincount(rows.indices, values, store.n_genes)
            squares += np.bincount(rows.indices, values**2, store.n_genes)
            progress.update(min(BLOCK_CELLS, len(cells) - start))
    n = np.maximum(gather.cells_knowing(cells), 2)
    mean = total / n
    return mean, np.maximum(squares / n - mean**2, 0) * n / (n - 1)
