"""What the official scores leave out: correlations of effects, recovery of the strongest genes, distance between cell sets.

Shape legend: P targets, G genes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vcell.score.blocks import by_targets
from vcell.score.differential import Calls
from vcell.score.embedding import Embedding, energy_distance_unbiased
from vcell.score.side import Side

TOP = 50
FEWEST_GENES = 3


def extra_scores(pred: Side, real: Side, embedding: Embedding) -> pd.DataFrame:
    """PEARSON, TOP50, LFC and ENERGY of every target, NaN where one is not defined.

    Parameters
    ----------
    pred, real
        Same targets and genes.
    embedding
        Of the measured cells.
    """
    targets = pred.cells.targets
    real_P = np.array([real.calls.of(t) for t in targets])
    calls, measured = pred.calls, real.calls  # before several threads ask for them

    def of_some(rows: slice) -> pd.DataFrame:
        pairs = list(zip(range(len(targets))[rows], real_P[rows].tolist(), strict=True))
        table = {
            "PEARSON": correlation(pred.delta_of(rows), real.delta_of(real_P[rows])),
            "TOP50": [top_recovery(calls, p, measured, r) for p, r in pairs],
            "LFC": [fold_correlation(calls, p, measured, r) for p, r in pairs],
            "ENERGY": [
                energy_distance_unbiased(pred.placed(p, embedding), real.placed(r, embedding)) for p, r in pairs
            ],
        }
        return pd.DataFrame(table, index=pd.Index(targets[rows], name="perturbation"))

    return pd.concat(by_targets(of_some, len(targets), len(pred.cells.genes)))


def correlation(x_PG: np.ndarray, y_PG: np.ndarray) -> np.ndarray:
    """Pearson correlation over genes ``(targets)``; 0 for an effect that is the same for all genes."""
    x_PG, y_PG = (z - z.mean(1, keepdims=True) for z in (x_PG.astype(float), y_PG.astype(float)))
    sizes = np.sqrt((x_PG**2).sum(1) * (y_PG**2).sum(1))
    return np.divide((x_PG * y_PG).sum(1), sizes, out=np.zeros(len(sizes)), where=sizes > 0)


def top_recovery(pred: Calls, pred_row: int, real: Calls, real_row: int) -> float:
    """Share of the measured top genes, called and by absolute fold change, that are among the prediction's."""
    wanted = strongest(real, real_row)
    if len(wanted) == 0:
        return float("nan")
    return len(np.intersect1d(wanted, strongest(pred, pred_row)[: len(wanted)])) / len(wanted)


def strongest(calls: Calls, row: int) -> np.ndarray:
    """Called genes, the largest absolute fold changes first, no more than 50."""
    called = np.flatnonzero(calls.called_PG[row])
    return called[np.argsort(-np.abs(calls.fold_PG[row, called]), kind="stable")[:TOP]]


def fold_correlation(pred: Calls, pred_row: int, real: Calls, real_row: int) -> float:
    """Spearman correlation of fold changes over the genes truly changed; 0 where the prediction's are all the same."""
    genes = np.flatnonzero(real.called_PG[real_row])
    if len(genes) < FEWEST_GENES:
        return float("nan")
    x, y = pred.fold_PG[pred_row, genes], real.fold_PG[real_row, genes]
    if np.ptp(x[np.isfinite(x)]) == 0 if np.isfinite(x).any() else True:
        return 0.0
    return spearman(x, y)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one of both does not vary. `scipy.stats` takes half a second to load."""
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(pd.Series(x).rank(), pd.Series(y).rank())[0, 1])
