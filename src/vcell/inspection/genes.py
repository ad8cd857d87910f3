"""Gene names of a file, judged by HGNC: outdated, ambiguous, duplicated, Ensembl ids, damaged by spreadsheets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from vcell.data.files.genes import ENSEMBL, align, gene_names
from vcell.data.files.h5ad import column_names, read_column, read_ensembl, var_key

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


def judge_genes(
    file: h5py.File, path: Path, matrix: str, names: list[str], column: str | None, wanted: Sequence[str] | None
) -> dict[str, Any]:
    """What the names are; with a list `wanted`, how many of its genes they are, too."""
    number, names = len(names), [name for name in names if name]
    known = gene_names()
    meanings = {name: known.meaning(name) for name in names}
    by_kind: dict[str, list[str]] = {}
    for name, meaning in meanings.items():
        by_kind.setdefault(meaning.how, []).append(name)
    index = pd.Index(names)
    versions = [name for name in names if (m := ENSEMBL.match(name)) and m[2]]
    out: dict[str, Any] = {
        "number": number,
        "n_nameless": number - len(names),
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
        found = align(names, wanted, read_ensembl(file, path, matrix))
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
    for name in column_names(file, key, path):
        if name.lower() in SYMBOL_COLUMNS:
            symbols = read_column(file, key, name, path).astype(str).head(500)
            if np.mean([gene_names().meaning(s).how not in ("unknown", "ensembl") for s in symbols]) > 0.5:
                return name
    return None
