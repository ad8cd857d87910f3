"""The meaning of obs columns: guessed from the field's usual names and from values, and reported with a confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from vcell.data.files.elements import element
from vcell.data.files.genes import gene_names
from vcell.data.files.h5ad import column_names, n_rows, read_column
from vcell.data.files.labels import as_labels, is_control, is_untreated, listed_names
from vcell.errors import VcellError, nearest

# in the order in which they are preferred
USUAL = {
    "perturbation": (
        "target_gene", "perturbation", "gene", "target", "gene_target", "target_gene_name", "perturbed_gene", "guide_target",
        "sgrna_target", "perturbation_name", "condition", "guide_identity", "feature_call", "treatment", "drug", "compound",
        "stim", "guide_id", "guide", "sgrna", "grna",
    ),
    "batch": (
        "batch_var", "batch", "gem_group", "gemgroup", "gem_well", "lane", "channel", "library", "library_id", "plate", "replicate",
        "sample", "sample_id", "orig.ident", "batch_id", "run", "donor", "donor_id", "patient_id",
    ),
    "context": (
        "cell_type", "cell_line", "cellline", "celltype", "context", "cell_types", "cell_label", "line", "cell_type_name", "tissue",
    ),
}  # fmt: skip
MOST_LABELS = 50_000


@dataclass(frozen=True)
class Guess:
    """A column taken for a role, or None; how sure, why, and what else could be meant."""

    name: str | None
    confidence: str  # given, high, medium, low or none
    why: str
    others: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Labels:
    """What each cell is, as guessed: categories, one entry per cell; None where no column says it."""

    guesses: dict[str, Guess]
    control: str | None
    control_why: str
    perturbation: pd.Series | None
    batch: pd.Series | None
    context: pd.Series | None


def guess_labels(
    file: h5py.File, path: Path, given: dict[str, str | None], control: str | Sequence[str] | None
) -> Labels:
    """Reads the columns that look like labels.

    Parameters
    ----------
    given
        Columns that the user named, by role.
    control
        The control label, where the user named it.

    Raises
    ------
    VcellError
        If a column or label that the user named is not there.
    """
    names = column_names(file, "obs", path)
    for role, name in given.items():
        if role in USUAL and name is not None and name not in names:
            raise VcellError(
                f"{path} has no obs column {name!r} for the {role}.{nearest(name, names)} It has: {', '.join(names) or 'none'}"
            )
    columns = {
        name: column for name in names if (column := _labels(file, name, path, name in given.values())) is not None
    }
    guesses = {role: _guess(role, columns, given.get(role)) for role in USUAL}
    taken = guesses["perturbation"].name
    for role in ("batch", "context"):
        if guesses[role].name == taken and guesses[role].confidence != "given":
            guesses[role] = Guess(None, "none", "the column that most likely names the perturbation")
    found = {role: columns[guess.name] if guess.name is not None else None for role, guess in guesses.items()}
    label, why = _control(found["perturbation"], control, path)
    return Labels(guesses, label, why, **found)


def _guess(role: str, columns: dict[str, pd.Series], given: str | None) -> Guess:
    if given is not None:
        return Guess(given, "given", "named by you")
    ranks = {name: USUAL[role].index(name.lower()) for name in columns if name.lower() in USUAL[role]}
    usual = sorted(ranks, key=lambda name: ranks[name])
    if role != "perturbation":
        if not usual:
            return Guess(None, "none", f"no column has a usual name ({', '.join(USUAL[role][:4])}, ...)")
        confidence = "high" if ranks[usual[0]] < 6 else "medium"
        return Guess(usual[0], confidence, "usual name", usual[1:])
    with_control = [name for name, column in columns.items() if _control_labels(column)]
    both = [name for name in usual if name in with_control]
    if both:
        # of columns with a usual name and a control label, one whose labels are genes rather than guides or drugs
        best = max(both, key=lambda name: (round(_gene_share(columns[name]), 1), -ranks[name]))
        why = f"usual name, has a control label, {_gene_share(columns[best]):.0%} of its labels are genes"
        return Guess(best, "high", why, [n for n in both if n != best])
    if with_control:
        return Guess(with_control[0], "medium", "has a control label", with_control[1:] + usual)
    if usual:
        return Guess(usual[0], "low", "usual name, but none of its labels looks like a control", usual[1:])
    return Guess(None, "none", "no column has a usual name or a label that looks like a control")


def _control(column: pd.Series | None, given: Any, path: Path) -> tuple[str | None, str]:
    if column is None:
        return None, "no perturbation column"
    labels = [str(label) for label in column.cat.categories]
    if names := listed_names(given):
        for name in names:
            if name not in labels:
                raise VcellError(f"{path}: no cell is labelled {name!r}.{nearest(name, labels)}")
        return names[0], "named by you"
    found = _control_labels(column)
    if not found:
        return None, "no label looks like a control"
    return found[0], "usual label" + (f"; also there: {', '.join(found[1:4])}" if len(found) > 1 else "")


def _control_labels(column: pd.Series) -> list[str]:
    """Labels that look like controls: non-targeting guides before untreated cells, the most frequent first."""
    number = column.value_counts()
    present = [label for label in column.cat.categories if number[label]]
    found = [label for label in present if is_control(label) or is_untreated(label)]
    return sorted(found, key=lambda label: (not is_control(label), -int(number[label])))


def _gene_share(column: pd.Series) -> float:
    labels = [label for label in column.cat.categories[:2000] if not (is_control(label) or is_untreated(label))]
    genes = gene_names()
    known = [all(genes.meaning(t).how != "unknown" for t in genes.targets(label)) for label in labels]
    return float(np.mean(known)) if known else 0.0


def _labels(file: h5py.File, name: str, path: Path, asked: bool = False) -> pd.Series | None:
    """A column as categories of strings; None for one that is no label: measurements, or one value per cell. One `asked` for is read."""
    cells = n_rows(file, "obs", path)
    usual = asked or any(name.lower() in names for names in USUAL.values())
    try:
        if _is_no_label(element(file, "obs", path), name, path, asked, usual):
            return None
        column = as_labels(read_column(file, "obs", name, path))
    except VcellError:
        if usual:
            raise
        return None  # a column that was not asked for need not be readable
    counts = column.value_counts()
    if (counts == 0).any():
        column = column.cat.remove_unused_categories()  # labels of cells that were left out of the file
    few = len(column.cat.categories) <= min(MOST_LABELS, max(2, cells // 2))
    return column if few or usual else None


def _is_no_label(obs: h5py.Group | h5py.Dataset, name: str, path: Path, asked: bool, usual: bool) -> bool:
    """Whether a column can be told to hold no labels without reading all of it: measurements, barcodes."""
    if isinstance(obs, h5py.Dataset):
        return False
    stored = element(obs, name, path)
    if not isinstance(stored, h5py.Dataset) or stored.ndim != 1 or "categories" in stored.attrs:
        return False
    if stored.dtype.kind == "f":
        return not asked
    return not usual and (stored.dtype.kind in "iu" or _distinct_soon(stored) > 0.9)


def _distinct_soon(stored: h5py.Dataset) -> float:
    """Share of distinct values among the first ones."""
    some = stored[:1000].tolist()
    return len(set(map(str, some))) / max(1, len(some)) if len(stored) > 1000 else 0.0
