"""Where a training step's time goes, and how much of the hardware it uses.

    python benchmarks/train_step.py [--models state_sm state state_lg] [--genes 18080] [--sets 16] [--steps 20]

Each model trains with its published set size, in a process of its own, on a simulated screen: first through the trainer as
`vcell.train` does, for the speed; then step by step, part by part, for the split of time: on a GPU of the time in which its kernels run. Takes the GPU where there is one, in bf16, and
the CPU otherwise, where one set a step suffices and only shares and ratios are reported. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from tables import device_name, save

from vcell.config import compose
from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate
from vcell.data.store.ingest import ingest
from vcell.data.store.store import CellStore
from vcell.training.build import make_data, make_module, make_trainer, split_groups
from vcell.training.cost import words
from vcell.training.throughput import peak_flops, peak_memory_gb
from vcell.training.train import quieten

SET_SIZE = {"state_sm": 128, "state": 512, "state_lg": 512}
PARTS = ("data", "forward", "loss", "backward", "optimiser")
TABLE_WIDTH = 5120  # of ESM2
PROFILED = 20  # steps


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SET_SIZE), help="[%(default)s]")
    parser.add_argument("--genes", type=int, default=18080, help="[%(default)s]")
    parser.add_argument("--sets", type=int, default=16 if gpu else 1, help="a step [%(default)s]")
    parser.add_argument(
        "--steps", type=int, default=100 if gpu else 4, help="measured, after 20 %% more to warm up [%(default)s]"
    )
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="of vcell.train: compile=true trainer.precision=32-true ..."
    )
    parser.add_argument(
        "--callbacks", default="none", help="none, or those of training: default, average [%(default)s]"
    )
    parser.add_argument("--name", default="", help="added to the name of the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, Path(options.folder), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.genes)
        found = {name: in_own_process(name, folder) for name in options.models}
    save(
        f"train_step_{device_name()}_{options.genes}{'_' * bool(options.name)}{options.name}",
        f"python benchmarks/train_step.py {' '.join(sys.argv[1:])}",
        report(found, options),
    )


def make(folder: Path, genes: int) -> None:
    """A store of 8,000 cells, and a table as wide as ESM2's."""
    screen = Screen(
        genes=genes, contexts=("only",), targets=60, test_targets=0, cells_per_target=100, controls_per_context=2000
    )
    simulate(folder / "screen", screen)
    ingest([folder / "screen" / "only.h5ad"], folder / "store")
    names = {p for _, p in CellStore.open(folder / "store").groups}
    torch.save({name: torch.randn(TABLE_WIDTH) for name in sorted(names)}, folder / "table.pt")


def in_own_process(name: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", name, "--folder", folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"failed": "out of memory, or another error: see above"}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{name}: {found['seconds']:.3g} s a step", flush=True)
    return found


