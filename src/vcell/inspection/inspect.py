"""Looks into a file and gathers what a user needs to know before preparing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcell.data.files.elements import members
from vcell.data.files.genes import gene_names
from vcell.data.files.h5ad import column_names, n_rows, open_h5ad, read_genes
from vcell.data.files.labels import NO_GUIDE, is_without_guide
from vcell.data.files.matrix import check_not_empty, matrix_names
from vcell.errors import VcellError, check_number
from vcell.inspection.advice import data_overrides, warnings
from vcell.inspection.columns import Labels, guess_labels
from vcell.inspection.genes import EXAMPLES, judge_genes
from vcell.inspection.knockdown import UNSILENCED, knockdown
from vcell.inspection.values import Values, look_at

ACTIVATED = 1.5
FEWEST_TO_HOLD_OUT = 3  # perturbations: one each to train, validate and test


def inspect(
    path: Path,
    columns: dict[str, str | None] | None = None,
    control: str | Sequence[str] | None = None,
    matrix: str | None = None,
    genes: Sequence[str] | None = None,
    cells: int = 500,
) -> dict[str, Any]:
    """What the file at `path` holds, as plain values ready for JSON.

    Parameters
    ----------
    columns, control, matrix
        What the user knows already; the rest is guessed.
    genes
        A gene list that the file is to be aligned to.
    cells
        Cells to sample for the scale of each matrix.

    Raises
    ------
    VcellError
        If the file is no readable h5ad, or lacks what the user named.
    """
    columns = columns or {}
    check_number("cells", cells, 1)
    with open_h5ad(path) as file:
        check_not_empty(path, n_rows(file, "obs", path), n_rows(file, "var", path))
        names = matrix_names(file, path)
        if matrix is not None and matrix not in names:
            raise VcellError(f"{path} has no matrix {matrix!r}; it has: {', '.join(names)}")
        looked = [look_at(file, path, name, cells) for name in ([matrix] if matrix is not None else names)]
        best = min(looked, key=lambda v: v.rank, default=None)
        labels = guess_labels(file, path, columns, control)
        gene_column = columns.get("gene")
        held = read_genes(file, path, best.name if best else "X", gene_column)
        found: dict[str, Any] = {
            "path": str(path),
            "size_bytes": path.stat().st_size,
            "cells": n_rows(file, "obs", path),
            "matrices": [values.about for values in looked],
            "matrix": best.name if best is not None and best.usable else None,
            "genes": judge_genes(file, path, best.name if best else "X", held, gene_column, genes),
            "obs_columns": column_names(file, "obs", path),
            "obsm": members(file, "obsm", path),
            "labels": _labels(labels, set(held)),
        }
        found["knockdown"] = _knockdown(best, labels, held)
    found["warnings"] = warnings(found)
    overrides = data_overrides(found, gene_column)
    found["prepare"] = f"python -m vcell.prepare data=perturb_seq {overrides}" if overrides else None
    few = found["labels"]["perturbation"].get("number", 0) < FEWEST_TO_HOLD_OUT
    all_train = " 'data.split.val.perturbations=[]' 'data.split.test.perturbations=[]'" if few else ""
    found["train"] = f"python -m vcell.train experiment=perturb_seq {overrides}{all_train}" if overrides else None
    return found


def _labels(labels: Labels, genes: set[str]) -> dict[str, Any]:
    out: dict[str, Any] = {
        role: {"column": guess.name, "confidence": guess.confidence, "why": guess.why, "others": guess.others}
        for role, guess in labels.guesses.items()
    }
    out["control"] = {"label": labels.control, "why": labels.control_why}
    if labels.perturbation is None:
        return out
    number = labels.perturbation.value_counts()
    if labels.control is not None:
        out["control"]["cells"] = int(number[labels.control])
    without = [label for label in number.index if label != labels.control and is_without_guide(str(label))]
    perturbed = number.drop([label for label in (labels.control, *without) if label in number.index])
    out["perturbation"] |= _perturbations(perturbed[perturbed > 0], genes)
    out["perturbation"]["without_label"] = int(number[without].sum())
    for role in ("batch", "context"):
        column = getattr(labels, role)
        if column is not None:
            counts = column.value_counts()
            counts = counts[counts > 0]
            out[role] |= {
                "number": len(counts),
                "cells_each": _spread(counts),
                "cells": {str(k): int(v) for k, v in counts.items()},
                "without_label": int((column == NO_GUIDE).sum()),
            }
    if labels.control is not None:
        out["unmatched"] = _unmatched(labels)
    return out


def _perturbations(cells: pd.Series, genes: set[str]) -> dict[str, Any]:
    """What the labels say, from the number of cells of each; `genes` are the file's, known whatever HGNC says."""
    if cells.empty:
        return {"number": 0}
    known = gene_names()
    targets = {str(label): known.targets(str(label), genes) for label in cells.index}
    meanings = {label: [known.meaning(t) for t in some if t not in genes] for label, some in targets.items()}
    unknown = [label for label, some in meanings.items() if any(m.how == "unknown" for m in some)]
    combined = [label for label, some in targets.items() if len(some) > 1]
    return {
        "number": len(cells),
        "cells_each": _spread(cells),
        "cells": {str(k): int(v) for k, v in cells.items()},
        "fewest": {str(k): int(v) for k, v in cells.tail(5)[::-1].items()},
        "not_genes": unknown[:EXAMPLES],
        "n_not_genes": len(unknown),
        "combined": combined[:EXAMPLES],
        "n_combined": len(combined),
        "outdated": {
            m.name: m.symbol or "|".join(m.candidates)
            for label in targets
            for m in map(known.meaning, targets[label])
            if m.how in ("previous", "alias", "ambiguous")
        },
    }


