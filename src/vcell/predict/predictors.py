"""Makes the requested predictor: the trained model, a baseline, another checkpoint, a custom one, or a blend of several."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from math import inf
from pathlib import Path
from typing import Any

import torch

from vcell.config import build
from vcell.data.gather import Gather
from vcell.data.store.view import with_genes
from vcell.effects.make import BASELINES, make_baselines, observed
from vcell.effects.model import EffectModel
from vcell.effects.transfer import Transfer
from vcell.errors import VcellError, check_number, nearest, typed
from vcell.model.blend import Blend
from vcell.model.checkpoint import Identity, read_identity
from vcell.model.find import find_checkpoint
from vcell.model.predictor import Predictor, prior_of
from vcell.model.run_table import table_for
from vcell.model.table import PerturbationTable
from vcell.model.trained import TrainedModel
from vcell.predict.cells import Source
from vcell.predict.controls import open_run_store
from vcell.predict.options import PredictOptions

PREDICTORS = ("model", *BASELINES)
SETTINGS = {name: one for name, one in signature(Transfer).parameters.items() if name != "n_genes"}
Asked = str | Mapping[str, Any] | Predictor  # a name; names and weights, or a class with its arguments; an object


def is_own(asked: Asked) -> bool:
    """Whether this is a custom predictor: an object, a class with its arguments, or the path of a class."""
    if isinstance(asked, str):
        return "." in asked and "/" not in asked and not asked.endswith(".ckpt") and not Path(asked).exists()
    return not isinstance(asked, Mapping) or "_target_" in asked


def predictors_of(asked: Asked) -> dict[str, float]:
    """Names of predictors and their weights; none for a custom one."""
    if is_own(asked):
        return {}
    return {str(k): float(v) for k, v in asked.items()} if isinstance(asked, Mapping) else {str(asked): 1.0}


def label_of(asked: Asked) -> Any:
    """What the file says of its predictor."""
    if not is_own(asked):
        return dict(asked) if isinstance(asked, Mapping) else asked
    if isinstance(asked, Mapping):
        return str(asked["_target_"])
    return asked if isinstance(asked, str) else f"{type(asked).__module__}.{type(asked).__qualname__}"


def check_predictors(asked: Asked) -> None:
    """Refuses names that are no predictor; whether a checkpoint is there shows when it is read."""
    if asked is None or asked == {} or isinstance(asked, int | float | list):
        raise VcellError(
            f"predictor={typed(asked)} must be one of {', '.join(PREDICTORS)}, a checkpoint, or several of these with their weights: "
            "'{model: 0.5, transfer: 0.5}'"
        )
    if isinstance(asked, Mapping) and not is_own(asked):
        for name, weight in asked.items():
            check_number(f"predictor.{name}", weight, -inf, whole=False)
    for name in predictors_of(asked):
        if name not in PREDICTORS and not Path(name).suffix:
            raise VcellError(
                f"predictor={name} is none of {', '.join(PREDICTORS)}, nor a checkpoint.{nearest(name, PREDICTORS)}"
            )


def make_predictor(
    options: PredictOptions, model: TrainedModel, gather: Gather, ckpt: Path, device: torch.device
) -> Predictor:
    """The predictor asked for; several are blended."""
    if is_own(options.predictor):
        return _own(options, model.identity, gather, ckpt)
    weights = predictors_of(options.predictor)
    baselines: dict[str, Predictor] = {}
    if set(weights) & set(BASELINES):
        baselines = dict(_baselines(options, model, gather, ckpt, set(weights)))
    found: list[Predictor] = []
    for name in weights:
        if name == "model":
            found.append(model.to(device).in_precision(options.precision))
        else:
            other = None if name in baselines else _other_model(name, model, options).to(device)
            found.append(baselines[name] if other is None else other.in_precision(options.precision))
    return found[0] if list(weights.values()) == [1.0] else Blend(found, list(weights.values()))


def _own(options: PredictOptions, identity: Identity, gather: Gather, ckpt: Path) -> Predictor:
    """A custom predictor, made where its class is named; it learns from the run's training cells if it can."""
    asked: Any = options.predictor
    made = (
        build({"_target_": asked} if isinstance(asked, str) else dict(asked))
        if isinstance(asked, str | Mapping)
        else asked
    )
    if not isinstance(made, Predictor):
        raise VcellError(f"predictor={label_of(asked)} has no method predict(batch), which makes a predictor")
    if callable(fit := getattr(made, "fit", None)):
        fit(_training_gather(options, identity, gather, ckpt), identity.assigned)
    return made


