"""Everything that only a GPU can show, in one go: the tests marked `gpu`, that no step waits, fp16 as on older cards, and the benchmarks.

    python benchmarks/gpu.py [--quick]          (make gpu)

Writes benchmarks/results/gpu_DEVICE.md: what held, what ways of training take, and where a step's time goes beside what its bytes and its arithmetic
would take at the speeds that this GPU shows in a copy and in a product of matrices. `--quick` (four minutes) leaves out the larger models, an odd number of
genes, `compile=true`, the loader and inference. Ends with 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from tables import device_name, save
from train_step import SET_SIZE, make, measure

from vcell.config import compose
from vcell.data.store.store import CellStore
from vcell.system import cores
from vcell.training.build import make_data, make_module, make_trainer, split_groups
from vcell.training.train import quieten

HERE = Path(__file__).parent
GENES, ODD_GENES, FEW_GENES, SETS = 18_080, 18_533, 2_000, 16
WAITING = (10, 20)  # steps in which a wait is an error
# What an ideal step of state_sm moves and computes: 16 sets of 128 cells, 18,080 genes, 6,000 of them in a cell. Each input is read once and each
# output written once; weights, gradients and the optimiser's state are float32, activations bf16.
LEAST: dict[str, tuple[float, float]] = {  # GB, GFLOP
    "cells made dense": (0.4, 0),
    "network, forward": (0.9, 219),
    "loss, forward": (0.5, 28.5),
    "backward": (1.5, 457),
    "clipping and AdamW": (1.95, 0),
}
WAYS: dict[str, tuple[list[str], str]] = {  # settings, callbacks
    "as it comes": ([], "none"),
    "cuda_graph=false": (["cuda_graph=false"], "none"),
    "callbacks of training": ([], "default"),
    "weights averaged": ([], "average"),
    "store not on the GPU": (["data.sets.resident=false"], "none"),
    "loss=energy_contrastive": (["loss=energy_contrastive"], "none"),
    "loss.precision=float32": (["loss.precision=float32"], "none"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short ones only")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "error: torch finds no GPU here. What can be checked without one is in make test (tests/training/test_step_cost.py)"
        )
        return 1
    quieten()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured, failed = speeds(folder, options.quick), []
        rows: list[str] = []
        for what, fine, said in held(folder, options.quick):
            rows.append(f"| {what} | {'yes' if fine else '**no**'} | {said} |")
            failed += [] if fine else [what]
            write(rows, measured)  # so that what is cut short leaves what it has found
    failed += [] if options.quick else run_benchmarks()
    print(f"gpu          did not hold: {'; '.join(failed)}" if failed else "gpu          everything held")
    return 1 if failed else 0


def write(rows: list[str], measured: str) -> None:
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {cores()} CPU cores.\n",
        measured,
        "\n## Checks\n",
        "| check | held | |",
        "|---|---|---|",
        *rows,
    ]
    save(f"gpu_{device_name()}", f"python benchmarks/gpu.py {' '.join(sys.argv[1:])}", "\n".join(lines))


def speeds(folder: Path, quick: bool) -> str:
    """A table of ways to train, and one of the parts of a step."""
    (folder / "large").mkdir()
    make(folder / "large", GENES)
    ways = dict(WAYS) if quick else {**WAYS, "compile=true": (["compile=true"], "none")}
    found = {}
    for label, (overrides, callbacks) in ways.items():
        found[label] = measured(folder / "large", GENES, overrides, callbacks, split=not found)
    if not quick:
        (folder / "odd").mkdir()
        make(folder / "odd", ODD_GENES)
        found[f"{ODD_GENES:,} genes"] = measured(folder / "odd", ODD_GENES, [], "none")
    lines = [
        f"## Ways to train\n\nstate_sm, bf16, {GENES:,} genes, {SETS} sets of 128 cells a step and as many controls, energy loss, AdamW; settings other than the first "
        "row's are named.\n",
        "| | ms a step | of it kernels | kernels | main thread, ms | cells/s | model FLOPs, share of the peak | peak memory, GB |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {label} | {cells_of(row)} |" for label, row in found.items()),
        f"\n## Where a step's time goes\n\n{roofline(found['as it comes'])}",
    ]
    print("\n".join(lines), flush=True)
    return "\n".join(lines)


def cells_of(row: dict[str, Any]) -> str:
    if "failed" in row:
        return row["failed"]
    seconds, busy = row["seconds"], row["busy"]
    share = f"{row['flops'] / seconds / row['peak_flops']:.0%}" if row["peak_flops"] else "unknown"
    numbers = (
        f"{seconds * 1e3:.2f}",
        f"{busy * 1e3:.2f} ms ({busy / seconds:.0%})",
        f"{row['kernels']:,}",
        f"{row['host'] * 1e3:.2f}",
    )
    return " | ".join([*numbers, f"{2 * SETS * SET_SIZE['state_sm'] / seconds:,.0f}", share, f"{row['memory_gb']:.1f}"])


def measured(folder: Path, genes: int, overrides: list[str], callbacks: str, split: bool = False) -> dict[str, Any]:
    options = Namespace(genes=genes, sets=SETS, steps=100, overrides=overrides, callbacks=callbacks)
    try:
        return measure("state_sm", folder, options, split=5 if split else 0)
    except Exception as error:
        return {"failed": " ".join(str(error).split())[:200]}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def roofline(row: dict[str, Any]) -> str:
    """Time of the kernels of each part of a step, beside the least that it could take."""
    if "failed" in row:
        return "not measured: see above"
    bandwidth, arithmetic = copied_bytes_per_second(), half_precision_flops()
    parts = dict(zip(LEAST, row["parts"].values(), strict=True))
    lines = [
        f"A copy moves {bandwidth / 1e12:.2f} TB/s, a product of 8,192 x 8,192 matrices in bf16 does {arithmetic / 1e12:.0f} TFLOP/s. The least is what bytes and "
        "arithmetic take one after the other at these speeds.\n",
        "| part | GB, least | GFLOP | ms, least | ms of its kernels | ratio |",
        "|---|---|---|---|---|---|",
    ]
    total = 0.0
    for part, (gb, gflop) in LEAST.items():
        least = gb * 1e9 / bandwidth + gflop * 1e9 / arithmetic
        total += least
        lines.append(
            f"| {part} | {gb} | {gflop:,} | {least * 1e3:.2f} | {parts[part] * 1e3:.2f} | {parts[part] / least:.1f} |"
        )
    (gb, gflop), spent = (sum(column) for column in zip(*LEAST.values(), strict=True)), sum(parts.values())
    lines.append(f"| sum | {gb:.1f} | {gflop:,.0f} | {total * 1e3:.2f} | {spent * 1e3:.2f} | {spent / total:.1f} |")
    whole = row["seconds"]
    return "\n".join([*lines, f"\nA step of training takes {whole * 1e3:.2f} ms, {whole / total:.1f} times the least."])


def copied_bytes_per_second() -> float:
    """Bytes read and written."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * len(source) / seconds_of(lambda: target.copy_(source))


