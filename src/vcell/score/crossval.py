"""Cross-validation: every fold held out once, trained without, predicted and scored; and what that says together."""

from __future__ import annotations

import base64
import html
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from scipy import sparse

from vcell import __version__
from vcell.atomic import write_text, written_file
from vcell.config import compose, plain
from vcell.data.files.writer import H5adWriter
from vcell.data.splits import Folds
from vcell.data.store.view import with_genes
from vcell.errors import VcellError
from vcell.model.checkpoint import read_checkpoint
from vcell.predict.controls import open_run_store
from vcell.progress import progress_bar

# keys of the command itself; all others are those of vcell.train
OWN = ("challenge", "folds", "by", "within", "fold", "use", "draw", "engine", "threads")
# rules of a whole submission, which a fold of some targets need not keep
RELAXED = ("n_genes", "n_targets", "cells", "max_cells", "max_stored")
CELLS_AT_ONCE = 20_000
PLAN = "crossval.yaml"


def crossval(config: DictConfig) -> None:
    """The folds asked for, one after the other; once all are scored, mean and spread over them."""
    started = time.monotonic()
    if not isinstance(config.folds, int) or config.folds < 2:
        raise VcellError(f"folds={config.folds} must be a whole number of at least 2")
    Folds(config.folds, 0, config.by, config.within)  # refuses what means nothing before the first fold
    if config.fold is not None and not (isinstance(config.fold, int) and 0 <= config.fold < config.folds):
        raise VcellError(f"fold={config.fold} must be from 0 to {config.folds - 1}, or null for all of them")
    folder = Path(config.run_dir)
    keep_plan(config, folder)
    folds = range(config.folds) if config.fold is None else [config.fold]
    for number, fold in enumerate(folds):
        done = time.monotonic() - started
        left = f", about {done / number * (len(folds) - number) / 60:.0f} min left" if number else ""
        print(f"== fold {fold} ({number + 1} of {len(folds)}{left})", flush=True)
        run_fold(config, fold, folder / f"fold_{fold}")
    missing = [f for f in range(config.folds) if not (folder / f"fold_{f}" / "scores" / "scores.json").is_file()]
    if missing:
        print(
            f"folds still to come: {', '.join(map(str, missing))}; the last one to end writes the summary", flush=True
        )
    else:
        summarise(config, folder)


def keep_plan(config: DictConfig, folder: Path) -> None:
    """Remembers what is cross-validated, and refuses to go on with something else."""
    plan = {key: plain(config[key]) for key in OWN if key not in ("fold", "threads")}
    path = folder / PLAN
    if path.is_file() and not config.overwrite:
        before = OmegaConf.to_container(OmegaConf.load(path))
        different = [key for key, value in plan.items() if value != before.get(key)]  # type: ignore[union-attr]
        if different:
            raise VcellError(
                f"{folder} holds a cross-validation with other values of {', '.join(different)}: choose another name=NAME, or "
                "overwrite=true"
            )
        return
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(plan)))


def run_fold(config: DictConfig, fold: int, folder: Path) -> None:
    """Trains, predicts and scores one fold; what is there already is kept."""
    from vcell.predict.infer import infer
    from vcell.score.evaluation import evaluate
    from vcell.training.train import train

    train(training_config(config, fold, folder))
    ckpt = folder / "checkpoints" / config.use
    if not ckpt.is_file():
        raise VcellError(f"{folder} has no {config.use}: use=last.ckpt, or hold out validation groups (data.split.val)")
    pred, real, scores = folder / "pred.h5ad", folder / "real.h5ad", folder / "scores"
    if newer(scores / "scores.json", ckpt) and (scores / "report.html").is_file():
        print(f"scored       {scores / 'report.html'}", flush=True)
        return
    challenge = OmegaConf.create(OmegaConf.to_container(config.challenge, resolve=True))
    assert isinstance(challenge, DictConfig)
    challenge.update({key: None for key in RELAXED} | {"contexts": []})
    if not newer(pred, ckpt):
        predict = compose("infer", [])
        predict.challenge = challenge
        predict.update(
            {"ckpt": str(ckpt), "out": str(pred), "seed": config.seed, "draw": config.draw, "overwrite": True}
        )
        infer(predict)
    control = write_measured(ckpt, challenge, real)
    score = compose("evaluate", [])
    score.challenge = challenge
    score.update({"pred": str(pred), "real": str(real), "out": str(scores), "control": challenge.control or control,
                  "engine": config.engine, "threads": config.threads, "ckpt": str(ckpt)})  # fmt: skip
    evaluate(score)


