"""Vectors of genes from the run's own control cells: how genes vary together, which needs no download.

Only control cells of training contexts are read, so that no perturbed cell and no held-out context can leak into them.

Shape legend: C cells, G genes, K components.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from vcell.data.gather import Gather
from vcell.effects.linear import main_directions
from vcell.errors import VcellError
from vcell.model.table import CELLS, PerturbationTable

COMPONENTS = 64
MOST_CELLS = 4096
FEWEST_CELLS = 6


def coexpression_table(gather: Gather, contexts: Iterable[str], components: int = COMPONENTS) -> PerturbationTable:
    """A table of the store's genes: their loadings on the main components of control cells, ``(G, K)``.

    log1p of counts, less the mean of each batch; every gene scaled by its standard deviation, rarely seen ones by that of a usual gene.

    Parameters
    ----------
    contexts
        Those that are trained on.

    Raises
    ------
    VcellError
        If there are too few control cells.
    """
    known = set(gather.store.control_contexts)
    chosen = [context for context in dict.fromkeys(contexts) if context in known]
    parts = [_centred(gather, gather.store.controls_of(context), MOST_CELLS // len(chosen)) for context in chosen]
    cells_CG = np.concatenate(parts) if parts else np.zeros((0, gather.store.n_genes), np.float32)
    if len(cells_CG) < FEWEST_CELLS:
        raise VcellError(
            f"perturbation.path={CELLS} needs control cells of training contexts; there are {len(cells_CG)}"
        )
    spread_G = cells_CG.std(0)
    usual = float(np.median(spread_G[spread_G > 0])) if (spread_G > 0).any() else 1.0
    cells_CG /= np.maximum(spread_G, usual)
    vectors_CK, _ = main_directions(cells_CG, components, least=1e-6)
    loadings_GK = (cells_CG.T @ vectors_CK.astype(np.float32)) / np.sqrt(len(cells_CG))
    largest = np.abs(loadings_GK).argmax(0)
    loadings_GK *= np.sign(loadings_GK[largest, np.arange(loadings_GK.shape[1])])  # a component has no sign of its own
    return PerturbationTable(list(gather.store.genes), torch.from_numpy(loadings_GK.astype(np.float32)), CELLS)


def _centred(gather: Gather, cells: np.ndarray, most: int) -> np.ndarray:
    """log1p of some cells of a context, spread over them evenly, less the mean of their batch, ``(C, G)``."""
    some = cells[np.unique(np.linspace(0, len(cells) - 1, min(len(cells), max(most, 2))).astype(int))]
    log1p_CG = gather.log1p(some).numpy().astype(np.float32)
    batches = gather.store.obs["batch"].astype(str).to_numpy()[some]
    for batch in np.unique(batches):
        log1p_CG[batches == batch] -= log1p_CG[batches == batch].mean(0)
    return log1p_CG
