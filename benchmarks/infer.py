"""From a checkpoint to a submission at full size: time, peak memory, file size; next to arc-state and cell-eval, and the disk.

    python benchmarks/infer.py [--years 2025 2026] [--scale 1.0] [--model state_sm] [--peer PYTHON] [--folder DIR]

2025: 100,000 cells x 18,080 genes, log1p, with control cells. 2026: 300 targets x 400 cells x 3 contexts, 18,533 genes, whole counts,
predicted from control files alone. A screen is simulated and a model trained for two steps; then the commands are run as users run
them: `vcell.infer`, `vcell.package`. `PYTHON` is that of an environment with arc-state 0.11.1 (pip install arc-state==0.11.1); with it,
`state tx infer` and `cell-eval prep` are run on as many cells of 2025 as `--peer-scale` says, for they hold all of them in memory. The
disk's share is the time that writing the same bytes takes, with nothing else to do. Prints a table and writes it to
benchmarks/results/; on a CPU only ratios, for seconds say nothing of another machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy
import torch
from tables import device_name, save

from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate

TARGETS = {2025: 250, 2026: 300}
CELLS = 400
GENES = {2025: 18080, 2026: 18533}
CONTEXTS = {2025: ("H1",), 2026: ("A", "B", "C")}


@dataclass
class Cost:
    """What a command took."""

    seconds: float
    peak: int  # bytes of the largest process
    size: int = 0  # of what it wrote


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, nargs="+", default=[2025, 2026], choices=[2025, 2026], help="[both]")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full number of cells [%(default)s]")
    parser.add_argument("--model", default="state_sm", help="[%(default)s]")
    parser.add_argument("--peer", help="Python of an environment with arc-state [none]")
    parser.add_argument(
        "--peer-scale", type=float, default=0.1, help="share of the full number of cells for it [%(default)s]"
    )
    parser.add_argument("--folder", type=Path, help="where to work; 40 GB at full size [a temporary one]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for year in options.years:
            folder = Path(name) / str(year)
            make(folder, year, options.model)
            rows = {"vcell": ours(folder, year, options.scale)}
            if options.peer and year == 2025:
                rows[f"vcell, {options.peer_scale:.0%} of the cells"] = ours(folder, year, options.peer_scale)
                rows[f"arc-state, cell-eval, {options.peer_scale:.0%} of the cells"] = peer(folder, options)
            shutil.rmtree(folder / "out", ignore_errors=True)
            command = f"python benchmarks/infer.py --years {year} --scale {options.scale:g} --model {options.model}"
            peer_flags = f" --peer PYTHON --peer-scale {options.peer_scale:g}" if options.peer and year == 2025 else ""
            save(f"infer_{device_name()}_{year}", command + peer_flags, report(rows, folder, year, options, gpu))
            shutil.rmtree(folder)


def make(folder: Path, year: int, model: str) -> None:
    """A screen, its lists, its control files, and a checkpoint that saw two steps of it."""
    screen = Screen(
        genes=GENES[year], contexts=CONTEXTS[year], targets=300, test_targets=0, cells_per_target=4, controls_per_context=3000,
        library_size=12_000,
    )  # fmt: skip
    simulate(folder / "screen", screen)
    targets = pd.read_csv(folder / "screen" / "pert_counts_Training.csv")["target_gene"].head(TARGETS[year])
    pd.DataFrame({"target_gene": targets}).to_csv(folder / "targets.csv", index=False)
    for context in CONTEXTS[year]:
        cells = ad.read_h5ad(folder / "screen" / f"{context}.h5ad")
        cells = cells[cells.obs["target_gene"] == "non-targeting"].copy()
        cells.obs["context"] = context
        cells.write_h5ad(folder / f"controls_{context}.h5ad")
    run([
        sys.executable, "-m", "vcell.train", "experiment=perturb_seq", "name=run", f"data.path={folder}/screen/{CONTEXTS[year][0]}.h5ad",
        f"model={model}", "data.sets.set_size=128", "data.sets.sets_per_step=2", f"perturbation.path={folder}/screen/embedding.pt",
        "trainer.max_steps=2", "trainer.val_check_interval=1000",
    ], folder)  # fmt: skip


def ours(folder: Path, year: int, scale: float) -> tuple[Cost, Cost]:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    cells = max(1, round(CELLS * scale))
    challenge = [f"challenge=vcc{year}", "genes=screen/gene_names.csv", "targets=targets.csv"]
    if year == 2026:
        challenge += [f"challenge.cells={cells}", "controls=controls_?.h5ad"]
    predict = ["vcell.infer", "ckpt=last.ckpt", "out=out/pred.h5ad", *challenge]
    predict += [f"n_cells={cells}", "contexts=[H1]"] if year == 2025 else []
    first = run([sys.executable, "-m", *predict], folder, out / "pred.h5ad")
    pack = ["vcell.package", "pred=out/pred.h5ad", "by=vcell", *(c for c in challenge if not c.startswith("controls"))]
    return first, run([sys.executable, "-m", *pack], folder, out / "pred.vcc")


def peer(folder: Path, options: argparse.Namespace) -> tuple[Cost, Cost]:
    """`state tx infer` on copied control cells with perturbed labels, and `cell-eval prep` of what it wrote."""
    python, state = options.peer, Path(options.peer).with_name("state")
    cells = ad.read_h5ad(folder / "screen" / "H1.h5ad")
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    cells.write_h5ad(folder / "log1p.h5ad")
    labels = [t for t in cells.obs["target_gene"].unique() if t != "non-targeting"]
    (folder / "screen.toml").write_text(
        f'[datasets]\nscreen = "{folder / "log1p.h5ad"}"\n[training]\nscreen = "train"\n'
        f'[fewshot."screen.H1"]\nval = ["{labels[0]}"]\ntest = ["{labels[1]}"]\n'
    )
    run([
        state, "tx", "train", f"data.kwargs.toml_config_path={folder / 'screen.toml'}", "data.kwargs.pert_col=target_gene",
        "data.kwargs.cell_type_key=cell_type", "data.kwargs.batch_col=batch", "data.kwargs.control_pert=non-targeting",
        "data.kwargs.embed_key=null", "data.kwargs.num_workers=2", "data.kwargs.output_space=all", f"model={options.model}",
        "training.batch_size=2", "use_wandb=false", "training.max_steps=2", "training.val_freq=1000000",
        "training.ckpt_every_n_steps=2", f"output_dir={folder / 'peer'}", "name=run",
    ], folder)  # fmt: skip
    wanted = pd.read_csv(folder / "targets.csv")["target_gene"]
    controls = np.flatnonzero(cells.obs["target_gene"] == "non-targeting")
    number = round(CELLS * options.peer_scale)
    rng = np.random.default_rng(0)
    template = cells[np.concatenate([controls, rng.choice(controls, number * len(wanted))])].copy()
    template.obs["target_gene"] = np.concatenate([["non-targeting"] * len(controls), np.repeat(wanted, number)])
    template.obs_names_make_unique()
    template.write_h5ad(folder / "template.h5ad")
    checkpoint = next((folder / "peer" / "run").glob("checkpoints/*.ckpt"))
    first = run([
        state, "tx", "infer", "--checkpoint", checkpoint, "--model-dir", folder / "peer" / "run", "--adata", folder / "template.h5ad",
        "--pert-col", "target_gene", "--output", folder / "peer.h5ad", "--celltype-col", "cell_type", "--batch-col", "batch",
        "--control-pert", "non-targeting",
    ], folder, folder / "peer.h5ad")  # fmt: skip
    second = run([
        python, "-m", "cell_eval", "prep", "-i", folder / "peer.h5ad", "-g", folder / "screen" / "gene_names.csv", "-o", folder / "peer.vcc",
    ], folder, folder / "peer.vcc")  # fmt: skip
    return first, second


def run(command: list, folder: Path, out: Path | None = None) -> Cost:
    """Runs a command as a process of its own; the operating system says what it took."""
    log = folder / "log.txt"
    start = time.perf_counter()
    with log.open("w") as said:
        # arc-state's own checkpoint holds a numpy scalar, which torch loads only when told to
        environment = {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
        process = subprocess.Popen([*map(str, command)], cwd=folder, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"failed: {' '.join(map(str, command))}\n{log.read_text()[-3000:]}")
    cost = Cost(seconds, usage.ru_maxrss * 1024, out.stat().st_size if out else 0)
    print(
        f"{' '.join(map(str, command[1:4]))}: {cost.seconds:.0f} s, {cost.peak / 1e9:.2f} GB, {cost.size / 1e9:.2f} GB",
        flush=True,
    )
    return cost


def seconds_to_write(size: int, folder: Path) -> float:
    """Seconds that writing `size` bytes to the disk takes, and having them there."""
    block = np.random.default_rng(0).bytes(64 * 2**20)
    start = time.perf_counter()
    with (folder / "floor").open("wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    (folder / "floor").unlink()
    return seconds


def report(rows: dict[str, tuple[Cost, Cost]], folder: Path, year: int, options: argparse.Namespace, gpu: bool) -> str:
    where = torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} cores, {platform.machine()}, no GPU"
    cells = round(CELLS * options.scale) * TARGETS[year] * len(CONTEXTS[year])
    lines = [
        f"{where}; {cells:,} predicted cells, {GENES[year]:,} genes, {options.model}; peak memory is the largest process's.\n",
        f"| who, step | peak memory | file |{' seconds | cells a second |' if gpu else ''} time, relative to writing the file's bytes |",
        f"|---|---|---|{'---|---|' if gpu else ''}---|",
    ]
    for who, costs in rows.items():
        for step, cost in zip(("predict", "pack"), costs, strict=True):
            line = f"| {who}: {step} | {cost.peak / 1e9:.1f} GB | {cost.size / 1e9:.2f} GB |"
            line += f" {cost.seconds:.0f} | {cells / cost.seconds:,.0f} |" if gpu else ""
            lines.append(line + f" {cost.seconds / seconds_to_write(cost.size, folder):.1f} |")
    if len(rows) == 3:
        _, small, theirs = rows.values()
        ratios = [b.seconds / a.seconds for a, b in zip(small, theirs, strict=True)]
        lines.append(
            f"\nOn {options.peer_scale:.0%} of the cells, seconds of arc-state over vcell: predict {ratios[0]:.1f}; cell-eval over vcell: pack {ratios[1]:.1f}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
