"""Inference: a checkpoint and a request to an h5ad of predicted cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from vcell import __version__
from vcell.challenge import Challenge
from vcell.cli.lookup import find_checkpoint
from vcell.config import build, plain
from vcell.data.covariates import Covariates
from vcell.data.files.paths import read_gene_list
from vcell.data.gather import Gather
from vcell.data.sampler import ControlPool
from vcell.data.store.store import Cells
from vcell.data.store.view import with_genes
from vcell.errors import VcellError, shortlist
from vcell.model.baselines import Predictor
from vcell.model.checkpoint import load_module
from vcell.predict.cells import CountModels, DrawnCells, ExpectedCells, PredictedEffects, Source
from vcell.predict.controls import embedding_of, is_store, open_controls, store_of
from vcell.predict.key import key_of
from vcell.predict.layout import Form
from vcell.predict.parts import parts_folder
from vcell.predict.predictors import check_predictors, make_predictor, other_table, predictors_of
from vcell.predict.request import Wanted, requested
from vcell.predict.work import Place, Prediction, chosen_controls, gene_notes, make_form, produce
from vcell.system import Rank, choose_device
from vcell.training.module import TransitionModule

COMPRESSIONS = (None, "lzf", "gzip")


def infer(config: DictConfig) -> None:
    """Predicts what `config` asks for into `config.out`; on several processes, this one's share of it."""
    out, ckpt = Path(config.out), find_checkpoint(config.ckpt, config.runs)
    resolved = OmegaConf.to_container(config, resolve=True)
    place = Place(out, key_of("infer", resolved, ("controls", "targets", "genes", "perturbation"), ckpt))  # type: ignore[arg-type]
    if place.finished():
        return
    check_config(config)
    produce(partial(prepare, resolved, ckpt), place, helpers_of(config), config.compression)


def check_config(config: DictConfig) -> None:
    """What can be refused before anything is read."""
    if Rank.here().number == 0 and Path(config.out).exists() and not config.overwrite:
        raise VcellError(f"{config.out} exists already; give out=OTHER.h5ad, or overwrite=true to replace it")
    check_predictors(config)
    if config.compression not in COMPRESSIONS:
        raise VcellError(
            f"compression={config.compression} must be null, lzf or gzip: the official tools read no other"
        )
    if config.devices != "auto" and (not isinstance(config.devices, int) or config.devices < 1):
        raise VcellError(f"devices={config.devices} must be auto or a number of at least 1")
    choose_device(config.device, 0)


def helpers_of(config: DictConfig) -> int:
    """Processes beside this one that `devices` asks for."""
    if config.devices != "auto":
        return config.devices - 1
    return max(1, torch.cuda.device_count()) - 1 if choose_device(config.device, 0).type == "cuda" else 0


def prepare(resolved: Any, ckpt: Path, rank: Rank, claim: Callable[[], bool]) -> Prediction | None:
    """Reads, checks and decides. Before `claim` nothing is written but what is made of control files, which goes there."""
    config = OmegaConf.create(resolved)
    challenge: Challenge = build(config.challenge)
    module = load_module(ckpt, other_table(config.perturbation, ckpt))
    identity, out = module.identity, Path(config.out)
    genes = read_gene_list(config.genes, "genes") if config.genes else list(identity["genes"])
    challenge.check_genes(genes, f"{config.genes} has" if config.genes else "the model predicts")
    from_files = config.controls is not None and not is_store(plain(config.controls))
    if from_files and not claim():
        return None
    store = open_controls(config, challenge, identity, ckpt, genes, parts_folder(out) / "controls")
    uses_model = "model" in predictors_of(config)
    known_targets = module.table.names if uses_model else [p for _, p, _ in identity["split"]]
    request = requested(config, challenge, identity, store, known_targets)
    if uses_model:
        module.table.require([w.perturbation for w in request])
    challenge.phase(w.context for w in request)
    challenge.check_labels({(w.context, w.perturbation): w.n_cells for w in request}, None)
    source = make_source(store, identity, {w.context for w in request}, config.sets_per_step, config.seed)
    for group in request:
        source.plan(group)  # batches that cannot be had are found before the first cell is predicted
    device = choose_device(config.device, rank.local)
    form = make_form(config, challenge, genes, source, request)
    drawn = challenge.drawn if config.draw is None else config.draw or challenge.values == "counts"
    maker = make_maker(make_predictor(config, module, source.gather, ckpt, device), source, form, device, drawn)
    controls = chosen_controls(challenge, source, request, config.max_controls)
    notes = gene_notes(source, form) + fallback_notes(predictors_of(config), identity, request)
    if uses_model:
        notes += [note for note in (unknown_covariates(module, source), silent_targets(module, request)) if note]
    if not from_files and not claim():
        return None
    about = {
        "vcell": __version__, "ckpt": str(ckpt.resolve()), "predictor": plain(config.predictor), "seed": config.seed,
        "store": [str(Path(p).resolve()) for p in store_of(config.store, identity)], "challenge": challenge.name,
        "scale": form.values, "target_sum": form.target_sum if form.values == "log1p" else None, "drawn": drawn,
    }  # fmt: skip
    trained = {p for _, p, split in identity["split"] if split == "train"}
    unseen = len({w.perturbation for w in request} - trained)
    said = [f"checkpoint   {ckpt}{chosen_for(identity)}", f"targets      {unseen:,} of them never trained on"]
    return Prediction(out, request, controls, maker, source, form, challenge, about, said, notes)


