"""From a configuration to its objects: split, data, model, optimiser, trainer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vcell.config import build, plain, wandb_id
from vcell.data.covariates import Covariates
from vcell.data.datamodule import CellSetDataModule
from vcell.data.files.labels import resolve
from vcell.data.gather import Gather
from vcell.data.hvg import choose_hvg
from vcell.data.leaks import drop_leaks
from vcell.data.splits import Group, assign_from_toml, check_known
from vcell.data.store.ensure import ensure_store
from vcell.data.store.options import StoreOptions
from vcell.data.store.store import Cells
from vcell.data.store.view import with_genes
from vcell.effects.model import EffectModel
from vcell.errors import MOST_AT_ONCE, MOST_SEED, VcellError, check_choice, check_number, typed
from vcell.model.checkpoint import make_identity, sizes_for
from vcell.model.checkpoint_io import AtomicCheckpointIO
from vcell.model.coexpression import coexpression_table
from vcell.model.losses import Loss
from vcell.model.run_table import table_for
from vcell.model.table import PerturbationTable
from vcell.model.trained import TrainedModel
from vcell.system import auto_precision
from vcell.training.cost import batch_flops
from vcell.training.cuda_graph import CHOICES
from vcell.training.environment import check_logger, check_wandb, cluster_environment
from vcell.training.module import TransitionModule

# of training, in Lightning's words, by all the names that people use
PRECISIONS = {
    "auto": "auto", "32": "32-true", "32-true": "32-true", "bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed", "16": "16-mixed", "16-mixed": "16-mixed",
}  # fmt: skip
MOST_IN_STEP = 1_000_000  # cells of a set, or sets: more than memory holds, so that some other number was meant
MOST_STEPS = 1_000_000_000
COMPILED = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # modes of torch.compile


@dataclass(frozen=True)
class Own:
    """Objects that take the place of what the configuration names.

    Parameters
    ----------
    model
        A network (`model.predictor.TrainableModel`), or what makes one from the sizes that it has parameters for.
    loss
        Called with predicted cells ``(sets, cells, genes)`` and the batch; gives a dict of terms ``(sets)``, of which ``loss`` is minimised.
    sampler
        Called as `data.sampler.CellSetSampler` is; gives an object with its methods `batch` and `validation`.
    """

    model: nn.Module | Callable[..., nn.Module] | None = None
    loss: Loss | None = None
    sampler: Callable[..., Any] | None = None


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run, besides the objects that it is made of."""

    name: str
    folder: Path
    seed: int
    resume: str
    overwrite: bool
    check: bool
    init_from: str | None
    finetune: str | None  # how the weights of init_from are changed: None, wholly; or lora
    max_steps: int
    accumulated: int  # batches of a step
    validated_every: int
    reconcile: str | None
    input: str | int | None  # what the model sees of a control cell
    bank: Path | None  # where measured effects are kept
    matmul_precision: str  # of float32 matrix products
    on_cpu: bool
    plain: dict[str, Any]  # all of the configuration

    @classmethod
    def of(cls, config: DictConfig) -> RunSettings:
        """From the configuration of ``vcell.train``.

        Raises
        ------
        VcellError
            If a number of the run or its trainer is none that it can have.
        """
        trainer = config.trainer
        if config.name is None or not str(config.name).strip(" ./"):
            raise VcellError(f"name={typed(config.name)} names no run: its folder is runs/NAME")
        if config.run_dir is None or not str(config.run_dir).strip(" ./"):
            raise VcellError(
                f"run_dir={typed(config.run_dir)} is no folder of its own: runs/NAME, where nothing else is given"
            )
        check_number("seed", config.seed, 0, MOST_SEED)
        _check_trainer(trainer)
        if config.compile not in (None, True, False):
            check_choice("compile", config.compile, COMPILED)
        return cls(
            name=config.name,
            folder=Path(config.run_dir),
            seed=config.seed,
            resume=config.resume,
            overwrite=config.overwrite,
            check=config.check,
            init_from=config.init_from,
            finetune=config.finetune,
            max_steps=trainer.max_steps,
            accumulated=trainer.accumulate_grad_batches,
            validated_every=trainer.val_check_interval,
            reconcile=config.data.reconcile,
            input=config.data.input,
            bank=None if config.bank is None else Path(str(config.bank)),
            matmul_precision=config.matmul_precision,
            on_cpu=_on_cpu(trainer),
            plain=plain(config),
        )


