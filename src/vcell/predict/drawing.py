"""Molecules taken from cells and added to them, compiled: the random part of `predict.counts`.

Each number comes from a stream of its own, named by a key, the cell and the gene, so that what is drawn does not depend on how the cells
are dealt to blocks, threads or processes. The streams are those of splitmix64 (Steele, Lea & Flood 2014).

Shape legend: C cells, G genes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from scipy import sparse

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
MEAN_OF_PART = 32.0  # molecules; more are drawn as several independent numbers
MOST_STEPS = 100_000


def draw_cells(
    counts: sparse.csr_matrix,
    library_C: np.ndarray,
    from_G: np.ndarray,
    to_G: np.ndarray,
    dispersion_G: np.ndarray,
    again_C: np.ndarray,
    key: int,
) -> sparse.csr_matrix:
    """Cells whose genes go from one rate to another.

    Parameters
    ----------
    counts
        Whole counts of control cells, ``(cells, genes)``.
    library_C
        Their library sizes.
    from_G, to_G
        Shares of a library, before and after.
    dispersion_G
        φ of the negative binomial.
    again_C
        bool: cells of which half the molecules are drawn anew first.
    key
        Names the streams.

    Returns
    -------
    Whole counts, int64, sorted indices, without stored zeros.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        keep_G = np.where(from_G > to_G, to_G / from_G, 1.0)
    up = np.flatnonzero(to_G > from_G)
    inverse_G = 1 / dispersion_G.astype(np.float64)
    cells = counts.indptr.astype(np.int64), counts.indices, counts.data, library_C.astype(np.float64), again_C
    law = from_G.astype(np.float64), inverse_G, keep_G, up, (to_G - from_G)[up].astype(np.float64)
    n_cells, n_genes = counts.shape
    room = int(1.1 * (counts.nnz + law[-1].sum() * library_C.sum())) + n_genes
    while True:
        genes, numbers = np.empty(room, np.int32), np.empty(room, np.int64)
        indptr = np.zeros(n_cells + 1, np.int64)
        if _draw(*cells, *law, np.uint64(key), indptr, genes, numbers):
            end = indptr[-1]
            return sparse.csr_matrix((numbers[:end].copy(), genes[:end].copy(), indptr), (n_cells, n_genes))
        room *= 2


@njit(nogil=True, cache=True)
def _draw(
    starts, stored_genes, stored, library, again, before, inverse, keep, up, growth, key, out_starts, out_genes, out_numbers
):  # fmt: skip
    """Fills the rows one after the other; False where they need more room."""
    at, n_genes = 0, len(before)
    row, added, new = np.zeros(n_genes, np.int64), np.zeros(n_genes, np.int64), np.empty(len(up), np.int64)
    own_before, own_inverse = before[up], inverse[up]
    mean, uniform = np.empty(len(up)), np.empty(len(up))
    for cell in range(len(library)):
        size = library[cell]
        genes, numbers = stored_genes[starts[cell] : starts[cell + 1]], stored[starts[cell] : starts[cell + 1]]
        if again[cell]:
            genes, numbers = _another(
                genes, numbers, size, before, inverse, _mixed(key + GOLDEN * np.uint64(2 * cell + 1))
            )
        if at + len(genes) + len(up) > len(out_genes):
            return False
        own = _mixed(key + GOLDEN * np.uint64(2 * cell + 2))
        for i in range(len(genes)):
            row[genes[i]] = numbers[i]
        for j in range(len(up)):  # without a branch, for the processor to do several at a time
            mean[j] = (row[up[j]] + own_inverse[j]) * (growth[j] * size / (own_inverse[j] + own_before[j] * size))
            uniform[j] = _uniform(_mixed(own + GOLDEN * np.uint64(up[j] + 1)))
        n_new = 0
        for j in range(len(up)):
            if uniform[j] > 1.0 - mean[j]:  # the chance of none is never below that
                gene = up[j]
                scale = growth[j] * size / (own_inverse[j] + own_before[j] * size)
                stream = _mixed(own + GOLDEN * np.uint64(gene + 1))
                added[gene] = _gamma_poisson(row[gene] + own_inverse[j], scale, stream)
                if added[gene] > 0 and row[gene] == 0:
                    new[n_new] = gene
                    n_new += 1
        at = _write(genes, numbers, added, new[:n_new], keep, own, out_genes, out_numbers, at)
        out_starts[cell + 1] = at
        for i in range(len(genes)):
            row[genes[i]] = 0
        for j in range(len(up)):
            added[up[j]] = 0
    return True


