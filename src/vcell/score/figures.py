"""Pictures of a scored prediction: for the report, and as PNG for papers."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vcell.pages.pictures import as_they_are, margins
from vcell.score.metrics import Metric, has_room, per_target
from vcell.score.statistics import Interval

SHOWN_GENES = 3_000  # dots of a scatter
LONGEST_NAME = 30  # letters
MOST_NAMED = 40  # targets
DOTS_PER_INCH = 130
PREDICTED, MEASURED, GREY, DARK = "#2a6fbb", "#e08214", "#b8bec7", "#1c2430"
Picture = Any  # a matplotlib figure


@dataclass(frozen=True)
class Delta:
    """The effect of a target on every gene: predicted, measured, and which are truly changed; `r`: Pearson correlation of the two."""

    predicted_G: np.ndarray
    measured_G: np.ndarray
    called_G: np.ndarray
    r: float


def of_context(targets: Mapping[str, Delta], genes: pd.DataFrame, cells: pd.DataFrame) -> dict[str, bytes]:
    """PNG of every picture that shows one context, by name; arguments as in `vcell.score.shown.Shown`."""
    pictures = {
        "deltas": png_of(deltas, targets),
        "called": png_of(called_genes, genes),
        "knockdown": png_of(knock_down, genes),
        "embedding": png_of(embedding, cells),
    }
    return {name: picture for name, picture in pictures.items() if picture is not None}


def floor_to_ceiling(
    scores: pd.DataFrame,
    intervals: Mapping[str, Mapping[str, Interval]],
    floor: Mapping[str, float],
    ceiling: str,
    ends: Sequence[str],
    metrics: Sequence[Metric],
) -> Picture:
    """Where each prediction and reference lies between the floor (0) and the split-half replicate (1), metric by metric.

    `ends` are the rows of `scores` that floor and ceiling come from, which get no mark of their own.
    """
    from matplotlib.figure import Figure

    others = [n for n in scores.index if n not in intervals and n not in (ends[0], ceiling)]
    below = 0.55 + 0.18 * -(-(len(intervals) + len(others)) // 3)  # inches, with the rows of the legend
    figure = Figure(figsize=(8, 0.1 + 0.62 * len(metrics) + below))
    axis = figure.subplots()
    markers = dict(zip(others, ["|", "x", "+", "d", "v", "^", "<", ">"] * 3, strict=False))
    colours = [PREDICTED, "#1b9e77", "#7570b3", "#a6761d"]
    for row, metric in enumerate(metrics):
        low, high = floor[metric.key], scores.loc[ceiling, metric.key]
        if not has_room(low, high, metric):
            words = f"no range: the floor ({low:.3f}) is no worse than the ceiling ({high:.3f})"
            axis.text(0.5, row, words, ha="center", va="center", fontsize=8, color="#5a6472")
            continue
        axis.plot([0, 1], [row, row], color=GREY, linewidth=6, solid_capstyle="butt", zorder=1)
        for name in others:
            at = (scores.loc[name, metric.key] - low) / (high - low)
            axis.plot(at, row, markers[name], color="#5a6472", markersize=8, zorder=2)
        for number, found in enumerate(intervals.values()):
            places = [
                (v - low) / (high - low)
                for v in (found[metric.key].low, found[metric.key].value, found[metric.key].high)
            ]
            beside, colour = row + 0.16 * number, colours[number % len(colours)]
            axis.plot([places[0], places[2]], [beside, beside], color=colour, linewidth=2, zorder=3)
            axis.plot(places[1], beside, "o", color=colour, markersize=8, zorder=4)
        for at, value in ((0, low), (1, high)):
            axis.text(at, row - 0.3, f"{value:.3f}", ha="center", va="center", fontsize=8, color="#5a6472")
    for number, name in enumerate(intervals):
        axis.plot([], [], "o", color=colours[number % len(colours)], markersize=8, label=name)
    for name in others:
        axis.plot([], [], markers[name], color="#5a6472", markersize=8, label=name)
    axis.set_yticks(range(len(metrics)), [m.key for m in metrics])
    axis.set_xticks([0, 1], ["floor", f"ceiling\n({ceiling})"])
    axis.set_xlim(*_shown_range(axis))
    axis.set_ylim(len(metrics) - 0.4, -0.7)
    figure.legend(fontsize=8, loc="lower center", ncols=3, frameon=False)
    margins(figure, left=0.9, right=0.15, bottom=below, top=0.1)
    return _tidy(figure)


def _shown_range(axis: Any) -> tuple[float, float]:
    """Far outliers may lie outside: the place between floor and ceiling is what counts."""
    low, high = axis.get_xlim()
    return max(low, -0.75), min(high, 1.75)


def heat_map(
    table: pd.DataFrame,
    genes: pd.DataFrame,
    floor: Mapping[str, float],
    top: Mapping[str, float],
    metrics: Sequence[Metric],
) -> Picture | None:
    """Metrics (rows) of every target (columns, the strongest measured effect first): 0 is the floor's mean, 1 the ceiling's; None where no
    metric has room between them."""
    from matplotlib.figure import Figure

    order = genes.sort_values("real", ascending=False, kind="stable").index
    kept = [m for m in metrics if has_room(floor[m.key], top[m.key], m)]
    if not kept:
        return None
    values = np.array(
        [(per_target(table, m).loc[order].to_numpy(float) - floor[m.key]) / (top[m.key] - floor[m.key]) for m in kept]
    )
    named = _height_of(order)
    figure = Figure(figsize=(9, 0.5 + named + 0.4 * len(kept)))
    axis, scale = figure.subplots(1, 2, width_ratios=[100, 2])
    image = axis.imshow(np.clip(values, -1, 2), aspect="auto", cmap="RdYlBu", vmin=-1, vmax=2, interpolation="nearest")
    axis.set_yticks(range(len(kept)), [m.key for m in kept])
    _name_targets(axis, order)
    axis.set_xlabel(f"{len(order):,} targets, most truly changed genes first", fontsize=9)
    bar = figure.colorbar(image, cax=scale, ticks=[-1, 0, 1, 2])
    bar.ax.set_yticklabels(["-1", "floor", "ceiling", "2"], fontsize=8)
    margins(figure, left=0.9, right=0.6, bottom=0.4 + named, top=0.1, wspace=0.02)
    return figure


def deltas(targets: Mapping[str, Delta]) -> Picture:
    """Predicted against measured effect of every gene, for chosen targets."""
    from matplotlib.figure import Figure

    number = len(targets)
    columns = min(3, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(3.1 * columns, 3.1 * rows))
    for axis, (target, delta) in zip(_panels(figure, rows, columns), targets.items(), strict=False):
        pred, real, called = delta.predicted_G, delta.measured_G, delta.called_G
        quiet = np.flatnonzero(~called)
        quiet = quiet[np.argsort(-np.abs(real[quiet]), kind="stable")[:SHOWN_GENES]]
        limit = max(float(np.abs(real).max()), float(np.abs(pred).max()), 1e-6) * 1.05
        axis.plot([-limit, limit], [-limit, limit], color=GREY, linewidth=1)
        axis.plot(real[quiet], pred[quiet], ".", color=GREY, markersize=2, rasterized=True)
        axis.plot(real[called], pred[called], ".", color=PREDICTED, markersize=4, rasterized=True)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit))
        axis.set_xlabel("measured", fontsize=9)
        axis.set_ylabel("predicted", fontsize=9)
        axis.set_title(f"{short(target)}\n{int(called.sum()):,} changed, r = {delta.r:.2f}", fontsize=8)
        axis.axhline(0, color=GREY, linewidth=0.5)
        axis.axvline(0, color=GREY, linewidth=0.5)
    for axis in figure.axes[number:]:
        axis.set_visible(False)
    return _tidy(figure)


def called_genes(genes: pd.DataFrame) -> Picture:
    """Genes called in the measured cells, in the predicted ones, and in both, target by target."""
    from matplotlib.figure import Figure

    table = genes.sort_values("real", ascending=False, kind="stable")
    named = _height_of(table.index)
    figure = Figure(figsize=(9, 2.9 + named))
    axis = figure.subplots()
    both, missed, wrong = table["both"], table["real"] - table["both"], table["pred"] - table["both"]
    _bars(axis, 0 * both, both, PREDICTED, "called in both")
    _bars(axis, both, both + missed, MEASURED, "missed: measured only")
    _bars(axis, -wrong, 0 * wrong, GREY, "wrong: predicted only (downwards)")
    axis.autoscale_view()
    axis.axhline(0, color=DARK, linewidth=0.7)
    axis.set_ylabel("genes")
    _name_targets(axis, table.index)
    if not named:
        axis.set_xlabel(f"{len(table):,} targets")
    figure.legend(fontsize=8, frameon=False, loc="upper center", ncols=3)
    margins(figure, left=0.85, right=0.1, bottom=0.2 + (named or 0.3), top=0.35)
    return _tidy(figure)


def _height_of(names: Sequence[str]) -> float:
    """Room for names below the columns of a picture, in inches; 0 where they are too many to be read."""
    return 0.0 if len(names) > MOST_NAMED else 0.075 * min(LONGEST_NAME, max(map(len, names), default=0))


def _name_targets(axis: Any, names: Sequence[str]) -> None:
    if len(names) <= MOST_NAMED:
        axis.set_xticks(range(len(names)), [short(name) for name in names], rotation=90, fontsize=7)


def short(name: str) -> str:
    """A name that has room in a picture."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _bars(axis: Any, low: pd.Series, high: pd.Series, colour: str, label: str) -> None:
    """A bar for each row, all as one object: `Axes.bar` makes one of each, which takes a millisecond."""
    from matplotlib.collections import PolyCollection

    x = np.arange(len(low))
    corners = np.array([[x - 0.425, low], [x - 0.425, high], [x + 0.425, high], [x + 0.425, low]], float)
    axis.add_collection(PolyCollection(list(corners.transpose(2, 0, 1)), facecolor=colour, label=label))