def training_config(config: DictConfig, fold: int, folder: Path) -> DictConfig:
    """That of the run of a fold: as vcell.train would have it, with the fold as its test split."""
    whole: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    run = {key: value for key, value in whole.items() if key not in OWN}
    # not resolved before: where checkpoints and logs go hangs on these
    run["name"], run["run_dir"] = f"{config.name}/fold_{fold}", str(folder)
    run["data"]["split"]["folds"].update(number=config.folds, fold=fold, by=config.by, within=plain(config.within))
    return OmegaConf.create(run)


def newer(path: Path, ckpt: Path) -> bool:
    return path.is_file() and path.stat().st_mtime >= ckpt.stat().st_mtime


def write_measured(ckpt: Path, challenge: DictConfig, out: Path) -> str:
    """The measured cells of the fold's test groups and the controls of their contexts, as counts; gives the controls' label."""
    identity = read_checkpoint(ckpt)["vcell"]
    store = open_run_store(None, identity, ckpt)
    store = store if store.genes == identity["genes"] else with_genes(store, identity["genes"])
    tests = [(c, p) for c, p, split in identity["split"] if split == "test" and (c, p) in store.groups]
    if not tests:
        raise VcellError(f"{ckpt} was trained without a test split")
    contexts = [c for c in dict.fromkeys(c for c, _ in tests) if c in store.control_contexts]
    groups = [*((c, store.control) for c in contexts), *(g for g in tests if g[0] in contexts)]
    cells = np.concatenate([store.groups[g] for g in groups])
    sizes = [len(store.groups[g]) for g in groups]
    control = challenge.control or store.control
    labels = np.repeat([control if p == store.control else p for _, p in groups], sizes)
    obs = pd.DataFrame({challenge.perturbation: labels}, index=pd.Index([str(i) for i in cells]))
    if challenge.context is not None:
        obs[challenge.context] = np.repeat([c for c, _ in groups], sizes)
    with H5adWriter(out, obs, store.genes) as writer, progress_bar(len(cells), "measured cells", "cells") as progress:
        for start in range(0, len(cells), CELLS_AT_ONCE):
            rows = store.rows(cells[start : start + CELLS_AT_ONCE])
            shape = (len(rows.indptr) - 1, store.n_genes)
            writer.write(sparse.csr_matrix((rows.values, rows.indices, rows.indptr), shape=shape))
            progress.update(shape[0])
    return str(store.control)


def summarise(config: DictConfig, folder: Path) -> None:
    """Mean and spread of every predictor over the folds: table, CSV, JSON, PNG and page."""
    from vcell.score.report import for_json

    folds = pd.concat(
        {
            f: pd.read_csv(folder / f"fold_{f}" / "scores" / "scores.csv", index_col="predictor")
            for f in range(config.folds)
        },
        names=["fold", "predictor"],
    )
    order = list(dict.fromkeys(folds.index.get_level_values("predictor")))
    grouped = folds.groupby("predictor")
    mean, spread = grouped.mean().loc[order], grouped.std().loc[order]
    numbers = grouped.size().loc[order]
    write_text(folder / "crossval.csv", folds.to_csv())
    content = {
        "vcell": __version__, "folds": config.folds, "by": config.by, "mean": mean.to_dict("index"),
        "standard_deviation": spread.to_dict("index"), "of_folds": numbers.to_dict(),
    }  # fmt: skip
    write_text(folder / "crossval.json", json.dumps(for_json(content), indent=1))
    picture = plot(folds, order)
    with written_file(folder / "crossval.png") as scratch:
        scratch.write_bytes(picture)
    text = table_text(mean, spread, numbers)
    write_text(folder / "crossval.html", page(text, picture, config))
    first = order[0]
    print(f"\nmean ± standard deviation over {config.folds} folds, by {config.by}\n\n{text}\n")
    print(
        f"score        {first} {mean.loc[first, 'SCORE']:.3f} ± {spread.loc[first, 'SCORE']:.3f} over {config.folds} folds"
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
    """One panel a metric: the mean of each predictor as a bar, each fold as a dot."""
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


def page(text: str, picture: bytes, config: DictConfig) -> str:
    links = "".join(f'<li><a href="fold_{f}/scores/report.html">fold {f}</a></li>' for f in range(config.folds))
    image = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>vcell cross-validation</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }}
pre {{ overflow-x: auto; background: #f3f5f8; padding: 1rem; font-size: .85rem; }}
.wide {{ overflow-x: auto; }} img {{ max-width: 100%; height: auto; }}
@media (max-width: 34rem) {{ img {{ max-width: none; width: 52rem; }} }}
</style></head><body>
<h1>Cross-validation of {html.escape(str(config.name))}</h1>
<p>Mean ± standard deviation over {config.folds} folds by {html.escape(str(config.by))}; every perturbation was predicted by a model that
had not seen it.</p>
<pre>{html.escape(text)}</pre>
<div class="wide"><img alt="Scores by metric: bars are means, dots are folds" src="data:image/png;base64,{image}"></div>
<ul>{links}</ul>
</body></html>
"""
