"""What was found in a file, as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vcell.errors import shortlist

WIDTH = 13


def rows_of(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The findings as labels and texts; a label is "" where it is that of the row above, "!" for a warning."""
    size = f"{found['size_bytes'] / 1e6:,.1f} MB"
    rows = [("file", f"{found['path']} ({size}), {found['cells']:,} cells")]
    rows += [row for section in (_matrices, _genes, _labels, _knockdown) for row in section(found)]
    return [*rows, *(("!", warning) for warning in found["warnings"])]


def as_text(found: dict[str, Any]) -> str:
    """The findings as labelled lines, then what to do next."""
    lines = [f"{label:<{WIDTH}}{text}" for label, text in rows_of(found)]
    if found["prepare"]:
        lines += ["", "next:", f"  {found['prepare']}", f"  {found['train']}"]
    else:
        lines += ["", 'next: fix the lines marked "!" and run inspect again']
    return "\n".join(lines)


def _matrices(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for m in found["matrices"]:
        if "layout" not in m:
            yield m["name"], f"cannot be read: {m['problem']}"
            continue
        packed = f", {m['compression']}" if m["compression"] else ""
        yield (
            m["name"],
            (
                f"{m['cells']:,} × {m['genes']:,}, {m['layout']}, {m['dtype']}{packed}, {m['filled']:.1%} filled"
                + ("  ← use this one" if m["name"] == found["matrix"] and len(found["matrices"]) > 1 else "")
            ),
        )
        if "problem" in m:
            yield "", m["problem"]
            continue
        yield "", _scale(m)
        yield "", "no NaN, infinite or negative values in the sample"
        if "library_size" in m:
            size = m["library_size"]
            what = "counts a cell" if m["counts_recoverable"] else "total a cell"
            yield (
                "",
                f"{size['median']:,.0f} {what} (median; {size['min']:,.0f} to {size['max']:,.0f} in {m['sampled_cells']:,} cells)",
            )


def _scale(m: dict[str, Any]) -> str:
    text = m["words"]
    if m.get("normalised_to"):
        text += f" to {m['normalised_to']:,.0f}"
    elif "totals" in m:
        low, high = m["totals"]["min"], m["totals"]["max"]
        text += f", totals {low:,.0f} to {high:,.0f}: genes were removed after scaling, or cells were scaled to different totals"
    if m["counts_recoverable"]:
        how = "found" if m["scale"] == "counts" else "recovered exactly"
        text += (
            f"; counts {how} in {m['verified_cells']:,} of {m['verified_cells'] + m['failed_cells']:,} sampled cells"
        )
    else:
        text += "; counts cannot be recovered"
    return text + ("" if m["all_genes_sampled"] else " (from a sample of genes: the matrix is stored by gene)")


def _genes(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    g = found["genes"]
    yield (
        "genes",
        f"{g['number']:,}: {g['n_approved']:,} approved symbols, {g['n_ensembl']:,} Ensembl ids, {g['n_unknown']:,} unknown"
        + (f" ({_some(g['unknown'], g['n_unknown'])})" if g["unknown"] else ""),
    )
    if g["n_nameless"]:
        yield "", f"{g['n_nameless']:,} without a name"
    if g["n_duplicates"]:
        yield "", f"{g['n_duplicates']:,} duplicated: {_some(g['duplicates'], g['n_duplicates'])}"
    if g["n_ensembl_versions"]:
        yield (
            "",
            f"{g['n_ensembl_versions']:,} Ensembl ids with versions: {_some(g['ensembl_versions'], g['n_ensembl_versions'])}",
        )
    if g["symbol_column"] and g["n_ensembl"]:
        yield "", f"symbols are in the var column {g['symbol_column']!r}"
    if g["outdated"]:
        yield "", f"{len(g['outdated']):,} outdated: {shortlist([f'{a} → {b}' for a, b in g['outdated'].items()], 6)}"
    if g["ambiguous"]:
        several = [f"{name} ({' or '.join(c)})" for name, c in g["ambiguous"].items()]
        yield "", f"{len(several):,} with more than one meaning: {shortlist(several, 6)}"
    if "list" in g:
        wanted = g["list"]
        yield (
            "gene list",
            f"{wanted['found']:,} of {wanted['wanted']:,} found"
            + (
                f"; missing {_some(wanted['missing'], wanted['wanted'] - wanted['found'])}" if wanted["missing"] else ""
            ),
        )
        if wanted["decisions"]:
            yield "", ", ".join(f"{n:,} {decision}" for decision, n in wanted["decisions"].items())


def _labels(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    labels = found["labels"]
    for role in ("perturbation", "control", "batch", "context"):
        guess = labels[role]
        if role == "control":
            cells = f", {guess['cells']:,} cells" if "cells" in guess else ""
            yield role, f"{guess['label'] or 'none'} ({guess['why']}{cells})"
            continue
        others = f"; could also be {shortlist(guess['others'], 3)}" if guess["others"] else ""
        sure = "" if guess["confidence"] == "none" else f"{guess['confidence']} confidence: "
        yield role, f"{guess['column'] or 'none'} ({sure}{guess['why']}{others})"
        if "cells_each" in guess:
            each = guess["cells_each"]
            yield (
                "",
                f"{guess['number']:,} of them, {each['median']:,} cells each (median; {each['min']:,} to {each['max']:,})",
            )
        if role == "perturbation":
            yield from _perturbations(guess)
    unmatched = labels.get("unmatched")
    if unmatched and unmatched["cells"]:
        nowhere = f"; {unmatched['n_perturbations']:,} perturbations entirely: {_some(unmatched['perturbations'], unmatched['n_perturbations'])}" if unmatched["perturbations"] else ""  # fmt: skip
        yield "unmatched", f"{unmatched['cells']:,} perturbed cells lie in batches without controls{nowhere}"
    elif unmatched:
        yield "matched", "every batch with perturbed cells has controls"


def _perturbations(guess: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if guess.get("fewest"):
        yield "", f"fewest: {', '.join(f'{name} {n:,}' for name, n in guess['fewest'].items())}"
    if guess.get("n_combined"):
        yield "", f"{guess['n_combined']:,} are of several genes: {_some(guess['combined'], guess['n_combined'])}"
    if guess.get("n_not_genes"):
        yield "", f"{guess['n_not_genes']:,} are no known gene: {_some(guess['not_genes'], guess['n_not_genes'])}"
    if guess.get("outdated"):
        yield "", f"outdated or ambiguous: {shortlist([f'{a} → {b}' for a, b in guess['outdated'].items()], 5)}"


def _knockdown(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    k = found["knockdown"]
    if k is None:
        return
    if not k["targets_judged"]:
        yield "knockdown", f"{k['targets_measured']:,} targets are among the genes, all expressed too weakly to assess"
        return
    yield (
        "knockdown",
        (
            f"targets keep {k['median_residual']:.0%} of their control expression (median of {k['targets_judged']:,} that can be assessed, "
            "all contexts together)"
        ),
    )
    if k["activation"]:
        yield "", "targets are upregulated: an activation screen (CRISPRa); do not filter by knockdown"
    elif k["unsilenced"]:
        worst = [f"{name} {left:.0%}" for name, left in reversed(k["unsilenced"].items())]
        yield "", f"{len(worst):,} look unsilenced (30% or more left): {shortlist(worst, 6)}"
        yield "", "to leave these out: data.filter.residual_expression=0.30 data.filter.min_cells=30"


def _some(examples: list[str], number: int, limit: int = 4) -> str:
    """A few of `number` names, of which `examples` are the first."""
    more = f" and {number - limit:,} more" if number > limit else ""
    return ", ".join(map(str, examples[:limit])) + more
