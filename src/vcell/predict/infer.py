"""Inference: a checkpoint and a request to an h5ad of predicted cells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vcell.data.gather import Gather
from vcell.data.sampler import ControlPool
from vcell.data.store.store import Cells, is_store
from vcell.data.store.view import with_genes
from vcell.effects.baselines import CopiedControls
from vcell.effects.model import EffectModel
from vcell.effects.own_gene import OwnGenes, WithOwnGenes, own_genes
from vcell.errors import MOST_AT_ONCE, VcellError, check_number, shortlist
from vcell.model.blend import Blend
from vcell.model.checkpoint import Identity
from vcell.model.predictor import Predictor, covariates_of
from vcell.model.table import decision_lines
from vcell.model.trained import TrainedModel
from vcell.predict.cells import (
    AddedEffects,
    CellMaker,
    CountedCells,
    DrawnCells,
    Effects,
    ExpectedCells,
    MeasuredEffects,
    PredictedEffects,
    Source,
)
from vcell.predict.controls import open_controls, store_of
from vcell.predict.layout import Layout
from vcell.predict.options import PredictOptions
from vcell.predict.parts import PartsFolder
from vcell.predict.plan import PredictionPlan, make_layout, plan
from vcell.predict.predictors import (
    check_predictors,
    effect_models,
    label_of,
    make_predictor,
    networks,
    predictors_of,
    priors,
    show_controls,
    table_in_place_of_its_own,
)
from vcell.predict.request import Wanted, requested
from vcell.predict.work import produce
from vcell.system import Rank, choose_device

COMPRESSIONS = (None, "lzf", "gzip")


def infer(
    options: PredictOptions,
    ckpt: Path,
    parts: PartsFolder,
    devices: int | str = 1,
    compression: str | None = None,
    overwrite: bool = False,
) -> None:
    """Predicts with a checkpoint into `parts.out`; on several processes, this one's share of it.

    Parameters
    ----------
    devices
        GPUs (or processes) of this machine that share the work; ``auto``: all GPUs.
    compression
        Of the matrix.

    Raises
    ------
    VcellError
        If something of it cannot be used, read or written.
    """
    if parts.finished():
        return
    if Rank.here().number == 0 and parts.out.exists() and not overwrite:
        raise VcellError(f"{parts.out} exists already; choose out=OTHER.h5ad, or overwrite=true to replace it")
    check_predictors(options.predictor)
    if compression not in COMPRESSIONS:
        raise VcellError(f"compression={compression} must be null, lzf or gzip: the official tools cannot read others")
    if devices != "auto":
        check_number("devices", devices, 1, MOST_AT_ONCE, other="auto")
    gpu = choose_device(options.device, 0).type == "cuda"
    helpers = devices - 1 if isinstance(devices, int) else max(1, torch.cuda.device_count()) - 1 if gpu else 0
    produce(partial(plan_checkpoint, options, ckpt, parts.folder / "controls"), parts, helpers, compression)


def plan_checkpoint(
    options: PredictOptions, ckpt: Path, place: Path, rank: Rank, claim: Callable[[], bool]
) -> PredictionPlan | None:
    """Loads the model of a checkpoint, and plans with it; None where other ranks have finished already."""
    model = TrainedModel.load(ckpt, table_in_place_of_its_own(options.perturbation, ckpt), options.trust)
    return plan_model(options, model, ckpt, place, rank, claim)


def plan_model(
    options: PredictOptions,
    model: TrainedModel,
    ckpt: Path,
    place: Path,
    rank: Rank | None = None,
    claim: Callable[[], bool] = lambda: True,
) -> PredictionPlan | None:
    """Reads, checks and decides.

    Parameters
    ----------
    model, ckpt
        A trained model, and the checkpoint it comes from.
    place
        Where control cells from files are put as a store.
    rank
        Which process predicts; by it a device is chosen.
    claim
        Called before anything but that store is written; False where nothing is left to do.
    """
    identity, challenge = model.identity, options.challenge
    device = choose_device(options.device, (rank or Rank()).local)
    genes = options.gene_list or list(identity.genes)
    challenge.check_genes(genes, "the model predicts")
    from_files = options.controls is not None and not is_store(options.controls)
    if from_files and not claim():
        return None
    store = open_controls(options, identity, ckpt, genes, place)
    uses_model = "model" in predictors_of(options.predictor)
    network = uses_model and not isinstance(model.model, EffectModel)
    known_targets = model.table.names if network else [*model.table.names, *(p for _, p, _ in identity.split)]
    request = requested(options, identity, store, known_targets)
    model.cover([w.perturbation for w in request])
    if network:
        model.table.require([w.perturbation for w in request])
    challenge.phase(w.context for w in request)
    challenge.check_labels({(w.context, w.perturbation): w.n_cells for w in request}, None)
    source = make_source(store, identity, {w.context for w in request}, options.sets_per_step, options.seed)
    for group in request:
        source.plan(group)  # batches that cannot be had are found before the first cell is predicted
    layout = make_layout(options, genes, source, request)
    predictor = make_predictor(options, model, source.gather, ckpt, device)
    adjust(predictor, options, source, request)
    notes = fallback_notes(predictors_of(options.predictor), identity, request)
    notes += [*unknown_targets(predictor, model, request), *decision_lines(model.table.decisions)]
    if network:
        notes += [note for note in (unknown_covariates(model, source), silent_targets(model, request)) if note]
    unseen = len({w.perturbation for w in request} - {p for _, p in identity.trained})
    said = [f"checkpoint   {ckpt}{chosen_for(identity)}", f"targets      {unseen:,} of them never trained on"]
    said += [f"prior        {m.kept:.2f} of what the network adds to it is kept" for m in networks(predictor) if m.adds]
    models = effect_models(predictor)
    # whether no effect at all is asked for
    copied = bool(models) and all(isinstance(model, CopiedControls) for model in models)
    knockdown = "off" if copied else options.knockdown
    own, line = own_genes(knockdown, identity.own_gene, source.gather.store.genes, store.control)
    said += [line] if line else []
    if options.pool > 1 and any(w.batches for w in request):
        raise VcellError("pool averages control cells of all batches: batches=false, or pool=1")
    maker = make_maker(
        predictor, source, layout, device, options.drawn, options.counts, challenge.scores_calls, own, options.pool
    )
    planned = plan(options, request, source, layout, maker, origin_of(options, identity, ckpt), said, notes)
    return planned if from_files or claim() else None


def adjust(predictor: Predictor, options: PredictOptions, source: Source, request: Sequence[Wanted]) -> None:
    """Shows a predictor the control cells, and sets how much it changes them."""
    show_controls(predictor, source)
    for member in networks(predictor):
        member.addition = options.known_addition
    for one in (*effect_models(predictor), *priors(predictor)):
        one.amplitude = options.known_amplitude
        one.recentred = not any(w.batches for w in request)


def origin_of(options: PredictOptions, identity: Identity, ckpt: Path) -> dict[str, Any]:
    """What the file says of how it was predicted."""
    return {
        "ckpt": str(ckpt.resolve()), "predictor": label_of(options.predictor), "seed": options.seed, "knockdown": options.knockdown,
        "counts": options.counts, "pool": options.pool, "amplitude": options.known_amplitude, "addition": options.addition,
        "store": [str(Path(p).resolve()) for p in store_of(options.store, identity)],
    }  # fmt: skip


def make_source(store: Cells, identity: Identity, contexts: set[str], sets_per_step: int, seed: int) -> Source:
    """Control cells of `contexts`, in sets of the size trained with."""
    seen = store if store.genes == identity.genes else with_genes(store, identity.genes)
    gather = Gather(seen, identity.target_sum, identity.embedding, covariates=identity.covariate_names)
    return Source(gather, store, ControlPool(store, contexts), identity.set_size, sets_per_step, seed)


def make_maker(
    predictor: Predictor,
    source: Source,
    layout: Layout,
    device: torch.device,
    drawn: bool,
    counts: str = "auto",
    calls: bool = False,
    own: OwnGenes | None = None,
    pool: int = 1,
) -> CellMaker:
    """Cells as the predictor expects them, or drawn around what it predicts."""
    whole = effect_models(predictor)
    shown = predictor if own is None else WithOwnGenes(predictor, own)
    if not drawn:
        return ExpectedCells(shown, source, layout, device)
    if draws_counts(predictor):
        return CountedCells(shown, source, layout, device)
    models = source.count_models
    effects: Effects
    if len(whole) == 1 and not isinstance(predictor, Blend) and layout.values == "counts":
        effects = MeasuredEffects(whole[0], source, models, calls, own)
    elif isinstance(predictor, TrainedModel) and predictor.adds and layout.values == "counts":
        whole = priors(predictor)
        effects = AddedEffects(
            MeasuredEffects(whole[0], source, models, calls, own),
            whole[0] if own is None else WithOwnGenes(whole[0], own),
            shown,
            device,
        )
    else:
        effects = PredictedEffects(shown, source, models, device)
    matched = counts == "moments" or (counts == "auto" and bool(whole))
    return DrawnCells(effects, source, layout, models, matched, pool if matched else 1)


def draws_counts(predictor: Predictor) -> bool:
    """Whether a predictor's cells are draws of whole counts already."""
    return isinstance(predictor, TrainedModel) and getattr(predictor.model, "head", None) == "nb"


