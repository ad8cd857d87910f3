"""Training: data, model and trainer from a configuration; a run begun or continued."""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from vcell.cli import build
from vcell.data.datamodule import CellSetDataModule
from vcell.data.gather import Gather
from vcell.data.hvg import choose_hvg
from vcell.data.leaks import drop_leaks
from vcell.data.prepare import ensure_store
from vcell.data.splits import Group, assign_from_toml, check_known, check_split, describe, write_split
from vcell.data.store import Cells
from vcell.data.view import open_stores, with_genes
from vcell.errors import VcellError
from vcell.model.callbacks import KeepLast
from vcell.model.checkpoint import AtomicCheckpointIO, load_table, make_identity, read_checkpoint
from vcell.model.module import TransitionModule
from vcell.run import RunFolder


def train(config: DictConfig) -> None:
    """Data, model and trainer from `config`; then trains to `trainer.max_steps`."""
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    rank = getattr(rank_zero_only, "rank", 0)  # as Lightning finds it: torchrun, SLURM or its own launcher
    quieten()
    folder = RunFolder(Path(config.run_dir))
    checkpoint = folder.checkpoint_to_continue(resolved, config.resume, config.overwrite)
    seed_everything(config.seed, workers=True, verbose=False)
    store = ensure_store(config.data) if rank == 0 else wait_for_store(config.data)
    store.check_one_scale(config.data.reconcile)
    assigned, notes = split_groups(config.data, store)
    data = make_data(config, store, assigned)
    module = make_module(config, resolved, data)
    if rank == 0:
        if checkpoint is None:
            folder.begin(resolved, config.overwrite)
            write_split(folder.path / "split.json", assigned, store.groups, store.fingerprint)
        check_split(folder.path / "split.json", assigned, store.fingerprint)
        print(summary(config, data, module), *[f"note         {note}" for note in notes], sep="\n", flush=True)
    trainer = make_trainer(config)
    if checkpoint is not None and finished(checkpoint, trainer.max_steps, say=rank == 0):
        return
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    exit_if_stopped(trainer)
    if rank == 0:
        print(f"run folder   {folder.path}\ncheckpoint   {folder.checkpoints / 'last.ckpt'}", flush=True)


def quieten() -> None:
    """Lightning's greetings and tips are not ours to print; its warnings stay."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def split_groups(data: DictConfig, store: Cells) -> tuple[dict[Group, str], list[str]]:
    """The split of every (context, perturbation), from the TOML where there is one, else from `data.split`; and notes.

    Raises
    ------
    VcellError
        If a training group gives away a held-out perturbation, and `data.split.leaks` does not say otherwise.
    """
    check_known(data.exclude, {p for _, p in store.groups}, "data.exclude", "perturbation")
    groups = [group for group in store.groups if group[1] not in data.exclude]
    split = build(data.split)
    assigned = assign_from_toml(data.toml, groups, store.control) if data.toml else split.assign(groups, store.control)
    return drop_leaks(assigned, split.leaks, store.genes)


def make_data(config: DictConfig, store: Cells, assigned: dict[Group, str]) -> CellSetDataModule:
    target_sum = config.data.target_sum
    if target_sum == "median":
        target_sum = float(np.median(store.library_size))
    elif not isinstance(target_sum, int | float) or target_sum <= 0:
        raise VcellError(f"data.target_sum={target_sum} must be 'median' or a number above 0")
    sets = {key: value for key, value in config.data.sets.items() if key != "weights"}
    for key in ("set_size", "sets_per_step", "threads"):
        if not isinstance(sets[key], int) or sets[key] < 1:
            raise VcellError(f"data.sets.{key}={sets[key]} must be a whole number of at least 1")
    if sets["resident"] not in ("auto", True, False):
        raise VcellError(f"data.sets.resident={sets['resident']} must be auto, true or false")
    if config.data.hvg is not None:
        store = with_genes(store, choose_hvg(Gather(store, float(target_sum)), assigned, config.data.hvg))
    return CellSetDataModule(
        store,
        assigned,
        float(target_sum),
        seed=config.seed,
        embedding=config.data.input,
        weights=build(config.data.sets.weights),
        **sets,
    )


def make_module(config: DictConfig, resolved: dict[str, Any], data: CellSetDataModule) -> TransitionModule:
    trained = sorted({p for _, p in data.groups("train")})
    held_out = sorted({p for _, p in data.assigned} - set(trained))
    table = load_table(config.perturbation, trained, held_out)
    table.require([*trained, *held_out])
    width = None
    if config.data.input is not None:
        width = data.store.embedding(config.data.input, np.zeros(1, np.int64)).shape[1]
    model = build(config.model, n_genes=data.store.n_genes, perturbation_width=table.width, input_width=width)
    return TransitionModule(
        model,
        table,
        make_identity(resolved, data.gather, data.assigned, table, width),
        loss=build(config.loss),
        optimizer=make_optimizer(config, model),
        schedule=build(config.schedule),
    )


def make_optimizer(config: DictConfig, model: torch.nn.Module) -> Any:
    """What makes the optimiser from parameters, tried once, so that a refused value fails before training."""
    optimizer = build(config.optimizer)
    try:
        optimizer(model.parameters())
    except (TypeError, ValueError) as error:
        raise VcellError(f"the optimizer refuses a value: {error}") from error
    return optimizer


def make_trainer(config: DictConfig) -> Trainer:
    """Lightning's trainer with the configured callbacks and loggers."""
    options = config.trainer
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if options.accelerator == "gpu" and not gpu:
        raise VcellError(
            "the trainer asks for a GPU, and torch finds none: trainer=cpu, or trainer=auto for what is there"
        )
    loggers = config.logger or {}
    if "wandb" in loggers and importlib.util.find_spec("wandb") is None:
        raise VcellError("logger=wandb needs wandb: pip install 'vcell[wandb]'")
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # KeepLast saves and requeues
    return build(
        options,
        precision=auto_precision(options.accelerator) if options.precision == "auto" else options.precision,
        logger=[build(logger) for logger in loggers.values()],
        callbacks=[build(callback) for callback in (config.callbacks or {}).values()],
        plugins=plugins,
    )


