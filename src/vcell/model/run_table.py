"""The perturbation table that a run asks for: of a file, of several joined, of its control cells, or one-hot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import torch

from vcell.data.files.conditions import Condition
from vcell.data.files.genes import gene_names
from vcell.data.files.labels import listed_names
from vcell.errors import MOST_SEED, VcellError, check_choice, check_number
from vcell.model.table import CELLS, COMBINE, Decision, PerturbationTable

STANDARDISE = (True, False, "training")


def table_for(
    perturbation: Mapping[str, Any],
    trained: Sequence[str],
    held_out: Sequence[str],
    of_cells: Callable[[], PerturbationTable] | None = None,
) -> PerturbationTable:
    """The table that a configuration asks for, with the rows that a run's perturbations need: of a file, of several joined, or one-hot.

    Parameters
    ----------
    perturbation
        The keys of the configuration's `perturbation`; checkpoints from before lack some.
    trained, held_out
        Perturbations of the run. A one-hot table has a column for each gene among the trained ones: of ``A+B``, one for A and one for B.
    of_cells
        Makes the table that `CELLS` stands for.

    Raises
    ------
    VcellError
        If a table cannot be read, or `CELLS` is asked for where no cells are at hand.
    """
    every = sorted({*trained, *held_out})
    names, trained_names = (sorted({Condition.of(label).name for label in labels}) for labels in (every, trained))
    return _plain_table(perturbation, trained_names, names, of_cells).with_conditions(every)


def _plain_table(
    perturbation: Mapping[str, Any],
    trained: Sequence[str],
    every: Sequence[str],
    of_cells: Callable[[], PerturbationTable] | None,
) -> PerturbationTable:
    """The table for names without doses and types."""
    held_out = sorted(set(every) - set(trained))
    path = perturbation["path"]
    if path is None:
        return _one_hot(perturbation.get("combine"), trained, held_out, every)
    paths = listed_names(path)
    if not paths:
        raise VcellError("perturbation.path names no table: give its file, or null for a one-hot table")
    weights = perturbation.get("weights")
    weights = [1.0] * len(paths) if weights is None else weights if isinstance(weights, Sequence) else [weights]
    if len(weights) != len(paths):
        raise VcellError(f"perturbation.weights={list(weights)} must be a number for each of the {len(paths)} tables")
    for weight in weights:
        check_number("perturbation.weights", weight, -inf, whole=False)
    tables = [_one_table(one, perturbation, trained, every, of_cells) for one in paths]
    table = joined([one.times(float(weight)) for one, weight in zip(tables, weights, strict=True)], every)
    if perturbation.get("missing") == "learned":
        table = table.with_own_columns([name for name in trained if name not in table.covering(trained, "sum").row])
    return table.with_products().covering(every, "learned") if perturbation.get("combine") == "learned" else table


def _one_hot(
    combine: str | None, trained: Sequence[str], held_out: Sequence[str], every: Sequence[str]
) -> PerturbationTable:
    if combine is None:
        return PerturbationTable.one_hot(trained, held_out)

    def genes_of(names: Sequence[str]) -> list[str]:
        several = {name: gene_names().parts(name, frozenset(every)) for name in names}
        return [gene for name, genes in several.items() for gene in (genes if len(genes) > 1 else (name,))]

    return PerturbationTable.one_hot(genes_of(trained), genes_of(held_out)).covering(every, combine)


def _one_table(
    path: str,
    perturbation: Mapping[str, Any],
    trained: Sequence[str],
    every: Sequence[str],
    of_cells: Callable[[], PerturbationTable] | None,
) -> PerturbationTable:
    check_choice("perturbation.standardise", perturbation["standardise"], STANDARDISE)
    if path == CELLS and of_cells is None:
        raise VcellError(
            "this run's perturbation table was made of its control cells, and is too large for its checkpoint: train again with fewer genes"
        )
    table = of_cells() if path == CELLS and of_cells is not None else PerturbationTable.load(path)
    if (seed := perturbation.get("shuffle")) is not None:
        check_number("perturbation.shuffle", seed, 0, MOST_SEED)
        table = table.shuffled(int(seed))
    if perturbation["standardise"]:
        table = table.standardised(trained if perturbation["standardise"] == "training" else ())
    aliases = {k: v for k, v in (perturbation["aliases"] or {}).items() if path != CELLS or v in table.row}
    combine, missing = perturbation.get("combine"), perturbation.get("missing")
    check_choice("perturbation.combine", combine, COMBINE)
    # how genes are combined by what is learnt shows in the joined table
    return table.with_aliases(aliases).covering(
        every, None if combine == "learned" else combine, "error" if missing is None else missing
    )


def joined(tables: Sequence[PerturbationTable], wanted: Sequence[str] = ()) -> PerturbationTable:
    """One table whose vectors are those of several, one after the other. A name that some lack gets their mean there.

    Parameters
    ----------
    wanted
        Names for which it is reported.
    """
    if len(tables) == 1:
        return tables[0]
    names = list(dict.fromkeys(name for table in tables for name in table.names))
    parts = []
    for table in tables:
        mean = table.vectors.mean(0)
        parts.append(torch.stack([table.vectors[table.row[name]] if name in table.row else mean for name in names]))
    known = {name for name in wanted if any(name in table.row for table in tables)}
    lacking = [Decision(n, "mean in", t.origin) for t in tables for n in sorted(known) if n not in t.row]
    decisions = [decision for table in tables for decision in table.decisions] + lacking
    widths = tuple(table.width for table in tables)
    return PerturbationTable(names, torch.cat(parts, 1), " + ".join(t.origin for t in tables), tuple(decisions), widths)
