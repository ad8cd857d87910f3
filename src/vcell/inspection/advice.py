"""What to do with a file, from what was found in it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from vcell.data.files.h5ad import Columns
from vcell.errors import shortlist


def warnings(found: dict[str, Any]) -> list[str]:
    """What has to be fixed or decided before training."""
    out, labels, genes = [], found["labels"], found["genes"]
    if found["matrix"] is None:
        out.append("no matrix can be used: provide a file with raw counts, or log1p of them")
    used: dict[str, Any] = next((m for m in found["matrices"] if m["name"] == found["matrix"]), {})
    if used and not used["counts_recoverable"]:
        out.append(
            "counts cannot be recovered from the values; they can be stored, but not used in training together with counts"
        )
    if used and used["scale"] in ("rounded", "log1p_rounded"):
        out.append(
            "the values are whole numbers but not raw counts: use the raw counts (data.matrix=layers/counts, data.matrix=raw/X)"
        )
    if used.get("empty_cells"):
        out.append(
            f"{used['empty_cells']:,} of {used['sampled_cells']:,} sampled cells are all zeros: leave them out with data.empty_cells=drop"
        )
    if genes["n_nameless"]:
        which = (
            "no gene has a name"
            if genes["n_nameless"] == genes["number"]
            else f"{genes['n_nameless']:,} genes have no name and are left out"
        )
        out.append(f"{which}: columns.gene=COLUMN takes names from a column of var")
    if genes["n_duplicates"]:
        out.append(
            f"{genes['n_duplicates']:,} gene names are duplicated: adata.var_names_make_unique(), or keep one of each"
        )
    if genes["excel_dates"]:
        out.append(f"gene names turned into dates by a spreadsheet: {shortlist(genes['excel_dates'], 4)}")
    if genes["looks_like_mouse"]:
        out.append("gene names look like mouse genes; outdated symbols are only known for human ones")
    if labels["perturbation"]["column"] is None:
        out.append("no column of perturbations was found: name it with columns.perturbation=NAME")
    elif labels["control"]["label"] is None:
        out.append("no label looks like a control: name it with control=LABEL")
    for role in ("perturbation", "batch", "context"):
        if labels[role].get("without_label"):
            what = "they are left out (data.labels.no_guide)" if role == "perturbation" else "prepare will refuse them"
            out.append(f"{labels[role]['without_label']:,} cells have no value in {labels[role]['column']}: {what}")
    unmatched = labels.get("unmatched", {})
    if unmatched.get("contexts_without_controls"):
        out.append(f"contexts without control cells: {shortlist(unmatched['contexts_without_controls'], 4)}")
    return out


def data_overrides(found: dict[str, Any], gene_column: str | None = None) -> str | None:
    """The overrides that describe the file as it was found, quoted for a shell; None if it cannot be used."""
    labels = found["labels"]
    nameless = found["genes"]["n_nameless"] == found["genes"]["number"]
    if (
        found["matrix"] is None
        or nameless
        or labels["perturbation"]["column"] is None
        or labels["control"]["label"] is None
    ):
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
