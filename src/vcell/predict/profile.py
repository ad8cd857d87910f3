"""Mean expression of contexts, used to check that predicted cells have the right context label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from vcell.data.files.normalize import counts_of_log1p, pseudobulk_log1p
from vcell.data.store.store import Cells
from vcell.errors import VcellError

if TYPE_CHECKING:
    from vcell.predict.layout import Layout

PER = 5e4
BLOCK_CELLS = 4096
NEARER = 0.5  # another context is meant where its distance is below this share of the own one's


def profile(total_G: np.ndarray) -> np.ndarray:
    """log1p of summed counts scaled to 50,000, ``(genes)``."""
    return pseudobulk_log1p(total_G, PER)


def control_profiles(store: Cells, contexts: Iterable[str], layout: Layout) -> dict[str, np.ndarray]:
    """The profile of each context's control cells, in the genes of the file, float32."""
    found = {}
    for context in contexts:
        cells, total_G = store.controls_of(context), np.zeros(store.n_genes)
        for start in range(0, len(cells), BLOCK_CELLS):
            rows = store.rows(cells[start : start + BLOCK_CELLS])
            total_G += np.bincount(rows.indices, rows.values, store.n_genes)
        in_file_G = np.where(layout.source_genes >= 0, total_G[layout.source_genes], 0.0)
        found[context] = profile(in_file_G).astype(np.float32)
    return found


def in_genes(profile_G: np.ndarray, place: np.ndarray, n_genes: int) -> np.ndarray:
    """A profile in the genes of another file, float32: `place` is where each gene goes, -1 for those that it lacks."""
    there, total_G = place >= 0, np.zeros(n_genes)
    total_G[place[there]] = counts_of_log1p(profile_G.astype(np.float64))[there]
    return profile(total_G).astype(np.float32)


def check_contexts(found: Mapping[str, np.ndarray], controls: Mapping[str, np.ndarray]) -> None:
    """Refuses predicted cells that look like another context's control cells than their label's.

    Parameters
    ----------
    found, controls
        Profiles by context: of the predicted cells, and of real control cells.
    """
    for context, profile_G in found.items():
        if context not in controls:
            continue
        distance = {c: float(np.abs(profile_G - control_G).mean()) for c, control_G in controls.items()}
        nearest = min(distance, key=distance.__getitem__)
        if distance[nearest] < NEARER * distance[context]:
            raise VcellError(
                f"the cells labelled {context!r} look like control cells of {nearest!r} (mean difference of log1p profiles "
                f"{distance[nearest]:.3f}), not of {context!r} ({distance[context]:.3f}): are the contexts swapped? No official tool "
                "detects this, and the score would be at chance level. Label the cells as the control files do"
            )
