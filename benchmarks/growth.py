"""What grows faster than the data: each command at 1, 4 and 16 times the cells, genes, targets and contexts.

    python benchmarks/growth.py [--scales 1 4 16]

A simulated screen is prepared, a small model trained on it, held-out targets predicted and scored; one size grows at a time. Processor
time (user and system) of each process is compared, so that waiting does not count; a step is the difference of a longer and a shorter
training. The exponent is that of time between the last two sizes, what does not grow (start-up) included. A store's opening and what it holds
in memory are measured by cells. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tables import device_name, save

BASE = {"cells": 40, "genes": 400, "targets": 12, "contexts": 2}  # cells: of each target
CONTROLS = 10  # times the cells of a target
STEPS = (2, 42)
WORK = ("prepare", "train, to its first step", "a step", "infer", "evaluate 2025", "evaluate 2026")
OPENING = """
import json, sys, time
import vcell.data.store.store
from vcell.data.store.store import CellStore
start = time.process_time()
store = CellStore.open(sys.argv[1])
store.groups
seconds = time.process_time() - start
held = store.obs.memory_usage(deep=True).sum() + sum(cells.nbytes for cells in store.groups.values())
print(json.dumps([store.n_cells, seconds, int(held)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4, 16], help="[%(default)s]")
    options = parser.parse_args()
    found: dict[str, dict[int, dict[str, float]]] = {}
    opening: list[tuple[int, float, float]] = []
    base: dict[str, float] = {}
    for what in BASE:
        for scale in options.scales:
            with tempfile.TemporaryDirectory() as name:
                if scale == 1 and base:
                    times = base
                else:
                    times = measure(Path(name), {**BASE, what: BASE[what] * scale})
                    if what == "cells":
                        opening.append(opened(Path(name)))
                base = base or times
            found.setdefault(what, {})[scale] = times
            print(f"{what} x {scale}: {times}", flush=True)
    scales = " ".join(map(str, options.scales))
    save(
        f"growth_{device_name()}",
        f"python benchmarks/growth.py --scales {scales}",
        report(found, opening, options.scales),
    )


def measure(folder: Path, size: dict[str, int]) -> dict[str, float]:
    """Processor seconds of each command."""
    contexts = ",".join(f"C{i}" for i in range(size["contexts"]))
    vcell(folder, "simulate", "out=screen", f"genes={size['genes']}", f"targets={size['targets']}", "test_targets=2", f"contexts=[{contexts}]",
          f"cells_per_target={size['cells']}", f"controls_per_context={CONTROLS * size['cells']}")  # fmt: skip
    data = ["data=perturb_seq", "data.path=screen/C*.h5ad"]
    times = {"prepare": vcell(folder, "prepare", *data)}
    run = ["experiment=perturb_seq", *data, "model=tiny", "data.sets.set_size=16", "data.sets.sets_per_step=8", "data.split.val.perturbations=0",
           "data.split.test.perturbations=0.1", "trainer.val_check_interval=1000000", "overwrite=true", "name=run"]  # fmt: skip
    first, last = (vcell(folder, "train", *run, f"trainer.max_steps={steps}") for steps in STEPS)
    times |= {"train, to its first step": first, "a step": (last - first) / (STEPS[1] - STEPS[0])}
    times["infer"] = vcell(folder, "infer", "ckpt=last.ckpt", "out=pred.h5ad", f"n_cells={size['cells']}")
    vcell(folder, "infer", "ckpt=last.ckpt", "out=counts.h5ad", "challenge.values=counts", f"n_cells={size['cells']}")
    for year, pred in ((2025, "pred.h5ad"), (2026, "counts.h5ad")):
        times[f"evaluate {year}"] = vcell(
            folder, "evaluate", f"pred={pred}", "real=data/perturb_seq/store", f"challenge=vcc{year}", "challenge.n_targets=null", "engine=fast",
            "columns.perturbation=target_gene", "columns.context=context", "pictures=false", f"out=scores{year}",
        )  # fmt: skip
    return times


def vcell(folder: Path, verb: str, *arguments: str) -> float:
    """Processor seconds of a command and of those it starts."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"vcell.{verb}", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: vcell {verb} {' '.join(arguments)}\n{said.decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def opened(folder: Path) -> tuple[int, float, float]:
    """Cells of the store, processor seconds to open it and find its groups, and bytes it then holds."""
    command = [sys.executable, "-c", OPENING, "data/perturb_seq/store"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    cells, seconds, held = json.loads(done.stdout)
    return int(cells), float(seconds), float(held)


def report(
    found: dict[str, dict[int, dict[str, float]]], opening: list[tuple[int, float, float]], scales: list[int]
) -> str:
    last, before = scales[-1], scales[-2]
    lines = [
        f"{os.cpu_count()} cores. From {BASE['contexts']} contexts x {BASE['targets']} targets x {BASE['cells']} cells, {BASE['genes']} genes; "
        f"each column: processor time at {last} times this size relative to {scales[0]} time, and the exponent between {before} and {last} times.\n",
        f"| | {' | '.join(found)} |",
        "|---" * (len(found) + 1) + "|",
    ]
    for work in WORK:
        cells = []
        for times in found.values():
            exponent = math.log(max(times[last][work], 1e-9) / max(times[before][work], 1e-9)) / math.log(last / before)
            cells.append(f"{times[last][work] / times[scales[0]][work]:.1f} ({exponent:.2f})")
        lines.append(f"| {work} | {' | '.join(cells)} |")
    few, many = opening[0], opening[-1]
    slope = [(many[i] - few[i]) / (many[0] - few[0]) for i in (1, 2)]
    lines.append(
        f"\nOpening a store of {many[0]:,} cells and finding its groups: {many[1]:.2f} s of processor time, {many[2] / 1e6:.0f} MB. By the slope from "
        f"{few[0]:,} cells on, one of 100 million cells would take {slope[0] * 1e8:.0f} s and {slope[1] * 1e8 / 1e9:.1f} GB: the labels of its cells; "
        "counts stay on disk."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
