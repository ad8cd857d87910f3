"""Promoter neighbours: what silences a target reaches genes whose transcription starts next to the target's.

dCas9 acts on about a kilobase around its guide, and many promoters lie within a few (Gilbert et al. 2014; Replogle et al. 2022 report
neighbours silenced with the target). No response learnt from elsewhere knows them where the guides differ.

Shape legend: T targets, G genes.
"""

from __future__ import annotations

import gzip
import zlib
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcell.data.files.lists import numbers, read_table
from vcell.effects.evidence import Evidence
from vcell.errors import VcellError

WITHIN = 5000  # base pairs between starts of transcription
FEWEST_PAIRS = 10  # of a target and a neighbour, measured, from which a change can be told
CLEAR = 2.0  # standard errors by which it has to differ from none
COLUMNS = ("chromosome", "tss")


@dataclass(frozen=True)
class Promoters:
    """Neighbours of genes among some columns, and how much they change with a target.

    Parameters
    ----------
    columns
        Gene to the columns of its neighbours.
    change
        log2 fold change of a neighbour; 0 where training shows none.
    """

    columns: Mapping[str, list[int]]
    change: float = 0.0

    @classmethod
    def of(cls, path: Path, evidence: Evidence) -> tuple[Promoters, str]:
        """From positions of genes, the change from the training effects; and a line for the log."""
        columns = neighbours(read_positions(path), evidence.genes)
        measured = []
        for row, target in enumerate(evidence.targets):
            near = columns.get(target, [])
            if near:
                measured += evidence.effects_of("fold", np.array([row]))[0][near].tolist()
        found = np.array([value for value in measured if np.isfinite(value)])
        error = float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else np.inf
        clear = len(found) >= FEWEST_PAIRS and abs(float(found.mean())) > CLEAR * error
        change = float(found.mean()) if clear else 0.0
        said = f"neighbours   {len(found):,} pairs of a target and a gene that starts within {WITHIN:,} bp: " + (
            f"changed by {change:+.2f} log2, and predicted so"
            if clear
            else "no clear change in training, and none is predicted"
        )
        return cls(columns, change), said

    def plain(self) -> dict[str, Any]:
        """As arrays, for a checkpoint."""
        return {
            "change": self.change,
            "columns": {gene: np.array(near, np.int64) for gene, near in self.columns.items()},
        }

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Promoters:
        """The inverse of `plain`."""
        return cls({gene: near.tolist() for gene, near in plain["columns"].items()}, float(plain["change"]))

    def add(self, effect_TG: np.ndarray, targets: Sequence[str], change_G: np.ndarray) -> None:
        """Gives neighbours of the targets their change, in place, where it is larger than what is predicted already.

        Parameters
        ----------
        change_G
            The change as it shows in the space of the effects.
        """
        for row, target in enumerate(targets):
            for column in self.columns.get(target, []):
                if abs(change_G[column]) > abs(effect_TG[row, column]):
                    effect_TG[row, column] = change_G[column]


def neighbours(positions: Mapping[str, tuple[str, int]], genes: Sequence[str]) -> dict[str, list[int]]:
    """Of each gene with a position, the columns of `genes` that start within reach; genes without any are left out."""
    of_chromosome: dict[str, list[tuple[int, int]]] = {}  # starts and columns, in order
    for column, gene in enumerate(genes):
        if gene in positions:
            chromosome, start = positions[gene]
            insort(of_chromosome.setdefault(chromosome, []), (start, column))
    found: dict[str, list[int]] = {}
    for gene, (chromosome, start) in positions.items():
        there = of_chromosome.get(chromosome, [])
        low, high = bisect_left(there, (start - WITHIN, 0)), bisect_left(there, (start + WITHIN + 1, 0))
        near = [column for _, column in there[low:high] if genes[column] != gene]
        if near:
            found[gene] = near
    return found


def read_positions(path: Path) -> dict[str, tuple[str, int]]:
    """Chromosome and start of transcription by gene: from a GTF (GENCODE, Ensembl), or a table of gene, chromosome, tss.

    Raises
    ------
    VcellError
        If the file cannot be read, or has no positions.
    """
    path = Path(path)
    found = _of_gtf(path) if ".gtf" in path.name.lower() else _of_table(path)
    if not found:
        raise VcellError(
            f"{path} holds no positions of genes: it should be a GTF, or a table with the columns gene, {', '.join(COLUMNS)}"
        )
    return found


def _of_table(path: Path) -> dict[str, tuple[str, int]]:
    table = read_table(path, "model.neighbours", "gene", COLUMNS)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise VcellError(
            f"{path} has no column {missing[0]}: positions are gene, chromosome, tss (start of transcription). Set model.neighbours"
        )
    start = numbers(table["tss"])
    known = np.isfinite(start)
    return {
        str(gene): (str(chromosome), int(tss))
        for gene, chromosome, tss in zip(table["gene"][known], table["chromosome"][known], start[known], strict=True)
    }


def _of_gtf(path: Path) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt") as lines:
            for line in lines:
                parts = line.rstrip("\n").split("\t")
                if len(parts) < 9 or parts[2] != "gene" or 'gene_name "' not in parts[8]:
                    continue
                name = parts[8].split('gene_name "')[1].split('"')[0]
                found.setdefault(name, (parts[0], int(parts[4] if parts[6] == "-" else parts[3])))
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise VcellError(f"the positions of genes in {path} cannot be read ({error}). Set model.neighbours") from error
    return found
