"""A prediction carried out: its cells in parts, by one process or several, joined to one h5ad."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from scipy import sparse

from vcell.atomic import remove, remove_leftovers
from vcell.challenge import Challenge
from vcell.errors import VcellError, shortlist
from vcell.lock import locked
from vcell.predict.cells import CellMaker, Source, copied_cells
from vcell.predict.controls import LEAST_SHARED
from vcell.predict.layout import Form
from vcell.predict.parts import Parts, begin, is_begun, is_joined, parts_folder
from vcell.predict.profile import PROFILE, control_profiles
from vcell.predict.request import Wanted
from vcell.progress import progress_bar
from vcell.system import Rank

CELLS_A_PART = 2048
PATIENCE_S = 3600


@dataclass(frozen=True)
class Job:
    """What goes into one part: targets to predict, or control cells to copy."""

    wanted: tuple[Wanted, ...] = ()
    controls: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def n_cells(self) -> int:
        return sum(group.n_cells for group in self.wanted) + len(self.controls)


@dataclass(frozen=True)
class Prediction:
    """Everything decided before the first cell is predicted.

    Parameters
    ----------
    out
        The h5ad to write.
    request, controls
        What goes into it: predicted cells, then control cells (numbers in the store, by context).
    maker, source, form
        How predicted cells are made, from which control cells, in which form.
    about
        What the file says of itself.
    said
        First lines of the report.
    notes
        What a user should know beside.
    """

    out: Path
    request: list[Wanted]
    controls: Mapping[str, np.ndarray]
    maker: CellMaker
    source: Source
    form: Form
    challenge: Challenge
    about: dict[str, Any]
    said: list[str]
    notes: list[str]

    @property
    def jobs(self) -> list[Job]:
        """The request in order, then the control cells, in jobs of a few thousand cells."""
        jobs: list[Job] = []
        some: list[Wanted] = []
        for group in self.request:
            if some and sum(g.n_cells for g in some) + group.n_cells > CELLS_A_PART:
                jobs.append(Job(tuple(some)))
                some = []
            some.append(group)
        jobs += [Job(tuple(some))] if some else []
        for cells in self.controls.values():
            jobs += [Job(controls=cells[i : i + CELLS_A_PART]) for i in range(0, len(cells), CELLS_A_PART)]
        return jobs

    def cells(self, job: Job) -> Iterator[sparse.csr_matrix]:
        if job.wanted:
            yield from self.maker.cells(job.wanted)
        if len(job.controls):
            yield from copied_cells(self.source.store, self.form, job.controls)

    @property
    def parts(self) -> Parts:
        return Parts(self.out, [job.n_cells for job in self.jobs], len(self.form.genes))


# what prepares a prediction: told a rank and what claims the place for the parts; None where others have finished
Prepare = Callable[[Rank, Callable[[], bool]], Prediction | None]


@dataclass(frozen=True)
class Place:
    """Where the parts of the h5ad `out` go; `key` tells this prediction from others."""

    out: Path
    key: str

    def finished(self) -> bool:
        """Whether this very prediction was joined already and only its parts are left, which are then removed."""
        if Rank.here().number or not is_joined(self.out, self.key):
            return False
        remove(parts_folder(self.out))
        print(f"written      {self.out}, by the command that was interrupted", flush=True)
        return True

    def claim(self, rank: Rank, started: float) -> bool:
        """Makes the folder of parts, or on other ranks waits for it; false where the others have finished already."""
        if rank.number == 0:
            remove_leftovers(self.out)
            begin(self.out, self.key)
            return True
        while not is_begun(self.out, self.key):
            if self.out.exists() and self.out.stat().st_mtime > started:
                return False
            if time.time() - started > PATIENCE_S:
                raise VcellError(f"rank 0 has not begun {self.out} in {PATIENCE_S / 60:.0f} minutes; see its log")
            time.sleep(0.2)
        return True

    @contextmanager
    def cleared(self, rank: Rank) -> Iterator[None]:
        """After an error that the same command would meet again, the parts are removed; after any other they stay."""
        try:
            yield
        except VcellError as error:
            if rank.number == 0 and not isinstance(error.__cause__, OSError):
                remove(parts_folder(self.out))
            raise


def produce(prepare: Prepare, place: Place, helpers: int = 0, compression: str | None = None) -> Prediction | None:
    """Prepares a prediction and writes its file, or this rank's share of it; what was written, on rank 0.

    Parameters
    ----------
    prepare
        A function that another process can be sent, where there are `helpers`.
    helpers
        Further processes to start on this machine.
    compression
        Of the matrix.

    Raises
    ------
    VcellError
        If anything of it cannot be used, read or written. Nothing is left then, but parts where the disk was full.
    """
    rank, started = Rank.here(), time.time()
    with locked(place.out, "the prediction") if rank.number == 0 else nullcontext(), place.cleared(rank):
        prediction = prepare(rank, lambda: place.claim(rank, started))
        if prediction is None:
            return None
        world = 1 + helpers if rank.world == 1 else rank.world
        with _helping(prepare, place, world if rank.world == 1 else 1):
            fill(prediction, Rank(rank.number, world, rank.local))
        if rank.number:
            return None
        finish(prediction, compression)
    return prediction


@contextmanager
def _helping(prepare: Prepare, place: Place, world: int) -> Iterator[None]:
    spawn = get_context("spawn")  # forked threads of torch would hang
    helpers = [
        spawn.Process(target=_help, args=(prepare, place, Rank(i, world, i)), daemon=True) for i in range(1, world)
    ]
    for helper in helpers:
        helper.start()
    try:
        yield
    except BaseException:
        for helper in helpers:
            helper.terminate()
        raise
    finally:
        for helper in helpers:
            helper.join()


def _help(prepare: Prepare, place: Place, rank: Rank) -> None:
    started = time.time()
    try:
        prediction = prepare(rank, lambda: place.claim(rank, started))
        if prediction is not None:
            fill(prediction, rank)
    except VcellError as error:  # rank 0 comes to the same part, and meets the same error
        print(f"device {rank.number}: {error}", file=sys.stderr, flush=True)


def fill(prediction: Prediction, rank: Rank) -> None:
    """Writes the parts that are missing: first this rank's own, then, from the end, what others have not come to yet.

    So a rank that is slow, or that has died, holds nobody up.
    """
    parts, jobs = prediction.parts, prediction.jobs
    numbers = np.arange(len(jobs))
    own = numbers[rank.number :: rank.world]
    others = np.setdiff1d(numbers, own)[::-1]
    with progress_bar(sum(parts.sizes), f"predicting {parts.out.name}", "cells", disable=rank.number > 0) as progress:
        progress.update(parts.cells_done)
        for number in [*own.tolist(), *others.tolist()]:
            if not parts.folder.is_dir():
                return  # joined by rank 0 already
            if not parts.has(number):
                parts.write(number, prediction.cells(jobs[number]))
                if rank.number == 0 and parts.has(number):
                    parts.check_space(number)
            progress.update(parts.cells_done - progress.n)


def finish(prediction: Prediction, compression: str | None) -> None:
    """Joins the parts to the file, and says what it holds."""
    contexts = dict.fromkeys(w.context for w in prediction.request)
    profiles = control_profiles(prediction.source.store, contexts, prediction.form)
    uns = {"vcell": json.dumps(prediction.about), PROFILE: profiles}
    prediction.parts.join(obs_of(prediction), prediction.form.genes, uns, compression)
    print(report(prediction), *[f"note         {note}" for note in prediction.notes], sep="\n", flush=True)


def obs_of(prediction: Prediction) -> pd.DataFrame:
    """Labels of the file's cells: target, context, and the batch of the control cell behind each."""
    source, challenge = prediction.source, prediction.challenge
    control = challenge.control or source.store.control
    groups = [(w.perturbation, w.context, source.controls(w)) for w in prediction.request]
    groups += [(control, context, cells) for context, cells in prediction.controls.items()]
    lengths = [len(cells) for _, _, cells in groups]
    columns = {challenge.perturbation: np.repeat([target for target, _, _ in groups], lengths)}
    if challenge.context is not None:
        columns[challenge.context] = np.repeat([context for _, context, _ in groups], lengths)
    columns["batch"] = source.pool.batch_names[np.concatenate([cells for _, _, cells in groups])]
    index = pd.Index([f"cell_{i}" for i in range(sum(lengths))])
    return pd.DataFrame({name: pd.Categorical(values.astype(str)) for name, values in columns.items()}, index=index)


