"""What measuring effects and fitting the transfer prior cost at the size of a public atlas: 6 contexts x 2,000 targets, with a table as wide as ESM2's.

    python benchmarks/effects.py [--targets 2000] [--genes 18000] [--cells 40] [--width 5120] [--folder FOLDER]

Writes cells with random counts (about 1,200 genes a cell; what they mean does not matter here), reads them into a cell store, and runs
`vcell.train model=transfer` three times: without a bank, measuring one (`bank=FOLDER`), and reading it. Prints minutes and peak memory of each
command, and what opening the bank takes; writes them to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from tables import save

from vcell.effects.bank import EffectBank

CONTEXTS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=2000, help="[%(default)s]")
    parser.add_argument("--genes", type=int, default=18000, help="[%(default)s]")
    parser.add_argument("--cells", type=int, default=20, help="per target [%(default)s]")
    parser.add_argument("--width", type=int, default=5120, help="of the perturbations' vectors [%(default)s]")
    parser.add_argument("--folder", type=Path, help="where to work: 10 GB [a temporary one]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        os.chdir(name)
        rows = measure(options)
    command = (
        f"python benchmarks/effects.py --targets {options.targets} --genes {options.genes} --cells {options.cells} "
        f"--width {options.width}"
    )
    lines = [
        "| command | minutes | peak memory of its own |",
        "|---|---|---|",
        *(f"| {what} | {m:.1f} | {gb:.1f} GB |" for what, m, gb in rows),
    ]
    save("effects", command, f"{len(os.sched_getaffinity(0))} cores.\n\n" + "\n".join(lines))


def make(context: str, options: argparse.Namespace, rng: np.random.Generator) -> None:
    """Cells of one context: each has the genes of one of a thousand patterns, and counts of its own."""
    labels = np.repeat([*(f"G{t}" for t in range(options.targets)), *["non-targeting"] * 100], options.cells)
    weight = rng.gamma(0.3, size=options.genes)
    pattern = [np.unique(rng.choice(options.genes, 2500, p=weight / weight.sum())) for _ in range(1000)]
    chosen = rng.integers(0, len(pattern), len(labels))
    starts = np.concatenate([[0], np.cumsum([len(pattern[c]) for c in chosen])])
    values = 1 + rng.geometric(0.4, starts[-1]).astype(np.float32)
    cells = sparse.csr_matrix(
        (values, np.concatenate([pattern[c] for c in chosen]), starts), (len(labels), options.genes)
    )
    obs = {"target_gene": labels, "cell_type": context, "batch": rng.integers(0, 24, len(labels)).astype(str)}
    frame = pd.DataFrame(obs, index=[f"{context}_{i}" for i in range(len(labels))])
    ad.AnnData(cells, obs=frame, var=pd.DataFrame(index=[f"G{g}" for g in range(options.genes)])).write_h5ad(
        f"{context}.h5ad"
    )


def measure(options: argparse.Namespace) -> list[tuple[str, float, float]]:
    """Minutes and gigabytes of each command."""
    rng = np.random.default_rng(0)
    for number in range(CONTEXTS):
        make(f"line{number}", options, rng)
    table = {
        f"G{t}": torch.from_numpy(rng.standard_normal(options.width).astype(np.float32)) for t in range(options.targets)
    }
    torch.save(table, "embedding.pt")
    data = [
        "data.path='line?.h5ad'",
        "data.name=atlas",
        "data.store=store",
        "perturbation.path=embedding.pt",
    ]
    rows = [("`vcell.prepare`", *run("vcell.prepare", *data[:3]))]
    fit = [
        "experiment=perturb_seq",
        "model=transfer",
        *data,
        "data.split.val.perturbations=0",
        "data.split.test.perturbations=0",
    ]
    runs = {"without a bank": [], "measuring a bank": ["bank=bank"], "reading it": ["bank=bank"]}
    for number, (what, bank_of) in enumerate(runs.items()):
        rows.append((f"`vcell.train model=transfer`, {what}", *run("vcell.train", *fit, *bank_of, f"name=run{number}")))
        print(rows[-1], flush=True)
    start = time.perf_counter()
    bank = EffectBank.open(Path("bank"))
    seconds = time.perf_counter() - start
    rows.append((f"opening the bank of {len(bank):,} groups", seconds / 60, 0.0))
    print(f"{len(bank):,} groups opened in {seconds:.2f} s")
    return rows


def run(command: str, *arguments: str) -> tuple[float, float]:
    """Runs a command; its minutes and peak memory in GB."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", command, *arguments])
    while process.poll() is None:
        peak = max(peak, own_memory(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return (time.perf_counter() - start) / 60, peak / 1e9


def own_memory(pid: int) -> int:
    """Bytes that a process holds itself: pages of files that it has mapped can be dropped at any time."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
