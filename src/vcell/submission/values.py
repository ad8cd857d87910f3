"""Every stored value of a submission against the rules of its challenge, once, block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vcell.challenge import Challenge
from vcell.data.files.csr import ranges, row_sums
from vcell.data.files.matrix import BLOCK_VALUES, Matrix
from vcell.data.files.normalize import LARGEST_LOG1P, counts_of_log1p
from vcell.errors import VcellError, shortlist
from vcell.predict.profile import check_contexts, profile
from vcell.process.progress import progress_bar
from vcell.submission.labels import CONVERT, Findings, Labels
from vcell.system import in_threads

WHOLE = 1e-6  # from a whole number, as vcc prep measures it
SAME_TOTAL = 1.05  # of control cells: 95 in 100 against 5 in 100, above which they were not scaled to one total


@dataclass(frozen=True)
class Block:
    """What one block of cells showed."""

    start: int
    stop: int
    sums: np.ndarray  # (cells), of the values
    totals: np.ndarray  # (cells), log1p undone where they are log1p
    by_context: np.ndarray  # (contexts, genes), of the same
    largest: float
    whole: bool


def check_values(
    matrix: Matrix,
    labels: Labels,
    genes: Sequence[str],
    challenge: Challenge,
    control: str,
    findings: Findings,
    profiles: Callable[[], Mapping[str, np.ndarray] | None],
    path: Path,
) -> None:
    """Every stored value: what it may be, what a cell sums to, and what the cells of a label look like together."""
    assert matrix.indptr is not None
    perturbed = np.asarray(labels.target != control)
    by_context = np.zeros((len(labels.context.categories), len(genes)))

    def check(block: tuple[int, int]) -> Block:
        return _check_block(matrix, labels, genes, challenge, perturbed, block, path)

    sums, largest, lengths = np.zeros(findings.n_cells), 0.0, np.diff(matrix.indptr)
    with progress_bar(findings.n_cells, f"checking {path.name}", "cells") as progress:
        for found in in_threads(check, ranges(matrix.indptr, BLOCK_VALUES)):
            sums[found.start : found.stop], findings.totals[found.start : found.stop] = found.sums, found.totals
            by_context += found.by_context
            findings.whole &= found.whole
            largest = max(largest, found.largest)
            progress.update(found.stop - found.start)
    if challenge.values == "log1p":
        _check_log1p(findings, largest, challenge, perturbed, sums, path)
    number, names = labels.group
    empty = np.bincount(number, sums > 0, len(names)) == 0
    if empty.any():
        shown = [
            f"{target} in {context}" if context else target
            for (context, target), e in zip(names, empty, strict=True)
            if e
        ]
        raise VcellError(
            f"{path}: every cell is 0 for {len(shown):,} targets ({shortlist(shown, 5)}): the model predicted nothing for them"
        )
    _note_alike(findings, sums, lengths, number, names, control)
    known = None if challenge.values == "log1p" and findings.whole else profiles()
    if known:
        found_profiles = {
            str(c): profile(by_context[i]) for i, c in enumerate(labels.context.categories) if by_context[i].any()
        }
        check_contexts(found_profiles, known)
    elif challenge.contexts:
        findings.notes.append(
            "swapped contexts cannot be detected from this file alone: set controls=FILES, the real control cells"
        )


def _check_block(
    matrix: Matrix,
    labels: Labels,
    genes: Sequence[str],
    challenge: Challenge,
    perturbed: np.ndarray,
    block: tuple[int, int],
    path: Path,
) -> Block:
    start, stop = block
    assert matrix.indptr is not None
    low, high = matrix.indptr[start], matrix.indptr[stop]
    indices, values = matrix.indices(low, high).astype(np.int64), matrix.values_node[low:high]
    indptr = matrix.indptr[start : stop + 1] - low

    def refuse(where: np.ndarray, words: str) -> None:
        """Names the first of the values `where` it is wrong."""
        if where.any():
            first = int(np.flatnonzero(where)[0])
            cell = int(np.searchsorted(indptr, first, side="right")) - 1
            raise VcellError(
                f"{path}: cell {start + cell:,} ({labels.target[start + cell]}) holds {values[first]:.7g} for "
                f"{genes[indices[first]]}: {words} ({int(where.sum()):,} such values among the {stop - start:,} cells read with it)"
            )

    steps = np.diff(indices)
    steps[indptr[1:-1][(indptr[1:-1] > 0) & (indptr[1:-1] < len(indices))] - 1] = 1  # between cells
    if (steps == 0).any():
        raise VcellError(
            f"{path}: a cell among {start:,} to {stop - 1:,} stores a gene twice: adata.X.sum_duplicates()"
        )
    if (steps < 0).any():
        raise VcellError(f"{path}: genes are not in order within cells {start:,} to {stop - 1:,}. {CONVERT}")
    refuse(~np.isfinite(values), "values must be finite")
    refuse(values < 0, "values must not be negative")
    fraction = np.abs(values - np.rint(values))
    if challenge.values == "counts":
        refuse(fraction > WHOLE, f"challenge={challenge.name} requires whole counts")
    sums = row_sums(values, indptr)
    limit = challenge.max_counts_per_cell
    if limit is not None and (sums > limit).any():
        cell = int(np.argmax(sums))
        raise VcellError(
            f"{path}: cell {start + cell:,} ({labels.target[start + cell]}) sums to {sums[cell]:,.0f} counts; "
            f"challenge={challenge.name} allows at most {limit:,}"
        )
    logged = (
        challenge.values == "log1p" and not (values >= LARGEST_LOG1P).any()
    )  # whole counts are recognised when everything is read
    linear = counts_of_log1p(values.astype(np.float64)) if logged else values.astype(np.float64)
    code = labels.context.codes[start:stop].astype(np.int64)
    at = np.repeat(np.where(perturbed[start:stop], code, -1), np.diff(indptr))
    kept = at >= 0
    flat = np.bincount(at[kept] * len(genes) + indices[kept], linear[kept], len(labels.context.categories) * len(genes))
    return Block(
        start, stop, sums, row_sums(linear, indptr), flat.reshape(-1, len(genes)),
        float(values.max(initial=0.0)), bool((fraction <= WHOLE).all()),
    )  # fmt: skip


def _check_log1p(
    findings: Findings, largest: float, challenge: Challenge, perturbed: np.ndarray, sums: np.ndarray, path: Path
) -> None:
    """Log1p values of one scale; or whole counts, which are scaled when the file is packed."""
    if findings.whole:
        findings.totals = sums
        findings.notes.append(
            "values are whole counts: they are scaled to the cells' median total, and log1p taken, when packed"
        )
        return
    if challenge.below_log1p is not None and largest >= challenge.below_log1p:
        raise VcellError(
            f"{path}: values up to {largest:,.4g}; log1p values are below {challenge.below_log1p:g}. Counts and log1p mixed, or scaled "
            "counts without log1p? Give log1p of scaled counts, or whole counts"
        )
    controls = findings.totals[~perturbed]
    if not len(controls):
        return
    low, middle, high = np.quantile(controls, [0.05, 0.5, 0.95])
    if high > SAME_TOTAL * max(low, 1e-12):
        raise VcellError(
            f"{path}: control cells sum to {low:,.0f} to {high:,.0f} counts after expm1 (5th to 95th percentile): they were not scaled to one "
            "total. Scale first, then log1p: sc.pp.normalize_total(adata); sc.pp.log1p(adata)"
        )
    findings.notes.append(f"log1p of counts per {middle:,.0f}, as the control cells indicate")


def _note_alike(
    findings: Findings,
    sums: np.ndarray,
    lengths: np.ndarray,
    number: np.ndarray,
    names: Sequence[tuple[str, str]],
    control: str,
) -> None:
    """Targets whose cells are all the same, which tests of single genes take for certainty."""
    table = pd.DataFrame({"group": number, "sum": sums, "stored": lengths}).groupby("group").agg(["min", "max", "size"])
    alike = (table["sum", "min"] == table["sum", "max"]) & (table["stored", "min"] == table["stored", "max"])
    alike &= table["sum", "size"] > 1
    shown = [names[g][1] for g in table.index[alike] if names[g][1] != control]
    if shown:
        findings.notes.append(
            f"the cells of {len(shown):,} targets are identical ({shortlist(shown, 3)}): rank tests will call nearly every gene. Give "
            "one row per target instead, and cells are drawn around it"
        )
