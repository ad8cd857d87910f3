"""Perturbations of several genes, by how many of their genes were seen in training: 0/2, 1/2, 2/2, as the field reports them (GEARS)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import pandas as pd

from vcell.data.files.genes import gene_names
from vcell.score.metrics import Metric, summary


def genes_seen(targets: Iterable[str], trained: Collection[str]) -> dict[str, str]:
    """Of every target of several genes among `targets`, how many of its genes a trained perturbation names; {} where there are none.

    Parameters
    ----------
    trained
        Perturbations that were trained on, in any context.
    """
    names, known = gene_names(), frozenset([*trained, *targets])
    several = {target: genes for target in targets if len(genes := names.parts(target, known)) > 1}
    seen = {gene for perturbation in trained for gene in names.parts(perturbation, known)} if several else set()
    return {target: f"{sum(gene in seen for gene in genes)}/{len(genes)}" for target, genes in several.items()}


def notes(tables: Sequence[pd.DataFrame], seen: Mapping[str, str], metrics: Sequence[Metric]) -> list[str]:
    """A line for each stratum: its targets, and the scores of the prediction over them.

    Parameters
    ----------
    tables
        Scores of the prediction, one row per target, of each context.
    seen
        From `genes_seen`.
    """
    lines = []
    for stratum in sorted(set(seen.values())):
        parts = [part for table in tables if len(part := table[[seen.get(t) == stratum for t in table.index]])]
        number = sum(len(part) for part in parts)
        means = [summary(part, list(metrics)) for part in parts]
        values = ", ".join(f"{m.key} {sum(mean[m.key] for mean in means) / len(means):.3f}" for m in metrics)
        lines.append(f"{number:,} targets of several genes, {stratum} of them seen in training: {values}")
    return lines
