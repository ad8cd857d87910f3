"""A request, its control cells and a predictor to predicted cells, perturbation by perturbation.

Cells come in one of two ways. *As expected*: what the predictor says of each control cell, log1p. *Drawn*: the control cells
themselves, their counts moved so that the mean of log1p is as predicted (`predict.counts`).

Shape legend: C cells, G genes of the control cells' store, P genes of the predictor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from vcell.data.batch import CellSets
from vcell.data.files.normalize import change_target_sum
from vcell.data.gather import Gather
from vcell.data.sampler import COUNTS, ControlPool
from vcell.data.store.store import Cells, SparseCells
from vcell.effects.model import EffectModel
from vcell.effects.own_gene import OwnGenes
from vcell.errors import VcellError
from vcell.model.predictor import Predictor
from vcell.predict.counts import CountModel, again
from vcell.predict.layout import Layout
from vcell.predict.request import Wanted
from vcell.system import in_threads

CELLS_AT_ONCE = 512  # drawn or copied by one thread


class CountModels:
    """The count model of each context, fitted when first asked for, whichever thread asks."""

    def __init__(self, store: Cells, target_sum: float) -> None:
        self.store, self.target_sum = store, target_sum
        self._of: dict[str, CountModel] = {}
        self._fitting = Lock()

    def of(self, context: str) -> CountModel:
        with self._fitting:
            if context not in self._of:
                self._of[context] = CountModel.fit(self.store, self.store.controls_of(context), self.target_sum)
            return self._of[context]


@dataclass(frozen=True)
class Source:
    """Control cells to predict from, and how to draw them.

    Parameters
    ----------
    gather
        Reads them in the predictor's genes.
    store
        The same cells in all genes at hand.
    pool
        Those that may be drawn.
    set_size, sets_per_step, seed
        Of the predictor's sets.
    """

    gather: Gather
    store: Cells
    pool: ControlPool
    set_size: int
    sets_per_step: int
    seed: int

    @cached_property
    def predicted_genes(self) -> np.ndarray:
        """int64 ``(P)``: the store's number of each of the predictor's genes."""
        number = {gene: i for i, gene in enumerate(self.store.genes)}
        return np.array([number.get(gene, -1) for gene in self.gather.store.genes], dtype=np.int64)

    @cached_property
    def count_models(self) -> CountModels:
        """Of the contexts of the store."""
        return CountModels(self.store, self.gather.target_sum)

    def plan(self, wanted: Wanted) -> CellSets:
        return self.pool.plan(
            wanted.context, wanted.perturbation, wanted.n_cells, self.set_size, self.seed, wanted.batches
        )

    def controls(self, wanted: Wanted) -> np.ndarray:
        """The control cell behind each of the wanted cells."""
        return self.plan(wanted).controls_SC.ravel()[: wanted.n_cells]


class CellMaker(Protocol):
    """Cells of the file for some targets, in their order. One with a method `begin` is told what comes next."""

    def cells(self, wanted: Sequence[Wanted]) -> Iterator[sparse.csr_matrix]: ...


@cache
def _background() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="rates")


@dataclass(frozen=True)
class PredictedCells:
    """Base of makers whose cells are the predictor's own, one for each control cell."""

    predictor: Predictor
    source: Source
    layout: Layout
    device: torch.device | str = "cpu"

    def predicted(self, wanted: Sequence[Wanted]) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Set by set: control cells, and what is predicted from them, ``(cells, genes)`` of the predictor, finite."""
        for number, controls, _, (predicted_CP,) in predicted_sets([self.predictor], self.source, wanted, self.device):
            check_finite(predicted_CP, wanted[number])
            yield controls, predicted_CP


@dataclass(frozen=True)
class ExpectedCells(PredictedCells):
    """What the predictor says of each control cell. Genes that it does not predict keep the control cell's value."""

    def cells(self, wanted: Sequence[Wanted]) -> Iterator[sparse.csr_matrix]:
        source, predicted_genes = self.source, self.source.predicted_genes
        whole, known = Gather(source.store, source.gather.target_sum), predicted_genes >= 0

        def in_file(predicted: tuple[np.ndarray, Tensor]) -> sparse.csr_matrix:
            controls, predicted_CP = predicted
            cells_CG = predicted_CP
            if source.gather.store.genes != source.store.genes:
                cells_CG = whole.log1p(controls, self.device)
                cells_CG[:, predicted_genes[known]] = predicted_CP[:, torch.from_numpy(np.flatnonzero(known))]
            found = self.layout.of_log1p(cells_CG.float().cpu().numpy())
            stored = torch.from_numpy(found.data)
            found.data = change_target_sum(stored, source.gather.target_sum, self.layout.target_sum).numpy()
            return found

        # in threads, while the network predicts the next sets
        yield from in_threads(in_file, self.predicted(wanted))


