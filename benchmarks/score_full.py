"""A whole evaluation at the full size of 2026: memory and time.

    python benchmarks/score_full.py [--contexts 1] [--targets 300] [--cells 400] [--controls 18400] [--genes 18533] [--folder DIR]

A screen is simulated, 400 cells of each of 300 targets and 18,400 control cells in each context, and predicted cells are drawn from its
control cells, as many as measured. `vcell.evaluate challenge=vcc2026 engine=fast` then scores them with every reference that needs no run:
copied controls, wrong targets, the official floor and the five split halves. Contexts are scored one after the other, so that memory is
that of one, and time grows with their number. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse
from score import timed
from tables import device_name, save

from vcell.data.files.writer import H5adWriter
from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--targets", type=int, default=300, help="[%(default)s]")
    parser.add_argument("--cells", type=int, default=400, help="of each target [%(default)s]")
    parser.add_argument("--controls", type=int, default=18_400, help="of each context [%(default)s]")
    parser.add_argument("--genes", type=int, default=18_533, help="[%(default)s]")
    parser.add_argument("--folder", type=Path, help="where to work; 12 GB a context at full size [a temporary one]")
    parser.add_argument("--data", type=Path, help="where pred.h5ad and real.h5ad of a former time lie [made anew]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.data is None:
            make(folder, options)
        else:
            for file in ("pred.h5ad", "real.h5ad"):
                (folder / file).symlink_to((options.data / file).resolve())
        stored = sum(stored_values(folder / file) for file in ("pred.h5ad", "real.h5ad"))
        command = [sys.executable, "-m", "vcell.evaluate", f"pred={folder}/pred.h5ad", f"real={folder}/real.h5ad", "challenge=vcc2026",
                   "engine=fast", "pictures=false", f"out={folder}/scores"]  # fmt: skip
        seconds, peak = timed(command)
        sizes = f"--contexts {options.contexts} --targets {options.targets} --cells {options.cells} --controls {options.controls} --genes {options.genes}"
        save(
            f"score_full_{device_name()}",
            f"python benchmarks/score_full.py {sizes}",
            report(options, stored, seconds, peak),
        )


def stored_values(path: Path) -> int:
    with h5py.File(path) as file:
        return file["X/data"].shape[0]


def make(folder: Path, options: argparse.Namespace) -> None:
    """real.h5ad and pred.h5ad."""
    names = tuple(f"C{i}" for i in range(options.contexts))
    screen = Screen(
        genes=options.genes, contexts=names, targets=options.targets, test_targets=0, cells_per_target=options.cells,
        controls_per_context=options.controls, library_size=12_000,
    )  # fmt: skip
    simulate(folder / "screen", screen)
    parts = [ad.read_h5ad(folder / "screen" / f"{name}.h5ad", backed="r") for name in names]
    genes = list(parts[0].var_names)
    labels = [part.obs["target_gene"].astype(str).to_numpy() for part in parts]
    for file, wanted in (
        ("real", lambda of: np.arange(len(of))),
        ("pred", lambda of: np.flatnonzero(of != "non-targeting")),
    ):
        rows = [wanted(of) for of in labels]
        obs = pd.DataFrame(
            {
                "target_gene": np.concatenate([of[r] for of, r in zip(labels, rows, strict=True)]),
                "context": np.repeat(names, [len(r) for r in rows]),
            }
        ).astype("category")
        obs.index = obs.index.astype(str)
        with H5adWriter(folder / f"{file}.h5ad", obs, genes) as writer:
            for part, of, r in zip(parts, labels, rows, strict=True):
                if file == "pred":  # control cells under targets' labels
                    controls = np.flatnonzero(of == "non-targeting")
                    cells = part[np.sort(controls[:4000])].to_memory().X
                    drawn = np.random.default_rng(0).integers(0, cells.shape[0], len(r))
                    blocks = (cells[drawn[i : i + 2000]] for i in range(0, len(r), 2000))
                else:
                    blocks = (part[r[i : i + 2000]].to_memory().X for i in range(0, len(r), 2000))
                for block in blocks:
                    writer.write(sparse.csr_matrix(block).astype(np.float32))
    for name in names:
        (folder / "screen" / f"{name}.h5ad").unlink()


def report(options: argparse.Namespace, stored: int, seconds: float, peak: int) -> str:
    predicted = options.contexts * options.targets * options.cells
    return "\n".join(
        [
            f"{os.cpu_count()} cores. {predicted:,} predicted cells, about as many measured ones and {options.contexts * options.controls:,} control cells, "
            f"{options.genes:,} genes, {stored / 1e9:.2f} billion stored values.\n",
            "| contexts | peak memory | of the cells as float32 CSR | minutes, of this machine |",
            "|---|---|---|---|",
            f"| {options.contexts} | {peak / 1e9:.1f} GB | {peak / (8 * stored):.2f} | {seconds / 60:.0f} |",
        ]
    )


if __name__ == "__main__":
    main()
