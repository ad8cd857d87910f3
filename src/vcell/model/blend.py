"""Several predictors as one: their effects weighted and added up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vcell.data.batch import CellSetBatch
from vcell.model.predictor import Predictor


class Blend:
    """Control cells plus the weighted sum of what each predictor changes in them, in log1p; cut off at 0.

    Weights that sum to 1 make a mean of the predictions; larger ones amplify what they predict.
    """

    def __init__(self, predictors: Sequence[Predictor], weights: Sequence[float]) -> None:
        self.predictors, self.weights = list(predictors), list(weights)

    def predict(self, batch: CellSetBatch) -> Tensor:
        """Predicted cells, log1p of counts, ``(sets, cells, genes)``."""
        control_SCG = batch.control_SCG
        cells_SCG = control_SCG.clone()
        for predictor, weight in zip(self.predictors, self.weights, strict=True):
            cells_SCG += weight * (predictor.predict(batch) - control_SCG)
        return cells_SCG.relu()
