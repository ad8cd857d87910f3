"""The genes of a store, chosen from a list or from what the files have; where each file's genes go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vcell.data.files.genes import align, appended, check_unique
from vcell.data.files.h5ad import open_h5ad, read_ensembl, read_genes, stems
from vcell.data.store.recipe import Recipe
from vcell.errors import VcellError, check_choice, check_number, nearest, shortlist

PANELS = ("union", "common")


@dataclass(frozen=True)
class Panel:
    """The genes of a store, and where each file's genes go."""

    genes: list[str]
    position: list[np.ndarray]  # a file's genes to the store's, -1 for none
    decisions: pd.DataFrame  # file, gene, decision, became, candidates

    @property
    def known(self) -> np.ndarray:
        """bool (files, genes)"""
        return np.stack([np.isin(np.arange(len(self.genes)), position) for position in self.position])


@dataclass(frozen=True)
class GeneChoice:
    """Which genes a store holds.

    Parameters
    ----------
    genes
        A list, in this order; ``union`` of the files' genes or those that are ``common`` to them.
    rename
        What names in the files mean: {TAZ: TAFAZZIN}.
    zero_genes
        Whether a gene that is 0 in all cells of a file was ``measured`` there or is ``missing``: some data sets fill in 0 for
        genes that were never measured.
    min_overlap
        The share of the smaller list that a file must have in common with the genes wanted, or with the files before.
    """

    genes: Sequence[str] | str = "union"
    rename: Mapping[str, str] | None = None
    zero_genes: str = "measured"
    min_overlap: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.genes, str) and self.genes not in PANELS:
            raise VcellError(f"data.genes={self.genes} is neither a file of names nor one of {', '.join(PANELS)}")
        check_choice("data.zero_genes", self.zero_genes, ("measured", "missing"))
        check_number("data.min_overlap", self.min_overlap, 0, 1, whole=False)

    def panel(self, files: Sequence[Path], recipe: Recipe) -> Panel:
        """The genes of the store, from the files' names alone."""
        listed = None if isinstance(self.genes, str) else list(self.genes)
        genes = listed or []
        aligned, names_of = [], []
        unused = dict(self.rename or {})
        for number, (path, short) in enumerate(zip(files, stems(files), strict=True)):
            with open_h5ad(path) as file:
                names = read_genes(file, path, recipe.matrix, recipe.columns.gene)
                ensembl = read_ensembl(file, path, recipe.matrix)
            check_unique(names, str(path))
            unused = {old: new for old, new in unused.items() if old not in names}
            found = align(names, genes, ensembl, self.rename)
            if number or listed:
                self._check_overlap(found.position, names, genes, path, listed is not None)
            position = found.position
            if listed is None:
                genes, position = appended(genes, found.called, position)
            aligned.append(position)
            names_of.append(found.decisions.assign(file=short))
        if unused:
            old = next(iter(unused))
            raise VcellError(f"data.rename names {shortlist(unused)}, which no file has.{nearest(old, genes)}")
        decisions = pd.concat(names_of, ignore_index=True)[["file", "gene", "decision", "became", "candidates"]]
        return self._common(Panel(genes, aligned, decisions))

    def _common(self, panel: Panel) -> Panel:
        if not isinstance(self.genes, str) or self.genes == "union":
            return panel
        kept = np.flatnonzero(panel.known.all(axis=0))
        if not kept.size:
            raise VcellError("no gene is common to all files (data.genes=common); take them all with data.genes=union")
        new = np.full(len(panel.genes) + 1, -1, np.int64)
        new[kept] = np.arange(len(kept))
        return Panel([panel.genes[i] for i in kept], [new[p] for p in panel.position], panel.decisions)

    def _check_overlap(
        self, position: np.ndarray, names: list[str], genes: list[str], path: Path, listed: bool
    ) -> None:
        shared, least = int((position >= 0).sum()), min(len(names), len(genes))
        if shared < self.min_overlap * least or not shared:
            others = "the gene list" if listed else "the files before it"
            raise VcellError(
                f"{path} and {others} barely overlap: {shared:,} genes in common, of {len(names):,} there ({shortlist(names, 3)}) and "
                f"{len(genes):,} wanted ({shortlist(genes, 3)}). Other names of the same genes? data.columns.gene=COLUMN takes "
                "them from a column of var. If they belong together anyway: data.min_overlap=0"
            )
