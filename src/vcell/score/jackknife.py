"""How far a pseudobulk may be off: its sampling variance by leaving out one cell at a time, on sparse cells.

Shape legend: C cells, G genes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from vcell.score.sums import CellGroup

SMALL = 0.6  # mass of a cell relative to that of the others, for its terms to be summed as power series
SMALLER = 0.02  # for five terms to be enough where they are multiplied by another small number: the error is below 1e-11 of that
PRECISION = 1e-16  # of what a series leaves out
NEAR_ONE = 0.003  # s² in log((1 + s) / (1 - s)) = 2 (s + s³/3 + s⁵/5 ...), for terms to s¹³ to be enough: the next is below 1e-16 of the first


def jackknife(group: CellGroup, target: float) -> float:
    """Sampling variance of log1p of summed counts per `target`, summed over genes; 0 for a single cell."""
    counts, (sum_G, mass_C) = group.matrix, group.sums
    n, total = len(group), mass_C.sum()
    if n < 2 or total <= 0:
        return 0.0
    others_C = total - mass_C
    excess_C = np.divide(mass_C, others_C, out=np.full(n, np.inf), where=others_C > 0)
    largest = excess_C[excess_C < SMALL].max(initial=0.0)
    terms = math.ceil(math.log(PRECISION) / math.log(largest)) if largest > 0 else 0
    left_out = _left_out(counts.indptr, counts.indices, counts.data, group.rows, mass_C, sum_G, target, terms, largest)
    return max((n - 1) / n * left_out, 0.0)


@njit(nogil=True, cache=True)
def _left_out(starts, genes, counts, rows, mass_C, sum_G, target, terms, largest):
    """Sum over genes of the squared deviations of the pseudobulks without one cell from their mean.

    Every such pseudobulk is close to that of all cells, so what is summed is its difference from that one. For a gene of which the cell
    holds nothing, it is d = log(1 + e q) with q = T sum / (total + T sum) and e = mass of the cell / mass of the others. Where e is
    small, d and d² are power series in e q, so that their sums over cells need no loop over cells and genes. For a gene of which the
    cell holds a count, the difference is d + l, l = log((rest + T (sum - count)) / (rest + T sum)).
    """
    n, n_genes = len(rows), len(sum_G)
    total = mass_C.sum()
    # of each gene q, T sum, and the two sums: side by side, as they are fetched together
    of_G = np.zeros((n_genes, 4), np.float64)
    for g in range(n_genes):
        of_G[g, 1] = target * sum_G[g]
        of_G[g, 0] = of_G[g, 1] / (total + of_G[g, 1])
    powers = np.zeros(terms + 1, np.float64)  # sums over cells of e to the k
    longest = 0
    for row in rows:
        longest = max(longest, starts[row + 1] - starts[row])
    held = np.empty((5, longest), np.float64)
    for c in range(n):
        rest = total - mass_C[c]
        if rest <= 0.0:  # this cell is all there is: without it every gene is 0
            for g in range(n_genes):
                base = math.log(1.0 + of_G[g, 1] / total)
                of_G[g, 2] -= base
                of_G[g, 3] += base * base
            continue
        excess = mass_C[c] / rest
        if excess < SMALL:
            power = 1.0
            for k in range(1, terms + 1):
                power *= excess
                powers[k] += power
        else:
            for g in range(n_genes):
                d = math.log(1.0 + excess * of_G[g, 0])
                of_G[g, 2] += d
                of_G[g, 3] += d * d
        begin, end = starts[rows[c]], starts[rows[c] + 1]
        _held(of_G, genes[begin:end], counts[begin:end], excess, rest, target, held)
    return _deviations(of_G, powers, n, largest)


@njit(nogil=True, cache=True, error_model="numpy")  # a check of each division would keep it from doing several
def _held(of_G, genes, counts, excess, rest, target, held):
    """Adds to the sums of the genes that a cell holds counts of; `held` is room for what is worked out of several at a time."""
    n = len(genes)
    q, part, d, s2, lost = held[0, :n], held[1, :n], held[2, :n], held[3, :n], held[4, :n]
    for i in range(n):
        q[i], part[i] = of_G[genes[i], 0], of_G[genes[i], 1]
    if excess < SMALLER:
        for i in range(n):
            x = excess * q[i]
            d[i] = x * (1.0 - x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5)))))
    else:
        for i in range(n):
            d[i] = math.log(1.0 + excess * q[i])
    for i in range(n):
        own, whole = target * counts[i], rest + part[i]
        s = -own / (2.0 * whole - own)
        s2[i] = s * s
        series = 1 / 3 + s2[i] * (1 / 5 + s2[i] * (1 / 7 + s2[i] * (1 / 9 + s2[i] * (1 / 11 + s2[i] * (1 / 13)))))
        lost[i] = 2.0 * s * (1.0 + s2[i] * series)
    for i in range(n):
        if s2[i] >= NEAR_ONE:
            own, whole = target * counts[i], rest + part[i]
            lost[i] = math.log((whole - own) / whole)
        of_G[genes[i], 2] += lost[i]
        of_G[genes[i], 3] += lost[i] * (lost[i] + 2.0 * d[i])


@njit(nogil=True, cache=True)
def _deviations(of_G, powers, n, largest):
    """Sum over genes of the squared deviations, once the series of `powers` in q are added to each gene's two sums: of as many terms as it
    takes where `largest` is the largest e."""
    terms = len(powers) - 1
    first_terms, second_terms, harmonic, sign = np.zeros(terms + 1), np.zeros(terms + 1), 0.0, 1.0
    for k in range(1, terms + 1):
        first_terms[k] = sign * powers[k] / k
        second_terms[k] = -sign * powers[k] * 2.0 * harmonic / k
        harmonic += 1.0 / k
        sign = -sign
    found = 0.0
    for g in range(len(of_G)):
        first, second, power, left = of_G[g, 2], of_G[g, 3], 1.0, 1.0
        for k in range(1, terms + 1):
            power *= of_G[g, 0]
            left *= of_G[g, 0] * largest
            first += first_terms[k] * power
            second += second_terms[k] * power
            if left < PRECISION:
                break
        found += second - first * first / n
    return found