def knock_down(genes: pd.DataFrame) -> Picture | None:
    """Change of the target's own gene, predicted against measured; None where no target is a gene of the files."""
    from matplotlib.figure import Figure

    table = genes[["own_real", "own_pred"]].replace([np.inf, -np.inf], np.nan).clip(-8, 8).dropna()
    if table.empty:
        return None
    figure = Figure(figsize=(4.6, 4.2))
    axis = figure.subplots()
    margins(figure, left=0.75, right=0.15, bottom=0.55, top=0.15)
    low, high = min(-1.0, float(table.to_numpy().min()) * 1.08), max(1.0, float(table.to_numpy().max()) * 1.08)
    axis.plot([low, high], [low, high], color=GREY, linewidth=1)
    axis.axhline(0, color=GREY, linewidth=0.5)
    axis.axvline(0, color=GREY, linewidth=0.5)
    axis.plot(table["own_real"], table["own_pred"], "o", color=PREDICTED, alpha=0.6, markersize=4)
    axis.set(
        xlabel="measured log2 fold change of the target's own gene",
        ylabel="predicted",
        xlim=(low, high),
        ylim=(low, high),
    )
    return _tidy(figure)


def embedding(cells: pd.DataFrame) -> Picture:
    """Measured and predicted cells in two principal components of the measured ones, each target's means joined by a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4))
    left, right = _panels(figure, 1, 2)
    for kind, colour in (("control", GREY), ("measured", MEASURED), ("predicted", PREDICTED)):
        some = cells[cells["kind"] == kind]
        left.plot(some["x"], some["y"], ".", color=colour, markersize=2.5, alpha=0.5, label=kind, rasterized=True)
    left.legend(fontsize=8, frameon=False, markerscale=4)
    left.set_title("cells", fontsize=10)
    means = cells[cells["kind"] != "control"].groupby(["perturbation", "kind"])[["x", "y"]].mean().unstack()
    right.plot(means["x"].T.to_numpy(), means["y"].T.to_numpy(), color=GREY, linewidth=0.7)
    for kind, colour in (("measured", MEASURED), ("predicted", PREDICTED)):
        right.plot(means["x"][kind], means["y"][kind], "o", color=colour, markersize=4, label=kind)
    right.set_title("means of targets, measured to predicted", fontsize=10)
    for axis in (left, right):
        axis.set(xlabel="component 1", ylabel="component 2")
    return _tidy(figure)


def _panels(figure: Picture, rows: int, columns: int) -> list[Any]:
    """Axes of one size, with room for a title, two labels and numbers."""
    width, height = figure.get_size_inches() / (columns, rows)
    left, right, bottom, top = 0.82 / width, 0.16 / width, 0.48 / height, 0.44 / height  # parts of a panel
    wide, high = 1 - left - right, 1 - bottom - top
    room = {
        "left": left / columns, "right": 1 - right / columns, "bottom": bottom / rows, "top": 1 - top / rows,
        "wspace": (left + right) / wide, "hspace": (bottom + top) / high,
    }  # fmt: skip
    return list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=room).ravel())


def png_of(draw: Callable[..., Picture | None], *args: Any) -> bytes | None:
    """PNG of what `draw` makes of the arguments; None where there is nothing to show."""
    picture = draw(*args)
    return None if picture is None else png(picture)


def png(figure: Picture) -> bytes:
    """Drawn once, where `savefig` draws twice to see how large everything becomes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    before, resolution, buffer = figure.canvas, figure.get_dpi(), io.BytesIO()
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(as_they_are(figure))
    try:
        canvas.draw()
    finally:  # somebody's notebook may show it too
        figure.set_canvas(before)
        figure.set_dpi(resolution)
    imsave(buffer, np.asarray(canvas.buffer_rgba()), format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()


def _tidy(figure: Picture) -> Picture:
    for axis in figure.axes:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
