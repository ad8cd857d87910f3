"""The kind of values in a table of profiles, and the effects on control cells that they imply.

A table does not say what kind of mean it holds. But most genes do not respond to most perturbations, so the typical row resembles
the control cells: of the kinds below, the best-fitting one is used and reported. If two fit equally well, or none does, the user
is asked.

Shape legend: G genes of the control cells' store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vcell.data.files.genes import align
from vcell.data.files.normalize import LARGEST_LOG1P, counts_of_log1p
from vcell.data.splits import Group
from vcell.data.store.store import Cells
from vcell.errors import VcellError
from vcell.predict.cells import CountModels
from vcell.predict.options import KINDS
from vcell.predict.request import Wanted
from vcell.predict.table import Table

WORST_MISFIT = 0.35  # mean difference of the typical row from the controls, relative, beyond which it is not like them
CLEARLY = 1.5  # factor by which the next best kind must fit worse
SAMPLE_CELLS = 500
TARGET_SUMS = np.geomspace(100, 2e6, 34)
USUAL_SUMS = (1e3, 1e4, 5e4, 1e5, 1e6)
AS_NEAR = 0.03  # relative difference from a usual total, below which that is meant


@dataclass(frozen=True)
class Kind:
    """What the values of a table are; `target_sum` where they are log1p."""

    name: str
    target_sum: float

    @property
    def words(self) -> str:
        scaled = f" per {self.target_sum:,.0f}" if self.name != "pseudobulk" else ""
        return f"{KINDS[self.name]}{scaled}"


class ControlSample:
    """Some control cells of one context, and what a table's row would be if it were theirs."""

    def __init__(self, store: Cells, cells: np.ndarray, genes: np.ndarray, seed: int = 0) -> None:
        some = np.sort(np.random.default_rng(seed).permutation(cells)[:SAMPLE_CELLS])
        rows = store.rows(some)
        self.n_genes, self.genes, self.n_cells = store.n_genes, genes, len(some)
        self.indices, self.values = rows.indices, rows.values.astype(np.float64)
        self.library = np.repeat(rows.library_size.astype(np.float64), np.diff(rows.indptr))
        self.median_library = float(np.median(store.library_size[cells]))

    def of(self, kind: str, target_sum: float) -> np.ndarray:
        """The controls' values of that kind, in the table's genes."""
        values = self.values / self.library * target_sum
        mean_G = (
            np.bincount(self.indices, np.log1p(values) if kind == "mean_log1p" else values, self.n_genes) / self.n_cells
        )
        return np.log1p(mean_G)[self.genes] if kind == "log1p_pseudobulk" else mean_G[self.genes]


def recognise(
    table: Table, controls: ControlSample, rows: Sequence[int], kind: str = "auto", target_sum: float | None = None
) -> Kind:
    """What the values of `rows` are, given control cells of their context in the table's genes.

    Parameters
    ----------
    kind, target_sum
        What the user says of it; ``auto`` and None where that is to be found.

    Raises
    ------
    VcellError
        If nothing fits, or several kinds do.
    """
    typical = np.median(table.values[rows], axis=0)
    ask = "Specify what they are: pred_kind=" + "|".join(KINDS) + " pred_target_sum=N"
    if kind == "delta" or (kind == "auto" and (table.values < 0).any()):
        if target_sum is None:
            raise VcellError(
                f"{table.path} holds values below 0: differences of mean log1p from the controls? Then specify that, and what cells were scaled to: "
                "pred_kind=delta pred_target_sum=10000"
            )
        return Kind("delta", float(target_sum))
    if (table.values < 0).any():
        raise VcellError(f"{table.path} holds values below 0, which {KINDS[kind]} cannot be")
    found = []
    for name in [k for k in KINDS if k != "delta"] if kind == "auto" else [kind]:
        if name != "pseudobulk" and typical.max(initial=0) > LARGEST_LOG1P:
            continue
        sums = (
            np.array([1.0]) if name == "pseudobulk" else TARGET_SUMS if target_sum is None else np.array([target_sum])
        )
        misfits = [_misfit(name, typical, controls, t) for t in sums]
        best = int(np.argmin(misfits))
        found.append((misfits[best], Kind(name, _refined(name, typical, controls, sums, best))))
    found.sort(key=lambda pair: pair[0])
    if kind == "auto" and (not found or found[0][0] > WORST_MISFIT):
        raise VcellError(
            f"the kind of the values in {table.path} could not be determined: the typical row resembles no kind of mean of the control cells. {ask}"
        )
    close = [fit for fit in found if fit[0] < CLEARLY * found[0][0]]
    usual = [fit for fit in close if fit[1].target_sum in (*USUAL_SUMS, controls.median_library)]
    if len(close) > 1 and len(usual) == 1:  # a total that people scale to says more than a fit a little better
        return usual[0][1]
    if len(close) > 1:
        raise VcellError(
            f"the values of {table.path} may be {found[0][1].words}, or {found[1][1].words}: both fit the control cells. {ask}"
        )
    return found[0][1]


