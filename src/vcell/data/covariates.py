"""Contexts and batches as numbers, for models that embed them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vcell.data.splits import Group
from vcell.data.store.store import BATCH_COLUMNS, Cells


@dataclass(frozen=True)
class Covariates:
    """Contexts and batches that a model has embeddings of, in order. All others share the number after the last."""

    contexts: list[str]
    batches: list[str]

    @classmethod
    def of(cls, store: Cells, groups: Iterable[Group]) -> Covariates:
        """Those of the cells of `groups`."""
        groups = list(groups)
        names = batch_names(store)
        cells = np.concatenate([store.groups[group] for group in groups])
        return cls(sorted({context for context, _ in groups}), sorted(set(names[cells])))

    def context_numbers(self, contexts: Iterable[str]) -> np.ndarray:
        """int64, one each."""
        number = {name: i for i, name in enumerate(self.contexts)}
        return np.array([number.get(name, len(number)) for name in contexts], dtype=np.int64)

    def batch_numbers(self, store: Cells) -> np.ndarray:
        """int64, one for each cell of `store`."""
        distinct, which = np.unique(batch_names(store), return_inverse=True)
        number = {name: i for i, name in enumerate(self.batches)}
        return np.array([number.get(name, len(number)) for name in distinct], dtype=np.int64)[which]


def batch_names(store: Cells) -> np.ndarray:
    """The name of each cell's batch, str ``(cells)``."""
    columns = [store.obs[name].astype(str) for name in BATCH_COLUMNS]
    return columns[0].str.cat(columns[1:], sep="\t").to_numpy(object)