def _check_trainer(trainer: DictConfig) -> None:
    check_choice(
        "trainer.precision",
        PRECISIONS.get(str(trainer.precision), trainer.precision),
        dict.fromkeys(PRECISIONS.values()),
    )
    for name in ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches", "num_nodes"):
        check_number(f"trainer.{name}", trainer[name], 1, MOST_STEPS)
    for name in ("max_epochs", "num_sanity_val_steps"):  # Lightning's -1 is no bound, and all
        check_number(f"trainer.{name}", trainer[name], -1, MOST_STEPS)
    if (epochs := trainer.check_val_every_n_epoch) is not None:
        check_number("trainer.check_val_every_n_epoch", epochs, 1, MOST_STEPS, other="null")
    if trainer.gradient_clip_val is not None:
        check_number("trainer.gradient_clip_val", trainer.gradient_clip_val, 0, whole=False)
    most = trainer.max_time
    if most is not None and not (re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(most)) and re.search("[1-9]", str(most))):
        raise VcellError(
            f"trainer.max_time={most} must be days, hours, minutes and seconds, DD:HH:MM:SS: 00:12:00:00 is half a day"
        )


def make_store(config: DictConfig) -> Cells:
    """The store of a run; read from its files first, where it is not there yet."""
    return ensure_store(StoreOptions.of(config.data))


def split_of(config: DictConfig, store: Cells) -> tuple[dict[Group, str], list[str]]:
    """The split of every group of a run, and notes."""
    return split_groups(config.data, store)


def split_groups(data: DictConfig, store: Cells) -> tuple[dict[Group, str], list[str]]:
    """The split of every (context, perturbation), from the TOML where there is one, else from `data.split`; and notes.

    Raises
    ------
    VcellError
        If a training group reveals a held-out perturbation, unless `data.split.leaks` allows it.
    """
    excluded = resolve(data.exclude, {p for _, p in store.groups})
    check_known(excluded, {p for _, p in store.groups}, "data.exclude", "perturbation")
    groups = [group for group in store.groups if group[1] not in excluded]
    split = build(data.split)
    assigned = assign_from_toml(data.toml, groups, store.control) if data.toml else split.assign(groups, store.control)
    return drop_leaks(assigned, split.leaks, store.genes)


def make_data(
    config: DictConfig, store: Cells, assigned: dict[Group, str], own: Own | None = None
) -> CellSetDataModule:
    """The sets of a run; `hvg` cuts the store to its most variable genes."""
    target_sum = config.data.target_sum
    if target_sum == "median":
        target_sum = float(np.median(store.library_size))
    else:
        check_number("data.target_sum", target_sum, 0, whole=False, above=True, other="median")
    sets = {key: value for key, value in config.data.sets.items() if key not in ("weights", "sampler")}
    for key in ("set_size", "sets_per_step"):
        check_number(f"data.sets.{key}", sets[key], 1, MOST_IN_STEP)
    if sets["threads"] != "auto":
        check_number("data.sets.threads", sets["threads"], 1, MOST_AT_ONCE, other="auto")
    check_choice("data.sets.resident", sets["resident"], ("auto", True, False))
    if config.data.hvg is not None:
        store = with_genes(store, choose_hvg(Gather(store, float(target_sum)), assigned, config.data.hvg))
    training = [group for group, split in assigned.items() if split == "train"]
    return CellSetDataModule(
        store,
        assigned,
        float(target_sum),
        seed=config.seed,
        embedding=config.data.input if isinstance(config.data.input, str) else None,
        weights=build(config.data.sets.weights),
        make_sampler=own.sampler if own and own.sampler else build(config.data.sets.sampler),
        covariates=Covariates.of(store, training) if _covariates(config, own) and training else None,
        **sets,
    )


def _covariates(config: DictConfig, own: Own | None) -> bool:
    """Whether the network in training is told contexts and batches."""
    model = own.model if own else None
    asked = config.model.get("covariates") if model is None else getattr(model, "covariates", ())
    return bool(asked) if isinstance(asked, Sequence) else asked is not None