def _misfit(kind: str, typical: np.ndarray, controls: ControlSample, target_sum: float) -> float:
    """Mean difference of the typical row from the controls, relative to their mean."""
    expected = controls.of(kind, target_sum)
    if kind == "pseudobulk":
        typical, expected = typical / max(typical.sum(), 1e-12), expected / max(expected.sum(), 1e-12)
    return float(np.abs(typical - expected).sum() / max(expected.sum(), 1e-12))


def _refined(kind: str, typical: np.ndarray, controls: ControlSample, sums: np.ndarray, best: int) -> float:
    """The best total between its neighbours on the grid; a usual one, where that is as near as can be told."""
    if len(sums) == 1:
        return float(sums[0])
    low, high = sums[max(best - 1, 0)], sums[min(best + 1, len(sums) - 1)]
    for _ in range(12):
        a, b = low * (high / low) ** (1 / 3), low * (high / low) ** (2 / 3)
        if _misfit(kind, typical, controls, a) < _misfit(kind, typical, controls, b):
            high = b
        else:
            low = a
    found = float(np.sqrt(low * high))
    usual = min((*USUAL_SUMS, controls.median_library), key=lambda t: abs(np.log(t / found)))
    return float(usual) if abs(np.log(usual / found)) < AS_NEAR else found


class TableEffects:
    """Rates that a table predicts, for genes of the store; genes it does not have keep the controls'."""

    def __init__(self, table: Table, kind: Kind, store: Cells, models: CountModels, control: str) -> None:
        self.table, self.kind, self.store, self.models, self.control = table, kind, store, models, control
        self.place = align(table.genes, store.genes).position
        self.known = np.flatnonzero(self.place >= 0)

    def rates(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        return [self.rate(group.context, group.perturbation) for group in wanted]

    def rate(self, context: str, target: str) -> np.ndarray:
        """``(genes)`` of the store."""
        model, row_G = self.models.of(context), self._row(context, target)
        assert row_G is not None
        has, own_G = ~np.isnan(row_G), self._row(context, self.control)
        if self.kind.name in ("mean_log1p", "delta"):
            from_G = model.mean_log1p_G
            if self.kind.name == "delta":
                row_G = (from_G + row_G).clip(min=0)
            elif own_G is not None:
                from_G = np.where(has, own_G, from_G)
            return model.rates_of_log1p(np.where(has, row_G, from_G), from_G)
        share_G = _shares(row_G, self.kind.name)
        base_G = model.rate_G / model.rate_G[has].sum() if own_G is None else _shares(own_G, self.kind.name)
        factor_G = np.divide(share_G, base_G, out=np.ones_like(share_G), where=has & (base_G > 0))
        new_G = np.where(has & ~(model.rate_G > 0), share_G * model.rate_G[has].sum(), 0.0)
        return np.where(model.rate_G > 0, model.rate_G * factor_G, new_G)

    def delta(self, group: Group) -> np.ndarray:
        """The same as a change of mean log1p, ``(genes)`` of the store."""
        model = self.models.of(group[0])
        return model.mean_log1p_of(self.rate(*group)) - model.mean_log1p_G

    def _row(self, context: str, target: str) -> np.ndarray | None:
        """A row in the genes of the store, NaN for those it does not have; None where there is no such row."""
        number = self.table.row(context, target)
        if number is None:
            return None
        row_G = np.full(self.store.n_genes, np.nan)
        row_G[self.place[self.known]] = self.table.values[number, self.known]
        return row_G


def _shares(row_G: np.ndarray, kind: str) -> np.ndarray:
    values_G = np.nan_to_num(counts_of_log1p(row_G) if kind == "log1p_pseudobulk" else row_G)
    return values_G / max(values_G.sum(), 1e-12)
