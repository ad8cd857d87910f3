"""A training item in two forms: as indices into the store, and as tensors on the device.

Shape legend: S sets, C cells of a set, G genes, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class CellSets:
    """Which cells make up some sets. Each set is one (context, perturbation)."""

    contexts: list[str]  # (S)
    perturbations: list[str]  # (S)
    controls_SC: np.ndarray  # int64, store indices of control cells
    perturbed_SC: np.ndarray | None  # int64, of perturbed cells; None where none were measured

    def __len__(self) -> int:
        return len(self.perturbations)

    @property
    def parts(self) -> list[np.ndarray]:
        return [self.controls_SC] if self.perturbed_SC is None else [self.controls_SC, self.perturbed_SC]

    @property
    def numbers(self) -> np.ndarray:
        """Of all cells, controls first: the rows of the store to read."""
        return np.concatenate([part.ravel() for part in self.parts])


@dataclass(frozen=True)
class CellSetBatch:
    """The cells of some sets, log1p of counts per target sum, float32."""

    contexts: list[str]  # (S)
    perturbations: list[str]  # (S)
    control_SCG: Tensor
    perturbed_SCG: Tensor | None
    # bool: genes measured for all cells of a set; None: all genes. Where it is False the values above are 0 and mean nothing
    known_SG: Tensor | None = None
    embedding_SCE: Tensor | None = None  # of the control cells, where the model sees one in place of expression
    context_S: Tensor | None = None  # int64, numbers of the contexts, where the model embeds them
    batch_SC: Tensor | None = None  # int64, of the control cells' batches
    control_library_SC: Tensor | None = None  # float32, counts of the cells
    perturbed_library_SC: Tensor | None = None
    target_sum: float | None = None
    codes_S2: Tensor | None = None  # int64, of context and perturbation: the same on every rank

    @property
    def n_cells(self) -> int:
        """Cells of the batch, controls and perturbed ones."""
        sets, cells, _ = self.control_SCG.shape
        return sets * cells + (0 if self.perturbed_SCG is None else sets * self.perturbed_SCG.shape[1])


def codes(contexts: Sequence[str], perturbations: Sequence[str]) -> Tensor:
    """int64 ``(sets, 2)`` that stand for the names, the same on every rank."""
    return torch.tensor(
        [[int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True) for name in pair]
         for pair in zip(contexts, perturbations, strict=True)]
    )  # fmt: skip