def measure(name: str, folder: Path, options: argparse.Namespace, split: int | None = None) -> dict[str, Any]:
    """Time of a step, and of its parts over `split` more (None: a fifth as many)."""
    quieten()
    watch = Watch(options)
    config = compose("train", [
        "data=perturb_seq", f"data.path={folder}/none.h5ad", f"model={name}", "data.split.val.perturbations=0", f"callbacks=[{'default,' * (options.callbacks == 'average')}{options.callbacks}]",
        "data.split.test.perturbations=0", f"data.sets.set_size={SET_SIZE[name]}", f"data.sets.sets_per_step={options.sets}",
        "data.target_sum=10000", f"perturbation.path={folder}/table.pt", f"run_dir={folder}/run", "trainer.val_check_interval=1000000",
        f"trainer.max_steps={watch.end}", *options.overrides,
    ])  # fmt: skip
    store = CellStore.open(folder / "store")
    assigned, _ = split_groups(config.data, store)
    data = make_data(config, store, assigned)
    module = make_module(config, {"model": dict(config.model)}, data)
    if options.callbacks == "none":
        config.callbacks = None
    trainer = make_trainer(config, module.model, [watch])
    trainer.fit(module, data)
    found = {
        "model": name, "seconds": watch.seconds, "busy": watch.busy, "kernels": watch.kernels, "host": watch.host, "flops": module.flops, "peak_flops": peak_flops(trainer),
        "parameters": sum(p.numel() for p in module.model.parameters()), "memory_gb": peak_memory_gb(trainer.strategy.root_device),
        "precision": trainer.precision,
    }  # fmt: skip
    steps = max(2, options.steps // 5) if split is None else split
    return {**found, "parts": split_of_time(trainer, module, data, steps) if steps else {}}


def warm_up(options: argparse.Namespace) -> int:
    return max(1, options.steps // 5)


class Watch(Callback):
    """Seconds a step after the warm-up, and those of the main thread's processor; and on a GPU, in further steps, those in which it computed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.first, self.last = warm_up(options), warm_up(options) + options.steps
        self.end = self.last + (PROFILED if torch.cuda.is_available() else 0)
        self.seconds, self.host, self.busy, self.kernels = 0.0, 0.0, 0.0, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.first:
            wait()
            self.start, self.host = time.perf_counter(), time.thread_time()
        if trainer.global_step == self.last:
            self.host = (time.thread_time() - self.host) / (self.last - self.first)
            wait()
            self.seconds = (time.perf_counter() - self.start) / (self.last - self.first)
            if self.end > self.last:
                self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self.profiler.__enter__()
        elif trainer.global_step == self.end:
            wait()
            self.profiler.__exit__(None, None, None)
            kernels = kernel_times(self.profiler)
            self.busy, self.kernels = sum(kernels) / PROFILED, len(kernels) // PROFILED


def kernel_times(profiler: torch.profiler.profile) -> list[float]:
    """Seconds of each kernel and copy on the GPU; spans that annotate some of them are none."""
    found = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [e.device_time / 1e6 for e in found if not e.name.startswith("Optimizer.")]


def split_of_time(trainer: Trainer, module: Any, data: Any, steps: int) -> dict[str, float]:
    """Seconds of each part of a step, medians: on a GPU those of its kernels, else each waited for."""
    device = trainer.strategy.root_device
    module.to(device).train()
    (optimizer,) = trainer.optimizers
    for state in optimizer.state.values():  # the trainer has taken them off the GPU
        state.update({key: value.to(device) for key, value in state.items() if torch.is_tensor(value)})
    sampler, times = data.sampler("train"), {part: [] for part in PARTS}

    def timed(part: str, run: Callable[[], Any]) -> Any:
        wait()
        if torch.cuda.is_available():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                result = run()
                wait()
            times[part].append(sum(kernel_times(profiler)))
            return result
        start = time.perf_counter()
        result = run()
        wait()
        times[part].append(time.perf_counter() - start)
        return result

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    for step in range(steps):
        batch = timed("data", lambda step=step: data.gather.to_device(data.gather.fetch(sampler.batch(step)), device))
        with trainer.precision_plugin.forward_context():
            predicted = timed("forward", lambda batch=batch: module.predict(batch))
            loss = timed("loss", lambda batch=batch, predicted=predicted: module.loss(predicted, batch)["loss"].mean())
        timed("backward", loss.backward)
        timed("optimiser", update)
    return {part: sorted(values)[len(values) // 2] for part, values in times.items()}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    gpu = torch.cuda.is_available()
    fine = {name: row for name, row in found.items() if "failed" not in row}
    base = next(iter(fine.values()))
    speeds = (
        ["ms a step", "of it kernels", "kernels", "main thread, ms", "cells/s", "utilisation"]
        if gpu
        else ["cells/s, relative"]
    )
    columns = ["model", "cells a set", "parameters", "FLOP a step", *speeds, *PARTS, "peak memory, GB"]
    where = (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        if gpu
        else f"{torch.get_num_threads()} CPU threads, no GPU"
    )
    lines = [
        f"{where}; {base['precision']}; {options.genes:,} genes; {options.sets} sets a step, of each model's own size; energy loss; AdamW. "
        + (
            "Parts: time of their kernels.\n"
            if gpu
            else "Parts are waited for one by one; in training, data come ahead of the step.\n"
        ),
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for name, row in found.items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} |")
            continue
        set_size = SET_SIZE[row["model"]]
        cells = 2 * options.sets * set_size
        whole = sum(row["parts"].values())
        speed = [f"{set_size / row['seconds'] / (SET_SIZE[base['model']] / base['seconds']):.2f}"]
        if gpu:
            share = f"{row['flops'] / row['seconds'] / row['peak_flops']:.0%}" if row["peak_flops"] else "unknown"
            speed = [
                f"{row['seconds'] * 1e3:.2f}",
                f"{row['busy'] * 1e3:.2f} ms ({row['busy'] / row['seconds']:.0%})",
                f"{row['kernels']:,}",
                f"{row['host'] * 1e3:.2f}",
                f"{cells / row['seconds']:,.0f}",
                share,
            ]
        shares = [f"{row['parts'][part] / whole:.0%}" + f" ({row['parts'][part] * 1e3:.2f} ms)" * gpu for part in PARTS]
        cost = [str(set_size), f"{row['parameters'] / 1e6:.0f} M", words(row["flops"])]
        lines.append(f"| {name} | {' | '.join([*cost, *speed, *shares])} | {row['memory_gb']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
