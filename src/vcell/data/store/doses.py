"""Labels of cells with their dose and type, from the columns that hold these."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from vcell.data.files.conditions import MARK, NUMBER
from vcell.data.files.labels import NO_GUIDE
from vcell.data.files.lists import numbers
from vcell.errors import VcellError, shortlist

LEADING_NUMBER = re.compile(rf"^\s*({NUMBER})")


def with_conditions(cells: pd.DataFrame, control: str, where: str) -> pd.DataFrame:
    """Cells whose labels have their dose and type, from the columns ``dose`` and ``type``, which are taken off; control cells keep theirs.

    Parameters
    ----------
    where
        The file, for messages.

    Raises
    ------
    VcellError
        If a perturbed cell has no dose, or none that is a number of at least 0, or no type.
    """
    asked = [name for name in ("dose", "type") if name in cells]
    if not asked:
        return cells
    label = cells["perturbation"].astype(str)
    perturbed = ~label.isin([control, NO_GUIDE])
    for name in asked:
        said = _dose(cells["dose"], perturbed, where) if name == "dose" else _type(cells["type"], perturbed, where)
        label = label.where(~perturbed, label + MARK + said)
    return cells.drop(columns=asked).assign(perturbation=pd.Categorical(label))


def _dose(values: pd.Series, perturbed: pd.Series, where: str) -> pd.Series:
    text = values.astype(str).str.extract(LEADING_NUMBER, expand=False)
    dose = numbers(text.fillna(""))
    bad = perturbed & (dose.isna() | ~np.isfinite(dose))
    if bad.any():
        raise VcellError(
            f"{where}: {int(bad.sum()):,} perturbed cells have no dose that begins with a number of at least 0: "
            f"{shortlist(sorted(set(values[bad].astype(str))), 3)}. Set data.columns.dose"
        )
    return dose.map(lambda value: f"{value:g}")


def _type(values: pd.Series, perturbed: pd.Series, where: str) -> pd.Series:
    text = values.astype(str).str.strip().str.replace(r"[^\w-]+", "_", regex=True)
    bad = perturbed & ~text.str.match(r"^[A-Za-z]")
    if bad.any():
        raise VcellError(
            f"{where}: {int(bad.sum()):,} perturbed cells have a type that does not begin with a letter: "
            f"{shortlist(sorted(set(values[bad].astype(str))), 3)}. Set data.columns.type"
        )
    return text
