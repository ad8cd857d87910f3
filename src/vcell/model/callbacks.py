"""What happens around training: progress, checkpoints on time and on signals, metrics and their curves."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from vcell.data.batch import CellSetBatch
from vcell.progress import progress_bar


class CsvLogger(Logger):
    """`metrics.csv` in the run's folder, one row a logged step.

    Unlike Lightning's, it goes on where a resumed run goes on: rows from before stay, rows that the run now does
    again are replaced.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        self.started = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = 0 if step is None else step
        if not self.started:
            self.rows, self.started = [row for row in read_metrics(self.path) if row["step"] < step], True
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1].update(values)
        else:
            self.rows.append({"step": step, **values})
        self._write()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's configuration lies beside, in config.yaml."""

    def _write(self) -> None:
        columns = list(dict.fromkeys(k for row in self.rows for k in row))
        scratch = self.path.with_suffix(".tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        scratch.replace(self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.csv`; none where there is no file yet."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file)]
    return [{**row, "step": int(row["step"])} for row in rows if "step" in row]


class Progress(Callback):
    """A bar with loss and cells per second, over all devices."""

    bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.cells, self.since, self.bar = 0, time.monotonic(), None
        if trainer.is_global_zero:
            self.bar = progress_bar(trainer.max_steps, "training", "step", initial=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: CellSetBatch, batch_idx: int
    ) -> None:
        sets, cells, _ = batch.control_SCG.shape
        self.cells += 2 * sets * cells * trainer.world_size  # controls and perturbed cells
        if self.bar is None:
            return
        elapsed = time.monotonic() - self.since
        if elapsed > 1.0 or trainer.global_step >= trainer.max_steps:
            # reading the loss waits for the device, so only now and then
            rate = self.cells / max(elapsed, 1e-9)
            self.bar.set_postfix_str(f"loss {float(outputs['loss']):.4f}, {rate:,.0f} cells/s", refresh=False)
            module.log("cells_per_second", rate)
            self.cells, self.since = 0, time.monotonic()
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.cells, self.since = 0, time.monotonic()  # validation is no training time

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, module)


class KeepLast(Callback):
    """Writes `last.ckpt` every so many steps, at the end, and when asked to stop (SIGTERM, SIGUSR1).

    SLURM sends these before it takes a node away. The run saves, asks to be queued again if the job allows it
    (SIGUSR1), and ends; the same command continues it.

    Parameters
    ----------
    folder
        Of the checkpoints.
    every_n_steps
        Steps between two saves: what a kill without warning can cost.
    """

    def __init__(self, folder: str, every_n_steps: int) -> None:
        self.path, self.every = Path(folder) / "last.ckpt", every_n_steps
        self.signal: int | None = None
        self.saved_step = -1
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.saved_step = trainer.global_step
        self.handlers = {n: signal.signal(n, self._remember) for n in (signal.SIGTERM, signal.SIGUSR1)}

    def _remember(self, number: int, _: Any) -> None:
        self.signal = number

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._asked_to_stop(trainer):
            self._save(trainer)
            self._requeue(trainer)
            trainer.should_stop = True
        elif trainer.global_step >= self.saved_step + self.every:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self.saved_step:  # the same on every rank: saving is done by all together
            trainer.save_checkpoint(self.path)
            self.saved_step = trainer.global_step

    def _asked_to_stop(self, trainer: Trainer) -> bool:
        """Whether any rank got the signal; ranks ask each other now and then, so that all stop at one step."""
        if trainer.world_size == 1:
            return self.signal is not None
        if trainer.global_step % 10:
            return False
        return trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)

    def _requeue(self, trainer: Trainer) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        if not (trainer.is_global_zero and job and self.signal == signal.SIGUSR1):
            return
        try:
            code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
            print(f"saved {self.path}; scontrol requeue {job} ended with exit code {code}", flush=True)
        except OSError as error:  # in a container, often
            print(
                f"saved {self.path}; job {job} could not be requeued from here ({error}): submit it again", flush=True
            )


class Curves(Callback):
    """`curves.png` in the run's folder: every logged metric over steps, drawn anew after each validation."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            plot_curves(self.folder / "metrics.csv", self.folder / "curves.png")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.on_validation_end(trainer, module)


def plot_curves(metrics: Path, out: Path) -> None:
    """Metrics of the same name, of training and validation, in one panel each."""
    rows = read_metrics(metrics)
    names = sorted({k for row in rows for k in row} - {"step"})
    panels = sorted({name.split("/")[-1] for name in names})
    if not panels:
        return
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows_of_panels = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows_of_panels), layout="constrained")
    axes = figure.subplots(rows_of_panels, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes[: len(panels)], panels, strict=True):
        for name in (n for n in names if n.split("/")[-1] == panel):
            points = [(row["step"], row[name]) for row in rows if name in row]
            style = "o-" if name.startswith("val/") else "-"
            axis.plot(*zip(*points, strict=True), style, label=name, markersize=3, linewidth=1)
        axis.set(title=panel, xlabel="step")
        axis.legend(frameon=False, fontsize=8)
    scratch = out.with_suffix(".tmp.png")
    figure.savefig(scratch, dpi=120)
    scratch.replace(out)
