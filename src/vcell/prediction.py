"""A request, its control cells and a predictor to predicted cells, perturbation by perturbation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vcell.data.batch import CellSets
from vcell.data.gather import Gather
from vcell.data.h5ad import Columns, open_h5ad, read_obs
from vcell.data.normalize import change_target_sum
from vcell.data.sampler import ControlPool
from vcell.errors import VcellError, nearest, shortlist
from vcell.model.baselines import Predictor
from vcell.output.writer import H5adWriter
from vcell.progress import progress_bar

DEFAULT_CELLS = 100


@dataclass(frozen=True)
class Wanted:
    """Some cells of one perturbation in one context."""

    context: str
    perturbation: str
    n_cells: int


@dataclass(frozen=True)
class Source:
    """Control cells to predict from, and how to draw them."""

    gather: Gather
    pool: ControlPool
    set_size: int
    sets_per_step: int
    seed: int


def read_request(
    targets: str | Sequence[str],
    contexts: Sequence[str] | None,
    n_cells: int | None,
    known_contexts: Sequence[str],
    control: str,
    columns: Columns,
) -> list[Wanted]:
    """The cells asked for.

    Parameters
    ----------
    targets
        A CSV with `target_gene` and optionally `n_cells` and `context`; a template h5ad, whose labels count; or names.
    contexts
        Where to predict them; needed when there are several and the CSV does not say.
    n_cells
        Per target, where the CSV does not say.
    known_contexts
        Contexts with control cells.
    control
        The label of controls; a row of it is passed over.
    columns
        obs columns of a template.

    Raises
    ------
    VcellError
        If the CSV cannot be read, names a target twice, or has cell numbers that are not whole and above 0.
    """
    if not isinstance(targets, str):
        table = pd.DataFrame({"target_gene": [str(t) for t in targets]})
    elif targets.endswith((".h5ad", ".h5")):
        table = _read_template(Path(targets), columns, contexts)
    else:
        table = _read_targets(targets)
    table = table[table["target_gene"] != control]
    if table.empty:
        raise VcellError(f"no targets are asked for in {targets}")
    if "n_cells" not in table:
        table = table.assign(n_cells=n_cells or DEFAULT_CELLS)
    bad = table[~((table["n_cells"] > 0) & (table["n_cells"] % 1 == 0))]
    if len(bad):
        raise VcellError(f"{targets}: n_cells must be whole and above 0; it is not for {shortlist(bad['target_gene'])}")
    if "context" not in table:
        chosen = _contexts(contexts, known_contexts)
        table = pd.concat([table.assign(context=context) for context in chosen])
    twice = table[table.duplicated(["context", "target_gene"])]["target_gene"]
    if len(twice):
        raise VcellError(f"{targets} asks twice for {shortlist(twice.unique())}")
    for context in table["context"].unique():
        if context not in known_contexts:
            raise VcellError(
                f"there are no control cells of context {context!r} to predict from.{nearest(context, known_contexts)} "
                f"Contexts with controls: {', '.join(known_contexts)}. Give controls=FILE.h5ad for another one"
            )
    return [
        Wanted(str(c), str(t), int(n))
        for c, t, n in zip(table["context"], table["target_gene"], table["n_cells"], strict=True)
    ]


def _read_template(path: Path, columns: Columns, contexts: Sequence[str] | None) -> pd.DataFrame:
    """Targets, contexts and cell numbers of a template: perturbed labels on whatever cells."""
    with open_h5ad(path) as file:
        constant = contexts[0] if contexts and len(contexts) == 1 else None
        obs = read_obs(file, path, Columns(columns.perturbation, None, columns.context), constant)
    counted = obs.groupby(["context", "perturbation"], sort=False).size().reset_index(name="n_cells")
    return counted.rename(columns={"perturbation": "target_gene"})


def _read_targets(path: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except FileNotFoundError as error:
        raise VcellError(
            f"no such file: {path} (looked from {Path.cwd()}). Give targets=FILE.csv with a column target_gene, or names: "
            f"targets=[{Path(path).name}]"
        ) from error
    except (ValueError, OSError) as error:
        raise VcellError(f"{path} cannot be read as CSV: {error}") from error
    if "target_gene" not in table:
        raise VcellError(f"{path} has no column target_gene; it has: {', '.join(map(str, table.columns))}")
    # a gene called NA or NAN is a gene
    table["target_gene"] = pd.read_csv(path, dtype=str, keep_default_na=False)["target_gene"]
    return table


def _contexts(contexts: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    if contexts:
        return [str(c) for c in contexts]
    if len(known) == 1:
        return list(known)
    raise VcellError(f"say in which context to predict: contexts=[{known[-1]}]. There are {', '.join(known)}")


def predicted_cells(
    predictor: Predictor, source: Source, request: Sequence[Wanted], target_sum: float, device: torch.device | str
) -> Iterator[np.ndarray]:
    """Predicted cells in the request's order, log1p of counts per `target_sum`, blocks of ``(cells, genes)``."""
    for wanted in request:
        plan = source.pool.plan(wanted.context, wanted.perturbation, wanted.n_cells, source.set_size, source.seed)
        left = wanted.n_cells
        for start in range(0, len(plan), source.sets_per_step):
            stop = start + source.sets_per_step
            some = CellSets(
                plan.contexts[start:stop], plan.perturbations[start:stop], plan.controls_SC[start:stop], None
            )
            batch = source.gather.to_device(source.gather.fetch(some), device)
            with torch.inference_mode():
                cells_CG = predictor.predict(batch).flatten(0, 1)[:left]
                yield change_target_sum(cells_CG, source.gather.target_sum, target_sum).cpu().numpy()
            left -= len(cells_CG)