def _training_gather(options: PredictOptions, identity: Identity, gather: Gather, ckpt: Path) -> Gather:
    """The run's training cells, wherever control cells come from."""
    if options.controls is None:
        return gather
    store = open_run_store(options.store, identity, ckpt)
    seen = store if store.genes == identity.genes else with_genes(store, identity.genes)
    return Gather(seen, identity.target_sum)


def _baselines(
    options: PredictOptions, model: TrainedModel, gather: Gather, ckpt: Path, names: set[str]
) -> dict[str, EffectModel]:
    """Baselines; their effects are those of the run's training cells."""
    chosen = names & set(BASELINES)
    if chosen == {"copied_controls"}:
        return make_baselines(gather, {}, names=chosen)
    training = _training_gather(options, model.identity, gather, ckpt)
    return make_baselines(training, model.identity.assigned, model.table, chosen, bank_folder=bank_of(model.identity))


def bank_of(identity: Identity) -> Path | None:
    """The folder of a run's effect bank, where it has one that is still there."""
    kept = identity.config.get("bank")
    return Path(str(kept)) if kept and Path(str(kept)).is_dir() else None


def transfer_kept(identity: Identity, state_dict: Mapping[str, Any], path: Path) -> Transfer | None:
    """The transfer prior of the checkpoint `path` as it was fitted to the run's training cells: its model, or what its network starts from. None for
    other models, and where it is not what a baseline would be: given settings, or effects from elsewhere.

    Raises
    ------
    VcellError
        If what the checkpoint keeps of it is damaged.
    """
    model = identity.config.get("model") or {}
    is_model = model.get("_target_") == f"{Transfer.__module__}.{Transfer.__qualname__}"
    state = state_dict.get("model._extra_state") if is_model else identity.prior
    if state is None or identity.config.get("effects") or not (is_model or model.get("prior") == "transfer"):
        return None
    if is_model and any(model.get(name, one.default) != one.default for name, one in SETTINGS.items()):
        return None
    found = Transfer(len(identity.genes))
    try:
        found.set_extra_state(state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VcellError(
            f"the checkpoint {path} has a damaged prior ({type(error).__name__}: {error}); train it again"
        ) from error
    return None if found.evidence is None else found


def effect_models(predictor: Predictor) -> list[EffectModel]:
    """Those that a predictor is, or is made of."""
    if isinstance(predictor, EffectModel):
        return [predictor]
    if isinstance(predictor, TrainedModel):
        return [predictor.model] if isinstance(predictor.model, EffectModel) else []
    return (
        [one for member in predictor.predictors for one in effect_models(member)]
        if isinstance(predictor, Blend)
        else []
    )


def networks(predictor: Predictor) -> list[TrainedModel]:
    """The trained models that a predictor is, or is made of."""
    members = predictor.predictors if isinstance(predictor, Blend) else [predictor]
    return [member for member in members if isinstance(member, TrainedModel)]


def priors(predictor: Predictor) -> list[EffectModel]:
    """What the networks that a predictor is, or is made of, start from."""
    found = [prior_of(member.model) for member in networks(predictor)]
    return [prior for prior in found if prior is not None]


def show_controls(predictor: Predictor, source: Source) -> None:
    """Lets predictors that are made of effects see the control cells that they will be asked about."""
    models = [*effect_models(predictor), *priors(predictor)]
    if models:
        controls = observed(source.gather, source.pool.of_context)
        for model in models:
            model.observe(controls)


def _other_model(name: str, model: TrainedModel, options: PredictOptions) -> TrainedModel:
    """Another checkpoint to blend with, which has to see and predict the same."""
    other = TrainedModel.load(find_checkpoint(name, options.runs), trust=options.trust)
    for what in ("genes", "target_sum", "covariates", "control"):
        if getattr(other.identity, what) != getattr(model.identity, what):
            raise VcellError(f"{name} cannot be blended with ckpt: they differ in {what}")
    if other.identity.embedding != model.identity.embedding:
        raise VcellError(f"{name} cannot be blended with ckpt: they differ in data.input")
    return other


def table_in_place_of_its_own(path: str | None, ckpt: Path) -> PerturbationTable | None:
    """The embedding table given for a checkpoint, read as the run has read its own."""
    if path is None:
        return None
    return table_for({**read_identity(ckpt).config["perturbation"], "path": path}, [], [])
