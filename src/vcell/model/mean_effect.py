"""Control cells moved by known effects: what a table of effects predicts.

Shape legend: S sets, G genes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vcell.data.batch import CellSetBatch
from vcell.data.splits import Group


@dataclass(frozen=True)
class MeanEffect:
    """Control cells shifted by a pseudobulk delta, cut off at 0."""

    delta_of: Callable[[Group], np.ndarray]

    def predict(self, batch: CellSetBatch) -> Tensor:
        groups = zip(batch.contexts, batch.perturbations, strict=True)
        delta_SG = torch.from_numpy(np.stack([self.delta_of(g) for g in groups]).astype(np.float32))
        return (batch.control_SCG + delta_SG.to(batch.control_SCG.device).unsqueeze(1)).relu()