def report(prediction: Prediction) -> str:
    request, form, out = prediction.request, prediction.form, prediction.out
    scale = "whole counts" if form.values == "counts" else f"log1p of counts per {form.target_sum:,.0f}"
    drawn = ", drawn as whole counts" if prediction.about["drawn"] and form.values == "log1p" else ""
    lines = [
        *prediction.said,
        f"predicted    {sum(w.n_cells for w in request):,} cells of {len({w.perturbation for w in request}):,} "
        f"perturbations in {', '.join(dict.fromkeys(w.context for w in request))}",
        f"controls     {sum(map(len, prediction.controls.values())):,} cells",
        f"scale        {scale}{drawn}",
        f"written      {out} ({out.stat().st_size / 1e6:,.1f} MB)",
    ]
    return "\n".join(lines)


def make_form(
    config: DictConfig, challenge: Challenge, genes: Sequence[str], source: Source, request: Sequence[Wanted]
) -> Form:
    target_sum = config.target_sum or challenge.target_sum or source.gather.target_sum
    if target_sum == "median":
        contexts = dict.fromkeys(w.context for w in request)
        controls = np.concatenate([source.store.controls_of(context) for context in contexts])
        target_sum = np.median(source.store.library_size[controls])
    form = Form.of(genes, source.store, challenge.values, float(target_sum))
    shared = int((form.source_genes >= 0).sum())
    if shared < LEAST_SHARED * len(genes):
        raise VcellError(
            f"{source.store.name} has {shared:,} of the {len(genes):,} genes of {config.genes}. Give control cells with the same "
            "genes (controls=FILE.h5ad), or the model's own list"
        )
    return form


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
        raise VcellError(f"{error}. Write fewer controls with max_controls=N, or ask for fewer cells") from None
    return controls


def gene_notes(source: Source, form: Form) -> list[str]:
    """Genes of the file that no control cell has, and those that are not predicted."""
    at = form.source_genes
    predicted = set(source.predicted_genes.tolist())
    absent = [gene for gene, number in zip(form.genes, at.tolist(), strict=True) if number < 0]
    kept = [g for g, number in zip(form.genes, at.tolist(), strict=True) if number >= 0 and number not in predicted]
    notes = []
    if absent:
        notes.append(
            f"{len(absent):,} genes are in no control cell's file, and 0 in every cell: {shortlist(absent, 5)}"
        )
    if kept:
        notes.append(f"{len(kept):,} genes are not predicted and keep the control cells' values: {shortlist(kept, 5)}")
    return notes