@dataclass(frozen=True)
class CountedCells(PredictedCells):
    """Whole counts of a predictor whose cells are draws of counts already. Genes that it does not predict keep the control cell's."""

    def cells(self, wanted: Sequence[Wanted]) -> Iterator[sparse.csr_matrix]:
        source, predicted_genes = self.source, self.source.predicted_genes
        known = np.flatnonzero(predicted_genes >= 0)
        for controls, predicted_CP in self.predicted(wanted):
            rows = source.store.rows(controls)
            size_C1 = rows.library_size.astype(np.float64)[:, None] / source.gather.target_sum
            counts_CG = as_csr(rows, source.store.n_genes).toarray().astype(np.int64)
            before_C = counts_CG.sum(1)
            counts_CG[:, predicted_genes[known]] = np.rint(
                np.expm1(predicted_CP.double().cpu().numpy()[:, known]) * size_C1
            )
            library_C = rows.library_size + counts_CG.sum(1) - before_C
            yield self.layout.of_counts(sparse.csr_matrix(counts_CG), library_C)


class Effects(Protocol):
    """What is predicted of a group: the rate of each gene, as a share of the library, ``(genes)`` of the store."""

    def rates(self, wanted: Sequence[Wanted]) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class PredictedEffects:
    """Rates whose counts have the mean log1p that a predictor gives the control cells of a group."""

    predictor: Predictor
    source: Source
    models: CountModels
    device: torch.device | str = "cpu"

    def rates(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        return [rate_G for (rate_G,) in rates_by([self.predictor], self.source, self.models, wanted, self.device)]


@dataclass(frozen=True)
class MeasuredEffects:
    """Rates as a predictor made of effects gives them, relative to the control cells of the context."""

    model: EffectModel
    source: Source
    models: CountModels
    calls: bool = False  # whether fold changes of called genes matter most
    own: OwnGenes | None = None

    def rates(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        predicted_genes = self.source.predicted_genes
        known = predicted_genes >= 0
        found = []
        for group in wanted:
            rate_G = self.models.of(group.context).rate_G.copy()
            ratio_P = self.model.ratios(group.context, [group.perturbation], self.calls)[0]
            if not np.isfinite(ratio_P).all():
                raise VcellError(f"the prediction of {group.perturbation} in {group.context} holds NaN or infinity")
            if self.own is not None:
                self.own.set_rates(group.context, group.perturbation, ratio_P, np.ones_like(ratio_P))
            rate_G[predicted_genes[known]] *= ratio_P[known]
            found.append(rate_G)
        return found


@dataclass(frozen=True)
class AddedEffects:
    """Rates of a network that starts from a prior: the prior's own, times the change that the network makes to them.

    Where nothing of the network is kept, they are the prior's to the bit.

    Parameters
    ----------
    measured
        The prior's rates.
    prior, network
        Their cells: the change is that between the rates of the mean log1p that each gives to the same control cells.
    """

    measured: MeasuredEffects
    prior: Predictor
    network: Predictor
    device: torch.device | str = "cpu"

    def rates(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        source, models = self.measured.source, self.measured.models
        both = rates_by([self.prior, self.network], source, models, wanted, self.device)
        found = []
        for start_G, (before_G, after_G) in zip(self.measured.rates(wanted), both, strict=True):
            changed_G = np.divide(after_G, before_G, out=np.ones_like(after_G), where=before_G > 0)
            found.append(np.where(before_G > 0, start_G * changed_G, after_G))
        return found


@dataclass(frozen=True)
class DrawnCells:
    """Control cells whose counts are moved to the rates predicted."""

    effects: Effects
    source: Source
    layout: Layout
    models: CountModels
    matched: bool = False  # whether each gene's sum over the cells is made what its rate says
    pool: int = 1  # control cells averaged into each
    _begun: dict[int, Future] = field(default_factory=dict, repr=False, compare=False)

    def cells(self, wanted: Sequence[Wanted]) -> Iterator[sparse.csr_matrix]:
        tasks = []
        for group, rate_G in zip(wanted, self._rates(wanted), strict=True):
            several = replace(group, n_cells=group.n_cells * self.pool)
            controls = self.source.controls(several).reshape(self.pool, group.n_cells).T
            stands_already = again(controls[:, 0]) if self.pool == 1 else np.zeros(group.n_cells, bool)
            for start in range(0, len(controls), CELLS_AT_ONCE):
                block = slice(start, start + CELLS_AT_ONCE)
                tasks.append((group, rate_G, controls[block], stands_already[block], start))
        yield from in_threads(self._draw, tasks)

    def begin(self, wanted: Sequence[Wanted]) -> None:
        """Has the network work on these cells while others are drawn and written; they are then asked for as the same object."""
        if id(wanted) not in self._begun:
            self._begun[id(wanted)] = _background().submit(self.effects.rates, wanted)

    def _rates(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        begun = self._begun.pop(id(wanted), None)
        return self.effects.rates(wanted) if begun is None else begun.result()

    def _draw(self, task: tuple[Wanted, np.ndarray, np.ndarray, np.ndarray, int]) -> sparse.csr_matrix:
        group, rate_G, cells, again_C, start = task
        name = f"{group.context}\t{group.perturbation}\t{start}"
        rng = np.random.default_rng([self.source.seed, COUNTS, *name.encode()])
        rows = self.source.store.rows(cells.ravel())
        model = self.models.of(group.context)
        if self.pool > 1:
            rows, model = pooled(rows, self.pool, rng), model.of_pools(self.pool)
        counts = model.draw(rows, rate_G, rng, again_C)
        if self.matched and (rate_G != model.rate_G).any():  # with no effect, cells are the control cells themselves
            counts = model.matched(counts, rows.library_size.astype(np.float64), rate_G, rng)
        before_C = np.bincount(np.repeat(np.arange(len(cells)), np.diff(rows.indptr)), rows.values, len(cells))
        library_C = rows.library_size + np.asarray(counts.sum(axis=1)).ravel() - before_C
        return self.layout.of_counts(counts, library_C)


def rates_by(
    predictors: Sequence[Predictor],
    source: Source,
    models: CountModels,
    wanted: Sequence[Wanted],
    device: torch.device | str,
) -> list[list[np.ndarray]]:
    """For each group the rates, by predictor, whose counts have the mean log1p that it gives the group's control cells, ``(genes)``.

    For a mean, a last set of which fewer than half of the cells are wanted is left out, if there are others.
    """
    store, predicted_genes = source.store, source.predicted_genes
    known = predicted_genes >= 0
    sums: dict[int, list[Tensor]] = {}
    cells = dict.fromkeys(range(len(wanted)), 0)
    for number, controls, control_CP, predicted in predicted_sets(predictors, source, wanted, device, means=True):
        here = [sum_over_cells(cells_CP) for cells_CP in (control_CP, *predicted)]
        for sum_P in here[1:]:
            check_finite(sum_P, wanted[number])
        sums[number] = here if number not in sums else [a + b for a, b in zip(sums[number], here, strict=True)]
        cells[number] += len(controls)
    found = []
    for number, group in enumerate(wanted):
        means = [np.zeros(store.n_genes) for _ in sums[number]]
        for mean_G, sum_P in zip(means, sums[number], strict=True):
            mean_G[predicted_genes[known]] = (sum_P.cpu().numpy() / cells[number])[known]
        from_G, *to = means
        found.append([models.of(group.context).rates_of_log1p(to_G, from_G) for to_G in to])
    return found


def sum_over_cells(cells_CP: Tensor) -> Tensor:
    """In double precision, ``(genes)``, cell by cell; not finite where a value is not. On a CPU numpy does it in half of torch's time."""
    if cells_CP.device.type == "cpu" and cells_CP.dtype == torch.float32:
        return torch.from_numpy(np.add.reduce(cells_CP.numpy(), 0, dtype=np.float64))
    return cells_CP.sum(0, dtype=torch.float64)


def predicted_sets(
    predictors: Sequence[Predictor],
    source: Source,
    wanted: Sequence[Wanted],
    device: torch.device | str,
    means: bool = False,
) -> Iterator[tuple[int, np.ndarray, Tensor, list[Tensor]]]:
    """Set by set: the number of its group in `wanted`, its control cells, these and each predictor's cells as log1p.

    All are ``(cells, predictors' genes)``. A step of the predictors may hold sets of several groups. `means`: of each group as many sets
    as its number of cells comes nearest to, at least one.
    """
    plans = [source.plan(group) for group in wanted]
    n_sets = [
        max(1, (group.n_cells + source.set_size // 2) // source.set_size) if means else len(plan)
        for group, plan in zip(wanted, plans, strict=True)
    ]
    of_set = [(number, s) for number in range(len(plans)) for s in range(n_sets[number])]
    for start in range(0, len(of_set), source.sets_per_step):
        some = of_set[start : start + source.sets_per_step]
        sets = CellSets(
            [wanted[number].context for number, _ in some],
            [wanted[number].perturbation for number, _ in some],
            np.stack([plans[number].controls_SC[s] for number, s in some]),
            None,
        )
        batch = source.gather.to_device(source.gather.fetch(sets), device)
        with torch.inference_mode():
            predicted = [predictor.predict(batch) for predictor in predictors]
        for i, (number, s) in enumerate(some):
            n = min(
                source.set_size, wanted[number].n_cells - s * source.set_size
            )  # the last set may be larger than asked for
            yield (
                number,
                sets.controls_SC[i, :n],
                batch.control_SCG[i, :n],
                [cells_SCP[i, :n] for cells_SCP in predicted],
            )


def pooled(rows: SparseCells, number: int, rng: np.random.Generator) -> SparseCells:
    """Cells that are each the mean of `number` others, in their order: a molecule of these stays with probability 1 / number."""
    cells = len(rows.library_size) // number
    kept = rng.binomial(rows.values.astype(np.int64), 1 / number)
    starts = rows.indptr[::number]
    counts = sparse.csr_matrix((kept, rows.indices.astype(np.int32), starts))  # a gene may stand in several of them
    counts.sum_duplicates()
    counts.eliminate_zeros()
    library_C = rows.library_size.reshape(cells, number).mean(1)
    return replace(
        rows, values=counts.data, indices=counts.indices, indptr=counts.indptr.astype(np.int64), library_size=library_C
    )


def copied_cells(store: Cells, layout: Layout, cells: np.ndarray) -> Iterator[sparse.csr_matrix]:
    """Measured cells of the store, in the file's layout."""

    def block(start: int) -> sparse.csr_matrix:
        rows = store.rows(cells[start : start + CELLS_AT_ONCE])
        return layout.of_counts(as_csr(rows, store.n_genes), rows.library_size.astype(np.float64))

    yield from in_threads(block, range(0, len(cells), CELLS_AT_ONCE))


def as_csr(rows: SparseCells, n_genes: int) -> sparse.csr_matrix:
    return sparse.csr_matrix(
        (rows.values, rows.indices.astype(np.int32), rows.indptr), (len(rows.library_size), n_genes)
    )


def check_finite(predicted: Tensor, wanted: Wanted) -> None:
    # a sum keeps what is not finite, and takes a tenth of the time
    if not torch.isfinite(predicted.sum(dtype=torch.float32)):
        raise VcellError(
            f"the prediction of {wanted.perturbation} in {wanted.context} holds NaN or infinity: the model has diverged; use an "
            "earlier ckpt"
        )
