"""One reader of cell sets, timed in a process of its own: python benchmarks/readers.py READER FILE STORE SECONDS.

Prints one line of JSON: seconds until the first batch (imports left out), cells per second after it, and where our own
time goes. Every reader delivers dense log1p tensors of the same file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SET_SIZE, SETS, TARGET_SUM = 128, 16, 1e4
WORKERS = os.cpu_count() or 1


def ours(file: Path, store: Path) -> tuple[Callable[[], Iterator[int]], Callable[[], dict]]:
    """Our store: perturbed and batch-matched control cells, threads fetching ahead."""
    import torch  # noqa: F401  # its import is not the reader's start-up

    from vcell.data.datamodule import PrefetchLoader
    from vcell.data.gather import Gather
    from vcell.data.sampler import CellSetSampler
    from vcell.data.store.store import CellStore

    made: dict[str, Any] = {}

    def batches() -> Iterator[int]:
        opened = CellStore.open(store)
        sampler = CellSetSampler(opened, [g for g in opened.groups if g[1] != opened.control], SET_SIZE, SETS)
        gather = Gather(opened, TARGET_SUM)
        made.update(sampler=sampler, gather=gather)
        for fetched in PrefetchLoader(lambda s: gather.fetch(sampler.batch(s)), lambda: range(10**9), threads=WORKERS):
            batch = gather.to_device(fetched)
            yield batch.control_SCG.shape[0] * batch.control_SCG.shape[1] * 2

    def breakdown() -> dict:
        """Seconds a step, one after the other, and the speed at which new memory is filled."""
        sampler, gather = made["sampler"], made["gather"]
        parts: dict[str, list[float]] = {"sampler": [], "rows": [], "dense": []}
        for step in range(8):
            marks = [time.perf_counter()]
            sets = sampler.batch(step)
            marks.append(time.perf_counter())
            fetched = gather.fetch(sets)
            marks.append(time.perf_counter())
            batch = gather.to_device(fetched)
            marks.append(time.perf_counter())
            for name, begin, end in zip(parts, marks[:-1], marks[1:], strict=True):
                parts[name].append(end - begin)
        dense_bytes = 2 * batch.control_SCG.numel() * 4
        filled = []
        for _ in range(5):
            start = time.perf_counter()
            np.zeros(dense_bytes // 4, np.float32).fill(1.0)
            filled.append(time.perf_counter() - start)
        found = {name: float(np.median(times)) for name, times in parts.items()}
        return {**found, "dense_bytes": dense_bytes, "bandwidth": dense_bytes / float(np.median(filled))}

    return batches, breakdown


def cell_load(file: Path, store: Path, consecutive: bool = False) -> tuple[Callable[[], Iterator[int]], None]:
    """cell-load: X of every gene, controls of the same batch."""
    from cell_load.data_modules import PerturbationDataModule

    def batches() -> Iterator[int]:
        toml = file.with_suffix(".toml")
        toml.write_text(f'[datasets]\nscreen = "{file}"\n[training]\nscreen = "train"\n')
        data = PerturbationDataModule(
            str(toml), batch_size=SETS, num_workers=WORKERS, pert_col="target_gene", batch_col="batch", embed_key=None,
            output_space="all", basal_mapping_strategy="batch", cell_sentence_len=SET_SIZE,
            should_yield_control_cells=False, use_consecutive_loading=consecutive,
        )  # fmt: skip
        data.setup()
        while True:
            for batch in data.train_dataloader():
                yield len(batch["pert_cell_emb"]) + len(batch["ctrl_cell_emb"])

    return batches, None


def scdataset(file: Path, store: Path) -> tuple[Callable[[], Iterator[int]], None]:
    """scDataset over the backed file: shuffled blocks of neighbouring cells; no sets, no controls."""
    import anndata as ad
    import torch
    from scdataset import BlockShuffling, scDataset
    from torch.utils.data import DataLoader

    def read(cells: ad.AnnData, rows: np.ndarray) -> torch.Tensor:
        distinct, back = np.unique(rows, return_inverse=True)
        return torch.from_numpy(cells.X[distinct].toarray()[back])

    def batches() -> Iterator[int]:
        cells = ad.read_h5ad(file, backed="r")
        blocks = scDataset(
            cells, BlockShuffling(block_size=16), batch_size=2 * SETS * SET_SIZE, fetch_factor=1,
            fetch_callback=read, batch_callback=lambda fetched, rows: fetched[rows],
        )  # fmt: skip
        while True:
            for batch in DataLoader(blocks, batch_size=None, num_workers=0):
                yield len(batch)

    return batches, None


def anndata_backed(file: Path, store: Path) -> tuple[Callable[[], Iterator[int]], None]:
    """anndata, backed: random sets of one perturbation and as many controls, one read a step."""
    import anndata as ad
    import torch

    def batches() -> Iterator[int]:
        cells, rng = ad.read_h5ad(file, backed="r"), np.random.default_rng(0)
        rows_of = cells.obs.groupby("target_gene", observed=True).indices
        controls = rows_of.pop("non-targeting")
        names = sorted(rows_of)
        while True:
            sets = [rng.choice(rows_of[name], SET_SIZE) for name in rng.choice(names, SETS)]
            rows = np.concatenate([*sets, rng.choice(controls, SETS * SET_SIZE)])
            distinct, back = np.unique(rows, return_inverse=True)  # backed reading wants rising rows
            yield len(torch.from_numpy(cells.X[distinct].toarray()[back]))

    return batches, None


READERS: dict[str, Callable] = {
    "vcell": ours,
    "cell-load": cell_load,
    "cell-load, consecutive": lambda file, store: cell_load(file, store, consecutive=True),
    "scDataset": scdataset,
    "anndata, backed": anndata_backed,
}


def main() -> None:
    name, file, store, seconds = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    make, breakdown = READERS[name](file, store)
    start = time.perf_counter()
    batches = make()
    next(batches)
    startup, cells, start = time.perf_counter() - start, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        cells += next(batches)
    rate = cells / (time.perf_counter() - start)
    batches.close()
    print(
        json.dumps({"startup_s": startup, "cells_per_s": rate, "parts": breakdown() if breakdown else None}), flush=True
    )
    os._exit(0)  # workers of the peers are not waited for


if __name__ == "__main__":
    main()
