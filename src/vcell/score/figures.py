"""Pictures of a scored prediction: for the report, and as PNG for papers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vcell.errors import VcellError, nearest
from vcell.score.explore import Effects, effects, target_table
from vcell.score.metrics import Metric, has_room, per_target
from vcell.score.own import correlation
from vcell.score.pairs import Pair
from vcell.score.side import Side
from vcell.score.statistics import Interval
from vcell.score.sums import CellGroup

if TYPE_CHECKING:
    from vcell.score.scoring import ContextScorer

SHOWN_TARGETS = 6
SHOWN_GENES = 3_000  # dots of a scatter
SHOWN_CELLS = 1_500
DOTS_PER_INCH = 130
PREDICTED, MEASURED, GREY, DARK = "#2a6fbb", "#e08214", "#b8bec7", "#1c2430"
Picture = Any  # a matplotlib figure


@dataclass(frozen=True)
class Shown:
    """What the pictures of one context need.

    Attributes
    ----------
    deltas
        Of chosen targets: predicted and measured effect of every gene, and which are truly changed.
    genes
        One row per target: numbers of called genes (`real`, `pred`, `both`; `right`: in both, in the same direction), size of the measured
        effect, cells, and log2 fold changes of its own gene (`own_real`, `own_pred`).
    cells
        Coordinates `x`, `y` of some cells, their `kind` (control, measured, predicted) and `perturbation`.
    effects
        Fold changes and calls of every target, for the page.
    drawn
        Pictures that are being drawn in the background; None: they are drawn when they are asked for.
    """

    context: str
    deltas: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    genes: pd.DataFrame
    cells: pd.DataFrame
    effects: Effects
    drawn: Future[dict[str, bytes]] | None = field(default=None, repr=False, compare=False)

    def drawing(self) -> Shown:
        """The same, its pictures begun: they are drawn while references are scored."""
        return replace(self, drawn=_background().submit(of_context, self))

    def pictures(self) -> dict[str, bytes]:
        """PNG of every picture that shows one context, by name."""
        return of_context(self) if self.drawn is None else self.drawn.result()


@cache
def _background() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="pictures")


def prepare() -> None:
    """Loads in the background what pictures are drawn with: nobody waits for it then."""
    _background().submit(import_module, "matplotlib.backends.backend_agg")


def of_context(shown: Shown) -> dict[str, bytes]:
    """`Shown.pictures`, drawn now."""
    figures = {
        "deltas": deltas(shown),
        "called": called_genes(shown),
        "knockdown": knock_down(shown),
        "embedding": embedding(shown),
    }
    return {name: png(figure) for name, figure in figures.items() if figure is not None}


def collect(pair: Pair, pred: Side, judge: ContextScorer, show: Sequence[str] | None) -> Shown:
    """From what was computed of the prediction and of the measured cells.

    Raises
    ------
    VcellError
        If a target to show was not scored.
    """
    real: Side = judge.fast.real
    targets = pred.cells.targets
    genes = target_table(pair, pred, real)
    chosen = chosen_targets(genes, show)
    deltas = {
        t: (pred.delta_of(targets.index(t)), real.delta_of(r), real.calls.called_PG[r])
        for t, r in ((t, real.calls.of(t)) for t in chosen)
    }
    return Shown(pair.context, deltas, genes, _cells(pair, judge), effects(pred, real))


def chosen_targets(genes: pd.DataFrame, show: Sequence[str] | None) -> list[str]:
    """Those asked for; otherwise from the strongest measured effect to the weakest."""
    if show:
        for target in show:
            if target not in genes.index:
                raise VcellError(f"show={target} is not a scored target.{nearest(target, genes.index)}")
        return list(show)
    ordered = genes.sort_values("real", ascending=False, kind="stable").index
    places = np.unique(np.linspace(0, len(ordered) - 1, min(SHOWN_TARGETS, len(ordered))).astype(int))
    return [str(ordered[i]) for i in places]


def _cells(pair: Pair, judge: ContextScorer) -> pd.DataFrame:
    parts = []
    each = max(1, SHOWN_CELLS // max(1, len(pair.pred.targets)))
    for kind, cells in (("measured", pair.real), ("predicted", pair.pred)):
        for label in cells.targets:
            at = judge.embedding.place(cells.group(label), each)
            parts.append(
                pd.DataFrame({"x": at[:, 0], "y": at[:, min(1, at.shape[1] - 1)], "kind": kind, "perturbation": label})
            )
    at = judge.embedding.place(CellGroup(pair.real.controls), SHOWN_CELLS // 2)
    parts.append(
        pd.DataFrame({"x": at[:, 0], "y": at[:, min(1, at.shape[1] - 1)], "kind": "control", "perturbation": ""})
    )
    return pd.concat(parts, ignore_index=True)


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

    figure = Figure(figsize=(8, 1.2 + 0.62 * len(metrics)), layout="constrained")
    axis = figure.subplots()
    others = [n for n in scores.index if n not in intervals and n not in (ends[0], ceiling)]
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
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    return _tidy(figure)


def _shown_range(axis: Any) -> tuple[float, float]:
    """Far outliers may lie outside: the place between floor and ceiling is what counts."""
    low, high = axis.get_xlim()
    return max(low, -0.75), min(high, 1.75)


def heat_map(table: pd.DataFrame, shown: Shown, floor: Mapping[str, float], top: Mapping[str, float], metrics: Sequence[Metric]) -> Picture | None:  # fmt: skip
    """Metrics (rows) of every target (columns, the strongest measured effect first): 0 is the floor's mean, 1 the ceiling's; None where no
    metric has room between them."""
    from matplotlib.figure import Figure

    order = shown.genes.sort_values("real", ascending=False, kind="stable").index
    kept = [m for m in metrics if has_room(floor[m.key], top[m.key], m)]
    if not kept:
        return None
    values = np.array(
        [(per_target(table, m).loc[order].to_numpy(float) - floor[m.key]) / (top[m.key] - floor[m.key]) for m in kept]
    )
    figure = Figure(figsize=(9, 1.4 + 0.4 * len(kept)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(np.clip(values, -1, 2), aspect="auto", cmap="RdYlBu", vmin=-1, vmax=2, interpolation="nearest")
    axis.set_yticks(range(len(kept)), [m.key for m in kept])
    if len(order) <= 40:
        axis.set_xticks(range(len(order)), order, rotation=90, fontsize=7)
    axis.set_xlabel(f"{len(order):,} targets, most truly changed genes first", fontsize=9)
    bar = figure.colorbar(image, ax=axis, ticks=[-1, 0, 1, 2], fraction=0.03)
    bar.ax.set_yticklabels(["-1", "floor", "ceiling", "2"], fontsize=8)
    return figure


def deltas(shown: Shown) -> Picture:
    """Predicted against measured effect of every gene, for chosen targets."""
    from matplotlib.figure import Figure

    number = len(shown.deltas)
    columns = min(3, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(3.1 * columns, 3.1 * rows), layout="constrained")
    for axis, (target, (pred, real, called)) in zip(figure.subplots(rows, columns, squeeze=False).ravel(), shown.deltas.items(), strict=False):  # fmt: skip
        quiet = np.flatnonzero(~called)
        quiet = quiet[np.argsort(-np.abs(real[quiet]), kind="stable")[:SHOWN_GENES]]
        limit = max(float(np.abs(real).max()), float(np.abs(pred).max()), 1e-6) * 1.05
        axis.plot([-limit, limit], [-limit, limit], color=GREY, linewidth=1)
        axis.plot(real[quiet], pred[quiet], ".", color=GREY, markersize=2, rasterized=True)
        axis.plot(real[called], pred[called], ".", color=PREDICTED, markersize=4, rasterized=True)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="measured", ylabel="predicted")
        r = correlation(pred[None], real[None])[0]
        axis.set_title(f"{target}: {int(called.sum()):,} changed, r = {r:.2f}", fontsize=9)
        axis.axhline(0, color=GREY, linewidth=0.5)
        axis.axvline(0, color=GREY, linewidth=0.5)
    for axis in figure.axes[number:]:
        axis.set_visible(False)
    return _tidy(figure)


def called_genes(shown: Shown) -> Picture:
    """Genes called in the measured cells, in the predicted ones, and in both, target by target."""
    from matplotlib.figure import Figure

    table = shown.genes.sort_values("real", ascending=False, kind="stable")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axis = figure.subplots()
    x = np.arange(len(table))
    both, missed, wrong = table["both"], table["real"] - table["both"], table["pred"] - table["both"]
    _bars(axis, 0 * both, both, PREDICTED, "called in both")
    _bars(axis, both, both + missed, MEASURED, "missed: measured only")
    _bars(axis, -wrong, 0 * wrong, GREY, "wrong: predicted only (downwards)")
    axis.autoscale_view()
    axis.axhline(0, color=DARK, linewidth=0.7)
    axis.set_ylabel("genes")
    if len(table) <= 40:
        axis.set_xticks(x, table.index, rotation=90, fontsize=7)
    else:
        axis.set_xlabel(f"{len(table):,} targets")
    axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3)
    return _tidy(figure)


def _bars(axis: Any, low: pd.Series, high: pd.Series, colour: str, label: str) -> None:
    """A bar for each row, all as one object: `Axes.bar` makes one of each, which takes a millisecond."""
    from matplotlib.collections import PolyCollection

    x = np.arange(len(low))
    corners = np.array([[x - 0.425, low], [x - 0.425, high], [x + 0.425, high], [x + 0.425, low]], float)
    axis.add_collection(PolyCollection(list(corners.transpose(2, 0, 1)), facecolor=colour, label=label))


def knock_down(shown: Shown) -> Picture | None:
    """Change of the target's own gene, predicted against measured; None where no target is a gene of the files."""
    from matplotlib.figure import Figure

    table = shown.genes[["own_real", "own_pred"]].replace([np.inf, -np.inf], np.nan).clip(-8, 8).dropna()
    if table.empty:
        return None
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
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


