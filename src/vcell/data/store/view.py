"""Several stores as one, or some genes of a store: the same rows, their genes renumbered, nothing copied."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from vcell.data.files.csr import number_type, positions, starts_of
from vcell.data.files.genes import align, appended
from vcell.data.store.store import LABELS, Cells, CellStore, SparseCells
from vcell.errors import VcellError, shortlist

BLOCK_VALUES = 1 << 24  # looked at at a time


@dataclass(frozen=True)
class StoreView(Cells):
    """Cells of `parts`, one after another, in a panel of genes. Make one with `open_stores` or `with_genes`."""

    parts: tuple[CellStore, ...]
    position: tuple[np.ndarray, ...]  # int64: genes of a part to genes of the view, -1 for none

    @property
    def name(self) -> str:
        return ", ".join(part.name for part in self.parts)

    @cached_property
    def stored_values(self) -> int:
        return sum(_stored(part, position) for part, position in zip(self.parts, self.position, strict=True))

    @property
    def number_types(self) -> tuple[np.dtype, np.dtype]:
        return np.dtype(number_type(self.n_genes)), np.result_type(*(part.values for part in self.parts))

    @cached_property
    def starts(self) -> np.ndarray:
        return starts_of([part.n_cells for part in self.parts])

    def rows(self, cells: np.ndarray) -> SparseCells:
        """The counts of `cells`, genes numbered as in the view; a part's genes that are not in it are left out."""
        cells = np.asarray(cells, dtype=np.int64).ravel()
        which = np.searchsorted(self.starts, cells, side="right") - 1
        found = [(np.flatnonzero(which == p), self._part_rows(int(p), cells)) for p in np.unique(which)]
        if len(found) == 1:
            return found[0][1]
        lengths = np.zeros(len(cells), np.int64)
        for here, rows in found:
            lengths[here] = np.diff(rows.indptr)
        indptr = starts_of(lengths)
        indices = np.empty(indptr[-1], np.result_type(*(r.indices for _, r in found)))
        values = np.empty(indptr[-1], np.result_type(*(r.values for _, r in found)))
        for here, rows in found:
            at = positions(indptr[here], lengths[here])
            indices[at], values[at] = rows.indices, rows.values
        return SparseCells(indptr, indices, values, self.library_size[cells])

    def embedding(self, name: str, cells: np.ndarray) -> np.ndarray:
        cells = np.asarray(cells, dtype=np.int64).ravel()
        which = np.searchsorted(self.starts, cells, side="right") - 1
        some = {int(p): self.parts[p].embedding(name, cells[which == p] - self.starts[p]) for p in np.unique(which)}
        widths = sorted({array.shape[1] for array in some.values()})
        if len(widths) != 1:
            raise VcellError(f"the embedding {name!r} has another width in other stores: {shortlist(map(str, widths))}")
        out = np.empty((len(cells), widths[0]), np.float32)
        for p, array in some.items():
            out[which == p] = array
        return out

    def _part_rows(self, p: int, cells: np.ndarray) -> SparseCells:
        """Rows of those `cells` that lie in part `p`."""
        here = (cells >= self.starts[p]) & (cells < self.starts[p + 1])
        rows = self.parts[p].rows(cells[here] - self.starts[p])
        genes = self.position[p][rows.indices]
        kept = starts_of(genes >= 0)
        dtype = number_type(self.n_genes)
        return SparseCells(
            kept[rows.indptr], genes[genes >= 0].astype(dtype), rows.values[genes >= 0], self.library_size[cells[here]]
        )


def open_stores(paths: Sequence[str | Path]) -> Cells:
    """One store, or several in the union of their genes.

    Raises
    ------
    VcellError
        If a store cannot be opened, or their control cells are called differently.
    """
    stores = [CellStore.open(path) for path in paths]
    return stores[0] if len(stores) == 1 else _joined(stores)


def store_paths(store: Cells) -> list[Path]:
    """The folders a store lies in."""
    parts = store.parts if isinstance(store, StoreView) else (store,)
    return [part.path.resolve() for part in parts if isinstance(part, CellStore)]


def with_genes(store: Cells, genes: Sequence[str]) -> StoreView:
    """The same cells in some of the genes. Genes that the store lacks are missing, not 0; library sizes stay."""
    if isinstance(store, StoreView):
        place = {gene: i for i, gene in enumerate(genes)}
        new = np.array([*(place.get(gene, -1) for gene in store.genes), -1])
        position = tuple(new[p] for p in store.position)
        return replace(store, genes=list(genes), position=position, known=_known(store.parts, position, len(genes)))
    assert isinstance(store, CellStore)
    position = (align(store.genes, genes).position,)
    known = _known((store,), position, len(genes))
    return StoreView(store.obs, list(genes), store.control, known, store.fingerprint, store.scales, (store,), position)


def _joined(stores: Sequence[CellStore]) -> StoreView:
    labels = sorted({store.control for store in stores})
    if len(labels) > 1:
        raise VcellError(
            f"the stores use different labels for control cells: {shortlist(labels)}. Prepare them again with one label"
        )
    panel: list[str] = []
    position = []
    for store in stores:
        panel, at = appended(panel, store.genes, align(store.genes, panel).position)
        position.append(at)
    tables = [store.obs.assign(source=_own_sources(store, stores)) for store in stores]
    obs = pd.concat([t.drop(columns=[*LABELS]) for t in tables], ignore_index=True)
    obs = obs.assign(**{name: union_categoricals([t[name] for t in tables]) for name in LABELS})
    fingerprint = hashlib.blake2b("".join(s.fingerprint for s in stores).encode(), digest_size=16).hexdigest()
    scales = {file: scale for store in stores for file, scale in store.scales.items()}
    known = _known(stores, position, len(panel))
    return StoreView(obs, panel, labels[0], known, fingerprint, scales, tuple(stores), tuple(position))


def _own_sources(store: CellStore, stores: Sequence[CellStore]) -> pd.Series:
    """A store's sources; where another store has one of the same name, the store's path stands before it."""
    others = {name for other in stores if other is not store for name in other.obs["source"].cat.categories}
    names = [f"{store.path}/{s}" if s in others else s for s in store.obs["source"].cat.categories]
    return store.obs["source"].cat.rename_categories(names)


def _stored(part: CellStore, position: np.ndarray) -> int:
    """Stored values of the genes that have a place in the view."""
    if (position >= 0).all():
        return part.stored_values
    blocks = (part.indices[i : i + BLOCK_VALUES] for i in range(0, part.stored_values, BLOCK_VALUES))
    return sum(int(np.count_nonzero(position[block] >= 0)) for block in blocks)


def _known(stores: Sequence[CellStore], position: Sequence[np.ndarray], n_genes: int) -> np.ndarray | None:
    """What each source of each store measured of the view's genes."""
    rows = []
    for store, at in zip(stores, position, strict=True):
        known = store.known
        if known is None:
            known = np.ones((len(store.obs["source"].cat.categories), store.n_genes), bool)
        row = np.zeros((len(known), n_genes), bool)
        row[:, at[at >= 0]] = known[:, at >= 0]
        rows.append(row)
    known = np.concatenate(rows)
    return None if known.all() else known
