"""Cells from a table of predicted profiles: real control cells, moved as the table says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from vcell import __version__
from vcell.challenge import Challenge
from vcell.config import build, plain
from vcell.data.files.h5ad import Columns
from vcell.data.files.paths import read_gene_list
from vcell.data.gather import Gather
from vcell.data.sampler import ControlPool
from vcell.data.store.store import Cells, CellStore
from vcell.errors import VcellError, shortlist
from vcell.model.baselines import MeanEffect
from vcell.predict.cells import CountModels, DrawnCells, ExpectedCells, Source
from vcell.predict.controls import control_store, joined_genes
from vcell.predict.key import key_of
from vcell.predict.parts import parts_folder
from vcell.predict.request import Wanted, read_request
from vcell.predict.table import Table, check_orientation, read_table
from vcell.predict.table_kind import ControlSample, Kind, TableEffects, recognise
from vcell.predict.work import Place, Prediction, chosen_controls, gene_notes, make_form, produce
from vcell.system import Rank

CONTROL = "non-targeting"
SET_SIZE = 256  # of the plan by which control cells are drawn


def make_cells(config: DictConfig, table: Path, out: Path) -> None:
    """Writes cells around the profiles of `table` to the h5ad `out`."""
    if config.controls is None:
        raise VcellError(
            f"{table} holds one row a target, and cells are drawn around it from real control cells: controls=FILE.h5ad (or the "
            "folder of a cell store)"
        )
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    key = key_of("package", resolved, ("pred", "controls", "targets", "genes"))
    produce(partial(prepare, resolved, table, out), Place(out, key))


def prepare(resolved: Any, path: Path, out: Path, rank: Rank, claim: Callable[[], bool]) -> Prediction | None:
    """Reads the table and the control cells, recognises what the values are, and decides what to draw."""
    config = OmegaConf.create(resolved)
    challenge: Challenge = build(config.challenge)
    table = read_table(path, challenge.perturbation, challenge.context)
    genes = read_gene_list(config.genes, "genes") if config.genes else table.genes
    check_orientation(table, genes)
    if not claim():
        return None
    store = control_cells(config, challenge, joined_genes(genes, table.genes), parts_folder(out) / "controls")
    check_orientation(table, store.genes)
    request = request_of(config, challenge, table, store)
    contexts = list(dict.fromkeys(w.context for w in request))
    challenge.phase(contexts)
    challenge.check_labels({(w.context, w.perturbation): w.n_cells for w in request}, None)
    kind = kind_of(table, store, contexts[0], request, config)
    check_contexts(table, kind, contexts, store.control)
    gather = Gather(store, kind.target_sum)
    source = Source(gather, store, ControlPool(store, contexts), SET_SIZE, 4, config.seed)
    form = make_form(config, challenge, genes, source, request)
    drawn = challenge.drawn if config.draw is None else config.draw or challenge.values == "counts"
    models = CountModels(store, kind.target_sum)
    effects = TableEffects(table, kind, store, models, store.control)
    maker = (
        DrawnCells(effects, source, form, models) if drawn else ExpectedCells(MeanEffect(effects.delta), source, form)
    )
    controls = chosen_controls(challenge, source, request, config.max_controls)
    about = {
        "vcell": __version__, "table": str(path.resolve()), "predictor": "table", "seed": config.seed, "challenge": challenge.name,
        "scale": form.values, "target_sum": form.target_sum if form.values == "log1p" else None, "drawn": drawn,
    }  # fmt: skip
    said = [
        f"table        {path}: {len(table.targets):,} rows, {len(table.genes):,} genes",
        f"values       {kind.words}",
    ]
    notes = [*gene_notes(source, form), *table_notes(table, effects, request)]
    return Prediction(out, request, controls, maker, source, form, challenge, about, said, notes)


def control_cells(config: DictConfig, challenge: Challenge, genes: Sequence[str] | None, place: Path) -> CellStore:
    """The store of `config.controls`; columns are named as the challenge names them, or as its data of the year before."""
    columns = Columns(challenge.perturbation, "batch", challenge.context)
    other = Columns("target_gene", "batch_var", "context" if challenge.context == "cell_type" else "cell_type")
    control, contexts = challenge.control or CONTROL, plain(config.contexts)
    return control_store(plain(config.controls), place, columns, other, control, contexts, genes)


def request_of(config: DictConfig, challenge: Challenge, table: Table, store: Cells) -> list[Wanted]:
    """The challenge's targets, or those of the table, in the contexts asked for; each must have a row."""
    known = store.control_contexts
    in_table = list(dict.fromkeys(c for c in table.contexts or [] if c in known))
    phase = next((list(p) for p in challenge.contexts if set(p) <= set(known)), None)
    contexts = plain(config.contexts) or phase or in_table or None
    targets: Any = config.targets
    if targets is None:
        targets = [t for t in dict.fromkeys(table.targets) if t != store.control]
    columns = Columns(challenge.perturbation, None, challenge.context)
    request = read_request(targets, contexts, config.n_cells or challenge.cells, known, store.control, columns)
    missing = [w for w in request if table.row(w.context, w.perturbation) is None]
    if missing:
        shown = [f"{w.perturbation} in {w.context}" if table.contexts else w.perturbation for w in missing]
        raise VcellError(f"{table.path} has no row for {len(missing):,} targets: {shortlist(dict.fromkeys(shown), 5)}")
    return request