def embedding(shown: Shown) -> Picture:
    """Measured and predicted cells in two principal components of the measured ones, each target's means joined by a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, colour in (("control", GREY), ("measured", MEASURED), ("predicted", PREDICTED)):
        cells = shown.cells[shown.cells["kind"] == kind]
        left.plot(cells["x"], cells["y"], ".", color=colour, markersize=2.5, alpha=0.5, label=kind, rasterized=True)
    left.legend(fontsize=8, frameon=False, markerscale=4)
    left.set_title("cells", fontsize=10)
    means = shown.cells[shown.cells["kind"] != "control"].groupby(["perturbation", "kind"])[["x", "y"]].mean().unstack()
    right.plot(means["x"].T.to_numpy(), means["y"].T.to_numpy(), color=GREY, linewidth=0.7)
    for kind, colour in (("measured", MEASURED), ("predicted", PREDICTED)):
        right.plot(means["x"][kind], means["y"][kind], "o", color=colour, markersize=4, label=kind)
    right.set_title("means of targets, measured to predicted", fontsize=10)
    for axis in (left, right):
        axis.set(xlabel="component 1", ylabel="component 2")
    return _tidy(figure)


def png(figure: Picture) -> bytes:
    """Drawn once, where `savefig` draws twice to see how large everything becomes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    before, resolution, buffer = figure.canvas, figure.get_dpi(), io.BytesIO()
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
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