def make_source(store: Cells, identity: dict[str, Any], contexts: set[str], sets_per_step: int, seed: int) -> Source:
    """Control cells of `contexts`, in sets of the size trained with."""
    covariates = Covariates(**identity["covariates"]) if identity["covariates"] else None
    seen = store if store.genes == identity["genes"] else with_genes(store, identity["genes"])
    gather = Gather(seen, identity["target_sum"], embedding_of(identity), covariates=covariates)
    set_size = identity["config"]["data"]["sets"]["set_size"]
    return Source(gather, store, ControlPool(store, contexts), set_size, sets_per_step, seed)


def make_maker(
    predictor: Predictor, source: Source, form: Form, device: torch.device, drawn: bool
) -> ExpectedCells | DrawnCells:
    """Cells as the predictor expects them, or drawn around what it predicts."""
    if not drawn:
        return ExpectedCells(predictor, source, form, device)
    models = CountModels(source.store, source.gather.target_sum)
    return DrawnCells(PredictedEffects(predictor, source, models, device), source, form, models)


def fallback_notes(names: Mapping[str, float], identity: dict[str, Any], request: Sequence[Wanted]) -> list[str]:
    """What stands in where a baseline has no training cells to speak from."""
    groups = [(context, perturbation) for context, perturbation, split in identity["split"] if split == "train"]
    contexts, perturbations = {c for c, _ in groups}, {p for _, p in groups}
    unseen = {w.perturbation for w in request if w.perturbation not in perturbations}
    new = sorted({w.context for w in request if w.context not in contexts})
    notes = []
    if "perturbation_mean" in names and unseen:
        notes.append(
            f"{len(unseen):,} targets were never trained on: the context mean stands in for their perturbation mean"
        )
    if new and ("context_mean" in names or ("perturbation_mean" in names and unseen)):
        notes.append(
            f"no cells of {shortlist(new)} were trained on: the mean of all contexts stands in for the context mean"
        )
    return notes


def silent_targets(module: TransitionModule, request: Sequence[Wanted]) -> str | None:
    """Targets that a one-hot table knows nothing of."""
    silent = module.table.silent_on([w.perturbation for w in request])
    if not silent:
        return None
    return (
        f"{len(silent):,} targets were never trained on, and a one-hot table says nothing of them: they all get a mean "
        f"response ({shortlist(silent)})"
    )


def unknown_covariates(module: TransitionModule, source: Source) -> str | None:
    """What of the control cells the model has no embedding of, and so predicts with a mean one."""
    covariates, pool = source.gather.covariates, source.pool
    if covariates is None:
        return None
    found = []
    if "context" in module.model.covariates and (new := sorted(set(pool.of_context) - set(covariates.contexts))):
        found.append(f"the contexts {shortlist(new)}")
    if "batch" in module.model.covariates:
        cells = np.concatenate(list(pool.of_context.values()))
        unknown = int((source.gather.batch_number_of_cell[cells] == len(covariates.batches)).sum())
        if unknown:
            found.append(f"the batches of {unknown:,} of {len(cells):,} control cells")
    if not found:
        return None
    return f"{' and '.join(found)} were not trained on: their embedding is the mean of those that were"


def chosen_for(identity: dict[str, Any]) -> str:
    """The score that a best checkpoint was kept for."""
    chosen = identity["chosen_for"]
    return "" if chosen is None else f" (step {chosen['step']:,}, kept for {chosen['score']} {chosen['value']:.4f})"
