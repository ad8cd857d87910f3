"""One fold of a cross-validation: its prediction, and what it is scored against."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from vcell.errors import VcellError
from vcell.model.checkpoint import Identity
from vcell.predict.controls import open_run_store, store_of
from vcell.predict.infer import infer
from vcell.predict.key import key_of
from vcell.predict.options import PredictOptions
from vcell.predict.parts import PartsFolder
from vcell.score.cells import Columns
from vcell.score.options import CrossvalOptions, ScoreOptions


def predict_fold(
    options: CrossvalOptions, ckpt: Path, pred: Path, counts: str = "auto", pool: int = 1, predictor: str = "model"
) -> None:
    """Writes the cells of a fold's test groups to `pred`.

    Parameters
    ----------
    counts, pool, predictor
        As for ``vcell.infer``.
    """
    what = PredictOptions(
        options.challenge,
        draw=options.draw,
        counts=counts,
        pool=pool,
        predictor=predictor,
        amplitude=options.challenge.amplitude,
        seed=options.seed,
        trust=options.trust,
    )
    asked = {
        "challenge": asdict(options.challenge),
        "draw": options.draw,
        "seed": options.seed,
        "counts": counts,
        "pool": pool,
        "predictor": predictor,
    }
    infer(what, ckpt, PartsFolder(pred, key_of("infer", asked, (), ckpt)), overwrite=True)


def score_options(options: CrossvalOptions, identity: Identity, ckpt: Path, pred: Path, out: Path) -> ScoreOptions:
    """The fold's test groups as measured cells, read from the store it was trained on."""
    store = open_run_store(None, identity, ckpt)
    tests = [g for g in identity.held_out if g in store.groups]
    if not tests:
        raise VcellError(f"{ckpt} was trained without a test split")
    challenge = options.challenge
    asked = ScoreOptions(
        pred=pred,
        real=Path(store_of(None, identity)[0]),
        challenge=challenge,
        columns=Columns(challenge.perturbation, challenge.context, challenge.control or store.control),
        out=out,
        engine=options.engine,
        threads=options.threads,
        ckpt=str(ckpt),
        real_stores=store_of(None, identity),
        real_groups=tests,
    )
    return replace(
        asked, recorded={**dict(options.plan), "ckpt": str(ckpt), "pred": str(pred), "real": str(asked.real)}
    )
