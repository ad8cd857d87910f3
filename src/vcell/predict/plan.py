"""A prediction planned: everything decided before the first cell is predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from vcell import __version__
from vcell.challenge import Challenge
from vcell.errors import VcellError, shortlist
from vcell.predict.cells import CellMaker, Source, copied_cells
from vcell.predict.controls import LEAST_SHARED
from vcell.predict.inside import as_uns
from vcell.predict.layout import Layout
from vcell.predict.options import PredictOptions
from vcell.predict.profile import control_profiles
from vcell.predict.request import Wanted

CELLS_PER_PART = 2048


@dataclass(frozen=True)
class Job:
    """What goes into one part: targets to predict, or control cells to copy."""

    wanted: tuple[Wanted, ...] = ()
    controls: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def n_cells(self) -> int:
        return sum(group.n_cells for group in self.wanted) + len(self.controls)


@dataclass(frozen=True)
class PredictionPlan:
    """What is predicted, how, and what the file says of itself. Make one with `predict.infer.plan_model` or `from_table.plan_table`.

    Parameters
    ----------
    request, controls
        What goes into the file: predicted cells, then control cells (numbers in the store, by context).
    maker, source, layout
        How predicted cells are made, from which control cells, in which layout.
    challenge
        Whose columns and labels the file has.
    about
        What the file says of itself.
    said
        First lines of the report.
    notes
        What else a user should know.
    """

    request: list[Wanted]
    controls: Mapping[str, np.ndarray]
    maker: CellMaker
    source: Source
    layout: Layout
    challenge: Challenge
    about: dict[str, Any]
    said: list[str]
    notes: list[str]

    @cached_property
    def jobs(self) -> list[Job]:
        """The request in order, then the control cells, in jobs of a few thousand cells."""
        jobs: list[Job] = []
        some: list[Wanted] = []
        for group in self.request:
            if some and sum(g.n_cells for g in some) + group.n_cells > CELLS_PER_PART:
                jobs.append(Job(tuple(some)))
                some = []
            some.append(group)
        jobs += [Job(tuple(some))] if some else []
        for cells in self.controls.values():
            jobs += [Job(controls=cells[i : i + CELLS_PER_PART]) for i in range(0, len(cells), CELLS_PER_PART)]
        return jobs

    def cells(self, job: Job) -> Iterator[sparse.csr_matrix]:
        """The cells of a job, block by block, in the file's genes."""
        if job.wanted:
            yield from self.maker.cells(job.wanted)
        if len(job.controls):
            yield from copied_cells(self.source.store, self.layout, job.controls)

    def begin(self, job: Job) -> None:
        """Has work begin on a job whose cells are asked for soon."""
        if job.wanted and callable(begin := getattr(self.maker, "begin", None)):
            begin(job.wanted)

    def obs(self) -> pd.DataFrame:
        """Labels of the file's cells: target, context, and the batch of the control cell behind each."""
        source, challenge = self.source, self.challenge
        control = challenge.control or source.store.control
        groups = [(w.perturbation, w.context, source.controls(w)) for w in self.request]
        groups += [(control, context, cells) for context, cells in self.controls.items()]
        lengths = [len(cells) for _, _, cells in groups]
        columns = {challenge.perturbation: np.repeat([target for target, _, _ in groups], lengths)}
        if challenge.context is not None:
            columns[challenge.context] = np.repeat([context for _, context, _ in groups], lengths)
        columns["batch"] = source.pool.batch_names[np.concatenate([cells for _, _, cells in groups])]
        index = pd.Index([f"cell_{i}" for i in range(sum(lengths))])
        return pd.DataFrame({name: pd.Categorical(values.astype(str)) for name, values in columns.items()}, index=index)

    def uns(self) -> dict[str, Any]:
        """What the file says of itself, and the profiles of the control cells by context."""
        contexts = dict.fromkeys(w.context for w in self.request)
        profiles = control_profiles(self.source.store, contexts, self.layout)
        return as_uns(self.about, profiles)

    def report(self, out: Path) -> str:
        """What was written to `out`."""
        request, layout = self.request, self.layout
        scale = "whole counts" if layout.values == "counts" else f"log1p of counts per {layout.target_sum:,.0f}"
        drawn = ", drawn as whole counts" if self.about["drawn"] and layout.values == "log1p" else ""
        lines = [
            *self.said,
            f"predicted    {sum(w.n_cells for w in request):,} cells of {len({w.perturbation for w in request}):,} "
            f"perturbations in {', '.join(dict.fromkeys(w.context for w in request))}",
            f"controls     {sum(map(len, self.controls.values())):,} cells",
            f"scale        {scale}{drawn}",
            f"written      {out} ({out.stat().st_size / 1e6:,.1f} MB)",
            *[f"note         {note}" for note in self.notes],
        ]
        return "\n".join(lines)


