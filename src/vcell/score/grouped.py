"""Cells of one context by their label: what every score starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from vcell.errors import VcellError
from vcell.score.rows import InMemory, LabelledCells
from vcell.score.sums import CellGroup
from vcell.system import cores

if TYPE_CHECKING:
    from anndata import AnnData


CELLS_TOGETHER = 600  # of targets that a thread measures at a time
OFTEN = 1.5  # times that each cell is drawn, from which it pays to analyse those drawn from: measured


class Lazy(Mapping[str, sparse.csr_matrix]):
    """Cells by label that are made when they are asked for, each time anew.

    Parameters
    ----------
    sizes
        Cells of each label.
    make
        Gives the cells of a label; any number of threads may ask.
    """

    def __init__(self, sizes: Mapping[str, int], make: Callable[[str], sparse.csr_matrix]) -> None:
        self.sizes, self.make = dict(sizes), make

    def __getitem__(self, label: str) -> sparse.csr_matrix:
        if label not in self.sizes:
            raise KeyError(label)
        return self.make(label)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __contains__(self, label: object) -> bool:
        return label in self.sizes


class Pool(NamedTuple):
    """Cells that others are drawn from, and which of them those of each target are."""

    cells: sparse.csr_matrix
    rows: Mapping[str, np.ndarray]

    @property
    def is_drawn_often(self) -> bool:
        """Whether it takes less time to analyse these cells than those that are drawn."""
        return sum(map(len, self.rows.values())) > OFTEN * self.cells.shape[0]


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
    same_as
        Where targets are those of other cells under other names: these cells, and the names there.
    pool
        Where targets' cells are drawn from others: these, and the rows of each target.
    """

    cells: Mapping[str, sparse.csr_matrix]
    genes: Sequence[str]
    control: str
    same_as: tuple[GroupedCells, Mapping[str, str]] | None = None
    pool: Pool | None = None

    @classmethod
    def of(cls, cells: AnnData, perturbation: str, control: str) -> GroupedCells:
        """From cells and the obs column of their targets."""
        labels = cells.obs[perturbation].astype(str).to_numpy()
        return cls.of_labelled(
            LabelledCells.of(labels, list(cells.var_names), InMemory(sparse.csr_matrix(cells.X))), control
        )

    @classmethod
    def of_labelled(cls, cells: LabelledCells, control: str, same: sparse.csr_matrix | None = None) -> GroupedCells:
        """From cells and their labels. Of cells that are not in memory only the controls are; where these are the `same` to the last bit as
        some that are at hand, those are taken, and analysed once."""
        names, codes = np.unique(cells.labels, return_inverse=True)
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        places = {str(n): order[b:e] for n, b, e in zip(names, np.concatenate([[0], ends[:-1]]), ends, strict=True)}
        if isinstance(cells.rows, InMemory):
            together = np.count_nonzero(codes[1:] != codes[:-1]) == len(names) - 1
            if not together:
                cells = LabelledCells.of(cells.labels[order], cells.genes, InMemory(cells.take(order)))
                places = {n: np.arange(e - len(p), e) for (n, p), e in zip(places.items(), ends, strict=True)}
            found = {n: cells.take(p) for n, p in places.items()}
            if control in found:
                found[control] = _first_of_same(same, found[control])
            return cls(found, cells.genes, control)
        controls = {control: _first_of_same(same, cells.take(places[control]))} if control in places else {}

        def make(label: str) -> sparse.csr_matrix:
            return controls[label] if label in controls else cells.take(places[label])

        return cls(Lazy({n: len(p) for n, p in places.items()}, make), cells.genes, control)

    @classmethod
    def drawn(cls, pool: Pool, genes: Sequence[str], control: str, controls: sparse.csr_matrix) -> GroupedCells:
        """Cells drawn from a pool, with `controls`."""
        sizes = {control: controls.shape[0], **{target: len(rows) for target, rows in pool.rows.items()}}

        def make(label: str) -> sparse.csr_matrix:
            return controls if label == control else pool.cells[pool.rows[label]]

        return cls(Lazy(dict(sorted(sizes.items())), make), genes, control, pool=pool)

    def group(self, label: str) -> CellGroup:
        """The cells of a label."""
        if self.pool is not None and label in self.pool.rows:
            return CellGroup(self.pool.cells, self.pool.rows[label])
        return CellGroup(self.cells[label])

    def n_cells(self, label: str) -> int:
        """Of a label, without reading them."""
        return self.cells.sizes[label] if isinstance(self.cells, Lazy) else self.cells[label].shape[0]

    @property
    def sizes(self) -> dict[str, int]:
        """Cells of each label."""
        return {label: self.n_cells(label) for label in self.cells}

    @property
    def targets(self) -> list[str]:
        """Labels but the control's."""
        return [label for label in self.cells if label != self.control]

    def batches(self) -> list[list[str]]:
        """The targets, some at a time, which a thread measures together: no more cells than take little memory, and some batches for each
        thread."""
        most, found, together = max(1, len(self.targets) // (4 * cores())), list[list[str]](), 0
        for target in self.targets:
            n = self.n_cells(target)
            if not found or len(found[-1]) == most or together + n > CELLS_TOGETHER:
                found.append([])
                together = 0
            found[-1].append(target)
            together += n
        return found

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
        cells = Lazy(self.sizes, lambda label: self.cells[label][:, order])
        return replace(self, cells=cells, genes=list(genes), pool=None)

    def only(self, targets: Iterable[str]) -> GroupedCells:
        """Those targets, and the controls."""
        wanted = {*targets, self.control}
        return self._like({label: self for label in self.cells if label in wanted})

    def with_controls(self, controls: sparse.csr_matrix) -> GroupedCells:
        """The same targets with other controls."""
        own = GroupedCells({self.control: controls}, self.genes, self.control)
        return self._like({**dict.fromkeys(self.cells, self), self.control: own})

    def relabelled(self, names: Mapping[str, str]) -> GroupedCells:
        """Targets under other names; the controls stay."""
        former = {names.get(label, label): label for label in self.cells}
        cells = Lazy(
            {label: self.n_cells(former[label]) for label in sorted(former)}, lambda label: self.cells[former[label]]
        )
        return replace(self, cells=cells, same_as=(self, former), pool=None)

    @property
    def can_be_halved(self) -> bool:
        """Whether there are two control cells, and two cells of a target."""
        several = [label for label, number in self.sizes.items() if number > 1]
        return self.control in several and len(several) > 1

    def halves(self, seed: int) -> tuple[GroupedCells, GroupedCells]:
        """Two disjoint halves of every label's cells: those of `half_places`."""
        first, second = self.half_places(seed)
        return self.some(first), self.some(second)

    def half_places(self, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Which cells of each label are in two disjoint halves, drawn as both official packages draw theirs.

        An odd cell, and a target of a single cell, is in neither. Not for cells that cannot be halved.
        """
        rng = np.random.default_rng(seed)
        first, second = {}, {}
        for label, number in self.sizes.items():
            order = rng.permutation(np.arange(number))
            half = len(order) // 2
            if half:
                first[label], second[label] = order[:half], order[half : 2 * half]
        return first, second

    def without_group(self, group: int, groups: int) -> GroupedCells:
        """Every label without each `groups`-th cell, from `group`; a label of a single cell keeps it."""
        kept = {}
        for label, number in self.sizes.items():
            keep = np.arange(number) % min(groups, max(2, number)) != group
            kept[label] = np.flatnonzero(keep) if keep.any() and number > 1 else np.arange(number)
        return self.some(kept)

    def some(self, places: Mapping[str, np.ndarray]) -> GroupedCells:
        """Some cells of each label; the controls, once asked for, are kept in memory."""

        @cache
        def controls() -> sparse.csr_matrix:
            return self.cells[self.control][places[self.control]]

        def make(label: str) -> sparse.csr_matrix:
            return controls() if label == self.control else self.cells[label][places[label]]

        return GroupedCells(Lazy({label: len(p) for label, p in places.items()}, make), self.genes, self.control)

    def _like(self, sources: Mapping[str, GroupedCells]) -> GroupedCells:
        """The labels, each from the cells that it names."""
        sizes = {label: sources[label].n_cells(label) for label in sorted(sources)}
        return GroupedCells(Lazy(sizes, lambda label: sources[label].cells[label]), self.genes, self.control)

    def anndata(self, perturbation: str) -> AnnData:
        """As AnnData, for the official packages."""
        from anndata import AnnData  # here: it takes half a second to load

        labels = np.repeat(list(self.cells), [c.shape[0] for c in self.cells.values()])
        obs = pd.DataFrame({perturbation: labels.astype(object)}, index=pd.Index(np.arange(len(labels)).astype(str)))
        matrix = sparse.csr_matrix(sparse.vstack(list(self.cells.values()), format="csr"))
        return AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(self.genes)))


def _first_of_same(one: sparse.csr_matrix | None, other: sparse.csr_matrix) -> sparse.csr_matrix:
    """The first where both hold the same, else the second."""
    if one is None or one.shape != other.shape or one.nnz != other.nnz or one.dtype != other.dtype:
        return other
    parts = ((one.indptr, other.indptr), (one.indices, other.indices), (one.data, other.data))
    return one if all(np.array_equal(a, b) for a, b in parts) else other
