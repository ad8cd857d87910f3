"""How fast cell sets are read: our store and gather next to cell-load, scDataset and anndata, on the same file.

    python benchmarks/loader.py [--genes 18080] [--seconds 10] [--peers PYTHON]
    python benchmarks/loader.py --device cuda          our loader's share of a state_sm training step

Sets of 128 perturbed cells with 128 controls, 16 sets a step, as dense log1p tensors. Every reader runs in a process of its
own, in turn, several rounds; rates are compared as ratios. `--peers` names a Python with cell-load and scdataset
(pip install cell-load scdataset); they are left out where it has none. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy
import torch
from readers import READERS, SET_SIZE, SETS, TARGET_SUM
from tables import save

from vcell.data.gather import Gather
from vcell.data.resident import DeviceRows
from vcell.data.sampler import CellSetSampler
from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate
from vcell.data.store.ingest import ingest
from vcell.data.store.store import CellStore

ROUNDS = 3
NEEDS = {"cell-load": "cell_load", "cell-load, consecutive": "cell_load", "scDataset": "scdataset"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=18080, help="genes of the screen [%(default)s]")
    parser.add_argument("--targets", type=int, default=150, help="perturbations of 100 cells each [%(default)s]")
    parser.add_argument("--seconds", type=float, default=10, help="per reader and round [%(default)s]")
    parser.add_argument("--peers", default=sys.executable, help="a Python with cell-load and scdataset [this one]")
    parser.add_argument("--device", default="cpu", help="cpu: next to the peers; cuda: next to a training step")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, store, prepared = make(Path(folder), options.genes, options.targets)
        if options.device == "cpu":
            table = compare(file, store, options.seconds, options.peers, prepared)
        else:
            table = beside_training(CellStore.open(store), options.device)
    command = f"python benchmarks/loader.py --genes {options.genes}" + (" --device cuda" * (options.device != "cpu"))
    save(f"loader_{options.device}_{options.genes}", command, table)


def make(folder: Path, genes: int, targets: int) -> tuple[Path, Path, float]:
    """A file of log1p of counts per 10,000 and the store made from it; and the seconds that took."""
    screen = Screen(
        genes=genes,
        contexts=("only",),
        targets=targets,
        test_targets=0,
        cells_per_target=100,
        controls_per_context=5000,
    )
    cells = ad.read_h5ad(simulate(folder / "screen", screen) / "only.h5ad")
    scanpy.pp.normalize_total(cells, target_sum=TARGET_SUM)
    scanpy.pp.log1p(cells)
    cells.write_h5ad(folder / "log1p.h5ad")
    start = time.perf_counter()
    ingest([folder / "log1p.h5ad"], folder / "store")
    return folder / "log1p.h5ad", folder / "store", time.perf_counter() - start


def compare(file: Path, store: Path, seconds: float, peers: str, prepared: float) -> str:
    """Every reader in turn, `ROUNDS` times."""
    here = {name: peers if name in NEEDS else sys.executable for name in READERS}
    missing = [
        name for name in NEEDS if subprocess.run([peers, "-c", f"import {NEEDS[name]}"], capture_output=True).returncode
    ]
    for name in missing:
        print(f"{name} is left out: {peers} cannot import {NEEDS[name]}; name a Python that can with --peers")
    found: dict[str, list[dict]] = {name: [] for name in READERS if name not in missing}
    for _ in range(ROUNDS):
        for name in found:
            found[name].append(run(here[name], name, file, store, seconds))
            print(f"{name}: {found[name][-1]['cells_per_s']:,.0f} cells/s", flush=True)
    opened = CellStore.open(store)
    rates = {name: np.array([r["cells_per_s"] for r in rounds]) for name, rounds in found.items()}
    base = "cell-load" if "cell-load" in rates else "anndata, backed"
    slowest = np.median(rates[base])
    ours = np.median(rates["vcell"])
    lines = [
        f"{opened.n_cells:,} cells × {opened.n_genes:,} genes, {opened.stored_values / opened.n_cells:,.0f} values a cell; {SETS} "
        f"sets of {SET_SIZE} perturbed and {SET_SIZE} control cells a step; {os.cpu_count()} cores and as many loader threads or workers, {platform.machine()}, no GPU. "
        f"Preparing the store, once, takes the time in which we then read {prepared * ours / opened.n_cells:.0f} times its cells.\n",
        f"| reader | cells per second, relative to {base} (median of {ROUNDS}, range) | start-up relative to ours | peak memory, MB |",
        "|---|---|---|---|",
    ]
    startup = np.median([r["startup_s"] for r in found["vcell"]])
    for name, rounds in found.items():
        rate, begin = rates[name] / slowest, np.median([r["startup_s"] for r in rounds]) / startup
        memory = np.median([r["peak_mb"] for r in rounds])
        lines.append(
            f"| {name} | {np.median(rate):.1f} ({rate.min():.1f} to {rate.max():.1f}) | {begin:.1f} | {memory:,.0f} |"
        )
    return "\n".join([*lines, "", *where_time_goes(found["vcell"])])


def run(python: str, name: str, file: Path, store: Path, seconds: float) -> dict:
    """One reader in a process of its own, and the memory it and its workers took at the peak."""
    script = Path(__file__).with_name("readers.py")
    process = subprocess.Popen([python, script, name, file, store, str(seconds)], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory_mb(process.pid))
        time.sleep(0.2)
    assert process.stdout is not None
    said = process.stdout.read().strip().splitlines()
    if process.returncode or not said:
        raise SystemExit(f"{name} failed; run it alone: {python} {script} '{name}' FILE STORE 5")
    return {**json.loads(said[-1]), "peak_mb": peak}


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and its children: shared pages, of mapped files too, count once."""
    total = 0.0
    for child in [pid, *children(pid)]:
        try:
            text = Path(f"/proc/{child}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
        except (OSError, StopIteration):
            continue
    return total


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, path.read_text().split()):
                found += [child, *children(child)]
        except OSError:
            continue
    return found


