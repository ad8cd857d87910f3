"""Cells from a table of predicted profiles: real control cells, moved as the table says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vcell.data.files.h5ad import Columns
from vcell.data.files.labels import CONTROL
from vcell.data.gather import Gather
from vcell.data.sampler import ControlPool
from vcell.data.store.store import Cells, CellStore
from vcell.errors import VcellError, shortlist
from vcell.model.mean_effect import MeanEffect
from vcell.predict.cells import CellMaker, CountModels, DrawnCells, ExpectedCells, Source
from vcell.predict.controls import control_store, joined_genes
from vcell.predict.options import PredictOptions
from vcell.predict.parts import PartsFolder
from vcell.predict.plan import PredictionPlan, make_layout, plan
from vcell.predict.request import Wanted, read_request
from vcell.predict.table import Table, check_orientation, read_table
from vcell.predict.table_kind import ControlSample, Kind, TableEffects, recognise
from vcell.predict.work import produce
from vcell.system import Rank

SET_SIZE = 256  # of the plan by which control cells are drawn


def cells_from_table(options: PredictOptions, table: Path, parts: PartsFolder) -> None:
    """Writes cells around the profiles of `table` to the h5ad `parts.out`."""
    if options.controls is None:
        raise VcellError(
            f"{table} has one row per target; cells are drawn around it from real control cells, so it needs controls=FILE.h5ad (or the "
            "folder of a cell store)"
        )
    produce(partial(plan_table, options, table, parts.folder / "controls"), parts)


def plan_table(
    options: PredictOptions, path: Path, place: Path, rank: Rank, claim: Callable[[], bool]
) -> PredictionPlan | None:
    """Reads the table and the control cells, recognises what the values are, and decides what to draw."""
    challenge = options.challenge
    table = read_table(path, challenge.perturbation, challenge.context)
    genes = options.gene_list or table.genes
    check_orientation(table, genes)
    if not claim():
        return None
    store = control_cells(options, joined_genes(genes, table.genes), place)
    check_orientation(table, store.genes)
    request = _request(options, table, store)
    contexts = list(dict.fromkeys(w.context for w in request))
    challenge.phase(contexts)
    challenge.check_labels({(w.context, w.perturbation): w.n_cells for w in request}, None)
    kind = _kind(options, table, store, contexts[0], request)
    check_contexts(table, kind, contexts, store.control)
    source = Source(Gather(store, kind.target_sum), store, ControlPool(store, contexts), SET_SIZE, 4, options.seed)
    layout = make_layout(options, genes, source, request)
    models = CountModels(store, kind.target_sum)
    effects = TableEffects(table, kind, store, models, store.control)
    maker: CellMaker = (
        DrawnCells(effects, source, layout, models)
        if options.drawn
        else ExpectedCells(MeanEffect(effects.delta), source, layout)
    )
    said = [
        f"table        {path}: {len(table.targets):,} rows, {len(table.genes):,} genes",
        f"values       {kind.words}",
    ]
    origin = {"table": str(path.resolve()), "predictor": "table", "seed": options.seed}
    return plan(options, request, source, layout, maker, origin, said, table_notes(table, effects, request))


def control_cells(options: PredictOptions, genes: Sequence[str] | None, place: Path) -> CellStore:
    """The store of `options.controls`; columns are named as the challenge names them, or as its data of the year before."""
    challenge = options.challenge
    columns = Columns(challenge.perturbation, "batch", challenge.context)
    other = Columns("target_gene", "batch_var", "context" if challenge.context == "cell_type" else "cell_type")
    return control_store(options, place, columns, other, challenge.control or CONTROL, genes)


def _request(options: PredictOptions, table: Table, store: Cells) -> list[Wanted]:
    """The challenge's targets, or those of the table, in the contexts asked for; each must have a row."""
    known, challenge = store.control_contexts, options.challenge
    in_table = list(dict.fromkeys(c for c in table.contexts or [] if c in known))
    phase = next((list(p) for p in challenge.contexts if set(p) <= set(known)), None)
    contexts = options.contexts or phase or in_table or None
    targets: Any = options.targets
    if targets is None:
        targets = [t for t in dict.fromkeys(table.targets) if t != store.control]
    columns = Columns(challenge.perturbation, None, challenge.context)
    request = read_request(targets, contexts, options.n_cells or challenge.cells, known, store.control, columns)
    missing = [w for w in request if table.row(w.context, w.perturbation) is None]
    if missing:
        shown = [f"{w.perturbation} in {w.context}" if table.contexts else w.perturbation for w in missing]
        raise VcellError(f"{table.path} has no row for {len(missing):,} targets: {shortlist(dict.fromkeys(shown), 5)}")
    return request


def _kind(options: PredictOptions, table: Table, store: CellStore, context: str, request: Sequence[Wanted]) -> Kind:
    """What the table's values are: inferred by comparison with the control cells of a context, or as the user says."""
    rows = [table.row(w.context, w.perturbation) for w in request if w.context == context]
    place = {gene: i for i, gene in enumerate(store.genes)}
    known = np.ones(store.n_genes, bool) if store.known is None else np.any(store.known, axis=0)
    common = [i for i, gene in enumerate(table.genes) if gene in place and bool(known[place[gene]])]
    if not common:
        raise VcellError(
            f"{table.path} and the control cells have no gene in common: {shortlist(table.genes, 3)} there, {shortlist(store.genes, 3)} here"
        )
    sample = ControlSample(store, store.controls_of(context), np.array([place[table.genes[i]] for i in common]))
    part = Table(table.path, [table.genes[i] for i in common], table.values[:, common], table.targets, table.contexts)
    wanted = [row for row in rows if row is not None]
    return recognise(part, sample, wanted, options.pred_kind, options.pred_target_sum)


def check_contexts(table: Table, kind: Kind, contexts: Sequence[str], control: str) -> None:
    """Refuses profiles of one context for another: what they share is the effect, not the profile."""
    if len(contexts) > 1 and table.contexts is None and kind.name != "delta" and control not in table.targets:
        raise VcellError(
            f"{table.path} does not name the context of its rows, and cells of {shortlist(contexts)} are requested: a profile is valid "
            f"for one context. Add a column of contexts; or a row {control!r} with the controls of the context it was predicted for, so "
            "that effects can be computed and transferred; or differences from the controls (pred_kind=delta)"
        )


def table_notes(table: Table, effects: TableEffects, request: Sequence[Wanted]) -> list[str]:
    """Rows and genes of the table that were not used."""
    notes = []
    wanted = {w.perturbation for w in request} | {effects.control}
    if unused := [t for t in dict.fromkeys(table.targets) if t not in wanted]:
        notes.append(f"{len(unused):,} rows are not targets of the challenge and were not used: {shortlist(unused, 5)}")
    if len(effects.known) < len(table.genes):
        lost = [gene for gene, at in zip(table.genes, effects.place, strict=True) if at < 0]
        notes.append(f"{len(lost):,} genes of the table are unknown and were not used: {shortlist(lost, 5)}")
    return notes
