"""Training: data, model and trainer from a configuration; a run begun or continued."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from vcell.atomic import written_file
from vcell.config import RECORD
from vcell.data.datamodule import CellSetDataModule
from vcell.data.splits import check_split, describe, write_split
from vcell.data.store.store import Cells
from vcell.data.store.view import open_stores
from vcell.errors import VcellError
from vcell.model.checkpoint import read_checkpoint
from vcell.model.find import find_checkpoint
from vcell.model.lora import add_lora
from vcell.model.table import decision_lines
from vcell.process.lock import locked
from vcell.records.journal import Journal, kept
from vcell.records.metrics import read_metrics
from vcell.system import freed_memory_kept, matrix_products
from vcell.training import effects
from vcell.training.build import (
    Own,
    RunSettings,
    is_fitted,
    make_data,
    make_effect_model,
    make_module,
    make_short_trainer,
    make_store,
    make_trainer,
    split_of,
)
from vcell.training.cost import load_ahead, words
from vcell.training.estimate import STEPS, Stopwatch, estimate, out_of_memory
from vcell.training.guard import NotFiniteError
from vcell.training.guidance import guidance
from vcell.training.module import TransitionModule
from vcell.training.resuming import restoring
from vcell.training.run_folder import RunFolder
from vcell.training.waiting import wait_for
from vcell.training.warmstart import carry_over

# what gloo and NCCL say when a process they talk to is gone
LOST_RANK = r"(?i)connection (closed|reset)|peer|nccl|gloo|broken pipe|timed? ?out"


def train(config: DictConfig, own: Own | None = None) -> RunFolder:
    """Data, model and trainer from `config`; then trains to `trainer.max_steps`.

    Parameters
    ----------
    config
        Of ``vcell.train``.
    own
        Objects in place of what it names.

    Returns
    -------
    The run's folder.
    """
    run = RunSettings.of(config)
    rank = getattr(rank_zero_only, "rank", 0)  # as Lightning finds it: torchrun, SLURM or its own launcher
    quieten()
    folder = RunFolder(run.folder)
    with (
        locked(folder.path, "the run") if rank == 0 and not run.check else nullcontext(),
        matrix_products(run.matmul_precision),
        freed_memory_kept() if run.on_cpu else nullcontext(),
        kept(rank == 0 and not run.check) as journal,
    ):
        _train(config, run, own, folder, rank, journal)
    return folder


def _train(
    config: DictConfig, run: RunSettings, own: Own | None, folder: RunFolder, rank: int, journal: Journal
) -> None:
    if rank == 0 and not run.check:
        folder.clear_leftovers()
    fitted = is_fitted(config) and not (own and own.model)
    checkpoint = (
        None if run.check else folder.checkpoint_to_continue(run.plain, run.resume, run.overwrite, trains=not fitted)
    )
    seed_everything(run.seed, workers=True, verbose=False)
    if not fitted:
        load_ahead()
    store = make_store(config) if rank == 0 else wait_for_store(run.plain["data"])
    store.check_one_scale(run.reconcile)
    assigned, notes = split_of(config, store)
    data = make_data(config, store, assigned, own)
    if fitted:
        if rank == 0:
            _fit_effects(config, run, data, folder, checkpoint, notes, journal)
        return
    module = make_module(config, run.plain, data, own)
    step = 0 if checkpoint is None else int(read_checkpoint(checkpoint)["global_step"])
    if step < run.max_steps:
        about_prior = effects.fit_prior(run, data, module.trained, rank)
        if rank == 0 and about_prior:
            print("\n".join(about_prior), flush=True)
    if run.check:
        check(config, run, data, module, notes, rank)
        return
    notes += start_from_another(run, module, continues=checkpoint is not None)
    trainer = make_trainer(config, module.model)  # what it refuses leaves no folder
    if rank == 0:
        if checkpoint is None:
            folder.begin(run.plain, run.overwrite)
            write_split(folder.path / "split.json", assigned, store.groups, store.fingerprint)
        else:
            read_metrics(folder.path / "metrics.csv")
        check_split(folder.path / "split.json", assigned, store.fingerprint)
        say(summary(run, data, module), notes)
    if rank == 0 and checkpoint is not None:
        say_where_it_goes_on(checkpoint, step, run.max_steps, folder)
    if step >= run.max_steps:
        return
    if rank == 0:
        journal.open(folder.path, device=str(trainer.strategy.root_device), precision=str(trainer.precision))
    try:
        fit(trainer, module, data, checkpoint, folder)
        if rank == 0 and not (folder.checkpoints / "last.ckpt").exists():
            raise VcellError("training ended before its first step: there is nothing to keep")
    except BaseException:
        if rank == 0 and checkpoint is None:
            folder.discard_if_empty()
        raise
    if rank == 0:
        hand_over(trainer, folder)
        if module.addition is not None:
            print(
                f"prior        {module.addition:.2f} of what the network adds to it is kept, by the last validation (infer addition=1: all)"
            )
        print(f"run folder   {folder.path}\ncheckpoint   {folder.checkpoints / 'last.ckpt'}", flush=True)


def start_from_another(run: RunSettings, module: TransitionModule, continues: bool) -> list[str]:
    """Takes over the weights that the run starts from, and makes them ready for fine-tuning; gives notes.

    A continued run has weights of its own, but what of them is trained is settled by those it has started from.
    """
    if run.finetune not in (None, "lora"):
        raise VcellError(f"finetune={run.finetune} must be lora, or null to train all weights")
    if run.init_from is None:
        if run.finetune is not None:
            raise VcellError(
                "finetune=lora changes the weights of another run: name its checkpoint, init_from=FILE.ckpt"
            )
        return []
    if continues and run.finetune is None:
        return []
    notes, untrained = carry_over(module, find_checkpoint(run.init_from))
    if run.finetune is not None:
        notes.append(add_lora(module.model, run.plain["lora"]["rank"], run.plain["lora"]["alpha"], untrained))
    return [] if continues else notes


def _fit_effects(
    config: DictConfig,
    run: RunSettings,
    data: CellSetDataModule,
    folder: RunFolder,
    checkpoint: Path | None,
    notes: list[str],
    journal: Journal,
) -> None:
    """The same for a model that is fitted in one go."""
    effects.check_no_warm_start(run)
    model, table, sizes = make_effect_model(config, data)
    say(effects.summary(run, data, model, table), notes)
    if run.check:
        print("\n".join(guidance(data, table)), flush=True)
        return
    if checkpoint is not None:
        check_split(folder.path / "split.json", data.assigned, data.store.fingerprint)
        effects.finished(checkpoint)
        return
    folder.begin(run.plain, run.overwrite)
    journal.open(folder.path, device="cpu")
    try:
        write_split(folder.path / "split.json", data.assigned, data.store.groups, data.store.fingerprint)
        path = effects.fit_effects(run, data, folder, model, table, sizes)
    except BaseException:
        folder.discard_if_empty()
        raise
    print(f"run folder   {folder.path}\ncheckpoint   {path}", flush=True)


def check(
    config: DictConfig, run: RunSettings, data: CellSetDataModule, module: TransitionModule, notes: list[str], rank: int
) -> None:
    """Says what the run is and what it will take, and leaves nothing behind."""
    if rank == 0:
        say(summary(run, data, module), notes)
    with tempfile.TemporaryDirectory(prefix="vcell-check-") as place:
        watch = Stopwatch()
        found = estimate(make_short_trainer(config, module.model, watch, STEPS, place), run, data, module, watch)
    if rank == 0:
        print("\n".join([str(found), *guidance(data, module.table)]), flush=True)


def say(summary: str, notes: list[str]) -> None:
    print(summary, *[f"note         {note}" for note in notes], sep="\n", flush=True)


def fit(
    trainer: Trainer, module: TransitionModule, data: CellSetDataModule, checkpoint: Path | None, folder: RunFolder
) -> None:
    """Trains; what ends training before its time is said in one message."""
    try:
        with restoring(checkpoint):
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    except NotFiniteError as error:
        rescued = folder.checkpoints / "before_nonfinite.ckpt"
        before = rescued if rescued.is_file() else folder.checkpoints / "last.ckpt"
        raise VcellError(
            f"{error}; training has stopped. Weights from before that are in {before}. A lower optimizer.lr or a longer "
            f"schedule.warmup_steps usually helps: start a run from them with init_from={before} name=NEW_NAME optimizer.lr=..."
        ) from error
    except torch.OutOfMemoryError as error:
        raise VcellError(out_of_memory(data)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise VcellError(
            f"the run {folder.path} could not be written: {error.strerror}. Free some space; the same command continues the run"
        ) from error
    except RuntimeError as error:
        if trainer.world_size == 1 or not re.search(LOST_RANK, str(error)):
            raise
        first_line = re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0])
        raise VcellError(
            f"rank {trainer.global_rank} lost contact with another rank of this job, whose own message says why ({first_line[:100]}). "
            "The same command continues from the last checkpoint"
        ) from error


def hand_over(trainer: Trainer, folder: RunFolder) -> None:
    """Gives what a run leaves in its folder to loggers that keep files (wandb)."""
    for logger in trainer.loggers:
        if type(logger).__name__ != "WandbLogger":
            continue
        for name in (RECORD, "metrics.csv", "curves.png", "curves.html", "split.json"):
            with suppress(OSError, ValueError):
                logger.experiment.save(  # type: ignore[attr-defined]
                    str(folder.path / name), base_path=str(folder.path), policy="now"
                )


def quieten() -> None:
    """Lightning's greetings and tips are not ours to print; its warnings stay."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message="Total length of .* across ranks is zero")
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback with a model that overrides")
    warnings.filterwarnings(
        "ignore", message="The `srun` command is available"
    )  # on a login node: srun is the script's affair
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def summary(run: RunSettings, data: CellSetDataModule, module: TransitionModule) -> str:
    """What is about to be trained on what."""
    sampler = data.sampler("train")
    parameters = sum(p.numel() for p in module.model.parameters())
    lines = [
        f"run          {run.name}",
        f"data         {data.store.name}: {data.store.n_cells:,} cells, {data.store.n_genes:,} genes, "
        f"{len(data.store.contexts)} contexts; log1p of counts per {data.gather.target_sum:,.0f}",
        describe(data.assigned, data.store.groups),
        f"sets         {data.sets_per_step} × {data.set_size} cells per step, {sampler.sets_per_epoch:,} sets per epoch",
        f"table        {module.table.origin}: {len(module.table.names):,} perturbations × {module.table.width}",
        *(f"  {line}" for line in decision_lines(module.table.decisions)),
        f"model        {parameters:,} parameters, {words(module.flops)}FLOP per step (forward and backward)",
    ]
    if data.store.known is not None:
        n = (~data.store.known).any(axis=0).sum()
        lines.append(f"genes        {n:,} of {data.store.n_genes:,} were not measured in every source: masked there")
    if len({scale.recoverable for scale in data.store.scales.values()}) > 1:
        lines.append("scales       counts and fractions, all used as proportions (data.reconcile=proportions)")
    if isinstance(run.input, str):
        lines.append(f"input        obsm/{run.input} of the control cells, in place of their expression")
    elif run.input is not None:
        lines.append(
            f"input        the {run.input:,} most variable genes of the control cells; all genes are predicted"
        )
    if getattr(sampler, "fallback_cells", 0):
        lines.append(
            f"controls     {getattr(sampler, 'fallback_cells', 0):,} perturbed cells lie in batches without control cells: their controls "
            "come from the whole context"
        )
    silent = module.table.silent_on([p for _, p in data.assigned])
    if silent:
        lines.append(
            f"note         a one-hot table has no information on the {len(silent):,} perturbations held out everywhere: for them "
            "the model can only give a mean response. An embedding table can: perturbation.path=TABLE.pt"
        )
    return "\n".join(lines)


def say_where_it_goes_on(checkpoint: Path, step: int, max_steps: int, folder: RunFolder) -> None:
    """Says at which step the run continues, or that it has come to its end already."""
    if step < max_steps:
        print(f"continuing   from {checkpoint} at step {step:,} of {max_steps:,}", flush=True)
        return
    last = folder.checkpoints / "last.ckpt"
    if checkpoint != last:  # it could not be written then, or was damaged since
        with written_file(last) as scratch:
            shutil.copyfile(checkpoint, scratch)
        print(f"restored     {last} from {checkpoint.name}", flush=True)
    print(f"finished     {checkpoint} is at step {step:,} already; trainer.max_steps=N trains longer, "
          "overwrite=true restarts it", flush=True)  # fmt: skip


def wait_for_store(data: Mapping[str, Any]) -> Cells:
    """The store that rank 0 is writing; for the other ranks."""
    paths = [Path(str(path)) for path in data["stores"] or [data["store"]]]
    wait_for(
        [path / "meta.json" for path in paths],
        f"waiting      for rank 0, which is reading the data into {paths[0]} while these GPUs wait. To do that once, without "
        f"GPUs: python -m vcell.prepare data={data['name']} data.store={paths[0]}",
    )
    return open_stores(paths)