def half_precision_flops() -> float:
    one = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * len(one) ** 3 / seconds_of(lambda: one @ one)


def seconds_of(run: Callable[[], Any], times: int = 10) -> float:
    for _ in range(3):
        run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / times


def held(folder: Path, quick: bool) -> Iterator[tuple[str, bool, str]]:
    """What was checked, whether it held, and what was said."""
    (folder / "small").mkdir()
    make(folder / "small", FEW_GENES)
    small = folder / "small"
    checks: dict[str, Callable[[], str]] = {
        "no wait in steps 10 to 20, store on the GPU": lambda: no_waits(small, "data.sets.resident=true"),
        "the same without a CUDA graph": lambda: no_waits(small, "cuda_graph=false"),
        "no wait in steps 10 to 20, store streamed": lambda: no_waits(small, "data.sets.resident=false"),
        "no wait in steps 10 to 20, averaged weights": lambda: no_waits(small, callbacks="[default,average]"),
        "fp16 with loss scaling": lambda: train(small, [], "trainer.precision=16-mixed"),
        "an odd number of genes": lambda: train(small, [], "data.hvg=501"),
        "tests marked gpu": lambda: gpu_tests(quick),
    }
    for what, check in checks.items():
        yield what, *outcome(check)


def outcome(check: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, check()
    except Exception as error:  # whatever it is, the other checks go on
        return False, " ".join(str(error).split())[:300]


def gpu_tests(quick: bool) -> str:
    """Those of the files that have any: others may need packages that a machine for training lacks."""
    files = [str(path) for path in sorted((HERE.parent / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    if quick:
        command += ["-k", "not compiled"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    print(done.stdout[-3000:], flush=True)
    closing = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    if done.returncode:
        raise RuntimeError(closing)
    return closing


class NoWaits(Callback):
    """Makes torch raise an error where the host would wait for the device."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == WAITING[0]:
            torch.cuda.set_sync_debug_mode("error")
        if trainer.global_step == WAITING[1]:
            torch.cuda.set_sync_debug_mode("default")


def no_waits(folder: Path, *overrides: str, callbacks: str = "none") -> str:
    try:
        return train(folder, [NoWaits()], *overrides, callbacks=callbacks)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def train(folder: Path, more: list[Callback], *overrides: str, callbacks: str = "none") -> str:
    """Trains for 25 steps; gives the last loss."""
    config = compose("train", [
        "data=perturb_seq", f"data.path={folder}/none.h5ad", "model=state_sm", "data.split.val.perturbations=0", f"callbacks={callbacks}",
        "data.split.test.perturbations=0", "data.sets.set_size=64", "data.sets.sets_per_step=4", "data.target_sum=10000",
        f"perturbation.path={folder}/table.pt", f"run_dir={folder}/run", "trainer.val_check_interval=1000000", "trainer.max_steps=25",
        "trainer.log_every_n_steps=100", *overrides,
    ])  # fmt: skip
    store = CellStore.open(folder / "store")
    data = make_data(config, store, split_groups(config.data, store)[0])
    module = make_module(config, {"model": dict(config.model)}, data)
    for name in ("progress", "throughput", "last", "best", "collapse", "curves"):  # these wait now and then, by design
        if config.callbacks is not None and name in config.callbacks:
            config.callbacks[name] = None
    last = LastLoss()
    trainer = make_trainer(config, module.model, [*more, last])
    trainer.fit(module, data)
    if not torch.isfinite(last.loss):
        raise RuntimeError(f"the loss after 25 steps is {float(last.loss)}")
    return f"loss {float(last.loss):.4f} after 25 steps"


class LastLoss(Callback):
    loss = torch.tensor(float("nan"))

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.loss = outputs["loss"].detach()


def run_benchmarks() -> list[str]:
    """Each by its own command; gives those that failed."""
    ways = [
        ["train_step.py"],
        ["loader.py", "--device", "cuda", "--genes", "18080"],
        ["infer.py", "--years", "2026", "--scale", "0.1"],
    ]
    return [" ".join(way) for way in ways if subprocess.run([sys.executable, str(HERE / way[0]), *way[1:]]).returncode]


if __name__ == "__main__":
    sys.exit(main())
