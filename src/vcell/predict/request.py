"""What is to be predicted: targets, contexts, batches and cell numbers, from a CSV, a template h5ad, or names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vcell.challenge import Challenge
from vcell.data.files.h5ad import Columns, column_names, open_h5ad, read_obs
from vcell.data.files.labels import is_control, resolve
from vcell.data.files.lists import numbers, read_table
from vcell.data.store.store import Cells
from vcell.errors import VcellError, nearest, shortlist
from vcell.predict.options import MOST_CELLS, PredictOptions

if TYPE_CHECKING:
    from vcell.model.checkpoint import Identity

DEFAULT_CELLS = 100


@dataclass(frozen=True)
class Wanted:
    """Some cells of one perturbation in one context; `batches` says how many in which, where that matters."""

    context: str
    perturbation: str
    n_cells: int
    batches: Mapping[str, int] | None = None


def read_request(
    targets: str | Sequence[str],
    contexts: Sequence[str] | None,
    n_cells: int | None,
    known_contexts: Sequence[str],
    control: str,
    columns: Columns,
    known_targets: Collection[str] = (),
) -> list[Wanted]:
    """The cells asked for.

    Parameters
    ----------
    targets
        A CSV with `target_gene` and optionally `n_cells`, `context` and `batch`; a template h5ad, whose labels count; or names.
    contexts
        Where to predict them; needed when there are several and the CSV does not say.
    n_cells
        Per target, where the CSV does not say.
    known_contexts
        Contexts with control cells.
    control
        The label of controls; a row of it is passed over.
    columns
        obs columns of a template; without `batch`, those of its cells do not matter.
    known_targets
        Perturbations that can be predicted: a target that means one of them in another spelling is that one.

    Raises
    ------
    VcellError
        If the CSV cannot be read, names a target twice, or has cell numbers that are not whole and above 0.
    """
    if not isinstance(targets, str):
        table = pd.DataFrame({"target_gene": [str(t).strip() for t in targets]})
    elif targets.endswith((".h5ad", ".h5")):
        table = _read_template(Path(targets), columns, contexts)
    else:
        table = read_targets(targets, columns)
    table = table[(table["target_gene"] != control) & ~table["target_gene"].map(is_control)]
    if table.empty:
        raise VcellError(f"no targets are requested in {targets}")
    if "n_cells" not in table:
        table = table.assign(n_cells=n_cells or DEFAULT_CELLS)
    if "context" not in table:
        chosen = _contexts(contexts, known_contexts)
        table = pd.concat([table.assign(context=context) for context in chosen])
    keys = ["context", "target_gene", *(["batch"] if "batch" in table else [])]
    table = table.assign(target_gene=_as_trained(table["target_gene"].tolist(), known_targets))
    twice = table[table.duplicated(keys)]["target_gene"]
    if len(twice):
        raise VcellError(f"{targets} lists twice {shortlist(twice.unique())}")
    for context in table["context"].unique():
        if context not in known_contexts:
            raise VcellError(
                f"there are no control cells of context {context!r} to predict from.{nearest(context, known_contexts)} "
                f"Contexts with controls: {', '.join(known_contexts)}. Give controls=FILE.h5ad for another one"
            )
    groups = table.groupby(["context", "target_gene"], sort=False, observed=True)
    return [_wanted(str(context), str(target), rows) for (context, target), rows in groups]


def _as_trained(targets: list[str], known: Collection[str]) -> list[str]:
    if not known:
        return targets
    distinct = list(dict.fromkeys(targets))
    meant = dict(zip(distinct, resolve(distinct, known), strict=True))
    for target, became in meant.items():
        if target != became:
            print(f"note         the target {target} is predicted as {became}, another name of it", flush=True)
    return [meant[target] for target in targets]


def _wanted(context: str, target: str, rows: pd.DataFrame) -> Wanted:
    total = int(rows["n_cells"].sum())
    if "batch" not in rows:
        return Wanted(context, target, total)
    return Wanted(
        context, target, total, dict(zip(rows["batch"].astype(str), rows["n_cells"].astype(int), strict=True))
    )


def _read_template(path: Path, columns: Columns, contexts: Sequence[str] | None) -> pd.DataFrame:
    """Targets, contexts, batches and cell numbers of a template: perturbed labels on whatever cells."""
    with open_h5ad(path) as file:
        constant = contexts[0] if contexts and len(contexts) == 1 else None
        obs = read_obs(file, path, columns, constant)
    keys = ["context", "perturbation", *(["batch"] if columns.batch else [])]
    counted = obs.groupby(keys, sort=False, observed=True).size().reset_index(name="n_cells")
    return counted.rename(columns={"perturbation": "target_gene"})


def read_targets(path: str, columns: Columns | None = None) -> pd.DataFrame:
    """A CSV with a column `target_gene`, as the challenge's ``pert_counts_*.csv``; its `n_cells`, if any, checked.

    Contexts and batches may stand in columns that are named as those of the data.
    """
    columns = columns or Columns(None, None, None)
    other = {"target_gene": columns.perturbation, "context": columns.context, "batch": columns.batch}
    table = read_table(path, "targets", "target_gene", ("n_cells", "context", "batch", "median_umi_per_cell"), other)
    if "n_cells" in table:
        grouped = table["n_cells"].str.fullmatch(r"\d{1,3}(,\d{3})+")
        if grouped.any():
            given = table.loc[grouped, "n_cells"].iloc[0]
            raise VcellError(
                f"{path}: n_cells {given!r} is ambiguous. Write it without a comma: {given.replace(',', '')}"
            )
        number = numbers(table["n_cells"])
        bad = table[~((number > 0) & (number % 1 == 0) & (number <= MOST_CELLS))]
        if len(bad):
            raise VcellError(
                f"{path}: n_cells must be a whole number from 1 to {MOST_CELLS:,}; it is not for {shortlist(bad['target_gene'])}"
            )
        table["n_cells"] = number.astype(int)
    return table


def requested(
    options: PredictOptions, identity: Identity, store: Cells, known_targets: Collection[str] = ()
) -> list[Wanted]:
    """What `targets` names; else the held-out test groups with as many cells as were measured; else the data's request."""
    columns, known, challenge = identity.columns, store.control_contexts, options.challenge
    contexts = options.contexts or next((list(p) for p in challenge.contexts if set(p) <= set(known)), None)
    n_cells = options.n_cells or challenge.cells
    if options.targets is not None:
        targets = options.targets
        if isinstance(targets, str) and targets.endswith((".h5ad", ".h5")):
            columns = template_columns(Path(targets), columns, challenge, options.batches)
        return read_request(targets, contexts, n_cells, known, store.control, columns, known_targets)
    groups = [g for g in identity.held_out if g in store.groups and (not options.contexts or g[0] in options.contexts)]
    usual = identity.request
    if not groups and usual["targets"]:
        return read_request(
            usual["targets"], contexts or usual["contexts"], n_cells, known, store.control, columns, known_targets
        )
    if not groups:
        raise VcellError(
            "the run held out no test perturbations: specify what to predict, targets=FILE.csv or targets=[A,B]"
        )
    return [Wanted(c, p, int(n_cells or len(store.groups[c, p]))) for c, p in groups]


def template_columns(path: Path, columns: Columns, challenge: Challenge, batches: bool) -> Columns:
    """A template's obs columns: named as in training, or as the challenge names them; its batches where it has some."""
    with open_h5ad(path) as file:
        known = column_names(file, "obs", path)
    perturbation = next((n for n in (columns.perturbation, challenge.perturbation) if n in known), columns.perturbation)
    context = next((n for n in (columns.context, challenge.context) if n in known), columns.context)
    return Columns(perturbation, columns.batch if batches and columns.batch in known else None, context)


def _contexts(contexts: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    if contexts:
        return [str(c) for c in contexts]
    if len(known) == 1:
        return list(known)
    raise VcellError(f"specify in which context to predict: contexts=[{known[-1]}]. There are {', '.join(known)}")
