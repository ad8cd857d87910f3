"""Everything that only a GPU can show, in one go: the tests marked `gpu`, that no step waits, fp16 as on older cards, and the benchmarks.

    python benchmarks/gpu.py [--quick]          (make gpu)

Writes benchmarks/results/gpu_DEVICE.md, with what held and where a step's time goes, and the tables of the other benchmarks, each with the
device's name. `--quick` leaves out the long ones (larger models, inference at size). Ends with 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from tables import device_name, save
from train_step import make

from vcell.config import compose
from vcell.data.store.store import CellStore
from vcell.training.build import make_data, make_module, make_trainer, split_groups
from vcell.training.train import quieten

HERE = Path(__file__).parent
GENES = 2_000
WAITING = (10, 20)  # steps in which a wait is an error


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
        make(Path(name), GENES)
        checks: dict[str, Callable[[], str]] = {
            "tests marked gpu": gpu_tests,
            "no wait in steps 10 to 20, store on the GPU": lambda: no_waits(Path(name), "data.sets.resident=true"),
            "no wait in steps 10 to 20, store streamed": lambda: no_waits(Path(name), "data.sets.resident=false"),
            "no wait in steps 10 to 20, averaged weights": lambda: no_waits(Path(name), callbacks="[default,average]"),
            "fp16 with loss scaling": lambda: train(Path(name), [], "trainer.precision=16-mixed"),
            "an odd number of genes": lambda: train(Path(name), [], "data.hvg=501"),
            "network and loss compiled": lambda: train(Path(name), [], "compile=true"),
        }
        rows = [(what, *outcome(check)) for what, check in checks.items()]
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}.\n",
        "| check | held | |",
        "|---|---|---|",
        *(f"| {what} | {'yes' if held else '**no**'} | {said} |" for what, held, said in rows),
    ]
    save(f"gpu_{device_name()}", "python benchmarks/gpu.py", "\n".join(lines))
    failed = [what for what, held, _ in rows if not held] + run_benchmarks(options.quick)
    print(f"gpu          did not hold: {'; '.join(failed)}" if failed else "gpu          everything held")
    return 1 if failed else 0


def outcome(check: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, check()
    except Exception as error:  # whatever it is, the other checks go on
        return False, " ".join(str(error).split())[:300]


def gpu_tests() -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(HERE.parent / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
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
    trainer = make_trainer(config, module.model, more)
    trainer.fit(module, data)
    return (
        f"loss {float(trainer.callback_metrics.get('train/loss', torch.tensor(float('nan')))):.4f}"
        if trainer.callback_metrics
        else "25 steps"
    )


def run_benchmarks(quick: bool) -> list[str]:
    """Each by its own command; gives those that failed."""
    ways = [
        ["train_step.py", "--models", "state_sm"],
        ["train_step.py", "--models", "state_sm", "--callbacks", "average", "--name", "average"],
        ["train_step.py", "--models", "state_sm", "--overrides", "data.sets.resident=false", "--name", "streamed"],
        ["train_step.py", "--models", "state_sm", "--overrides", "compile=true", "--name", "compiled"],
        ["train_step.py", "--models", "state_sm", "--overrides", "loss.precision=float32", "--name", "energy_float32"],
        ["train_step.py", "--models", "state_sm", "--genes", "18533"],
        ["loader.py", "--device", "cuda", "--genes", "18080"],
    ]
    if not quick:
        ways += [["train_step.py"], ["infer.py", "--years", "2026", "--scale", "0.1"]]
    return [" ".join(way) for way in ways if subprocess.run([sys.executable, str(HERE / way[0]), *way[1:]]).returncode]


if __name__ == "__main__":
    sys.exit(main())
