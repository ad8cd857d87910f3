"""Training steps per second next to arc-state 0.11.1: same file, same shape, same machine, both by their own command.

    python benchmarks/vs_state.py --peer PYTHON [--genes 2000] [--steps 2 12] [--rounds 3]

`PYTHON` is that of an environment with arc-state (pip install arc-state==0.11.1); without one the benchmark says so and ends. Each
command trains twice, for a few steps and for some more: a step's time comes from the difference, without start-up and validation, and
the rest of the shorter one is overhead: starting, opening the data (for ours, a cell store that already exists), validating and saving.
arc-state runs at its defaults but for the shape (state_sm, 16 sets of 128 cells, all genes) and, where there are fewer cores than its 12
loader workers, as many workers as cores; ours as `vcell.train` does (`trainer.precision=auto`), and once more with STATE's own head on a GPU, in bf16 on a
CPU. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import scanpy
import torch
from tables import device_name, processor, save

from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate

VERSION = "0.11.1"


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=sys.executable, help="Python of an environment with arc-state [this one]")
    parser.add_argument("--genes", type=int, default=18080 if gpu else 2000, help="[%(default)s]")
    parser.add_argument("--steps", type=int, nargs=2, default=[100, 400] if gpu else [2, 12], help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    options = parser.parse_args()
    command = Path(options.peer).absolute().with_name("state")
    found = subprocess.run(
        [options.peer, "-c", "import importlib.metadata as m; print(m.version('arc-state'))"],
        capture_output=True,
        text=True,
    )
    if found.returncode or not command.is_file():
        print(
            f"skipped: {options.peer} has no arc-state. pip install arc-state=={VERSION} in an environment of its own, and --peer ITS_PYTHON"
        )
        return
    version = found.stdout.strip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.genes)
        ways = {
            f"arc-state {version}": lambda steps: peer(command, folder, steps),
            "vcell": lambda steps: ours(folder, steps),
        }
        other = (
            ("STATE's head", "model.head=state_bottleneck") if gpu else ("bf16-mixed", "trainer.precision=bf16-mixed")
        )
        ways[f"vcell, {other[0]}"] = lambda steps: ours(folder, steps, other[1])
        ways["vcell"](1)  # prepares the store
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        overhead: dict[str, list[float]] = {way: [] for way in ways}
        first, last = options.steps
        for _ in range(options.rounds):
            for way, run in ways.items():
                few, many = run(first), run(last)
                step = (many - few) / (last - first)
                seconds[way].append(step)
                overhead[way].append(few - first * step)
                print(f"{way}: {step:.3g} s a step, {overhead[way][-1]:.3g} s of overhead", flush=True)
    save(
        f"vs_state_{device_name()}_{options.genes}",
        f"python benchmarks/vs_state.py --rounds {options.rounds} --peer PYTHON --genes {options.genes}",
        report(seconds, overhead, options, gpu),
    )


def make(folder: Path, genes: int) -> None:
    """A file of log1p of counts per 10,000, and arc-state's description of it."""
    screen = Screen(
        genes=genes, contexts=("only",), targets=60, test_targets=0, cells_per_target=150, controls_per_context=3000
    )
    cells = ad.read_h5ad(simulate(folder / "screen", screen) / "only.h5ad")
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype("category")
    cells.write_h5ad(folder / "screen.h5ad")
    held = [t for t in cells.obs["target_gene"].unique() if t != "non-targeting"][:2]
    (folder / "screen.toml").write_text(
        f'[datasets]\nscreen = "{folder / "screen.h5ad"}"\n[training]\nscreen = "train"\n'
        f'[fewshot."screen.only"]\nval = ["{held[0]}"]\ntest = ["{held[1]}"]\n'
    )


def peer(command: Path, folder: Path, steps: int) -> float:
    """Seconds that arc-state takes to train for `steps`."""
    shutil.rmtree(folder / "peer", ignore_errors=True)
    return run([
        command, "tx", "train", f"data.kwargs.toml_config_path={folder / 'screen.toml'}", "data.kwargs.pert_col=target_gene",
        "data.kwargs.cell_type_key=cell_type", "data.kwargs.batch_col=batch", "data.kwargs.control_pert=non-targeting",
        "data.kwargs.embed_key=null", f"data.kwargs.num_workers={min(12, os.cpu_count() or 1)}", "data.kwargs.output_space=all", "model=state_sm", "training.batch_size=16", "use_wandb=false",
        f"training.max_steps={steps}", "training.val_freq=1000000", "training.ckpt_every_n_steps=1000000",
        f"output_dir={folder / 'peer'}", "name=run",
    ], folder)  # fmt: skip


def ours(folder: Path, steps: int, *overrides: str) -> float:
    """Seconds that vcell takes to train for `steps`."""
    return run([
        sys.executable, "-m", "vcell.train", "experiment=perturb_seq", "name=run", f"data.path={folder / 'screen.h5ad'}", "model=state_sm",
        "data.sets.set_size=128", "data.sets.sets_per_step=16", "data.split.val.perturbations=0.02", "overwrite=true",
        "data.split.test.perturbations=0.02", f"trainer.max_steps={steps}", "trainer.val_check_interval=1000000", *overrides,
    ], folder)  # fmt: skip


def run(command: list, folder: Path) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def report(
    seconds: dict[str, list[float]], overhead: dict[str, list[float]], options: argparse.Namespace, gpu: bool
) -> str:
    where = torch.cuda.get_device_name() if gpu else processor()
    first = next(iter(seconds))
    base, base_overhead = statistics.median(seconds[first]), statistics.median(overhead[first])
    lines = [
        f"{where}; {options.genes:,} genes; state_sm, 16 sets of 128 cells; one-hot perturbations; median of {options.rounds} rounds.\n",
        "| trainer | steps per second, relative to arc-state (range) | overhead, relative (range) |"
        + (" ms a step | 40,000 steps |" if gpu else ""),
        f"|---|---|---|{'---|---|' if gpu else ''}",
    ]
    for way, times in seconds.items():
        middle = statistics.median(times)
        other = [time / base_overhead for time in overhead[way]]
        line = f"| {way} | {base / middle:.1f} ({base / max(times):.1f} to {base / min(times):.1f}) "
        line += f"| {statistics.median(other):.2f} ({min(other):.2f} to {max(other):.2f}) |"
        lines.append(line + (f" {middle * 1e3:.1f} | {middle * 40_000 / 60:.0f} min |" if gpu else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