def kind_of(table: Table, store: CellStore, context: str, request: Sequence[Wanted], config: DictConfig) -> Kind:
    """What the table's values are, found by the control cells of a context, or as the user says."""
    rows = [table.row(w.context, w.perturbation) for w in request if w.context == context]
    place = {gene: i for i, gene in enumerate(store.genes)}
    measured = np.ones(store.n_genes, bool) if store.measured is None else np.any(store.measured, axis=0)
    common = [i for i, gene in enumerate(table.genes) if gene in place and bool(measured[place[gene]])]
    if not common:
        raise VcellError(
            f"{table.path} and the control cells have no gene in common: {shortlist(table.genes, 3)} there, {shortlist(store.genes, 3)} here"
        )
    sample = ControlSample(store, store.controls_of(context), np.array([place[table.genes[i]] for i in common]))
    part = Table(table.path, [table.genes[i] for i in common], table.values[:, common], table.targets, table.contexts)
    return recognise(part, sample, [row for row in rows if row is not None], config.pred_kind, config.pred_target_sum)


def check_contexts(table: Table, kind: Kind, contexts: Sequence[str], control: str) -> None:
    """Refuses profiles of one context for another: what they share is the effect, not the profile."""
    if len(contexts) > 1 and table.contexts is None and kind.name != "delta" and control not in table.targets:
        raise VcellError(
            f"{table.path} does not say of which context its rows are, and cells of {shortlist(contexts)} are wanted: a profile holds "
            f"for one. Give a column of contexts; or a row {control!r} with the controls of the context it was predicted for, so "
            "that effects can be taken and carried over; or differences from the controls (pred_kind=delta)"
        )


def table_notes(table: Table, effects: TableEffects, request: Sequence[Wanted]) -> list[str]:
    """Rows and genes of the table that were not used."""
    notes = []
    wanted = {w.perturbation for w in request} | {effects.control}
    if unused := [t for t in dict.fromkeys(table.targets) if t not in wanted]:
        notes.append(f"{len(unused):,} rows are no targets of the challenge and were not used: {shortlist(unused, 5)}")
    if len(effects.known) < len(table.genes):
        lost = [gene for gene, at in zip(table.genes, effects.place, strict=True) if at < 0]
        notes.append(f"{len(lost):,} genes of the table are unknown and were not used: {shortlist(lost, 5)}")
    return notes
