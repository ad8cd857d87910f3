"""Metrics of a run: rows of `metrics.csv`, and their curves."""

from __future__ import annotations

import csv
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from vcell.atomic import written_file
from vcell.errors import VcellError, check_number
from vcell.pages.curves import write_curves
from vcell.pages.pictures import margins
from vcell.records.metrics import read_metrics


class CsvLogger(Logger):
    """`metrics.csv` in the run's folder, one row per logged step.

    Unlike Lightning's, it continues with a resumed run: earlier rows stay, rows that the run now does
    again are replaced.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        self.started = False
        self.columns: list[str] = []  # of the file, once this run has written it

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
            self._write()
        else:
            self.rows.append({"step": step, **values})
            self._append()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is recorded in the folder of the run."""

    def _append(self) -> None:
        """Writes the last row only, where the file has its columns: runs have thousands of rows."""
        if not set(self.rows[-1]) <= set(self.columns):
            self._write()
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(self.rows[-1])

    def _write(self) -> None:
        columns = self.columns = list(dict.fromkeys(k for row in self.rows for k in row))
        with written_file(self.path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)


class Curves(Callback):
    """`curves.png` and `curves.html` in the run's folder: every logged metric over steps, drawn after a validation and at the end.

    They are drawn in a thread, and `every_seconds` at most: on a CPU, drawing takes a second from training.
    """

    def __init__(self, folder: str, every_seconds: float = 30.0) -> None:
        check_number("callbacks.curves.every_seconds", every_seconds, 0, whole=False)
        self.folder, self.every_seconds = Path(folder), every_seconds
        self.artist: Thread | None = None
        self.drawn = time.monotonic()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        idle = self.artist is None or not self.artist.is_alive()
        if trainer.is_global_zero and idle and time.monotonic() - self.drawn >= self.every_seconds:
            self.drawn = time.monotonic()
            self.artist = Thread(target=_draw_quietly, args=(self.folder,))
            self.artist.start()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.artist is not None:
            self.artist.join()
        if trainer.is_global_zero:
            draw(self.folder)


def _draw_quietly(folder: Path) -> None:
    """In a thread: what cannot be drawn does not disturb training."""
    with suppress(VcellError, OSError):
        draw(folder)


def draw(folder: Path) -> None:
    """The picture and the page of a run's metrics."""
    plot_curves(folder / "metrics.csv", folder / "curves.png")
    write_curves(folder / "curves.html", {folder.name: read_metrics(folder / "metrics.csv")}, folder.name)


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
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows_of_panels))
    margins(figure, left=0.65, right=0.15, bottom=0.5, top=0.35, wspace=0.28, hspace=0.5)
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
    with written_file(out) as scratch:
        figure.savefig(scratch, dpi=120)
