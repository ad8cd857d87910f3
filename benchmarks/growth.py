"""What grows faster than the data: each command at 1, 4 and 16 times the cells, genes, targets and contexts.

    python benchmarks/growth.py [--scales 1 4 16] [--targets 600 2400]

A simulated screen is prepared, a small model trained on it, held-out targets predicted and scored; one size grows at a time. Processor
time (user and system) of each process is compared, so that waiting does not count; a step is the difference of a longer and a shorter
training. The exponent is that of time between the last two sizes, what does not grow (start-up) included. A store's opening and what it holds
in memory are measured by cells. Then a screen of many targets with few cells each, as genome-wide ones are, and one of four times as many, with the
transfer prior: there, what takes time by target shows, and what takes time by pairs of targets. Prints tables and writes them to
benchmarks/results/.
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
MANY = {"cells": 12, "genes": 5000, "contexts": 2}  # of each of many targets
WORK = ("prepare", "train, to its first step", "a step", "infer", "evaluate 2025", "evaluate 2026")
WORK_OF_MANY = (
    "prepare",
    "train, to its first step",
    "train model=transfer",
    "infer",
    "evaluate 2025",
    "evaluate 2026",
)
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
    parser.add_argument("--scales", type=int, nargs="*", default=[1, 4, 16], help="none: leave these out [%(default)s]")
    parser.add_argument("--targets", type=int, nargs="*", default=[600, 2400], help="of screens of many [%(default)s]")
    options = parser.parse_args()
    if len(options.targets) > 1:
        many = {targets: measured(MANY | {"targets": targets}, many=True) for targets in options.targets}
        asked = " ".join(map(str, options.targets))
        command = f"python benchmarks/growth.py --scales --targets {asked}"
        save(f"growth_targets_{device_name()}", command, report_of_many(many))
    if len(options.scales) > 1:
        by_size(options.scales)


def by_size(scales: list[int]) -> None:
    """One size at a time, at some multiples of `BASE`."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    opening: list[tuple[int, float, float]] = []
    base: dict[str, float] = {}
    for what in BASE:
        for scale in scales:
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
    asked = " ".join(map(str, scales))
    save(f"growth_{device_name()}", f"python benchmarks/growth.py --scales {asked}", report(found, opening, scales))


def measured(size: dict[str, int], many: bool = False) -> dict[str, float]:
    """`measure` in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        times = measure(Path(name), size, many)
    print(f"{size}: {times}", flush=True)
    return times


def measure(folder: Path, size: dict[str, int], many: bool = False) -> dict[str, float]:
    """Processor seconds of each command; of `many` targets, those of the transfer prior in place of a step's."""
    contexts = ",".join(f"C{i}" for i in range(size["contexts"]))
    vcell(folder, "simulate", "out=screen", f"genes={size['genes']}", f"targets={size['targets']}", "test_targets=2", f"contexts=[{contexts}]",
          f"cells_per_target={size['cells']}", f"controls_per_context={CONTROLS * size['cells']}")  # fmt: skip
    data = ["data=perturb_seq", "data.path=screen/C*.h5ad"]
    times = {"prepare": vcell(folder, "prepare", *data)}
    run = ["experiment=perturb_seq", *data, "model=tiny", "data.sets.set_size=16", "data.sets.sets_per_step=8", "data.split.val.perturbations=0",
           "data.split.test.perturbations=0.1", "trainer.val_check_interval=1000000", "overwrite=true", "name=run"]  # fmt: skip
    times["train, to its first step"] = first = vcell(folder, "train", *run, f"trainer.max_steps={STEPS[0]}")
    if many:
        transfer = [argument for argument in run if argument != "model=tiny"]
        times["train model=transfer"] = vcell(
            folder, "train", *transfer, "model=transfer", "perturbation.path=screen/embedding.pt"
        )
    else:
        times["a step"] = (vcell(folder, "train", *run, f"trainer.max_steps={STEPS[1]}") - first) / (
            STEPS[1] - STEPS[0]
        )
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
            exponent = exponent_of(times[before][work], times[last][work], last / before)
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


def exponent_of(before: float, after: float, times: float) -> float:
    """Of the growth from one time to another at so many times the size."""
    return math.log(max(after, 1e-9) / max(before, 1e-9)) / math.log(times)


def report_of_many(many: dict[int, dict[str, float]]) -> str:
    """Seconds at each number of targets, and the exponent between the last two."""
    few, most = list(many)[-2:]
    lines = [
        f"Many targets: {MANY['contexts']} contexts x targets x {MANY['cells']} cells, {MANY['genes']:,} genes, a tenth of the targets held out; seconds of processor "
        f"time, and the exponent between {few:,} and {most:,} targets. Scores, and the regression of the transfer prior by likeness, compare targets in pairs.\n",
        f"| | {' | '.join(f'{targets:,} targets' for targets in many)} | exponent |",
        "|---" * (len(many) + 2) + "|",
    ]
    for work in WORK_OF_MANY:
        exponent = exponent_of(many[few][work], many[most][work], most / few)
        lines.append(f"| {work} | {' | '.join(f'{times[work]:.0f}' for times in many.values())} | {exponent:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