def _unmatched(labels: Labels) -> dict[str, Any]:
    """Perturbed cells whose batch (of their context) has no control cell."""
    assert labels.perturbation is not None
    place = [
        column.cat.codes.to_numpy().astype(np.int64) for column in (labels.context, labels.batch) if column is not None
    ]
    group = place[0] * (place[-1].max() + 2) + place[-1] if place else np.zeros(len(labels.perturbation), np.int64)
    control = (labels.perturbation == labels.control).to_numpy()
    lonely = ~control & ~np.isin(group, np.unique(group[control]))
    all_of_it = pd.Series(lonely[~control]).groupby(labels.perturbation[~control].to_numpy(), observed=True).mean()
    nowhere = all_of_it.index[all_of_it == 1].astype(str).tolist()
    out: dict[str, Any] = {
        "cells": int(lonely.sum()), "n_perturbations": len(nowhere), "perturbations": nowhere[:EXAMPLES],
    }  # fmt: skip
    if labels.context is not None:
        without = sorted(set(labels.context.cat.categories) - set(labels.context[control].astype(str)))
        out["contexts_without_controls"] = without[:EXAMPLES]
    return out


def _knockdown(best: Values | None, labels: Labels, names: list[str]) -> dict[str, Any] | None:
    """Knock-down of every target that can be judged; None where there is nothing to judge."""
    if (
        best is None
        or best.matrix is None
        or best.scale is None
        or labels.perturbation is None
        or labels.control is None
    ):
        return None
    if not pd.Index(names).is_unique or not best.usable:
        return None
    table = knockdown(best.matrix, best.scale, labels.perturbation, labels.control, names)
    if table.empty:
        return None
    judged = table[table["judged"].astype(bool)].sort_values("residual")
    unsilenced = judged[judged["residual"] >= UNSILENCED]
    return {
        "targets_measured": len(table),
        "targets_judged": len(judged),
        "median_residual": float(judged["residual"].median()) if len(judged) else None,
        "activation": bool(len(judged) and judged["residual"].median() >= ACTIVATED),
        "unsilenced": {str(k): float(f"{v:.3g}") for k, v in unsilenced["residual"].items()},
        "residual": {str(k): float(f"{v:.3g}") for k, v in judged["residual"].items()},
    }


def _spread(numbers: pd.Series) -> dict[str, int]:
    return {"min": int(numbers.min()), "median": int(numbers.median()), "max": int(numbers.max())}
