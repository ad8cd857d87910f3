"""Sparse rows of the store to a `CellSetBatch` on the device.

`fetch` runs in a worker thread and only copies rows, to a GPU too; `to_device` densifies, scales and takes log1p on the
device. Training, validation, inference and the baselines all use this. If the whole store is on the device (`DeviceRows`), rows
are copied there and only cell indices are transferred.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vcell.data.batch import CellSetBatch, CellSets, codes
from vcell.data.covariates import Covariates
from vcell.data.files.csr import starts_of
from vcell.data.files.normalize import scaled_log1p, stored_to_log1p, to_log1p
from vcell.data.resident import UNSIGNED, DeviceRows, SparseTensors, sparse_tensors, unsigned
from vcell.data.store.store import Cells

BLOCK_CELLS = 4096
CELLS_PER_BLOCK = 512  # made dense by one thread
WORTH_COMPILED = 500_000  # stored values


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether cells can be made dense by a kernel of our own: GPU builds of torch bring Triton along, which needs a C compiler."""
    if find_spec("triton") is None:
        return False
    try:
        from vcell.data.triton_dense import dense_log1p

        one = torch.ones(1, dtype=torch.int64, device=device)
        found = dense_log1p(torch.cat([one - 1, one]), one - 1, one.short(), one.short(), one.float(), 1.0, 3)
        return bool(found[0, 1] > 0)
    except Exception as error:  # as many as there are machines
        print(f"note         cells are made dense by several operations instead of one kernel: {' '.join(str(error).split())[:200]}", flush=True)  # fmt: skip
        return False


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="densify")


@dataclass(frozen=True)
class FetchedSets:
    """The sets of a step with their rows, on the CPU or on their way to a GPU."""

    sets: CellSets
    cells: (
        SparseTensors | Tensor
    )  # controls first, then perturbed cells; their numbers where the device holds the store
    known_SG: Tensor | None
    embedding_SCE: Tensor | None
    context_S: Tensor | None
    batch_SC: Tensor | None
    codes_S2: Tensor | None = None
    arrived: torch.cuda.Event | None = None  # once they are on the GPU

    @property
    def parts(self) -> tuple[Tensor, ...]:
        cells = self.cells.parts if isinstance(self.cells, SparseTensors) else (self.cells,)
        return *cells, *(part for part in self.rest if part is not None)

    @property
    def rest(self) -> tuple[Tensor | None, ...]:
        """What goes to the device as it is."""
        return self.known_SG, self.embedding_SCE, self.context_S, self.batch_SC, self.codes_S2

    def sent(self, stream: torch.cuda.Stream) -> FetchedSets:
        """The same on the GPU of `stream`, by way of pinned memory: what the GPU computes meanwhile goes on."""
        with torch.cuda.stream(stream):
            cells: Any = _sent(self.cells, stream.device)
            rest = [part if part is None else _sent(part, stream.device) for part in self.rest]
            return replace(FetchedSets(self.sets, cells, *rest), arrived=stream.record_event())

    def received(self) -> None:
        """Has the GPU wait for what was sent to it, not the host."""
        if self.arrived is None:
            return
        now = torch.cuda.current_stream(self.parts[0].device)
        now.wait_event(self.arrived)
        for part in self.parts:  # its memory is not to be used again before what is computed from it
            part.record_stream(now)


