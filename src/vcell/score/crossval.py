"""Cross-validation: every fold is held out once, predicted by a model trained without it, and scored; then summarised."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from vcell import __version__
from vcell.atomic import write_text, written_file
from vcell.data.splits import Folds
from vcell.errors import VcellError
from vcell.model.checkpoint import read_identity
from vcell.pages.render import for_json, render
from vcell.score import ablation, ways
from vcell.score.evaluation import evaluate
from vcell.score.fold import predict_fold, score_options
from vcell.score.options import CrossvalOptions

PLAN = "crossval.yaml"


def crossval(options: CrossvalOptions) -> None:
    """The folds asked for, one after the other; once all are scored, mean and spread over them. With `options.ablate` all of it again without that
    part, and the difference; with `options.compare` predictions in other ways from the same checkpoints."""
    if options.compare is not None:
        ways.check(options)
    if options.ablate is None:
        if run_folds(options) and options.compare is not None:
            ways.report(options)
        return
    without = ablation.without_table(options)
    whole = [run_folds(options), run_folds(without)]
    if all(whole):
        ablation.report(options)


def run_folds(options: CrossvalOptions) -> bool:
    """Whether all folds have been scored, and summarised, after those asked for."""
    started = time.monotonic()
    Folds(options.folds, 0, options.by, options.within)  # refuses what means nothing before the first fold
    keep_plan(options)
    folds = range(options.folds) if options.fold is None else [options.fold]
    try:
        for number, fold in enumerate(folds):
            done = time.monotonic() - started
            left = f", about {done / number * (len(folds) - number) / 60:.0f} min left" if number else ""
            print(f"== fold {fold} ({number + 1} of {len(folds)}{left})", flush=True)
            run_fold(options, fold)
    except VcellError:
        discard_plan(options.folder)
        raise
    missing = [f for f in range(options.folds) if not (options.folder_of(f) / "scores" / "scores.json").is_file()]
    if missing:
        print(
            f"folds still missing: {', '.join(map(str, missing))}; the last one to finish writes the summary",
            flush=True,
        )
        return False
    summarise(options)
    return True


def keep_plan(options: CrossvalOptions) -> None:
    """Records what is cross-validated, and refuses to resume with other settings."""
    path = options.folder / PLAN
    if path.is_file() and not options.overwrite:
        before = OmegaConf.to_container(OmegaConf.load(path))
        different = [key for key, value in options.plan.items() if value != before.get(key)]  # type: ignore[union-attr]
        if different:
            raise VcellError(
                f"{options.folder} holds a cross-validation with other values of {', '.join(different)}: choose another name=NAME, or "
                "overwrite=true"
            )
        return
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(dict(options.plan))))


def discard_plan(folder: Path) -> None:
    """Removes a plan of which nothing came: the first fold was refused, and the next command may plan otherwise."""
    if [path.name for path in folder.iterdir()] == [PLAN]:
        (folder / PLAN).unlink()
        folder.rmdir()


def run_fold(options: CrossvalOptions, fold: int) -> None:
    """Trains, predicts and scores one fold; what is there already is kept."""
    from vcell.training.train import train

    folder = options.folder_of(fold)
    train(options.training_of(fold))
    ckpt = folder / "checkpoints" / options.use
    if not ckpt.is_file():
        raise VcellError(
            f"{folder} has no {options.use}: use=last.ckpt, or hold out validation groups (data.split.val)"
        )
    pred, scores = folder / "pred.h5ad", folder / "scores"
    if newer(scores / "scores.json", ckpt) and (scores / "report.html").is_file():
        print(f"scored       {scores / 'report.html'}", flush=True)
        return
    identity = read_identity(ckpt)
    if not newer(pred, ckpt):
        predict_fold(options, ckpt, pred)
    evaluate(score_options(options, identity, ckpt, pred, scores))


def newer(path: Path, ckpt: Path) -> bool:
    return path.is_file() and path.stat().st_mtime >= ckpt.stat().st_mtime


def summarise(options: CrossvalOptions) -> None:
    """Mean and spread of every predictor over the folds: table, CSV, JSON, PNG and page."""
    folder = options.folder
    folds = pd.concat(
        {
            f: pd.read_csv(folder / f"fold_{f}" / "scores" / "scores.csv", index_col="predictor")
            for f in range(options.folds)
        },
        names=["fold", "predictor"],
    )
    order = list(dict.fromkeys(folds.index.get_level_values("predictor")))
    grouped = folds.groupby("predictor")
    mean, spread = grouped.mean().loc[order], grouped.std().loc[order]
    numbers = grouped.size().loc[order]
    write_text(folder / "crossval.csv", folds.to_csv())
    content = {
        "vcell": __version__, "folds": options.folds, "by": options.by, "mean": mean.to_dict("index"),
        "standard_deviation": spread.to_dict("index"), "of_folds": numbers.to_dict(),
    }  # fmt: skip
    write_text(folder / "crossval.json", json.dumps(for_json(content), indent=1))
    picture = plot(folds, order)
    with written_file(folder / "crossval.png") as scratch:
        scratch.write_bytes(picture)
    text = table_text(mean, spread, numbers)
    write_text(folder / "crossval.html", page(folds, mean, spread, numbers, options))
    first = order[0]
    print(f"\nmean ± standard deviation over {options.folds} folds, by {options.by}\n\n{text}\n")
    print(
        f"score        {first} {mean.loc[first, 'SCORE']:.3f} ± {spread.loc[first, 'SCORE']:.3f} over {options.folds} folds"
    )
    print(f"report       {folder / 'crossval.html'}\ntables       {folder / 'crossval.csv'}, {folder / 'crossval.json'}\n"
          f"folds        {folder}/fold_*/scores/report.html", flush=True)  # fmt: skip


def table_text(mean: pd.DataFrame, spread: pd.DataFrame, numbers: pd.Series) -> str:
    width = max(len(str(name)) for name in mean.index)
    head = " " * width + "".join(f"{key:>16}" for key in mean)
    rows = []
    for name in mean.index:
        cells = "".join(f"{_with_spread(mean.loc[name, k], spread.loc[name, k]):>16}" for k in mean)
        few = f"  ({numbers[name]} folds)" if numbers[name] < numbers.max() else ""
        rows.append(f"{name!s:<{width}}{cells}{few}")
    return "\n".join([head, *rows])


def _with_spread(mean: float, spread: float) -> str:
    """Without a spread where one fold alone has a value."""
    return "–" if np.isnan(mean) else f"{mean:.3f}" if np.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"


def plot(folds: pd.DataFrame, order: list[str]) -> bytes:
    """One panel per metric: the mean of each predictor as a bar, each fold as a dot."""
    from matplotlib.figure import Figure

    from vcell.score.figures import GREY, PREDICTED, png

    keys = list(folds)
    columns = min(4, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(3.1 * columns, 0.9 + (0.28 * len(order) + 0.5) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axis, key in zip(axes, keys, strict=False):
        for row, name in enumerate(order):
            values = folds.xs(name, level="predictor")[key]
            axis.barh(row, values.mean(), color=PREDICTED if row == 0 else GREY)
            axis.plot(values, np.full(len(values), row), "o", color="black", alpha=0.5, markersize=3)
        axis.set_yticks(range(len(order)), order, fontsize=8)
        axis.set_title(key, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    return png(figure)


def page(
    folds: pd.DataFrame, mean: pd.DataFrame, spread: pd.DataFrame, numbers: pd.Series, options: CrossvalOptions
) -> str:
    """The page of all folds."""
    order = [str(name) for name in mean.index]
    long = folds.reset_index().melt(["fold", "predictor"], var_name="metric")
    return render(
        "crossval.html",
        {"order": order, "metrics": list(mean), "values": long.dropna().to_dict("records")},
        name=str(options.name),
        by=str(options.by),
        folds=options.folds,
        keys=list(mean),
        rows=[
            {
                "name": name,
                "few": int(numbers[name]) if numbers[name] < numbers.max() else None,
                "cells": [
                    {"key": k, "raw": mean.loc[name, k], "text": _with_spread(mean.loc[name, k], spread.loc[name, k])}
                    for k in mean
                ],
            }
            for name in order
        ],
    )
