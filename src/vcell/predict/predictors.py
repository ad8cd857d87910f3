"""From a configuration to a predictor: the trained model, a baseline, or several blended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from vcell.cli.lookup import find_checkpoint
from vcell.config import plain
from vcell.data.gather import Gather
from vcell.data.splits import Group
from vcell.data.store.view import with_genes
from vcell.errors import VcellError, nearest
from vcell.model.baselines import Predictor, make_baselines
from vcell.model.blend import Blend
from vcell.model.checkpoint import load_module, load_table, read_checkpoint
from vcell.model.table import PerturbationTable
from vcell.predict.controls import embedding_of, open_run_store
from vcell.training.module import TransitionModule

BASELINES = ("copied_controls", "context_mean", "perturbation_mean")
PREDICTORS = ("model", *BASELINES)


def predictors_of(config: DictConfig) -> dict[str, float]:
    """Predictors and their weights."""
    named = plain(config.predictor)
    return {str(k): float(v) for k, v in named.items()} if isinstance(named, Mapping) else {str(named): 1.0}


def check_predictors(config: DictConfig) -> None:
    """Refuses names that are no predictor; whether a checkpoint is there shows when it is read."""
    for name in predictors_of(config):
        if name not in PREDICTORS and not Path(name).suffix:
            raise VcellError(
                f"predictor={name} is none of {', '.join(PREDICTORS)}, nor a checkpoint.{nearest(name, PREDICTORS)}"
            )


def make_predictor(
    config: DictConfig, module: TransitionModule, gather: Gather, path: Path, device: torch.device
) -> Predictor:
    """The predictor asked for; several are blended."""
    weights = predictors_of(config)
    baselines: dict[str, Predictor] = {}
    if set(weights) & set(BASELINES):
        baselines = baselines_of(config, module.identity, gather, path, set(weights))
    found: list[Predictor] = []
    for name in weights:
        if name == "model":
            found.append(module.to(device))
        else:
            found.append(baselines[name] if name in baselines else _other_model(name, module, config.runs).to(device))
    return found[0] if list(weights.values()) == [1.0] else Blend(found, list(weights.values()))


def baselines_of(
    config: DictConfig, identity: dict[str, Any], gather: Gather, path: Path, names: set[str]
) -> dict[str, Predictor]:
    """Baselines; their effects are those of the run's training cells, wherever control cells come from."""
    if names & set(BASELINES) == {"copied_controls"}:
        return make_baselines(gather, {})[0]
    if config.controls is not None:
        store = open_run_store(config.store, identity, path)
        seen = store if store.genes == identity["genes"] else with_genes(store, identity["genes"])
        gather = Gather(seen, identity["target_sum"])
    return make_baselines(gather, split_of(identity))[0]


def _other_model(name: str, module: TransitionModule, runs: str) -> TransitionModule:
    """Another checkpoint to blend with, which has to see and predict the same."""
    other = load_module(find_checkpoint(name, runs))
    for what in ("genes", "target_sum", "covariates", "control"):
        if other.identity[what] != module.identity[what]:
            raise VcellError(f"{name} cannot be blended with ckpt: they differ in {what}")
    if embedding_of(other.identity) != embedding_of(module.identity):
        raise VcellError(f"{name} cannot be blended with ckpt: they differ in data.input")
    return other


def split_of(identity: dict[str, Any]) -> dict[Group, str]:
    return {(context, perturbation): split for context, perturbation, split in identity["split"]}


def other_table(path: str | None, ckpt: Path) -> PerturbationTable | None:
    if path is None:
        return None
    as_trained = read_checkpoint(ckpt)["vcell"]["config"]["perturbation"]
    return load_table({**as_trained, "path": path}, [], [])
