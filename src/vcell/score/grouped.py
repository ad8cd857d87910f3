"""Cells of one context by their label: what every score starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from vcell.data.splits import Group
from vcell.data.store.store import Cells
from vcell.errors import VcellError


@dataclass(frozen=True)
class GroupedCells:
    """Cells of one context.

    Attributes
    ----------
    cells
        CSR matrices ``(cells, genes)`` by label, labels sorted, cells of each as in the file; controls under `control`.
    genes
        Names of the columns.
    control
        Label of control cells.
    """

    cells: Mapping[str, sparse.csr_matrix]
    genes: Sequence[str]
    control: str

    @classmethod
    def of(cls, cells: ad.AnnData, perturbation: str, control: str) -> GroupedCells:
        """From cells and the obs column of their targets."""
        labels = cells.obs[perturbation].astype(str).to_numpy()
        names, codes = np.unique(labels, return_inverse=True)
        order = np.argsort(codes, kind="stable")
        matrix = sparse.csr_matrix(cells.X)
        if not (order[1:] > order[:-1]).all():
            matrix = matrix[order]
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        begins = np.concatenate([[0], ends[:-1]])
        by_label = {str(n): _rows(matrix, b, e) for n, b, e in zip(names, begins, ends, strict=True)}
        return cls(by_label, list(cells.var_names), control)

    @classmethod
    def of_store(cls, store: Cells, groups: Iterable[Group], control: str) -> GroupedCells:
        """From groups of a cell store, as counts; control cells get the label `control`."""
        numbers: dict[str, list[np.ndarray]] = {}
        for context, perturbation in groups:
            label = control if perturbation == store.control else perturbation
            numbers.setdefault(label, []).append(store.groups[context, perturbation])
        by_label = {}
        for label in sorted(numbers):
            rows = store.rows(np.concatenate(numbers[label]))
            shape = (len(rows.indptr) - 1, store.n_genes)
            parts = (rows.values.astype(np.float32), rows.indices.astype(np.int32), rows.indptr)
            by_label[label] = sparse.csr_matrix(parts, shape=shape)
        return cls(by_label, list(store.genes), control)

    @property
    def targets(self) -> list[str]:
        """Labels but the control's."""
        return [label for label in self.cells if label != self.control]

    @property
    def controls(self) -> sparse.csr_matrix:
        """Control cells.

        Raises
        ------
        VcellError
            If there are none.
        """
        if self.control not in self.cells:
            raise VcellError(f"no control cells {self.control!r}: scores are differences from controls")
        return self.cells[self.control]

    def in_genes(self, genes: Sequence[str]) -> GroupedCells:
        """The same cells with their genes in this order."""
        place = {gene: i for i, gene in enumerate(self.genes)}
        order = [place[gene] for gene in genes]
        return GroupedCells({label: cells[:, order] for label, cells in self.cells.items()}, list(genes), self.control)

    def only(self, targets: Iterable[str]) -> GroupedCells:
        """Those targets, and the controls."""
        wanted = {*targets, self.control}
        return self._like({label: cells for label, cells in self.cells.items() if label in wanted})

    def with_controls(self, controls: sparse.csr_matrix) -> GroupedCells:
        """The same targets with other controls."""
        return self._like({**self.cells, self.control: controls})

    def relabelled(self, names: Mapping[str, str]) -> GroupedCells:
        """Targets under other names; the controls stay."""
        return self._like({names.get(label, label): cells for label, cells in self.cells.items()})

    def halves(self, seed: int) -> tuple[GroupedCells, GroupedCells]:
        """Two disjoint halves of every label's cells, drawn as both official packages draw theirs.

        An odd cell, and a target of a single cell, is in neither.

        Raises
        ------
        VcellError
            If the controls, or all targets, are single cells.
        """
        rng = np.random.default_rng(seed)
        first, second = {}, {}
        for label, cells in self.cells.items():
            order = rng.permutation(np.arange(cells.shape[0]))
            half = len(order) // 2
            if half:
                first[label], second[label] = cells[order[:half]], cells[order[half : 2 * half]]
        if self.control not in first or len(first) < 2:
            raise VcellError(
                "the ceiling splits measured cells into halves: that takes two control cells, and two cells of one target at least"
            )
        return self._like(first), self._like(second)

    def without_group(self, group: int, groups: int) -> GroupedCells:
        """Every label without each `groups`-th cell, from `group`; a label of a single cell keeps it."""
        kept = {}
        for label, cells in self.cells.items():
            keep = np.arange(cells.shape[0]) % min(groups, max(2, cells.shape[0])) != group
            kept[label] = cells[np.flatnonzero(keep)] if keep.any() and cells.shape[0] > 1 else cells
        return self._like(kept)

    def _like(self, cells: Mapping[str, sparse.csr_matrix]) -> GroupedCells:
        return GroupedCells({label: cells[label] for label in sorted(cells)}, self.genes, self.control)

    def anndata(self, perturbation: str) -> ad.AnnData:
        """As AnnData, for the official packages."""
        labels = np.repeat(list(self.cells), [c.shape[0] for c in self.cells.values()])
        obs = pd.DataFrame({perturbation: labels.astype(object)}, index=pd.Index(np.arange(len(labels)).astype(str)))
        matrix = sparse.csr_matrix(sparse.vstack(list(self.cells.values()), format="csr"))
        return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(self.genes)))


def mean_profile(cells: sparse.csr_matrix) -> np.ndarray:
    """Mean over cells, in double precision, ``(genes)``."""
    return np.asarray(cells.mean(axis=0, dtype=np.float64)).ravel()


def _rows(matrix: sparse.csr_matrix, begin: int, end: int) -> sparse.csr_matrix:
    """Rows from `begin` to `end`, without copying their values."""
    first, last = matrix.indptr[begin], matrix.indptr[end]
    parts = (matrix.data[first:last], matrix.indices[first:last], matrix.indptr[begin : end + 1] - first)
    return sparse.csr_matrix(parts, shape=(end - begin, matrix.shape[1]), copy=False)
