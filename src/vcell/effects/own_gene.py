"""What a perturbation does to its own gene: silenced to a fraction of its expression, or activated by a factor; learnt from training.

Shape legend: S sets, C cells of a set, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vcell.data.batch import CellSetBatch
from vcell.data.gather import Gather
from vcell.data.splits import Group
from vcell.data.store.part import target_columns
from vcell.errors import VcellError

MOST_CELLS, MOST_TARGETS = 200, 300  # of a group, of a context: enough for a median
WELL_EXPRESSED = 10.0  # counts of the gene that as many control cells would hold, below which nothing can be said
FEWEST_TARGETS = 3
SILENCED, ACTIVATED = 0.7, 1.4  # median expression left beyond which a screen silences or activates its targets


def measure_own_genes(gather: Gather, groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """Expression of targets' own genes relative to controls, by context: median and quartiles over well expressed targets.

    Counts are of a sample of cells of each training group; a failed guide counts as what it leaves.
    """
    store, found = gather.store, {}
    for context in dict.fromkeys(c for c, _ in groups):
        labels = [p for c, p in groups if c == context and (c, p) in store.groups]
        columns = target_columns(labels, store.genes, store.control)
        judged = [i for i in range(len(labels)) if (columns[i] >= 0).any()]
        judged = (
            [judged[i] for i in np.unique(np.linspace(0, len(judged) - 1, min(len(judged), MOST_TARGETS)).astype(int))]
            if judged
            else []
        )
        if not judged or context not in store.control_contexts:
            continue
        control_G = _share(gather, store.controls_of(context)[: 10 * MOST_CELLS])[0]
        ratios = []
        for i in judged:
            share_G, total = _share(gather, store.groups[context, labels[i]][:MOST_CELLS])
            for gene in columns[i][columns[i] >= 0].tolist():
                if control_G[gene] * total >= WELL_EXPRESSED:
                    ratios.append(share_G[gene] / control_G[gene])
        if len(ratios) >= FEWEST_TARGETS:
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
            found[context] = {"ratio": middle, "low": low, "high": high, "targets": float(len(ratios))}
    return found


def _share(gather: Gather, cells: np.ndarray) -> tuple[np.ndarray, float]:
    rows = gather.store.rows(cells)
    total = float(rows.library_size.sum(dtype=np.float64))
    return np.bincount(rows.indices, rows.values, gather.store.n_genes) / max(total, 1e-9), total


@dataclass(frozen=True)
class OwnGenes:
    """By what factor the own genes of targets are changed, and which columns they are.

    Parameters
    ----------
    ratio_of
        Context to the expression left of a target's own gene.
    columns_of
        Target to the columns of its genes.
    """

    ratio_of: Callable[[str], float]
    columns_of: Callable[[str], Sequence[int]]

    def set_rates(self, context: str, target: str, rate_P: np.ndarray, control_P: np.ndarray) -> None:
        """Sets the rates of a target's own genes in place."""
        for gene in self.columns_of(target):
            rate_P[gene] = control_P[gene] * self.ratio_of(context)


@dataclass(frozen=True)
class WithOwnGenes:
    """A predictor whose predictions have targets' own genes silenced, or activated, cell by cell."""

    predictor: Any
    own: OwnGenes

    def predict(self, batch: CellSetBatch) -> Tensor:
        """Predicted cells, log1p of counts, ``(sets, cells, genes)``."""
        cells_SCG: Tensor = self.predictor.predict(batch)
        for number, (context, target) in enumerate(zip(batch.contexts, batch.perturbations, strict=True)):
            for gene in self.own.columns_of(target):
                left = batch.control_SCG[number, :, gene].expm1() * self.own.ratio_of(context)
                cells_SCG[number, :, gene] = left.log1p()
        return cells_SCG


def own_genes(
    asked: str | float, measured: Mapping[str, Mapping[str, float]] | None, genes: Sequence[str], control: str
) -> tuple[OwnGenes | None, str | None]:
    """What to do to targets' own genes, and a line that says it; None where nothing is done.

    Parameters
    ----------
    asked
        ``auto``: as measured in training, where most targets were silenced or activated; ``off``; or the expression to leave.
    measured
        By context (`measure_own_genes`); None where it was never measured.
    genes
        Names of the predictor's genes.

    Raises
    ------
    VcellError
        If `asked` is neither.
    """
    if asked is None or asked is False or asked == "off":
        return None, None
    if asked == "auto":
        if not measured:
            return None, None
        usual = float(np.median([m["ratio"] for m in measured.values()]))
        ratios = {c: m["ratio"] for c, m in measured.items()}
        acting = {c: r for c, r in ratios.items() if r <= SILENCED or r >= ACTIVATED}
        if not (usual <= SILENCED or usual >= ACTIVATED):
            return None, f"own genes    left as predicted: in training they keep {usual:.2f} of their expression"
        ratios = {c: acting.get(c, 1.0) for c in ratios}
        said = f"own genes    set to {usual:.2f} of the control cells' expression, the median in training (knockdown=off leaves them as predicted)"
    else:
        usual = _number(asked)
        ratios, said = {}, f"own genes    set to {usual:.2f} of the control cells' expression"
    known: dict[str, list[int]] = {}

    def columns_of(target: str) -> list[int]:
        if target not in known:
            known[target] = [g for g in target_columns([target], genes, control)[0].tolist() if g >= 0]
        return known[target]

    return OwnGenes(lambda context: ratios.get(context, usual), columns_of), said


def _number(asked: str | float) -> float:
    try:
        value = float(asked)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < 1000:
        raise VcellError(
            f"knockdown={asked} must be auto, off, or the fraction of its expression that a target's own gene keeps (0.2)"
        )
    return value