def _sent(part: Any, device: torch.device) -> Any:
    if isinstance(part, SparseTensors):
        return SparseTensors(*(_sent(one, device) for one in part.parts))
    return part.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Gather:
    """Reads cells of `store` as log1p of counts per `target_sum`.

    Parameters
    ----------
    embedding
        An embedding of the store's, read for the control cells.
    resident
        The store's rows, where they lie on the device.
    covariates
        Contexts and batches, for a model that embeds them.
    """

    store: Cells
    target_sum: float
    embedding: str | None = None
    resident: DeviceRows | None = None
    covariates: Covariates | None = None

    @cached_property
    def batch_number_of_cell(self) -> np.ndarray:
        assert self.covariates is not None
        return self.covariates.batch_numbers(self.store)

    def fetch(self, sets: CellSets, stream: torch.cuda.Stream | None = None) -> FetchedSets:
        """Copies the rows of `sets` out of the store; with a `stream`, to its GPU too."""
        numbers = sets.numbers
        cells = torch.from_numpy(numbers) if self.resident is not None else sparse_tensors(self.store.rows(numbers))
        known = self.store.known_in(*sets.parts)
        known_SG = None if known is None else torch.from_numpy(known)
        embedding_SCE = None
        if self.embedding is not None:
            rows = torch.from_numpy(self.store.embedding(self.embedding, sets.controls_SC))
            embedding_SCE = rows.view(*sets.controls_SC.shape, -1)
        context_S = batch_SC = None
        if self.covariates is not None:
            context_S = torch.from_numpy(self.covariates.context_numbers(sets.contexts))
            batch_SC = torch.from_numpy(self.batch_number_of_cell[sets.controls_SC])
        codes_S2 = codes(sets.contexts, sets.perturbations)
        fetched = FetchedSets(sets, cells, known_SG, embedding_SCE, context_S, batch_SC, codes_S2)
        return fetched if stream is None else fetched.sent(stream)

    def to_device(
        self, fetched: FetchedSets, device: torch.device | str = "cpu", into_CG: Tensor | None = None
    ) -> CellSetBatch:
        """Densifies and normalises on `device`: controls and perturbed cells, ``(sets, cells, genes)``; on a GPU in the memory `into_CG`."""
        sets = fetched.sets
        fetched.received()
        log1p_CG, library = self._dense(fetched, torch.device(device), into_CG)
        n_control = sets.controls_SC.size
        control_SCG = log1p_CG[:n_control].view(*sets.controls_SC.shape, self.store.n_genes)
        perturbed_SCG = None
        if sets.perturbed_SC is not None:
            perturbed_SCG = log1p_CG[n_control:].view(*sets.perturbed_SC.shape, self.store.n_genes)
        rest = [part if part is None else part.to(device, non_blocking=True) for part in fetched.rest]
        controls = library[:n_control].view(sets.controls_SC.shape)
        perturbed = None if sets.perturbed_SC is None else library[n_control:].view(sets.perturbed_SC.shape)
        known_SG, embedding_SCE, context_S, batch_SC, codes_S2 = rest
        return CellSetBatch(
            sets.contexts, sets.perturbations, control_SCG, perturbed_SCG, known_SG, embedding_SCE, context_S, batch_SC,
            controls, perturbed, self.target_sum, codes_S2,
        )  # fmt: skip

    def _dense(self, fetched: FetchedSets, device: torch.device, into_CG: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cells as log1p ``(cells, genes)``, and their library sizes, on `device`."""
        cells = fetched.cells
        if device.type == "cuda" and has_kernel(device):
            return self._dense_by_kernel(cells, device, into_CG)
        if isinstance(cells, Tensor):
            assert self.resident is not None
            cells = self.resident.rows(torch.from_numpy(fetched.sets.numbers))
        return self.densify(cells, device), cells.library_size.to(device, non_blocking=True)

    def _dense_by_kernel(
        self, cells: SparseTensors | Tensor, device: torch.device, into_CG: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        from vcell.data.triton_dense import dense_log1p

        if isinstance(cells, Tensor):  # numbers of cells that the device holds
            assert self.resident is not None
            numbers, starts, whole = cells.to(device, non_blocking=True), self.resident.starts, self.resident.cells
            library = whole.library_size[numbers]
        else:
            lengths, *parts = (part.to(device, non_blocking=True) for part in cells.parts)
            whole, library = SparseTensors(lengths, *parts), parts[-1]
            starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            numbers = torch.arange(len(lengths), device=device)
        found = dense_log1p(
            starts, numbers, whole.genes, whole.counts, whole.library_size, self.target_sum, self.store.n_genes, into_CG
        )
        return found, library

    def densify(self, cells: SparseTensors, device: torch.device | str) -> Tensor:
        """log1p of counts per target sum, ``(cells, genes)``."""
        if torch.device(device).type == "cpu" and cells.genes.device.type == "cpu":
            return self._densify_in_blocks(cells)
        lengths, genes, counts, library_size = (part.to(device, non_blocking=True) for part in cells.parts)
        row = torch.repeat_interleave(lengths, output_size=len(genes))
        # log1p(0) is 0, so only stored values need it: most of a cell is zeros
        log1p = to_log1p(unsigned(counts).unsqueeze(-1), library_size[row], self.target_sum).squeeze(-1)
        dense_CG = torch.zeros(len(library_size), self.store.n_genes, device=device)
        dense_CG.view(-1)[row * self.store.n_genes + unsigned(genes)] = log1p
        return dense_CG

    def _densify_in_blocks(self, cells: SparseTensors) -> Tensor:
        """The same on the CPU, on all its cores."""
        lengths, library_size = cells.lengths.numpy(), cells.library_size.numpy()
        genes, counts = (part.numpy().view(UNSIGNED[part.numpy().dtype]) for part in (cells.genes, cells.counts))
        starts, scale = starts_of(lengths), self.target_sum / library_size
        dense_CG = np.empty((len(lengths), self.store.n_genes), np.float32)
        # compiled code takes a quarter of a second to load: not for a few cells, and fractions have no table
        compiled = len(counts) >= WORTH_COMPILED and counts.dtype != np.float32
        fill_block = _compiled_fill() if compiled else _fill_log1p

        def fill(first: int) -> None:
            last = min(first + CELLS_PER_BLOCK, len(lengths))
            fill_block(dense_CG[first:last], starts[first : last + 1], genes, counts, scale[first:last])

        blocks = range(0, len(lengths), CELLS_PER_BLOCK)
        if len(blocks) > 1:
            list(_pool().map(fill, blocks))
        else:
            list(map(fill, blocks))
        return torch.from_numpy(dense_CG)

    def log1p(self, cells: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """`cells` as log1p, ``(cells, genes)``."""
        return self.densify(sparse_tensors(self.store.rows(cells)), device)

    def pseudobulk_mean_log1p(self, cells: np.ndarray) -> np.ndarray:
        """Mean log1p over `cells`, float64 ``(genes)``; over those whose source measured the gene, NaN where none did."""
        total = np.zeros(self.store.n_genes)
        for start in range(0, len(cells), BLOCK_CELLS):  # summed over stored values only
            rows = self.store.rows(cells[start : start + BLOCK_CELLS])
            scale = np.repeat(self.target_sum / rows.library_size.astype(np.float64), np.diff(rows.indptr))
            total += np.bincount(rows.indices, weights=scaled_log1p(rows.values, scale), minlength=self.store.n_genes)
        number = self.cells_knowing(cells)
        return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)

    def cells_knowing(self, cells: np.ndarray) -> np.ndarray:
        """How many of `cells` come from a source that measured each gene, ``(genes)``."""
        if self.store.known is None:
            return np.full(self.store.n_genes, len(cells))
        of_source = np.bincount(self.store.source_of_cell[cells], minlength=len(self.store.known))
        return of_source @ self.store.known


def _fill_log1p(
    dense_CG: np.ndarray, starts: np.ndarray, genes: np.ndarray, counts: np.ndarray, scale: np.ndarray
) -> None:
    """`dense.fill_log1p` without a compiler."""
    values = slice(starts[0], starts[-1])
    log1p = stored_to_log1p(counts[values], np.repeat(scale, np.diff(starts)))
    rows = (log1p, genes[values].astype(np.int32), (starts - starts[0]).astype(np.int32))
    sparse.csr_matrix(rows, shape=dense_CG.shape).toarray(out=dense_CG)


def _compiled_fill() -> Callable[..., None]:
    from vcell.data.dense import fill_log1p

    return fill_log1p
