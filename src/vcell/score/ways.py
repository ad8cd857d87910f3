"""Ways of drawing whole counts around the same predictions, fold by fold: what each scores, and what is called where nothing has changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from vcell.atomic import write_text
from vcell.errors import VcellError
from vcell.model.checkpoint import read_identity
from vcell.score.cells import CellFile
from vcell.score.evaluation import measured_cells, score
from vcell.score.fold import predict_fold, score_options
from vcell.score.options import CrossvalOptions, ScoreOptions
from vcell.score.pairs import pairs
from vcell.score.scoring import SCORERS

# settings of vcell.infer
WAYS: dict[str, tuple[str, int]] = {
    "counts=donors": ("donors", 1),
    "counts=moments": ("moments", 1),
    "counts=moments pool=2": ("moments", 2),
    "counts=moments pool=4": ("moments", 4),
}
COMPARED = ("counts",)


def check(options: CrossvalOptions) -> None:
    """Raises a `VcellError` where there is nothing to compare."""
    if options.compare not in COMPARED:
        raise VcellError(f"compare={options.compare} must be null or {', '.join(COMPARED)}")
    if not SCORERS[options.challenge.scorer].counts:
        raise VcellError("compare=counts is about ways of drawing whole counts: challenge=vcc2026")


def report(options: CrossvalOptions) -> None:
    """Predicts and scores every fold in every way; writes `ways.csv`, prints it, and names the best."""
    rows = [measure(options, way, fold) for way in WAYS for fold in range(options.folds)]
    table = pd.DataFrame(rows).groupby("way", sort=False).agg(
        SCORE=("score", "mean"), spread=("score", "std"), false_calls=("median", "median"), most_false_calls=("most", "max")
    )  # fmt: skip
    write_text(options.folder / "ways.csv", table.to_csv())
    print(
        f"\nways of drawing whole counts, over {options.folds} folds: score, and genes called per target where nothing has changed (median, most)\n"
    )
    for row in table.itertuples():
        print(
            f"{row.Index!s:<24} {row.SCORE:>8.3f} ± {row.spread:.3f} {row.false_calls:>8.0f} {row.most_false_calls:>8.0f}"
        )
    print(
        f"\nbest         vcell.infer {table['SCORE'].idxmax()}\nways         {options.folder / 'ways.csv'}", flush=True
    )


def measure(options: CrossvalOptions, way: str, fold: int) -> dict[str, object]:
    """Overall score of a fold's prediction drawn in one way, and numbers of genes called in cells without any effect drawn so too."""
    counts, pool = WAYS[way]
    ckpt = options.folder_of(fold) / "checkpoints" / options.use
    folder = options.folder / "ways" / f"{counts}_{pool}" / f"fold_{fold}"
    pred, null = folder / "pred.h5ad", folder / "no_effect.h5ad"
    predict_fold(options, ckpt, pred, counts, pool)
    asked = score_options(options, read_identity(ckpt), ckpt, pred, folder / "scores")
    found, _ = score(replace(asked, pictures=False, baselines=["copied_controls"]))
    predict_fold(options, ckpt, null, counts, pool, "copied_controls")
    false = np.concatenate(list(called(replace(asked, pred=null))))
    for path in (pred, null):
        path.unlink()
    return {
        "way": way,
        "fold": fold,
        "score": float(found.scores["SCORE"].iloc[0]),
        "median": float(np.median(false)),
        "most": float(false.max()),
    }


def called(asked: ScoreOptions) -> Iterator[np.ndarray]:
    """By context, how many genes are called in each predicted target, against the measured controls."""
    scorer = SCORERS[asked.challenge.scorer]
    cells = CellFile(asked.pred, asked.columns, needs_controls=not scorer.counts)
    for pair in pairs(cells, measured_cells(asked), asked.columns, scorer.counts, []):
        judge = scorer.fast(pair.real)
        yield judge.side(pair.pred).calls.called_PG.sum(1)