def where_time_goes(rounds: list[dict]) -> list[str]:
    """Our step in its parts, and how near the last is to what the memory allows."""
    parts = {key: float(np.median([r["parts"][key] for r in rounds])) for key in rounds[0]["parts"]}
    whole = parts["sampler"] + parts["rows"] + parts["dense"]
    moved = parts["dense_bytes"] / parts["dense"] / parts["bandwidth"]
    shares = ", ".join(f"{what} {parts[key] / whole:.0%}" for key, what in
                       (("sampler", "drawing the cells"), ("rows", "copying their rows"), ("dense", "densify and log1p")))  # fmt: skip
    return [
        f"Where our time goes, one after the other: {shares}; rows are copied by threads ahead of the rest. Densifying fills "
        f"memory at {moved:.0%} of the speed at which numpy fills it here."
    ]


def beside_training(store: CellStore, device: str) -> str:
    """What a step waits for the loader: rows fetched ahead, and the store on the device, next to a state_sm step."""
    from vcell.config import build, compose
    from vcell.data.datamodule import PrefetchLoader
    from vcell.model.losses import SetLoss

    sampler = CellSetSampler(store, [g for g in store.groups if g[1] != store.control], SET_SIZE, SETS)
    model = build(compose("train", ["model=state_sm"]).model, n_genes=store.n_genes, perturbation_width=5120).to(device)
    optimizer, loss = torch.optim.AdamW(model.parameters(), 1e-4), SetLoss({"energy": 1.0})
    vectors = torch.randn(SETS, 5120, device=device)

    def wait() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    def step(batch) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            value = loss(model(batch.control_SCG, vectors), batch)["loss"].mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    def seconds_a_step(gather: Gather, train: bool, steps: int = 30) -> float:
        pin = torch.device(device).type == "cuda"
        loader = PrefetchLoader(lambda s: gather.fetch(sampler.batch(s), pin), lambda: range(steps + 5), threads=4)
        start = 0.0
        for i, fetched in enumerate(loader):
            if i == 5:
                wait()
                start = time.perf_counter()
            batch = gather.to_device(fetched, device)
            if train:
                step(batch)
        wait()
        return (time.perf_counter() - start) / steps

    ways = {"rows fetched ahead": Gather(store, TARGET_SUM)}
    ways["store on the device"] = Gather(store, TARGET_SUM, resident=DeviceRows.of(store, device))
    batch = ways["rows fetched ahead"].to_device(ways["rows fetched ahead"].fetch(sampler.batch(0)), device)
    for _ in range(3):
        step(batch)
    wait()
    start = time.perf_counter()
    for _ in range(30):
        step(batch)
    wait()
    alone = (time.perf_counter() - start) / 30
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    lines = [
        f"{store.n_cells:,} cells × {store.n_genes:,} genes; {name}; bf16; a state_sm step alone {alone * 1e3:.1f} ms.\n",
        "| loader | ms a batch, alone | training step with it, ms | waits, share of the step |",
        "|---|---|---|---|",
    ]
    for way, gather in ways.items():
        loading, training = seconds_a_step(gather, train=False), seconds_a_step(gather, train=True)
        lines.append(f"| {way} | {loading * 1e3:.1f} | {training * 1e3:.1f} | {max(0.0, 1 - alone / training):.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