def fallback_notes(names: Collection[str], identity: Identity, request: Sequence[Wanted]) -> list[str]:
    """What is used where a baseline has no training cells."""
    contexts, perturbations = {c for c, _ in identity.trained}, {p for _, p in identity.trained}
    unseen = {w.perturbation for w in request if w.perturbation not in perturbations}
    new = sorted({w.context for w in request if w.context not in contexts})
    notes = []
    if "perturbation_mean" in names and unseen:
        notes.append(
            f"{len(unseen):,} targets were never trained on: the context mean is used instead of their perturbation mean"
        )
    if new and ("context_mean" in names or ("perturbation_mean" in names and unseen)):
        notes.append(
            f"no cells of {shortlist(new)} were trained on: the mean of all contexts is used instead of the context mean"
        )
    return notes


def unknown_targets(predictor: Predictor, model: TrainedModel, request: Sequence[Wanted]) -> list[str]:
    """Targets of which a predictor made of effects knows nothing: neither effects in another context nor a vector."""
    models = [m for m in effect_models(predictor) if m.uses_vectors]
    if not models:
        return []
    targets = dict.fromkeys(w.perturbation for w in request)
    measured, vectors = set(models[0].known_targets()), models[0].vectors
    unknown = [t for t in targets if t not in measured and not vectors.knows([t])[0]]
    if not unknown:
        return []
    return [
        f"{len(unknown):,} targets were measured in no training cells and have no vector in the table {model.table.origin}: they all get "
        f"the mean response ({shortlist(unknown)})"
    ]


