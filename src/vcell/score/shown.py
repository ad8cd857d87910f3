"""What the report and its pictures show of a scored prediction, collected while its cells are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vcell.errors import VcellError, nearest
from vcell.process.helper import Helper
from vcell.score import figures
from vcell.score.explore import Effects, effects, target_table
from vcell.score.figures import Delta
from vcell.score.own import correlation
from vcell.score.pairs import Pair
from vcell.score.side import Side
from vcell.score.sums import CellGroup

if TYPE_CHECKING:
    from vcell.score.scoring import ContextScorer

SHOWN_TARGETS = 6
SHOWN_CELLS = 1_500


@dataclass(frozen=True)
class Shown:
    """What is shown of one context.

    Attributes
    ----------
    deltas
        Effects of chosen targets, by name.
    genes
        One row per target: numbers of called genes (`real`, `pred`, `both`; `right`: in both, in the same direction), size of the measured
        effect, cells, and log2 fold changes of its own gene (`own_real`, `own_pred`).
    cells
        Coordinates `x`, `y` of some cells, their `kind` (control, measured, predicted) and `perturbation`.
    effects
        Fold changes and calls of every target, for the page.
    drawn
        Pictures that are being drawn in the background; None: they are drawn when they are asked for.
    """

    context: str
    deltas: Mapping[str, Delta]
    genes: pd.DataFrame
    cells: pd.DataFrame
    effects: Effects
    drawn: Future[dict[str, bytes]] | None = field(default=None, repr=False, compare=False)

    def drawing(self, helper: Helper) -> Shown:
        """The same, its pictures begun: `helper` draws them while references are scored."""
        return replace(self, drawn=helper.submit(figures.of_context, self.deltas, self.genes, self.cells))

    def pictures(self) -> dict[str, bytes]:
        """PNG of every picture that shows one context, by name."""
        return self.drawn.result() if self.drawn else figures.of_context(self.deltas, self.genes, self.cells)


def collect(pair: Pair, pred: Side, judge: ContextScorer, show: Sequence[str] | None) -> Shown:
    """From what was computed of the prediction and of the measured cells.

    Raises
    ------
    VcellError
        If a target to show was not scored.
    """
    real: Side = judge.fast.real
    targets = pred.cells.targets
    genes = target_table(pair, pred, real)
    chosen = chosen_targets(genes, show)
    deltas = {target: _delta(pred, targets.index(target), real, real.calls.of(target)) for target in chosen}
    return Shown(pair.context, deltas, genes, _cells(pair, judge), effects(pred, real))


def _delta(pred: Side, pred_row: int, real: Side, real_row: int) -> Delta:
    predicted, measured = pred.delta_of(pred_row), real.delta_of(real_row)
    r = float(correlation(predicted[None], measured[None])[0])
    return Delta(predicted, measured, real.calls.called_PG[real_row], r)


def chosen_targets(genes: pd.DataFrame, show: Sequence[str] | None) -> list[str]:
    """Those asked for; otherwise from the strongest measured effect to the weakest."""
    if show:
        for target in show:
            if target not in genes.index:
                raise VcellError(f"show={target} is not a scored target.{nearest(target, genes.index)}")
        return list(show)
    ordered = genes.sort_values("real", ascending=False, kind="stable").index
    places = np.unique(np.linspace(0, len(ordered) - 1, min(SHOWN_TARGETS, len(ordered))).astype(int))
    return [str(ordered[i]) for i in places]


def _cells(pair: Pair, judge: ContextScorer) -> pd.DataFrame:
    parts = []
    each = max(1, SHOWN_CELLS // max(1, len(pair.pred.targets)))
    for kind, cells in (("measured", pair.real), ("predicted", pair.pred)):
        for label in cells.targets:
            at = judge.embedding.place(cells.group(label), each)
            parts.append(
                pd.DataFrame({"x": at[:, 0], "y": at[:, min(1, at.shape[1] - 1)], "kind": kind, "perturbation": label})
            )
    at = judge.embedding.place(CellGroup(pair.real.controls), SHOWN_CELLS // 2)
    parts.append(
        pd.DataFrame({"x": at[:, 0], "y": at[:, min(1, at.shape[1] - 1)], "kind": "control", "perturbation": ""})
    )
    return pd.concat(parts, ignore_index=True)