@njit(nogil=True, cache=True)
def _write(genes, numbers, added, new, keep, own, out_genes, out_numbers, at):
    """A row: genes that were there, with what is kept of them or added, and new ones between them; where the next row begins."""
    n = 0
    for i in range(len(genes)):
        gene, number = genes[i], numbers[i]
        while n < len(new) and new[n] < gene:
            out_genes[at], out_numbers[at] = new[n], added[new[n]]
            at, n = at + 1, n + 1
        if keep[gene] < 1.0:
            number = _kept(number, keep[gene], _mixed(own + GOLDEN * np.uint64(gene + 1)))
        out_genes[at], out_numbers[at] = gene, number + added[gene]
        at += number + added[gene] > 0
    while n < len(new):
        out_genes[at], out_numbers[at] = new[n], added[new[n]]
        at, n = at + 1, n + 1
    return at


@njit(nogil=True, cache=True)
def _another(genes, numbers, size, rate, inverse, own):
    """Another cell of the same law: half the molecules removed, and drawn again from what is left."""
    row = np.zeros(len(rate), np.int64)
    for i in range(len(genes)):
        row[genes[i]] = _kept(numbers[i], 0.5, _mixed(own + GOLDEN * np.uint64(2 * genes[i] + 1)))
    for gene in range(len(rate)):
        if rate[gene] > 0:
            half = rate[gene] / 2
            scale = half * size / (inverse[gene] + half * size)
            row[gene] += _gamma_poisson(
                row[gene] + inverse[gene], scale, _mixed(own + GOLDEN * np.uint64(2 * gene + 2))
            )
    found = np.flatnonzero(row)
    return found.astype(genes.dtype), row[found].astype(numbers.dtype)


@njit(nogil=True, cache=True)
def _mixed(x):
    x = (x ^ (x >> np.uint64(30))) * FIRST
    x = (x ^ (x >> np.uint64(27))) * SECOND
    return x ^ (x >> np.uint64(31))


@njit(nogil=True, cache=True)
def _uniform(stream):
    return (stream >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(nogil=True, cache=True)
def _kept(number, share, stream):
    """Binomial(number, share), molecule by molecule."""
    kept, below = 0, np.uint64(share * 9007199254740992.0)  # as many of 2^53
    for i in range(number):
        kept += (_mixed(stream + GOLDEN * np.uint64(i)) >> np.uint64(11)) < below
    return kept


@njit(nogil=True, cache=True)
def _gamma_poisson(shape, scale, stream):
    """Poisson(scale × Gamma(shape)), by the numbers of `stream`, of which the first is its own uniform number."""
    total, mean, uniform = 0, shape * scale, _uniform(stream)
    while mean > MEAN_OF_PART:  # such a number is the sum of independent ones whose shapes add up
        total += _negative_binomial(MEAN_OF_PART / scale, scale, uniform)
        shape -= MEAN_OF_PART / scale
        mean = shape * scale
        stream = _mixed(stream + GOLDEN)
        uniform = _uniform(stream)
    return total + _negative_binomial(shape, scale, uniform)


@njit(nogil=True, cache=True)
def _negative_binomial(shape, scale, uniform):
    """Poisson(scale × Gamma(shape)) by inverting its distribution."""
    term = math.exp(-shape * math.log1p(scale))
    reached, odds, k = term, scale / (1.0 + scale), 0
    while uniform > reached and k < MOST_STEPS:
        term *= (shape + k) / (k + 1.0) * odds
        k += 1
        if reached + term == reached and k > shape * scale:  # no further number is in float64's reach
            break
        reached += term
    return k
