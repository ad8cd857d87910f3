"""Does bf16 on this processor train the same model, and how much faster? What trainer.precision=auto rests on.

    python benchmarks/precision.py [--genes 2000] [--steps 150] [--seeds 3]

state_sm is trained on a simulated screen (`screen=field`) in float32 and in bf16, from the same seeds and on the same sets of cells. Validation scores of each way are compared with those of float32, next to how far seeds lie
apart; times are those of the steps, relative to float32. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from tables import device_name, save

WAYS = {
    "float32": ["trainer.precision=32-true"],
    "bf16-mixed": ["trainer.precision=bf16-mixed"],
}
SCORES = ("val/loss", "val/discrimination", "val/delta_correlation", "val/mae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=2000, help="[%(default)s]")
    parser.add_argument("--steps", type=int, default=150, help="[%(default)s]")
    parser.add_argument("--seeds", type=int, default=3, help="[%(default)s]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vcell(folder, "simulate", "screen=field", "out=screen", f"genes={options.genes}", "targets=60",
              "test_targets=0", "contexts=[A,B]", "cells_per_target=60", "controls_per_context=1500")  # fmt: skip
        train(folder, "warm", 1, 0, [])  # reads the files
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for seed in range(options.seeds):
            for way, overrides in WAYS.items():
                few = train(folder, "run", 2, seed, overrides)["seconds"]
                row = train(folder, "run", options.steps, seed, overrides)
                found[way].append({**row, "step": (row["seconds"] - few) / (options.steps - 2)})
                print(f"{way}, seed {seed}: {found[way][-1]}", flush=True)
    command = f"python benchmarks/precision.py --genes {options.genes} --steps {options.steps} --seeds {options.seeds}"
    save(f"precision_{device_name()}_{options.genes}", command, report(found, options))


def train(folder: Path, name: str, steps: int, seed: int, overrides: list[str]) -> dict[str, float]:
    """Seconds of the command, and the last validation's scores."""
    shutil.rmtree(folder / "runs" / name, ignore_errors=True)
    start = time.perf_counter()
    vcell(folder, "train", "experiment=perturb_seq", "data.path=screen/[AB].h5ad", f"name={name}", "model=state_sm", "data.sets.set_size=64",
          "data.sets.sets_per_step=8", "data.split.val.perturbations=0.2", "data.split.test.perturbations=0", f"trainer.max_steps={steps}",
          f"trainer.val_check_interval={steps}", f"seed={seed}", "perturbation.path=screen/embedding.pt", "callbacks=none", *overrides)  # fmt: skip
    seconds = time.perf_counter() - start
    table = pd.read_csv(folder / "runs" / name / "metrics.csv")
    return {"seconds": seconds, **{score: float(table[score].dropna().iloc[-1]) for score in SCORES}}


def vcell(folder: Path, verb: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"vcell.{verb}", *arguments], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"failed: vcell {verb} {' '.join(arguments)}\n{done.stdout[-500:]}{done.stderr[-2000:]}")


def report(found: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> str:
    units = [unit for unit in ("avx512_bf16", "amx_tile") if getattr(torch.cpu, f"_is_{unit}_supported", bool)()]
    base = found["float32"]
    lines = [
        f"{torch.get_num_threads()} CPU threads{', with ' + ' and '.join(units) if units else ''}; state_sm, {options.genes:,} genes, "
        f"{options.steps} steps of 8 sets of 64 cells, {options.seeds} seeds. Differences are those from float32 at the same seed: mean, and the "
        "largest; the last row is how far float32 runs of other seeds lie from their mean.\n",
        f"| precision | steps per second, relative | {' | '.join(SCORES)} |",
        "|---" * (len(SCORES) + 2) + "|",
    ]
    for way, rows in found.items():
        speed = statistics.median(b["step"] / r["step"] for b, r in zip(base, rows, strict=True))
        cells = []
        for score in SCORES:
            apart = [r[score] - b[score] for b, r in zip(base, rows, strict=True)]
            mean = statistics.mean(r[score] for r in rows)
            cells.append(
                f"{mean:.4f}" if way == "float32" else f"{statistics.mean(apart):+.4f} ({max(apart, key=abs):+.4f})"
            )
        lines.append(f"| {way} | {speed:.2f} | {' | '.join(cells)} |")
    spread = [f"± {statistics.stdev(b[score] for b in base):.4f}" for score in SCORES]
    lines.append(f"| float32, between seeds | | {' | '.join(spread)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
