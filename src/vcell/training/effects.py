"""Runs of models that are fitted to measured effects in one go: no steps, no gradient, a checkpoint like any other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vcell.atomic import write_text, written_file
from vcell.data.datamodule import CellSetDataModule
from vcell.data.splits import describe
from vcell.effects.make import GivenEffects, fit_model, observed, training_evidence
from vcell.effects.model import EffectModel
from vcell.errors import VcellError
from vcell.model.checkpoint import make_identity
from vcell.model.predictor import prior_of
from vcell.model.table import PerturbationTable
from vcell.model.trained import TrainedModel
from vcell.predict.table import read_table
from vcell.training.build import RunSettings
from vcell.training.run_folder import RunFolder
from vcell.training.waiting import wait_for


def fit_effects(
    run: RunSettings,
    data: CellSetDataModule,
    folder: RunFolder,
    model: EffectModel,
    table: PerturbationTable,
    sizes: dict[str, Any],
) -> Path:
    """Fits a model to the effects of the training groups, and writes its checkpoint; the folder must be there."""
    if lines := _fitted(run, data, model, table):
        print("\n".join(lines), flush=True)
    identity = make_identity(run.plain, data.gather, data.assigned, table, sizes)
    path = folder.checkpoints / "last.ckpt"
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    with written_file(path) as scratch:
        torch.save({"vcell": identity.plain(), "state_dict": state, "global_step": 0}, scratch)
    if model.fitted.get("loco"):
        write_text(
            folder.path / "loco.csv",
            pd.DataFrame.from_dict(model.fitted["loco"], orient="index").to_csv(index_label="left_out"),
        )
    return path


def fit_prior(run: RunSettings, data: CellSetDataModule, model: TrainedModel, rank: int = 0) -> list[str]:
    """Fits what a network starts from, where it has such a prior, to the effects of the training groups; gives lines for the log.

    A continued run does so too: what it finds is the same, and training needs more of it than a checkpoint keeps.
    """
    prior = prior_of(model.model)
    if prior is None and run.plain["effects"]:
        raise VcellError(
            "effects= is read by predictors made of effects (model=transfer, the baselines) and by networks that start from one "
            "(model.prior=transfer); this network would not see it"
        )
    if prior is not None and rank > 0 and run.bank is not None:
        wait_for([run.bank / "bank.json"], f"waiting      for rank 0, which is measuring effects into {run.bank}")
    return [] if prior is None else _fitted(run, data, prior, model.table)


def _fitted(run: RunSettings, data: CellSetDataModule, model: EffectModel, table: PerturbationTable) -> list[str]:
    given = given_effects(run.plain["effects"] or {})
    evidence = training_evidence(data.gather, data.assigned, given, run.bank, model.shrunk)
    lines = [f"effects      {one.study}: {len(one.targets):,} targets, from elsewhere" for one in given]
    return lines + fit_model(model, evidence, observed(data.gather, evidence.context_names), table)


def given_effects(files: Mapping[str, str]) -> list[GivenEffects]:
    """Tables of effects from elsewhere, by the name of their context."""
    if not isinstance(files, Mapping):
        raise VcellError(f"effects={files} needs the context that was measured: effects={{K562: FILE}}")
    found = []
    for name, path in files.items():
        table = read_table(Path(str(path)), "target_gene", None)
        found.append(GivenEffects(str(name), table.targets, table.genes, table.values.astype(np.float32)))
    return found


def summary(run: RunSettings, data: CellSetDataModule, model: EffectModel, table: PerturbationTable) -> str:
    """What is about to be fitted to what."""
    return "\n".join(
        [
            f"run          {run.name}",
            f"data         {data.store.name}: {data.store.n_cells:,} cells, {data.store.n_genes:,} genes, {len(data.store.contexts)} contexts; "
            f"log1p of counts per {data.gather.target_sum:,.0f}",
            describe(data.assigned, data.store.groups),
            f"table        {table.origin}: {len(table.names):,} perturbations × {table.width}",
            f"model        {type(model).__name__}, fitted to the mean effects of the training groups: no steps, no GPU",
        ]
    )


def check_no_warm_start(run: RunSettings) -> None:
    """Raises a `VcellError` where weights are to be taken over: there are none."""
    if run.init_from is not None:
        raise VcellError(
            "init_from continues the weights of a network; this model is fitted anew, in one go. Leave it out"
        )


def finished(checkpoint: Path) -> None:
    """Says that there is nothing left to do."""
    print(f"finished     {checkpoint} was fitted already; overwrite=true fits it again", flush=True)
