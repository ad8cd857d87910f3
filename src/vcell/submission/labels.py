"""Targets and contexts of a submission's cells, and what is found of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from vcell.challenge import Challenge
from vcell.data.files.h5ad import column_names, read_column
from vcell.data.files.labels import as_labels
from vcell.errors import VcellError, nearest, shortlist

CONVERT = "convert=true rewrites it correctly"


@dataclass
class Findings:
    """What a submission holds, once no rule is broken."""

    n_cells: int
    stored: int
    contexts: tuple[str, ...]
    cells: dict[tuple[str, str], int]  # perturbed cells by (context, target)
    n_controls: int
    whole: bool  # every value is a whole number
    totals: np.ndarray  # (cells): sum of the values, log1p undone where they are log1p
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Labels:
    """Targets and contexts of the cells, as categories."""

    target: pd.Categorical
    context: pd.Categorical

    @property
    def group(self) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Number of each cell's (context, target), and these."""
        code = self.context.codes.astype(np.int64) * len(self.target.categories) + self.target.codes
        found, number = np.unique(code, return_inverse=True)
        context, target = np.divmod(found, len(self.target.categories))
        names = [
            (str(self.context.categories[c]), str(self.target.categories[t]))
            for c, t in zip(context, target, strict=True)
        ]
        return number, names


def read_labels(file: h5py.File, path: Path, challenge: Challenge, strip: bool = False) -> Labels:
    """Targets and contexts; one context where the challenge has none. `strip` takes spaces off, which are refused otherwise."""
    known = column_names(file, "obs", path)

    def column(name: str, key: str) -> pd.Categorical:
        if name not in known:
            raise VcellError(
                f"{path} has no obs column {name!r}.{nearest(name, known)} It has: {shortlist(known) or 'none'}. If another one is "
                f"meant: challenge.{key}=COLUMN"
            )
        values = read_column(file, "obs", name, path)
        missing = np.flatnonzero(values.isna())
        if missing.size:
            raise VcellError(
                f"{path}: {missing.size:,} cells have no value in obs column {name!r}, cell {missing[0]:,} first"
            )
        labels = as_labels(values)
        spaced = [str(v) for v in values.astype(str).unique() if str(v) != str(v).strip()]
        if spaced and not strip:
            raise VcellError(
                f"{path}: labels in obs column {name!r} have spaces around them: {shortlist(map(repr, spaced), 5)}. {CONVERT}"
            )
        return labels.array

    target = column(challenge.perturbation, "perturbation")
    if challenge.context is None or (challenge.context not in known and not challenge.contexts):
        return Labels(target, pd.Categorical.from_codes(np.zeros(len(target), np.int8), [""]))
    return Labels(target, column(challenge.context, "context"))
