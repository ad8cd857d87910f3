"""A whole evaluation at the full size of a challenge: memory and time.

    python benchmarks/score_full.py [--year 2026] [--contexts 1] [--targets 300] [--cells 400] [--controls 18400] [--genes 18533] [--folder DIR]

A screen is simulated, 400 cells of each of 300 targets and 18,400 control cells in each context (2025: 1,000 cells of each of 100 targets and
38,000 control cells), and predicted cells are drawn from its control cells, as many as measured; a prediction of 2025 holds the control
cells too. `vcell.evaluate engine=fast` then scores them with every reference that needs no run: copied controls, wrong targets, the
official floor and the split halves. Contexts are scored one after the other, so that memory is that of one, and time grows with their
number. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse
from score import timed
from tables import device_name, processor, save

from vcell.data.files.writer import H5adWriter
from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate

CONTROL = "non-targeting"
AT_ONCE = 2000  # cells
# targets, cells of each, control cells, genes
SIZES = {2025: (100, 1_000, 38_000, 18_080), 2026: (300, 400, 18_400, 18_533)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--year", type=int, default=2026, choices=list(SIZES), help="[%(default)s]")
    parser.add_argument("--targets", type=int, help="[as of the year]")
    parser.add_argument("--cells", type=int, help="of each target [as of the year]")
    parser.add_argument("--controls", type=int, help="of each context [as of the year]")
    parser.add_argument("--genes", type=int, help="[as of the year]")
    parser.add_argument("--folder", type=Path, help="where to work; 12 GB a context at full size [a temporary one]")
    parser.add_argument("--data", type=Path, help="where pred.h5ad and real.h5ad of a former time lie [made anew]")
    options = parser.parse_args()
    for name, size in zip(("targets", "cells", "controls", "genes"), SIZES[options.year], strict=True):
        setattr(options, name, getattr(options, name) or size)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.data is None:
            make(folder, options)
        else:
            for file in ("pred.h5ad", "real.h5ad"):
                (folder / file).symlink_to((options.data / file).resolve())
        stored = sum(stored_values(folder / file) for file in ("pred.h5ad", "real.h5ad"))
        command = [sys.executable, "-m", "vcell.evaluate", f"pred={folder}/pred.h5ad", f"real={folder}/real.h5ad",
                   f"challenge=vcc{options.year}", "engine=fast", "pictures=false", f"out={folder}/scores"]  # fmt: skip
        seconds, peak = timed(command)
        sizes = f"--year {options.year} --contexts {options.contexts} --targets {options.targets} --cells {options.cells} --controls {options.controls} --genes {options.genes}"
        save(
            f"score_full_{device_name()}_{options.year}",
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
    for file, wanted, cells_of in (
        ("real", lambda of: np.arange(len(of)), measured),
        ("pred", lambda of: np.flatnonzero((of != CONTROL) | (options.year == 2025)), predicted),
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
                for block in cells_of(part, of, r):
                    writer.write(sparse.csr_matrix(block).astype(np.float32))
    for name in names:
        (folder / "screen" / f"{name}.h5ad").unlink()


def measured(part: ad.AnnData, labels: np.ndarray, rows: np.ndarray) -> Iterator[sparse.csr_matrix]:
    """Cells as simulated, some at a time."""
    for i in range(0, len(rows), AT_ONCE):
        yield part[rows[i : i + AT_ONCE]].to_memory().X


def predicted(part: ad.AnnData, labels: np.ndarray, rows: np.ndarray) -> Iterator[sparse.csr_matrix]:
    """Control cells: under targets' labels drawn from the first 4,000, under their own as they are."""
    controls = np.flatnonzero(labels == CONTROL)
    drawn = np.random.default_rng(0).integers(0, min(4000, len(controls)), len(rows))
    place = np.where(labels[rows] == CONTROL, np.searchsorted(controls, rows), drawn)
    cells = part[controls[: place.max() + 1]].to_memory().X
    for i in range(0, len(rows), AT_ONCE):
        yield cells[place[i : i + AT_ONCE]]


def report(options: argparse.Namespace, stored: int, seconds: float, peak: int) -> str:
    predicted = options.contexts * options.targets * options.cells
    return "\n".join(
        [
            f"{processor()}. {predicted:,} predicted cells, about as many measured ones and {options.contexts * options.controls:,} control cells, "
            f"{options.genes:,} genes, {stored / 1e9:.2f} billion stored values.\n",
            "| contexts | peak memory | of the cells as float32 CSR | minutes, of this machine |",
            "|---|---|---|---|",
            f"| {options.contexts} | {peak / 1e9:.1f} GB | {peak / (8 * stored):.2f} | {seconds / 60:.0f} |",
        ]
    )


if __name__ == "__main__":
    main()