def make_table(config: DictConfig, data: CellSetDataModule) -> PerturbationTable:
    """The perturbation table of a run; it need not have every perturbation."""
    trained = sorted({p for _, p in data.groups("train")})
    held_out = sorted({p for _, p in data.assigned} - set(trained))
    contexts = sorted({context for context, _ in data.groups("train")})
    return table_for(plain(config.perturbation), trained, held_out, lambda: coexpression_table(data.gather, contexts))


def make_module(
    config: DictConfig, resolved: dict[str, Any], data: CellSetDataModule, own: Own | None = None
) -> TransitionModule:
    """The model in training, with its loss, optimiser and validation."""
    own = own or Own()
    table = make_table(config, data)
    table.require(sorted({p for _, p in data.assigned}))
    sizes = model_sizes(config, data, table)
    model = make_network(config, sizes, own)
    fractions = [path for path, scale in data.store.scales.items() if not scale.recoverable]
    if getattr(model, "head", None) == "nb" and fractions:
        raise VcellError(
            f"model.head=nb is trained by the likelihood of whole counts, and {fractions[0]} holds none "
            f"({data.store.scales[fractions[0]].words}). Use model.head=expression, or files with raw counts"
        )
    compiled = None if not config.compile else "default" if config.compile is True else str(config.compile)
    if compiled is not None:
        model.compile(mode=compiled)  # where it predicts; in training it is compiled together with the loss
    if config.cuda_graph not in CHOICES:
        raise VcellError(f"cuda_graph={config.cuda_graph} must be auto, true or false")
    identity = make_identity(resolved, data.gather, data.assigned, table, sizes)
    return TransitionModule(
        TrainedModel(model, table, identity),
        loss=own.loss or build(config.loss),
        optimizer=make_optimizer(config, model),
        schedule=build(config.schedule),
        scores=build(config.validation, genes=data.store.genes),
        seed=config.seed,
        flops=batch_flops(
            lambda: make_network(config, sizes, own, copied=True),
            sizes,
            data.sets_per_step,
            data.set_size,
        ),
        compiled=compiled,
        cuda_graph=config.cuda_graph,
    )


def is_fitted(config: DictConfig) -> bool:
    """Whether the configured model is fitted to effects in one go, instead of trained step by step."""
    try:
        found = get_class(config.model["_target_"])
    except (ImportError, ValueError, AttributeError):
        return False  # said where it is built
    return issubclass(found, EffectModel)


def make_effect_model(
    config: DictConfig, data: CellSetDataModule
) -> tuple[EffectModel, PerturbationTable, dict[str, Any]]:
    """A model that is fitted to effects, the perturbation table and the sizes.

    Targets that the table lacks are allowed: of them effects may be known all the same.
    """
    table = make_table(config, data)
    sizes = model_sizes(config, data, table)
    model: EffectModel = build(config.model, **sizes_for(get_class(config.model["_target_"]), sizes))
    return model, table, sizes


def make_network(config: DictConfig, sizes: dict[str, Any], own: Own, copied: bool = False) -> nn.Module:
    """The network in training: one's own, or that which the configuration names; told those of the sizes that it asks for."""
    if isinstance(own.model, nn.Module):
        return deepcopy(own.model) if copied else own.model
    if own.model is not None:
        return own.model(**sizes_for(own.model, sizes))
    try:
        made = get_class(config.model["_target_"])
    except (ImportError, ValueError) as error:
        raise VcellError(f"model._target_={config.model['_target_']} cannot be imported: {error}") from error
    network: nn.Module = build(config.model, **sizes_for(made, sizes))
    return network


def model_sizes(config: DictConfig, data: CellSetDataModule, table: PerturbationTable) -> dict[str, Any]:
    """The sizes that data and table require of the model."""
    store, seen, covariates = data.store, config.data.input, data.gather.covariates
    input_width = seen_genes = None
    if isinstance(seen, str):
        input_width = store.embedding(seen, np.zeros(1, np.int64)).shape[1]
    elif seen is not None:
        chosen = choose_hvg(Gather(store, data.gather.target_sum), data.assigned, seen, key="data.input")
        number = {gene: i for i, gene in enumerate(store.genes)}
        seen_genes = [number[gene] for gene in chosen]
    return {
        "n_genes": store.n_genes,
        "perturbation_width": table.width,
        "perturbation_parts": table.parts,
        "input_width": input_width,
        "seen_genes": seen_genes,
        "n_contexts": len(covariates.contexts) if covariates else 0,
        "n_batches": len(covariates.batches) if covariates else 0,
    }


