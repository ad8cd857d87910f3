"""Whole counts around a prediction: real control cells, changed molecule by molecule.

Scorers test predicted cells against real ones, so what is predicted as a mean has to come as cells whose spread and zeros
are those of real cells. Rounding predicted values, or Poisson noise around them, does not give that: the first hardly
moves genes of few counts, the second adds noise to the noise that a predicted cell has from its control cell already.

Here each predicted cell *is* a control cell with some molecules taken away or added. Counts of a gene vary between the
control cells of a context as a negative binomial: k ~ Poisson(μw), μ = library size × rate, w ~ Gamma of mean 1 and variance
φ (the dispersion). To move a gene from `rate` to another one and keep that law,

    down by a factor f   each molecule stays with probability f:  k' ~ Binomial(k, f)
    up by d molecules    k' = k + Poisson(dw), with w drawn from what k tells of it: Gamma(1/φ + k, rate 1/φ + μ)

A gene without an effect keeps its counts exactly, and so do correlations between genes, library sizes, and what else a
model of noise would have to know. With no predicted effect at all the cells are the control cells themselves.

A prediction says by how much the *mean of log1p* changes. `CountModel.rates_of_log1p` finds the rate whose counts have that mean, through
the same law: for whole counts k, E log1p(xk) is ∫ (1 - E exp(-xks)) exp(-s)/s ds, and the expectation inside is known.

Shape legend: C cells, G genes, R rates of the table, P dispersions of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from vcell.data.files.csr import row_of
from vcell.data.files.normalize import scaled_log1p
from vcell.data.store.store import Cells, SparseCells
from vcell.errors import VcellError
from vcell.predict.drawing import draw_cells

BLOCK_CELLS = 2048
MOST_DISPERSED, LEAST_DISPERSED = 50.0, 1e-3
TELLING_COUNTS = 200  # of a gene over all control cells, from which its own dispersion can be read
LIBRARIES = 16  # quantiles that stand for the library sizes of a context
# the table of E log1p: shares of a library from one molecule in a billion to half of it, and dispersions
LOG_RATES = np.linspace(np.log(1e-9), np.log(0.5), 220)
DISPERSIONS = np.concatenate([[0.0], np.geomspace(0.02, MOST_DISPERSED, 23)])
LOG_S, STEP = np.linspace(-26.0, 3.75, 120, retstep=True)  # of the integral, on a logarithmic scale


@dataclass(frozen=True)
class CountModel:
    """How counts vary between the control cells of one context. Make one with `CountModel.fit`.

    Parameters
    ----------
    rate_G
        Mean share of a cell's library, ``(genes)``.
    dispersion_G
        φ of the negative binomial, ``(genes)``: variance = mean + φ · mean².
    mean_log1p_G
        Mean over the control cells of log1p of counts per `target_sum`, ``(genes)``.
    libraries
        Library sizes that stand for those of the context.
    target_sum
        Counts per cell of the log1p scale on which predictions come.
    """

    rate_G: np.ndarray
    dispersion_G: np.ndarray
    mean_log1p_G: np.ndarray
    libraries: np.ndarray
    target_sum: float

    @classmethod
    def fit(cls, store: Cells, cells: np.ndarray, target_sum: float) -> CountModel:
        """From the control cells `cells` of `store`, which must hold counts.

        Raises
        ------
        VcellError
            If the store's values are not whole counts.
        """
        fractions = [path for path, scale in store.scales.items() if not scale.recoverable]
        if fractions:
            raise VcellError(
                f"whole counts are drawn from the counts of control cells, and {fractions[0]} holds none "
                f"({store.scales[fractions[0]].words}). Give control cells with raw counts: controls=FILE.h5ad"
            )
        n_genes, library = store.n_genes, store.library_size[cells].astype(np.float64)
        total_G, square_G, by_library_G, log1p_G = (np.zeros(n_genes) for _ in range(4))
        for start in range(0, len(cells), BLOCK_CELLS):
            rows = store.rows(cells[start : start + BLOCK_CELLS])
            values, size = rows.values.astype(np.float64), np.repeat(rows.library_size, np.diff(rows.indptr))
            for sums, weights in (
                (total_G, values),
                (square_G, values**2),
                (by_library_G, values * size),
                (log1p_G, scaled_log1p(values, target_sum / size)),
            ):
                sums += np.bincount(rows.indices, weights, n_genes)
        rate_G = total_G / library.sum()
        # sum over cells of (k - μ)², less what Poisson noise alone would give
        excess_G = square_G - 2 * rate_G * by_library_G + rate_G**2 * (library**2).sum() - total_G
        dispersion_G = _dispersion(excess_G, rate_G**2 * (library**2).sum(), total_G, len(cells))
        quantiles = np.quantile(library, (np.arange(LIBRARIES) + 0.5) / LIBRARIES)
        return cls(rate_G, dispersion_G, log1p_G / len(cells), quantiles, target_sum)

    def rates_of_log1p(self, predicted_G: np.ndarray, from_G: np.ndarray) -> np.ndarray:
        """Rates at which the mean of log1p is as predicted, ``(genes)``.

        Parameters
        ----------
        predicted_G
            Predicted mean over some cells of log1p of counts per `target_sum`.
        from_G
            The mean over the control cells that these cells were predicted from. Where both are equal, the
            rate is the control cells' to the bit.
        """
        change_G = predicted_G - from_G
        base_G = self._mean_of_rate
        ratio_G = np.divide(predicted_G, from_G, out=np.ones_like(from_G), where=from_G > 0)
        # molecules are taken from the cells at hand, and added as all control cells of the context tell
        known_G = self.mean_log1p_G > 0
        grown_G = np.divide(change_G, self.mean_log1p_G, out=np.zeros_like(base_G), where=known_G) * base_G + base_G
        wanted_G = np.where(change_G <= 0, base_G * ratio_G, np.where(known_G, grown_G, change_G))
        rate_G = self._rate_of_mean(wanted_G)
        known_G = self.rate_G > 0
        factor_G = np.divide(rate_G, self._base_rate, out=np.ones_like(rate_G), where=known_G)
        rate_G = np.where(known_G, self.rate_G * factor_G, rate_G)
        return np.where(change_G == 0, self.rate_G, rate_G)

    def mean_log1p_of(self, rate_G: np.ndarray) -> np.ndarray:
        """Mean of log1p of counts per `target_sum` at these rates, ``(genes)``; the control cells' own at theirs."""
        base_G, mean_G = self._mean_of_rate, self._mean_at(rate_G)
        ratio_G = np.divide(mean_G, base_G, out=np.ones_like(mean_G), where=self.rate_G > 0)
        return np.where(self.rate_G > 0, self.mean_log1p_G * ratio_G, np.where(rate_G > 0, mean_G, 0.0))

    def draw(
        self,
        controls: SparseCells,
        rate_G: np.ndarray,
        rng: np.random.Generator,
        again_C: np.ndarray | None = None,
    ) -> sparse.csr_matrix:
        """Counts of cells like `controls` in which each gene has another rate.

        Parameters
        ----------
        controls
            Counts of control cells of the context.
        rate_G
            Wanted shares of a library, ``(genes)``.
        rng
            Source of all randomness.
        again_C
            bool: cells that are in this group already. They are drawn as other cells of the same law, for two cells that
            agree in every gene without an effect are not two observations.

        Returns
        -------
        Whole counts, int64, ``(cells, genes)``, sorted indices, without stored zeros.
        """
        shape = (len(controls.library_size), len(self.rate_G))
        counts = sparse.csr_matrix(
            (controls.values.astype(np.int64), controls.indices.astype(np.int32), controls.indptr), shape=shape
        )
        again_C = np.zeros(shape[0], bool) if again_C is None else again_C
        return draw_cells(
            counts, controls.library_size, self.rate_G, rate_G, self.dispersion_G, again_C, int(rng.integers(2**63))
        )

    def of_pools(self, number: int) -> CountModel:
        """The law of cells that are each the mean of `number` control cells."""
        return replace(self, dispersion_G=self.dispersion_G / number)

    def matched(
        self, counts: sparse.csr_matrix, library_C: np.ndarray, rate_G: np.ndarray, rng: np.random.Generator
    ) -> sparse.csr_matrix:
        """The same cells, with molecules added or taken away until each gene's sum over them is what its rate says, to the molecule.

        Drawn cells are a sample: their mean strays from the rate as that of any few cells does, and beside a weak effect that is most of
        what a scorer sees. Molecules that are taken away are spread evenly over those there; added ones fall on cells by library size.

        Parameters
        ----------
        counts
            Cells as drawn, ``(cells, genes)``.
        library_C
            Library sizes of the control cells behind them.
        rate_G
            Wanted shares of a library, ``(genes)``.
        """
        wanted_G = np.floor(rate_G * library_C.sum() + rng.random(len(rate_G))).astype(np.int64)
        shuffled = rng.permutation(counts.shape[0])
        columns = counts[shuffled].tocsc()
        before = np.concatenate([[0], np.cumsum(columns.data)])
        sum_G = before[columns.indptr[1:]] - before[columns.indptr[:-1]]
        # every molecule of a gene stays with the same probability: the numbers up to each cell are scaled and rounded down
        gene = row_of(columns.indptr)
        within = before[1:] - before[columns.indptr[:-1]][gene]
        reached = within * np.minimum(wanted_G, sum_G)[gene] // sum_G[gene]
        columns.data = np.diff(reached, prepend=0)
        first = columns.indptr[:-1][np.diff(columns.indptr) > 0]
        columns.data[first] = reached[first]
        missing_G = np.maximum(wanted_G - sum_G, 0)
        cell = np.searchsorted(
            np.cumsum(library_C[shuffled]) / library_C.sum(), rng.random(int(missing_G.sum())), side="right"
        )
        place = np.minimum(cell, len(library_C) - 1), np.repeat(np.arange(len(rate_G)), missing_G)
        added = sparse.csr_matrix((np.ones(len(cell), np.int64), place), columns.shape)
        total = sparse.csr_matrix(columns.tocsr() + added)[np.argsort(shuffled)]
        total.eliminate_zeros()
        total.sort_indices()
        return total

    @cached_property
    def _mean_table(self) -> np.ndarray:
        """Mean log1p of each gene at each rate of the table."""
        table_PR = expected_log1p(np.exp(LOG_RATES), DISPERSIONS, self.libraries, self.target_sum)
        at_G = np.interp(self.dispersion_G, DISPERSIONS, np.arange(len(DISPERSIONS)))
        below_G = np.minimum(at_G.astype(int), len(DISPERSIONS) - 2)
        weight_G1 = (at_G - below_G)[:, None]
        return ((1 - weight_G1) * table_PR[below_G] + weight_G1 * table_PR[below_G + 1]).astype(np.float32)

    @cached_property
    def _mean_of_rate(self) -> np.ndarray:
        """Mean log1p at the control cells' own rates, ``(genes)``."""
        return self._mean_at(self.rate_G)

    def _mean_at(self, rate_G: np.ndarray) -> np.ndarray:
        """Mean log1p that the law of counts gives at some rates, ``(genes)``; of the least rate of the table below it."""
        at_G = np.interp(np.log(np.maximum(rate_G, 1e-9)), LOG_RATES, np.arange(len(LOG_RATES)))
        below_G = np.minimum(at_G.astype(int), len(LOG_RATES) - 2)
        rows = np.arange(len(at_G))
        low_G, high_G = (np.log(self._mean_table[rows, below_G + i].astype(np.float64)) for i in (0, 1))
        return np.exp(low_G + (at_G - below_G) * (high_G - low_G))

    @cached_property
    def _base_rate(self) -> np.ndarray:
        """The control cells' rates as the table gives them back, so that its grain cancels out in ratios."""
        return self._rate_of_mean(self._mean_of_rate)

    def _rate_of_mean(self, mean_G: np.ndarray) -> np.ndarray:
        """The inverse of `_mean_at`: rates at which log1p has the given means; 0 for a mean of 0 or below."""
        rows = np.arange(len(mean_G))
        below_G, above_G = np.zeros(len(mean_G), int), np.full(len(mean_G), len(LOG_RATES) - 1)
        while (above_G - below_G).max(initial=0) > 1:  # bisection, all genes at once
            middle_G = (below_G + above_G) // 2
            higher_G = self._mean_table[rows, middle_G] <= mean_G
            below_G, above_G = np.where(higher_G, middle_G, below_G), np.where(higher_G, above_G, middle_G)
        low_G, high_G = (np.log(self._mean_table[rows, below_G + i].astype(np.float64)) for i in (0, 1))
        positive_G = mean_G > 0
        share_G = (np.log(np.where(positive_G, mean_G, 1.0)) - low_G) / (high_G - low_G)
        log_rate_G = LOG_RATES[below_G] + share_G * (LOG_RATES[1] - LOG_RATES[0])
        return np.where(positive_G, np.exp(np.minimum(log_rate_G, 0.0)), 0.0)