def write_prediction(
    out: Path,
    predictor: Predictor,
    source: Source,
    request: Sequence[Wanted],
    target_sum: float,
    controls: dict[str, np.ndarray],
    about: dict[str, Any],
    device: torch.device | str = "cpu",
) -> None:
    """Streams predicted cells, then `controls` (store indices by context), to the h5ad `out`.

    obs holds `target_gene`, `cell_type` (the context) and `batch` (of the control cell); ``uns["vcell"]`` says, as
    JSON, what made the file and on which scale it is.
    """
    store = source.gather.store
    obs = _obs_of(source, request, controls)
    about = {**about, "scale": "log1p", "target_sum": target_sum}
    writer = H5adWriter(out, obs, store.genes, {"vcell": json.dumps(about)})
    with writer, progress_bar(len(obs), f"writing {out.name}", "cells") as progress:
        for block in predicted_cells(predictor, source, request, target_sum, device):
            _check_finite(block, writer.written, obs)
            writer.write(block)
            progress.update(len(block))
        for cells in controls.values():
            for start in range(0, len(cells), 1024):
                log1p = source.gather.log1p(cells[start : start + 1024])
                writer.write(change_target_sum(log1p, source.gather.target_sum, target_sum).numpy())
                progress.update(len(log1p))


def _obs_of(source: Source, request: Sequence[Wanted], controls: dict[str, np.ndarray]) -> pd.DataFrame:
    store = source.gather.store
    batch = store.obs["batch"].astype(str).to_numpy()
    parts = []
    for wanted in request:
        plan = source.pool.plan(wanted.context, wanted.perturbation, wanted.n_cells, source.set_size, source.seed)
        cells = plan.controls_SC.ravel()[: wanted.n_cells]
        parts.append((np.full(len(cells), wanted.perturbation), np.full(len(cells), wanted.context), batch[cells]))
    parts += [(np.full(len(c), store.control), np.full(len(c), name), batch[c]) for name, c in controls.items()]
    columns = [np.concatenate([part[i].astype(object) for part in parts]) for i in range(3)]
    obs = pd.DataFrame(dict(zip(("target_gene", "cell_type", "batch"), columns, strict=True))).astype("category")
    obs.index = pd.Index([f"cell_{i}" for i in range(len(obs))])
    return obs


def _check_finite(block: np.ndarray, start: int, obs: pd.DataFrame) -> None:
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        target = obs["target_gene"].iloc[start + int(np.flatnonzero(bad)[0])]
        raise VcellError(
            f"the prediction of {target} holds NaN or infinity: the model has diverged; use an earlier ckpt"
        )
