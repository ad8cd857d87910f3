"""Loaders of cell sets for Lightning: worker threads prefetch, the device densifies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from vcell.data.batch import CellSetBatch
from vcell.data.covariates import Covariates
from vcell.data.gather import FetchedSets, Gather
from vcell.data.resident import SHARE_FOR_STORE, DeviceRows, bytes_on_device
from vcell.data.sampler import CellSetSampler, Weights
from vcell.data.splits import Group
from vcell.data.store.store import Cells
from vcell.system import cores

MOST_THREADS = 8  # that fetch; each holds two steps' cells on the GPU


class PrefetchLoader:
    """Yields ``fetch(step)`` for the steps in order, prefetched by threads.

    Threads suffice: numpy copies rows of the memory map without holding the interpreter lock for long, and nothing
    is pickled, forked or seeded per worker. `waited` is told how many seconds each batch was waited for.
    """

    def __init__(
        self,
        fetch: Callable[[int], FetchedSets],
        steps: Callable[[], range],
        threads: int,
        waited: Callable[[float], None] | None = None,
    ) -> None:
        self.fetch, self.steps, self.threads, self.waited = fetch, steps, threads, waited

    def __iter__(self) -> Iterator[FetchedSets]:
        pool = ThreadPoolExecutor(max(1, self.threads), thread_name_prefix="fetch")
        pending: deque[Future[FetchedSets]] = deque()
        try:
            for step in self.steps():
                pending.append(pool.submit(self.fetch, step))
                if len(pending) > 2 * max(1, self.threads):
                    yield self._result(pending)
            while pending:
                yield self._result(pending)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _result(self, pending: deque[Future[FetchedSets]]) -> FetchedSets:
        start = time.perf_counter()
        fetched = pending.popleft().result()
        if self.waited is not None:
            self.waited(time.perf_counter() - start)
        return fetched


class CellSetDataModule(LightningDataModule):
    """Training and validation sets of a store.

    Parameters
    ----------
    store
        The cells.
    assigned
        The split of every (context, perturbation).
    target_sum
        Counts per cell after scaling.
    set_size, sets_per_step
        Cells per set; sets per step and device.
    threads
        Threads that fetch ahead; ``auto``: two, and more where rows are copied to a GPU step by step.
    seed
        Of all draws.
    embedding
        The store's embedding that the model sees in place of control expression.
    resident
        Whether the device holds the store: ``auto`` where a GPU has room for it, True or False.
    weights
        How many sets each group gets.
    covariates
        Contexts and batches, for a model that embeds them.
    make_sampler
        Makes the sampler of a split; called as `CellSetSampler` is.
    """

    def __init__(
        self,
        store: Cells,
        assigned: dict[Group, str],
        target_sum: float,
        set_size: int,
        sets_per_step: int,
        threads: str | int = "auto",
        seed: int = 0,
        embedding: str | None = None,
        resident: str | bool = "auto",
        weights: Weights | None = None,
        covariates: Covariates | None = None,
        make_sampler: Callable[..., CellSetSampler] = CellSetSampler,
    ) -> None:
        super().__init__()
        self.make_sampler = make_sampler
        self.store, self.assigned, self.resident, self.weights = store, assigned, resident, weights
        self.gather = Gather(store, target_sum, embedding, covariates=covariates)
        self.stream: torch.cuda.Stream | None = None  # on which cells travel to a GPU while it computes
        self._dense_CG: Tensor | None = None  # where the cells of a training step lie on a GPU
        self.waited = 0.0  # seconds that training has waited for cells: rows not fetched yet, and making them dense
        self.set_size, self.sets_per_step, self.threads, self.seed = set_size, sets_per_step, threads, seed

    def groups(self, split: str) -> list[Group]:
        return [group for group, name in self.assigned.items() if name == split]

    def sampler(self, split: str) -> CellSetSampler:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self.make_sampler(
            self.store, self.groups(split), self.set_size, self.sets_per_step, self.seed, rank, world_size, self.weights
        )

    def setup(self, stage: str) -> None:
        """Uploads the store if the device is to hold it, and says so."""
        if self.gather.resident is not None or self.trainer is None:
            return
        device = self.trainer.strategy.root_device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        chosen, why = self._residence(device, torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0)
        if why and self.trainer.is_global_zero:
            print(f"cells        {why}", flush=True)
        if chosen:
            self.gather = replace(self.gather, resident=DeviceRows.of(self.store, device))

    def _residence(self, device: torch.device, free: int) -> tuple[bool, str]:
        """Whether the device is to hold the store, and in words why and what it costs; no words where nothing was to be chosen."""
        if self.resident is not True and device.type != "cuda":
            return False, ""
        needs, gb = bytes_on_device(self.store), 1e9
        has = f"the store takes {needs / gb:,.1f} GB, and {free / gb:,.1f} GB of the GPU are free"
        if self.resident is True:
            return True, f"held by the device ({needs / gb:,.1f} GB; data.sets.resident=true)"
        if self.resident is False:
            return False, f"copied to the GPU step by step (data.sets.resident=false); {has}"
        if needs < SHARE_FOR_STORE * free:
            return True, f"held by the GPU: {has}"
        return False, (
            f"copied to the GPU step by step, which takes longer than computing it on fast GPUs: {has}, of which it may take "
            f"{SHARE_FOR_STORE:.0%}. Fewer genes (data.hvg, data.genes) make it smaller"
        )

    def train_dataloader(self) -> PrefetchLoader:
        sampler, trainer = self.sampler("train"), self.trainer
        assert trainer is not None
        per_update = trainer.accumulate_grad_batches

        def steps() -> range:  # read when iteration begins, so a resumed run continues at its step
            return range(trainer.global_step * per_update, trainer.max_steps * per_update)

        return PrefetchLoader(lambda step: self._fetch(sampler.batch(step)), steps, self.fetching, self._wait)

    def _wait(self, seconds: float) -> None:
        self.waited += seconds

    def val_dataloader(self) -> PrefetchLoader | list[Any]:
        if not self.groups("val"):
            return []
        sets = self.sampler("val").validation()
        return PrefetchLoader(lambda step: self._fetch(sets[step]), lambda: range(len(sets)), self.fetching)

    @property
    def fetching(self) -> int:
        """Threads that fetch ahead."""
        if self.threads != "auto":
            return int(self.threads)
        streamed = self.stream is not None and self.gather.resident is None
        return min(MOST_THREADS, max(2, cores() - 2)) if streamed else 2

    def _fetch(self, sets: Any) -> FetchedSets:
        return self.gather.fetch(sets, self.stream)

    def transfer_batch_to_device(
        self, batch: FetchedSets, device: torch.device, dataloader_idx: int = 0
    ) -> CellSetBatch:
        start = time.perf_counter()
        on_device = self.gather.to_device(batch, device, self._memory(batch, device))
        self._wait(time.perf_counter() - start)
        return on_device

    def _memory(self, batch: FetchedSets, device: torch.device) -> Tensor | None:
        """Where the cells of a training step are made dense: at the same place each step, where a CUDA graph reads them."""
        if device.type != "cuda" or self.trainer is None or not self.trainer.training:
            return None
        shape = len(batch.sets.numbers), self.store.n_genes
        if self._dense_CG is None or self._dense_CG.shape != shape:
            self._dense_CG = torch.empty(shape, device=device)
        return self._dense_CG
