"""Which way a gene goes: the probability that a target raises it, learnt from signs seen in other contexts.

What tells a sign, most telling first: the same target's sign elsewhere (right in .98 of cases between four real lines); signs under targets
that respond alike, or whose vectors are alike; the gene's usual sign; the target's. Their weights are those of a logistic regression fitted
to each training context in turn, from the others only, so that probabilities are calibrated for a context never seen.

Shape legend: N observed signs, T targets, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from vcell.effects.linear import likeness, with_norms_of
from vcell.errors import VcellError

NEIGHBOURS = 30
COMPONENTS = 24
FEWEST_SIGNS, FEWEST_CONTEXTS = 200, 2
PENALTY = 3.0


@dataclass(frozen=True)
class Signs:
    """Signs of significant changes.

    Parameters
    ----------
    context, target, gene
        Of each, as numbers, ``(N)``.
    up
        bool ``(N)``: raised, not lowered.
    n_targets, n_genes
        How many there are.
    """

    context: np.ndarray
    target: np.ndarray
    gene: np.ndarray
    up: np.ndarray
    n_targets: int
    n_genes: int

    def where(self, chosen: np.ndarray) -> Signs:
        """Some of them."""
        return Signs(
            self.context[chosen], self.target[chosen], self.gene[chosen], self.up[chosen], self.n_targets, self.n_genes
        )

    @property
    def matrix(self) -> sparse.csr_matrix:
        """Sums over contexts of +1 and -1, ``(T, G)``."""
        shape = (self.n_targets, self.n_genes)
        return sparse.csr_matrix((np.where(self.up, 1.0, -1.0), (self.target, self.gene)), shape)

    @property
    def number(self) -> sparse.csr_matrix:
        """How many contexts have seen each, ``(T, G)``."""
        return sparse.csr_matrix((np.ones(len(self.up)), (self.target, self.gene)), (self.n_targets, self.n_genes))


class SignEvidence:
    """What some signs tell of others. Make it from those of other contexts than the one asked about.

    Parameters
    ----------
    signs
        Seen.
    alike
        Which targets have like vectors (`alike_by`).
    """

    def __init__(self, signs: Signs, alike: sparse.csr_matrix) -> None:
        self.votes, self.number = signs.matrix, signs.number
        up_G, n_G = (np.asarray(m.sum(0)).ravel() for m in (self.votes, self.number))
        usual = up_G.sum() / max(n_G.sum(), 1)
        self.of_gene_G = np.log((n_G + up_G + 2 * (1 + usual)) / (n_G - up_G + 2 * (1 - usual) + 1e-9))
        up_T, n_T = (np.asarray(m.sum(1)).ravel() for m in (self.votes, self.number))
        self.of_target_T = np.log((n_T + up_T + 4) / (n_T - up_T + 4))
        expected_G = (up_G + 2 * usual) / (n_G + 2)
        votes = self.votes.tocoo()
        beyond = sparse.csr_matrix(
            (votes.data - expected_G[votes.col] * np.sign(np.abs(votes.data)), (votes.row, votes.col)), votes.shape
        )
        self.by_vector = _neighbours(alike, beyond, self.number)
        number = min(COMPONENTS, min(beyond.shape) - 1)
        left, size, right = svds(beyond.astype(np.float64), k=number, v0=np.ones(min(beyond.shape)))
        self.left_TK, self.right_GK = left * size, right.T
        self.by_response = _neighbours(alike_by(self.left_TK), beyond, self.number)

    def features(self, target: np.ndarray, gene: np.ndarray) -> np.ndarray:
        """Of pairs of a target and a gene, ``(N, features)``."""
        vote = np.sign(np.asarray(self.votes[target, gene]).ravel())
        silent = vote == 0
        of_gene, of_target = self.of_gene_G[gene], self.of_target_T[target]
        by_vector, by_response = (np.asarray(m[target, gene]).ravel() for m in (self.by_vector, self.by_response))
        low_rank = np.clip((self.left_TK[target] * self.right_GK[gene]).sum(1), -1, 1)
        return np.stack(
            [vote, of_gene, of_gene * silent, of_target, of_target * silent, by_vector, by_vector * silent, by_response * silent,
             low_rank * silent, np.ones(len(vote))],
            axis=1,
        )  # fmt: skip


@dataclass(frozen=True)
class SignHead:
    """Weights of what tells a sign."""

    weights: np.ndarray

    @classmethod
    def fit(cls, signs: Signs, alike: sparse.csr_matrix) -> SignHead:
        """Fitted to each context's signs, from those of the other contexts.

        Raises
        ------
        VcellError
            If there are too few signs, or contexts.
        """
        contexts = np.unique(signs.context)
        if len(contexts) < FEWEST_CONTEXTS or len(signs.up) < FEWEST_SIGNS:
            raise VcellError(
                f"signs are learnt from at least {FEWEST_SIGNS} significant changes in {FEWEST_CONTEXTS} contexts; there are "
                f"{len(signs.up):,} in {len(contexts)}"
            )
        features, up = [], []
        for context in contexts:
            here = signs.context == context
            evidence = SignEvidence(signs.where(~here), alike)
            features.append(evidence.features(signs.target[here], signs.gene[here]))
            up.append(signs.up[here])
        return cls(_logistic(np.concatenate(features), np.concatenate(up)))

    def probability(self, evidence: SignEvidence, target: np.ndarray, gene: np.ndarray) -> np.ndarray:
        """That a target raises a gene, ``(N)``."""
        found: np.ndarray = 1 / (1 + np.exp(-evidence.features(target, gene) @ self.weights))
        return found

    def of_target(self, evidence: SignEvidence, target: int) -> np.ndarray:
        """That a target raises each gene, ``(G)``."""
        n_genes = evidence.votes.shape[1]
        return self.probability(evidence, np.full(n_genes, target), np.arange(n_genes))


def reweighed(effect_TG: np.ndarray, up_TG: np.ndarray, power: float) -> np.ndarray:
    """Effects of less sure sign made smaller, norms kept, ``(T, G)``: times the probability of their own sign to a power."""
    sure = np.where(effect_TG > 0, up_TG, 1 - up_TG) ** power
    found = effect_TG * sure.astype(np.float32)
    return with_norms_of(found, effect_TG)


def signs_of(
    called_NG: np.ndarray, effect_NG: np.ndarray, contexts: Sequence[str], targets: Sequence[str]
) -> tuple[Signs, dict[str, int]]:
    """Signs of called genes, and the number of each target."""
    place = {t: i for i, t in enumerate(dict.fromkeys(targets))}
    number: Mapping[str, int] = {c: i for i, c in enumerate(dict.fromkeys(contexts))}
    row, gene = np.nonzero(called_NG)
    target_N, context_N = np.array([place[t] for t in targets]), np.array([number[c] for c in contexts])
    up = effect_NG[row, gene] > 0
    return Signs(context_N[row], target_N[row], gene, up, len(place), called_NG.shape[1]), place


def alike_by(x_TP: np.ndarray) -> sparse.csr_matrix:
    """The rows most alike to each by cosine, ``(T, T)``; no row with itself."""
    alike = likeness(x_TP, x_TP)
    np.fill_diagonal(alike, 0)
    number = min(NEIGHBOURS, len(alike))
    order = np.sort(np.argpartition(-alike, number - 1, axis=1)[:, :number], axis=1)
    values = np.maximum(np.take_along_axis(alike, order, 1), 0)
    rows = np.repeat(np.arange(len(alike)), order.shape[1])
    return sparse.csr_matrix((values.ravel(), (rows, order.ravel())), alike.shape)


def _neighbours(likeness: sparse.csr_matrix, beyond: sparse.csr_matrix, number: sparse.csr_matrix) -> sparse.csr_matrix:
    """Mean sign under alike targets beyond the gene's usual one, drawn to 0 where few have seen it, ``(T, G)``."""
    total = sparse.csr_matrix(likeness @ beyond)
    seen: Any = sparse.csr_matrix(likeness @ number)
    seen.data = 1 / (seen.data + 1)
    return sparse.csr_matrix(total.multiply(seen))


def _logistic(features: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression with a small quadratic penalty, by Newton's method."""
    weights = np.zeros(features.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-features @ weights))
        slope = features.T @ (p - up) + PENALTY * weights
        curvature = (features * (p * (1 - p))[:, None]).T @ features + PENALTY * np.eye(len(weights))
        weights = weights - np.linalg.solve(curvature, slope)
    return weights
