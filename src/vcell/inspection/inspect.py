"""Looks into a file and gathers what a user needs to know before preparing it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from vcell.data.genes import ENSEMBL, align, gene_names
from vcell.data.h5ad import Columns, column_names, n_rows, open_h5ad, read_column, read_genes, var_key
from vcell.data.matrix import matrix_names
from vcell.errors import VcellError, shortlist
from vcell.inspection.columns import Labels, guess_labels
from vcell.inspection.knockdown import UNSILENCED, knockdown
from vcell.inspection.values import Values, look_at

EXAMPLES = 12
EXCEL_DATE = re.compile(
    r"^(\d{1,2}-(Mar|Sep|Dec|Oct|Apr|Feb)|(Mar|Sep|Dec|Oct|Apr|Feb)-\d{1,2}|\d{4}-\d{2}-\d{2}.*)$", re.I
)
MOUSE = re.compile(r"^[A-Z][a-z]+[a-z0-9]*$")
SYMBOL_COLUMNS = (
    "gene_name",
    "gene_names",
    "gene_symbol",
    "gene_symbols",
    "symbol",
    "symbols",
    "feature_name",
    "gene_short_name",
)
ACTIVATED = 1.5


def inspect(
    path: Path,
    columns: dict[str, str | None] | None = None,
    control: str | None = None,
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
    with open_h5ad(path) as file:
        if "obs" not in file or "var" not in file:
            raise VcellError(
                f"{path} has no {'obs' if 'obs' not in file else 'var'}: it is not an AnnData file{_tenx(file)}"
            )
        names = matrix_names(file)
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
            "genes": _genes(file, path, best.name if best else "X", held, gene_column, genes),
            "obs_columns": column_names(file["obs"]),
            "obsm": list(file.get("obsm", {})),
            "labels": _labels(labels),
        }
        found["knockdown"] = _knockdown(best, labels, held)
    found["warnings"] = _warnings(found)
    overrides = data_overrides(found, gene_column)
    found["prepare"] = f"python -m vcell.prepare data=perturb_seq {overrides}" if overrides else None
    found["train"] = f"python -m vcell.train experiment=perturb_seq {overrides}" if overrides else None
    return found


def _genes(
    file: h5py.File, path: Path, matrix: str, names: list[str], column: str | None, wanted: Sequence[str] | None
) -> dict[str, Any]:
    known = gene_names()
    meanings = {name: known.meaning(name) for name in names}
    by_kind: dict[str, list[str]] = {}
    for name, meaning in meanings.items():
        by_kind.setdefault(meaning.how, []).append(name)
    index = pd.Index(names)
    versions = [name for name in names if (m := ENSEMBL.match(name)) and m[2]]
    out: dict[str, Any] = {
        "number": len(names),
        "duplicates": index[index.duplicated()].unique().tolist()[:EXAMPLES],
        "n_duplicates": int(index.duplicated().sum()),
        "n_ensembl": sum(bool(ENSEMBL.match(name)) for name in names),
        "n_ensembl_versions": len(versions),
        "ensembl_versions": versions[:EXAMPLES],
        "n_approved": len(by_kind.get("approved", [])),
        "outdated": {n: meanings[n].symbol for kind in ("previous", "alias") for n in by_kind.get(kind, [])},
        "ambiguous": {n: list(meanings[n].candidates) for n in by_kind.get("ambiguous", [])},
        "n_unknown": len(by_kind.get("unknown", [])),
        "unknown": by_kind.get("unknown", [])[:EXAMPLES],
        "excel_dates": [n for n in names if EXCEL_DATE.match(n)][:EXAMPLES],
        "symbol_column": None if column is not None else _symbol_column(file, path, matrix),
        "looks_like_mouse": sum(bool(MOUSE.match(n)) for n in names) > 0.5 * len(names),
    }
    if wanted is not None:
        found = align(names, wanted)
        decisions = found.decisions.groupby("decision").size()
        out["list"] = {
            "wanted": len(wanted),
            "found": int((found.position >= 0).sum()),
            "missing": [g for g, m in zip(wanted, found.measured(len(wanted)), strict=True) if not m][:EXAMPLES],
            "decisions": {str(k): int(v) for k, v in decisions.items()},
        }
    return out


def _symbol_column(file: h5py.File, path: Path, matrix: str) -> str | None:
    """A var column with gene symbols, where the index holds other names."""
    key = var_key(file, matrix)
    for name in column_names(file[key]):
        if name.lower() in SYMBOL_COLUMNS:
            symbols = read_column(file, key, name, path).astype(str).head(500)
            if np.mean([gene_names().meaning(s).how not in ("unknown", "ensembl") for s in symbols]) > 0.5:
                return name
    return None


def _labels(labels: Labels) -> dict[str, Any]:
    out: dict[str, Any] = {
        role: {"column": guess.name, "confidence": guess.confidence, "why": guess.why, "others": guess.others}
        for role, guess in labels.guesses.items()
    }
    out["control"] = {"label": labels.control, "why": labels.control_why}
    if labels.perturbation is None:
        return out
    number = labels.perturbation.value_counts()
    perturbed = number.drop(labels.control, errors="ignore")
    perturbed = perturbed[perturbed > 0]
    if labels.control is not None:
        out["control"]["cells"] = int(number[labels.control])
    out["perturbation"] |= {"number": len(perturbed), "without_label": int(labels.perturbation.isna().sum())}
    if len(perturbed):
        out["perturbation"]["cells_each"] = _spread(perturbed)
        out["perturbation"]["cells"] = {str(k): int(v) for k, v in perturbed.items()}
        out["perturbation"]["fewest"] = {str(k): int(v) for k, v in perturbed.tail(5)[::-1].items()}
        known = gene_names()
        unknown = [
            str(p) for p in perturbed.index if any(known.meaning(t).how == "unknown" for t in known.targets(str(p)))
        ]
        combined = [str(p) for p in perturbed.index if len(known.targets(str(p))) > 1]
        outdated = {
            str(p): m.symbol or "|".join(m.candidates)
            for p in perturbed.index
            if (m := known.meaning(str(p))).how in ("previous", "alias", "ambiguous")
        }
        out["perturbation"] |= {"not_genes": unknown[:EXAMPLES], "n_not_genes": len(unknown), "n_combined": len(combined),
                                "combined": combined[:EXAMPLES], "outdated": outdated}  # fmt: skip
    for role in ("batch", "context"):
        column = getattr(labels, role)
        if column is not None:
            counts = column.value_counts()
            counts = counts[counts > 0]
            out[role] |= {
                "number": len(counts),
                "cells_each": _spread(counts),
                "cells": {str(k): int(v) for k, v in counts.items()},
                "without_label": int(column.isna().sum()),
            }
    if labels.control is not None:
        out["unmatched"] = _unmatched(labels)
    return out


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


def _warnings(found: dict[str, Any]) -> list[str]:
    """What has to be mended or decided before training."""
    out, labels, genes = [], found["labels"], found["genes"]
    if found["matrix"] is None:
        out.append("no matrix can be used: give a file with raw counts, or log1p of them")
    used: dict[str, Any] = next((m for m in found["matrices"] if m["name"] == found["matrix"]), {})
    if used and not used["counts_recoverable"]:
        out.append("no counts come back from the values; they can be stored, but not trained on beside counts")
    if used.get("empty_cells"):
        out.append(
            f"{used['empty_cells']:,} of {used['sampled_cells']:,} sampled cells are all zeros: leave them out with data.empty_cells=drop"
        )
    if genes["n_duplicates"]:
        out.append(
            f"{genes['n_duplicates']:,} gene names stand more than once: adata.var_names_make_unique(), or keep one of each"
        )
    if genes["excel_dates"]:
        out.append(f"gene names turned into dates by a spreadsheet: {shortlist(genes['excel_dates'], 4)}")
    if genes["looks_like_mouse"]:
        out.append("gene names look like mouse genes; outdated symbols are only known for human ones")
    if labels["perturbation"]["column"] is None:
        out.append("no column says what was done to the cells: name it with columns.perturbation=NAME")
    elif labels["control"]["label"] is None:
        out.append("no label looks like a control: name it with control=LABEL")
    for role in ("perturbation", "batch", "context"):
        if labels[role].get("without_label"):
            out.append(
                f"{labels[role]['without_label']:,} cells have no value in {labels[role]['column']}: prepare will refuse them"
            )
    unmatched = labels.get("unmatched", {})
    if unmatched.get("contexts_without_controls"):
        out.append(f"contexts without control cells: {shortlist(unmatched['contexts_without_controls'], 4)}")
    return out


def data_overrides(found: dict[str, Any], gene_column: str | None = None) -> str | None:
    """What tells the commands of the file as it was found to be, ready for a shell; None where it cannot be used."""
    labels = found["labels"]
    if found["matrix"] is None or labels["perturbation"]["column"] is None or labels["control"]["label"] is None:
        return None
    path = Path(found["path"])
    usual = Columns()
    words = [f"data.name={re.sub(r'[^A-Za-z0-9_.-]+', '_', path.stem)}", f"data.path={_quoted(str(path))}"]
    for role in ("perturbation", "batch", "context"):
        name = labels[role]["column"]
        if name != getattr(usual, role):
            words.append(f"data.columns.{role}={'null' if name is None else _quoted(name)}")
    if labels["context"]["column"] is None:
        words.append(f"data.context={_quoted(path.stem)}")
    gene_column = gene_column or (found["genes"]["symbol_column"] if found["genes"]["n_ensembl"] else None)
    if gene_column is not None:
        words.append(f"data.columns.gene={_quoted(gene_column)}")
    if labels["control"]["label"] != "non-targeting":
        words.append(f"data.control={_quoted(labels['control']['label'])}")
    if found["matrix"] != "X":
        words.append(f"data.matrix={_quoted(found['matrix'])}")
    used = next(m for m in found["matrices"] if m["name"] == found["matrix"])
    if used.get("empty_cells"):
        words.append("data.empty_cells=drop")
    return " ".join(shlex.quote(word) for word in words)


def _quoted(value: str) -> str:
    """A value as Hydra reads it: in quotes where it holds more than plain characters."""
    if re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", value) and value.lower() not in (
        "null",
        "true",
        "false",
        "nan",
        "inf",
    ):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _tenx(file: h5py.File) -> str:
    return (
        " but a 10x matrix without cell labels. Read it with scanpy.read_10x_h5, add obs columns, and write_h5ad"
        if "matrix" in file
        else ""
    )
