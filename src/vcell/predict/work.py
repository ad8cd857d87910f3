"""A prediction carried out: its cells in parts, by one process or several, joined to one h5ad."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context

import numpy as np

from vcell.errors import VcellError
from vcell.predict.parts import PartsFolder
from vcell.predict.plan import PredictionPlan
from vcell.process.lock import locked
from vcell.process.progress import progress_bar
from vcell.system import Rank

# what plans a prediction: told a rank and what claims the place for the parts; None where others have finished
Planner = Callable[[Rank, Callable[[], bool]], PredictionPlan | None]


def produce(
    planner: Planner, parts: PartsFolder, helpers: int = 0, compression: str | None = None
) -> PredictionPlan | None:
    """Plans a prediction and writes its file, or this rank's share of it; what was written, on rank 0.

    Parameters
    ----------
    planner
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
    with locked(parts.out, "the prediction") if rank.number == 0 else nullcontext(), parts.cleared(rank):
        plan = planner(rank, lambda: parts.claim(rank, started))
        if plan is None:
            return None
        world = 1 + helpers if rank.world == 1 else rank.world
        with _helping(planner, parts, world if rank.world == 1 else 1):
            fill(plan, parts, Rank(rank.number, world, rank.local))
        if rank.number:
            return None
        finish(plan, parts, compression)
    return plan


@contextmanager
def _helping(planner: Planner, parts: PartsFolder, world: int) -> Iterator[None]:
    spawn = get_context("spawn")  # forked threads of torch would hang
    helpers = [
        spawn.Process(target=_help, args=(planner, parts, Rank(i, world, i)), daemon=True) for i in range(1, world)
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


def _help(planner: Planner, parts: PartsFolder, rank: Rank) -> None:
    started = time.time()
    try:
        plan = planner(rank, lambda: parts.claim(rank, started))
        if plan is not None:
            fill(plan, parts, rank)
    except VcellError as error:  # rank 0 comes to the same part, and meets the same error
        print(f"device {rank.number}: {error}", file=sys.stderr, flush=True)


def fill(plan: PredictionPlan, parts: PartsFolder, rank: Rank) -> None:
    """Writes the parts that are missing: first this rank's own, then, from the end, those that others have not started.

    So a rank that is slow, or that has died, does not block the rest.
    """
    jobs = plan.jobs
    parts = _of_plan(plan, parts)
    numbers = np.arange(len(jobs))
    own = numbers[rank.number :: rank.world]
    others = np.setdiff1d(numbers, own)[::-1]
    with progress_bar(sum(parts.sizes), f"predicting {parts.out.name}", "cells", disable=rank.number > 0) as progress:
        progress.update(parts.cells_done)
        order = [*own.tolist(), *others.tolist()]
        for number, following in zip(order, [*order[1:], None], strict=True):
            if not parts.folder.is_dir():
                return  # joined by rank 0 already
            if not parts.has(number):
                plan.begin(jobs[number])
                if following is not None and following in own and not parts.has(following):
                    plan.begin(jobs[following])  # the network works on them while these are drawn
                parts.write(number, plan.cells(jobs[number]))
                if rank.number == 0 and parts.has(number):
                    parts.check_space(number)
            progress.update(parts.cells_done - progress.n)


def finish(plan: PredictionPlan, parts: PartsFolder, compression: str | None) -> None:
    """Joins the parts to the file, and says what it holds."""
    _of_plan(plan, parts).join(plan.obs(), plan.layout.genes, plan.uns(), compression)
    print(plan.report(parts.out), flush=True)


def _of_plan(plan: PredictionPlan, parts: PartsFolder) -> PartsFolder:
    return parts.holding([job.n_cells for job in plan.jobs], len(plan.layout.genes))