def silent_targets(model: TrainedModel, request: Sequence[Wanted]) -> str | None:
    """Targets that a one-hot table knows nothing of."""
    silent = model.table.silent_on([w.perturbation for w in request])
    if not silent:
        return None
    return (
        f"{len(silent):,} targets were never trained on, and a one-hot table has no information on them: they all get a mean "
        f"response ({shortlist(silent)})"
    )


def unknown_covariates(model: TrainedModel, source: Source) -> str | None:
    """What of the control cells the model has no embedding of, and so predicts with a mean one."""
    covariates, pool = source.gather.covariates, source.pool
    if covariates is None:
        return None
    found = []
    if "context" in covariates_of(model.model) and (new := sorted(set(pool.of_context) - set(covariates.contexts))):
        found.append(f"the contexts {shortlist(new)}")
    if "batch" in covariates_of(model.model):
        cells = np.concatenate(list(pool.of_context.values()))
        unknown = int((source.gather.batch_number_of_cell[cells] == len(covariates.batches)).sum())
        if unknown:
            found.append(f"the batches of {unknown:,} of {len(cells):,} control cells")
    if not found:
        return None
    return f"{' and '.join(found)} were not trained on: the mean embedding is used for them"


def chosen_for(identity: Identity) -> str:
    """The score that a best checkpoint was kept for."""
    chosen = identity.chosen_for
    return "" if chosen is None else f" (step {chosen['step']:,}, kept for {chosen['score']} {chosen['value']:.4f})"