def auto_precision(accelerator: str) -> str:
    """bf16 where the GPU has it, fp16 with loss scaling on older ones, fp32 on CPU."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def summary(config: DictConfig, data: CellSetDataModule, module: TransitionModule) -> str:
    """What is about to be trained on what."""
    sampler = data.sampler("train")
    parameters = sum(p.numel() for p in module.model.parameters())
    lines = [
        f"run          {config.name}",
        f"data         {data.store.name}: {data.store.n_cells:,} cells, {data.store.n_genes:,} genes, "
        f"{len(data.store.contexts)} contexts; log1p of counts per {data.gather.target_sum:,.0f}",
        describe(data.assigned, data.store.groups),
        f"sets         {data.sets_per_step} × {data.set_size} cells a step, {sampler.sets_per_epoch:,} sets an epoch",
        f"table        {module.table.origin}: {len(module.table.names):,} perturbations × {module.table.width}",
        f"model        {parameters:,} parameters",
    ]
    if data.store.measured is not None:
        n = (~data.store.measured).any(axis=0).sum()
        lines.append(f"genes        {n:,} of {data.store.n_genes:,} were not measured in every source: masked there")
    if len({scale.recoverable for scale in data.store.scales.values()}) > 1:
        lines.append("scales       counts and fractions, all taken for proportions (data.reconcile=proportions)")
    if config.data.input is not None:
        lines.append(f"input        obsm/{config.data.input} of the control cells, in place of their expression")
    if sampler.fallback_cells:
        lines.append(
            f"controls     {sampler.fallback_cells:,} perturbed cells lie in batches without control cells: theirs are "
            "drawn from the whole context"
        )
    silent = module.table.silent_on([p for _, p in data.assigned])
    if silent:
        lines.append(
            f"note         a one-hot table says nothing of the {len(silent):,} perturbations held out everywhere: for them "
            "the model can only give a mean response. An embedding table can: perturbation.path=TABLE.pt"
        )
    return "\n".join(lines)


def finished(checkpoint: Path, max_steps: int, say: bool) -> bool:
    """Whether the run to continue has come to its end already; tells the user either way."""
    step = int(read_checkpoint(checkpoint)["global_step"])
    done = step >= max_steps
    if say and done:
        print(f"finished     {checkpoint} is at step {step:,} already; trainer.max_steps=N trains longer, "
              "overwrite=true begins anew", flush=True)  # fmt: skip
    elif say:
        print(f"continuing   from {checkpoint} at step {step:,} of {max_steps:,}", flush=True)
    return done


def exit_if_stopped(trainer: Trainer) -> None:
    """Ends with the signal's code when one asked the run to stop, so that nothing after it thinks it finished."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, KeepLast) and callback.signal is not None:
            if trainer.is_global_zero:
                print(f"stopped by signal {callback.signal}, saved at step {callback.saved_step:,}; the same command "
                      "continues the run", flush=True)  # fmt: skip
            raise SystemExit(128 + callback.signal)


def wait_for_store(data: DictConfig, patience_s: float = 6 * 3600) -> Cells:
    """The store that rank 0 is writing; on ranks that start beside it."""
    paths = [Path(str(path)) for path in data.stores or [data.store]]
    until = time.monotonic() + patience_s
    while not all((path / "meta.json").is_file() for path in paths):
        if time.monotonic() > until:
            raise VcellError(f"rank 0 has not written {paths[0]} in {patience_s / 3600:.0f} hours; see its log")
        time.sleep(1.0)
    return open_stores(paths)
