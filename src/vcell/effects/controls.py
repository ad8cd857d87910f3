"""What the control cells of a context say of it: mean expression, and how its genes vary together without any perturbation.

Shape legend: C cells, G genes, K components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vcell.data.gather import Gather
from vcell.effects.bank import BULK_SUM, PSEUDOCOUNT, Profiles
from vcell.effects.linear import main_directions

COMPONENTS = 10
ARRAYS = ("share", "cpm", "cpm_variance", "log1p")
MOST_CELLS = 2048  # that variation is read from


@dataclass(frozen=True)
class ContextControls:
    """Control cells of one context.

    Parameters
    ----------
    profile
        Of all of them, one row.
    cells_CG
        log1p of some of them less their mean; empty where they come from a checkpoint, which keeps what varies most instead.
    """

    profile: Profiles
    cells_CG: np.ndarray
    _varies: dict[str, np.ndarray] = field(default_factory=dict, repr=False)  # variance and axes, worked out once

    @classmethod
    def measure(cls, gather: Gather, cells: np.ndarray) -> ContextControls:
        """Of the control cells `cells` of a store."""
        some = cells[np.linspace(0, len(cells) - 1, min(len(cells), MOST_CELLS)).astype(np.int64)]
        log1p_CG = gather.log1p(some).numpy()
        log1p_CG -= log1p_CG.mean(0)
        return cls(Profiles.measure(gather, [cells]), log1p_CG)

    def plain(self) -> dict[str, Any]:
        """As it is written into a checkpoint: numbers and tensors, without the cells."""
        arrays = dict(zip(ARRAYS, self.profile.arrays, strict=True))
        arrays |= {"variance": self.variance_G, "axes": self.components(COMPONENTS)}
        return {
            "cells": int(self.profile.cells[0]),
            **{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
        }

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> ContextControls:
        """The inverse of `plain`."""
        profile = Profiles(np.array([plain["cells"]], np.int64), *(plain[name].numpy() for name in ARRAYS))
        varies = {name: plain[name].numpy() for name in ("variance", "axes")}
        return cls(profile, np.zeros((0, profile.share.shape[1]), np.float32), varies)

    @property
    def share_G(self) -> np.ndarray:
        """Mean expression as a share of all counts, 0 where a gene was not measured."""
        return np.nan_to_num(self.profile.share[0])

    @property
    def cpm_G(self) -> np.ndarray:
        return np.nan_to_num(self.profile.cpm[0])

    @property
    def variance_G(self) -> np.ndarray:
        """Variance of log1p between cells."""
        if "variance" not in self._varies:
            few = not len(self.cells_CG)
            self._varies["variance"] = np.ones(self.cells_CG.shape[1], np.float32) if few else self.cells_CG.var(0)
        return self._varies["variance"]

    def components(self, number: int) -> np.ndarray:
        """The first principal components of the cells, ``(K, G)``, orthonormal; fewer where there are few cells."""
        if "axes" not in self._varies and not len(self.cells_CG):
            return np.zeros((0, self.cells_CG.shape[1]), np.float32)
        if "axes" not in self._varies:
            vectors, values = main_directions(self.cells_CG, COMPONENTS, least=1e-6)
            axes = (vectors.T @ self.cells_CG) / np.sqrt(values)[:, None]
            self._varies["axes"] = axes.astype(np.float32)
        return self._varies["axes"][:number]

    def covariance(self, genes: np.ndarray) -> np.ndarray:
        """Covariance over cells of some genes with all, ``(genes, G)``; 0 for a number below 0."""
        found = np.zeros((len(genes), self.cells_CG.shape[1]), np.float32)
        known = genes >= 0
        if len(self.cells_CG) > 1:
            found[known] = self.cells_CG[:, genes[known]].T @ self.cells_CG / (len(self.cells_CG) - 1)
        return found

    def ratios_of(self, effect_TG: np.ndarray, space: str) -> np.ndarray:
        """Expression relative to these controls at which these effects are measured, ``(T, G)``; 1 for genes that no control cell shows."""
        if space == "fold":
            level_G = self.cpm_G.astype(np.float64)
            moved_TG = (level_G + PSEUDOCOUNT) * np.exp2(effect_TG) - PSEUDOCOUNT
        else:
            level_G = BULK_SUM * self.share_G.astype(np.float64)
            moved_TG = np.expm1(np.log1p(level_G) + effect_TG)
        moved_TG = np.where(effect_TG == 0, level_G, np.maximum(moved_TG, 0))
        return np.divide(moved_TG, level_G, out=np.ones_like(moved_TG), where=level_G > 0)