def expected_log1p(rates: np.ndarray, dispersions: np.ndarray, libraries: np.ndarray, target_sum: float) -> np.ndarray:
    """E log1p of counts per `target_sum`, ``(dispersions, rates)``, of negative binomial counts.

    Averaged over `libraries`; the mean count is rate × library size.
    """
    s, weight = np.exp(LOG_S), np.exp(-np.exp(LOG_S)) * STEP
    out = np.zeros((len(dispersions), len(rates)))
    for library in libraries:
        less_RS = rates[:, None] * library * -np.expm1(-(target_sum / library) * s)
        for i, dispersion in enumerate(dispersions):
            exponent_RS = less_RS if dispersion == 0 else np.log1p(dispersion * less_RS) / dispersion
            out[i] += -np.expm1(-exponent_RS) @ weight
    return out / len(libraries)


def again(cells: np.ndarray) -> np.ndarray:
    """bool: which of `cells` stand earlier in the same list."""
    first = np.zeros(len(cells), bool)
    first[np.unique(cells, return_index=True)[1]] = True
    return ~first


def _dispersion(excess_G: np.ndarray, scale_G: np.ndarray, total_G: np.ndarray, n_cells: int) -> np.ndarray:
    """φ of each gene by moments, drawn towards the usual one by as much as its own is uncertain."""
    raw_G = np.divide(excess_G, scale_G, out=np.zeros_like(scale_G), where=scale_G > 0)
    telling = total_G >= min(TELLING_COUNTS, np.quantile(total_G, 0.8))
    usual = float(np.median(raw_G[telling].clip(min=0))) if telling.any() else 0.0
    # by Poisson noise alone, a gene of m counts a cell would show a φ of about ± sqrt(2 / cells) / m
    error_G = np.sqrt(2 * n_cells) / np.maximum(total_G, 1e-9)
    trust_G = 1 / (1 + (error_G / max(usual, 0.05)) ** 2)
    return (trust_G * raw_G.clip(min=0) + (1 - trust_G) * usual).clip(LEAST_DISPERSED, MOST_DISPERSED)
