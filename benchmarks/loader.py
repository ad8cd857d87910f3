"""How fast cell sets are read: our store and gather against reading the h5ad through anndata, backed.

    python benchmarks/loader.py [--genes 2000] [--seconds 5]

Both read the same cells of the same simulated screen (the sampler's sets) to the same dense log1p tensors, in turn, in
one process; cells per second are compared as a ratio. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import torch

from vcell.data.batch import CellSets
from vcell.data.datamodule import PrefetchLoader
from vcell.data.gather import Gather
from vcell.data.h5ad import Columns
from vcell.data.ingest import ingest
from vcell.data.normalize import to_log1p
from vcell.data.sampler import CellSetSampler
from vcell.data.screen import Screen
from vcell.data.simulate import simulate

SET_SIZE, SETS_PER_STEP, TARGET_SUM = 128, 16, 1e4
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=2000, help="genes of the screen [%(default)s]")
    parser.add_argument("--seconds", type=float, default=5, help="per reader and round [%(default)s]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = compare(Path(folder), options.genes, options.seconds)
    print(table)
    out = Path(__file__).parent / "results" / f"loader_cpu_{options.genes}.md"
    out.write_text(f"`python benchmarks/loader.py --genes {options.genes}`\n\n{table}\n")
    print(f"written to {out}")


def compare(folder: Path, genes: int, seconds: float) -> str:
    screen = Screen(genes=genes, contexts=("only",), targets=60, test_targets=0, cells_per_target=100, controls_per_context=2000)  # fmt: skip
    file = simulate(folder / "screen", screen) / "only.h5ad"
    start = time.perf_counter()
    store = ingest([file], folder / "store", Columns())
    prepared = time.perf_counter() - start
    sampler = CellSetSampler(store, [g for g in store.groups if g[1] != store.control], SET_SIZE, SETS_PER_STEP)
    backed = ad.read_h5ad(file, backed="r")
    row_of = dict(zip(backed.obs_names, range(backed.n_obs), strict=True))
    rows = np.array([row_of[name] for name in store.obs["cell_id"]])
    readers: dict[str, Callable[[float], float]] = {
        "vcell store, threads ahead": lambda s: ours(Gather(store, TARGET_SUM), sampler, s),
        "anndata, backed": lambda s: anndata_backed(backed, rows, sampler, s),
    }
    check_equal(Gather(store, TARGET_SUM), backed, rows, sampler)
    rates = {name: [read(seconds) for _ in range(ROUNDS)] for name, read in readers.items()}
    slowest = np.median(rates["anndata, backed"])
    lines = [
        f"{store.n_cells:,} cells × {genes:,} genes; {SETS_PER_STEP} sets of {SET_SIZE} perturbed and {SET_SIZE} control "
        f"cells a step; {torch.get_num_threads()} threads, {platform.machine()} CPU. Preparing the store, once, costs the "
        f"time in which anndata reads {prepared * slowest / store.n_cells:.1f} times its cells.\n",
        "| reader | cells per second, relative (median of 3) | range |",
        "|---|---|---|",
    ]
    for name, rate in rates.items():
        lines.append(
            f"| {name} | {np.median(rate) / slowest:.1f} | {min(rate) / slowest:.1f} to {max(rate) / slowest:.1f} |"
        )
    return "\n".join(lines)


def ours(gather: Gather, sampler: CellSetSampler, seconds: float) -> float:
    loader = PrefetchLoader(lambda step: gather.fetch(sampler.batch(step)), lambda: range(10**9), threads=2)
    cells, start = 0, time.perf_counter()
    for fetched in loader:
        batch = gather.to_device(fetched)
        cells += 2 * batch.control_SCG.shape[0] * batch.control_SCG.shape[1]
        if time.perf_counter() - start > seconds:
            break
    return cells / (time.perf_counter() - start)


def anndata_backed(backed: ad.AnnData, rows: np.ndarray, sampler: CellSetSampler, seconds: float) -> float:
    cells, start, step = 0, time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        cells += len(read_backed(backed, rows, sampler.batch(step)))
        step += 1
    return cells / (time.perf_counter() - start)


def read_backed(backed: ad.AnnData, rows: np.ndarray, sets: CellSets) -> torch.Tensor:
    assert sets.perturbed_SC is not None
    wanted = rows[np.concatenate([sets.controls_SC.ravel(), sets.perturbed_SC.ravel()])]
    distinct, back = np.unique(wanted, return_inverse=True)  # backed reading wants rising rows
    counts = torch.from_numpy(backed[distinct].to_memory().X.toarray()[back])
    return to_log1p(counts, counts.sum(1), TARGET_SUM)


def check_equal(gather: Gather, backed: ad.AnnData, rows: np.ndarray, sampler: CellSetSampler) -> None:
    batch, other = gather.to_device(gather.fetch(sampler.batch(0))), read_backed(backed, rows, sampler.batch(0))
    torch.testing.assert_close(batch.control_SCG.flatten(0, 1), other[: len(other) // 2])


if __name__ == "__main__":
    main()