def plan(
    options: PredictOptions,
    request: list[Wanted],
    source: Source,
    layout: Layout,
    maker: CellMaker,
    origin: Mapping[str, Any],
    said: list[str],
    notes: list[str],
) -> PredictionPlan:
    """What plans of a model and of a table have in common.

    Parameters
    ----------
    origin
        Where the prediction comes from, first in what the file says of itself.
    """
    challenge = options.challenge
    about = {
        "vcell": __version__, **origin, "challenge": challenge.name, "scale": layout.values,
        "target_sum": layout.target_sum if layout.values == "log1p" else None, "drawn": options.drawn,
    }  # fmt: skip
    controls = chosen_controls(challenge, source, request, options.max_controls)
    return PredictionPlan(
        request, controls, maker, source, layout, challenge, about, said, [*gene_notes(source, layout), *notes]
    )


def make_layout(options: PredictOptions, genes: Sequence[str], source: Source, request: Sequence[Wanted]) -> Layout:
    """Genes and scale of the file.

    Raises
    ------
    VcellError
        If the control cells lack too many of the genes.
    """
    target_sum: Any = options.target_sum or options.challenge.target_sum or source.gather.target_sum
    if target_sum == "median":
        contexts = dict.fromkeys(w.context for w in request)
        controls = np.concatenate([source.store.controls_of(context) for context in contexts])
        target_sum = np.median(source.store.library_size[controls])
    layout = Layout.of(genes, source.store, options.challenge.values, float(target_sum))
    shared = int((layout.source_genes >= 0).sum())
    if shared < LEAST_SHARED * len(genes):
        what = options.genes if isinstance(options.genes, str) else "the list"
        raise VcellError(
            f"{source.store.name} has {shared:,} of the {len(genes):,} genes of {what}. Give control cells with the same "
            "genes (controls=FILE.h5ad), or the model's own list"
        )
    return layout


def chosen_controls(
    challenge: Challenge, source: Source, request: Sequence[Wanted], at_most: int | None
) -> dict[str, np.ndarray]:
    """Control cells that go into the file, by context; `at_most` of each, drawn.

    Raises
    ------
    VcellError
        If the file would have more cells than the challenge takes.
    """
    n_perturbed, store = sum(w.n_cells for w in request), source.store
    if challenge.controls == "forbidden":
        challenge.check_size(n_perturbed)
        return {}
    rng = np.random.default_rng(source.seed)
    controls = {}
    for context in dict.fromkeys(w.context for w in request):
        cells = store.controls_of(context)
        if at_most is not None and at_most < len(cells):
            cells = np.sort(rng.choice(cells, at_most, replace=False))
        controls[context] = cells
    try:
        challenge.check_size(n_perturbed + sum(map(len, controls.values())))
    except VcellError as error:
        raise VcellError(f"{error}. Write fewer controls with max_controls=N, or request fewer cells") from None
    return controls


def gene_notes(source: Source, layout: Layout) -> list[str]:
    """Genes of the file that no control cell has, and those that are not predicted."""
    at = layout.source_genes
    predicted = set(source.predicted_genes.tolist())
    absent = [gene for gene, number in zip(layout.genes, at.tolist(), strict=True) if number < 0]
    kept = [g for g, number in zip(layout.genes, at.tolist(), strict=True) if number >= 0 and number not in predicted]
    notes = []
    if absent:
        notes.append(
            f"{len(absent):,} genes are missing from the control cells, and 0 in every cell: {shortlist(absent, 5)}"
        )
    if kept:
        notes.append(f"{len(kept):,} genes are not predicted and keep the control cells' values: {shortlist(kept, 5)}")
    return notes