def make_optimizer(config: DictConfig, model: torch.nn.Module) -> Any:
    """What makes the optimiser from parameters; tried once, so that an invalid value fails before training.

    ``fused: auto`` is on but under fp16, whose loss scaler must see the gradients before they are clipped.
    """
    options = dict(config.optimizer)
    for name in ("lr", "weight_decay"):
        if name in options:  # an optimiser of one's own may have neither
            check_number(f"optimizer.{name}", options[name], 0, whole=False)
    check_choice("optimizer.fused", options.get("fused"), ("auto", True, False, None))
    if options.get("fused") == "auto":
        options["fused"] = precision(config.trainer, model) != "16-mixed"
    optimizer = build(options)
    try:
        optimizer(model.parameters())
    except (TypeError, ValueError) as error:
        raise VcellError(f"invalid optimizer setting: {error}") from error
    return optimizer


def make_short_trainer(config: DictConfig, model: nn.Module, callback: Callback, steps: int, folder: str) -> Trainer:
    """A trainer of a few steps that leaves nothing but what `callback` saw; validates one batch at their end."""
    short = {
        "max_steps": steps, "val_check_interval": steps * config.trainer.accumulate_grad_batches, "limit_val_batches": 1,
        "default_root_dir": folder, "enable_checkpointing": False,
    }  # fmt: skip
    changed = config.copy()
    OmegaConf.set_struct(changed, False)
    changed.trainer.update(short)
    changed.logger = changed.callbacks = None
    return make_trainer(changed, model, [callback])


def make_trainer(config: DictConfig, model: nn.Module, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Lightning's trainer for `model`, with the configured callbacks and loggers, and further `callbacks`."""
    options = config.trainer
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if options.accelerator == "gpu" and not gpu:
        raise VcellError(
            "the trainer needs a GPU, but torch finds none: use trainer=cpu, or trainer=auto for what is available"
        )
    if config.callbacks is not None and not config.callbacks.get("last"):
        raise VcellError(
            "without callbacks.last a run leaves no checkpoint: keep it beside others, such as callbacks=[default,average]"
        )
    loggers = [make_logger(config, str(name), logger) for name, logger in (config.logger or {}).items() if logger]
    plugins: list[Any] = [AtomicCheckpointIO()]
    if (environment := cluster_environment(int(options.get("num_nodes") or 1), options.get("devices"))) is not None:
        plugins.append(environment)
    trainer: Trainer = build(
        options,
        precision=precision(options, model),
        logger=loggers,
        callbacks=[*(build(callback) for callback in (config.callbacks or {}).values() if callback), *callbacks],
        plugins=plugins,
    )
    # each step it makes the host wait for the device, to tell all ranks of a signal; the callback `last` does so every 20 steps
    epoch_loop: Any = trainer.fit_loop.epoch_loop
    if hasattr(epoch_loop, "_broadcast_sigterm_tensor"):
        epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def precision(options: DictConfig, model: nn.Module) -> str:
    """As configured; ``auto`` is `auto_precision` of the accelerator and the network."""
    if (asked := PRECISIONS[str(options.precision)]) != "auto":
        return asked
    kind = "cpu" if _on_cpu(options) else "cuda"
    return auto_precision(torch.device(kind), sum(weight.numel() for weight in model.parameters()))


def _on_cpu(options: DictConfig) -> bool:
    return bool(options.accelerator == "cpu" or not torch.cuda.is_available())


def make_logger(config: DictConfig, name: str, logger: DictConfig) -> Any:
    """One of the configured loggers, given the run's configuration as hyperparameters."""
    check_logger(name)
    if name == "wandb":
        check_wandb(bool(logger.get("offline")))
        logger = logger.copy()
        OmegaConf.set_struct(logger, False)
        logger["id"] = wandb_id(str(logger.get("id") or config.name))
    made = build(logger)
    made.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    return made
