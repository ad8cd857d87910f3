"""What is known of a target before it is measured in a context: its vector in the table, and its effects in other contexts.

Shape legend: T targets, G genes, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vcell.effects.bank import SPACES
from vcell.effects.evidence import Evidence
from vcell.effects.linear import main_directions
from vcell.effects.model import Vectors

COMPONENTS = 32  # of the effects elsewhere
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)  # relative to the features' mean square


@dataclass(frozen=True)
class Features:
    """Features of targets by the context in which they are to be predicted.

    Parameters
    ----------
    scores
        Context to target to its place in the components of the effects in all other contexts.
    components
        Their number, by context.
    """

    scores: Mapping[str, Mapping[str, np.ndarray]]
    components: Mapping[str, int]

    @classmethod
    def of(cls, evidence: Evidence, vectors: Vectors) -> Features:
        """Of every target that was measured in some context."""
        scores: dict[str, dict[str, np.ndarray]] = {}
        components: dict[str, int] = {}
        for context in evidence.context_names:
            names = [t for t in evidence.rows_of if len(evidence.usable(t, context))]
            if len(names) < 3:
                scores[context], components[context] = {}, 0
                continue
            place = principal_scores(evidence.fused("bulk", names, context), COMPONENTS)
            place /= np.sqrt(max(float((place**2).sum(1).mean()), 1e-12))
            scores[context] = dict(zip(names, place.astype(np.float32), strict=True))
            components[context] = place.shape[1]
        return cls(scores, components)

    def matrix(self, context: str, targets: Sequence[str], vectors: Vectors) -> np.ndarray:
        """Features of some targets, ``(T, F)``; "" stands for contexts never measured, of which only vectors are used."""
        found = vectors.of(targets)
        number = self.components.get(context, 0)
        if not number:
            return found
        known, none = self.scores[context], np.zeros(number, np.float32)
        return np.concatenate(
            [found, np.array([known.get(t, none) for t in targets], np.float32).reshape(len(targets), number)], axis=1
        )

    def plain(self) -> dict[str, Any]:
        """As arrays, for a checkpoint."""
        return {
            context: {"targets": list(known), "scores": np.array(list(known.values()), np.float32).reshape(len(known), self.components[context])}
            for context, known in self.scores.items()
        }  # fmt: skip

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Features:
        """The inverse of `plain`."""
        scores = {context: dict(zip(one["targets"], one["scores"], strict=True)) for context, one in plain.items()}
        return cls(scores, {context: int(one["scores"].shape[1]) for context, one in plain.items()})


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression: weights by space, and the part of left-out targets' effects that it explains."""

    weights: dict[str, np.ndarray]
    explained: float
    inverse_TT: np.ndarray  # of the targets' products with the penalty on their diagonal

    def left_out(self, effects_TG: np.ndarray) -> np.ndarray:
        """Predictions of the targets' effects, each from the others alone, ``(T, G)``."""
        return leave_one_out(self.inverse_TT, effects_TG)


def ridge_of(features_TF: np.ndarray, effects: Mapping[str, np.ndarray]) -> RidgeFit | None:
    """Ridge regression of effects on features, the penalty by leaving one target out; None where no feature says anything."""
    x = features_TF.astype(np.float64)
    size = float((x**2).sum(1).mean()) if x.size else 0.0
    if size <= 0:
        return None
    gram = x @ x.T
    truth = effects["bulk"]
    total = max(float((truth.astype(np.float64) ** 2).sum()), 1e-12)
    best: tuple[float, np.ndarray] | None = None
    for penalty in PENALTIES:
        inverse = np.linalg.inv(gram + penalty * size * np.eye(len(x)))
        error = float(((truth - leave_one_out(inverse, truth)).astype(np.float64) ** 2).sum())
        if best is None or error < best[0]:
            best = (error, inverse)
    assert best is not None
    back = (x.T @ best[1]).astype(np.float32)
    return RidgeFit({space: back @ effects[space] for space in SPACES}, 1 - best[0] / total, best[1])


def leave_one_out(inverse_TT: np.ndarray, truth_TG: np.ndarray) -> np.ndarray:
    """Predictions of a ridge regression for each target when it alone is left out, ``(T, G)``."""
    residual = (inverse_TT.astype(np.float32) @ truth_TG) / np.diag(inverse_TT).astype(np.float32)[:, None]
    return truth_TG - residual


def principal_scores(values_TG: np.ndarray, number: int) -> np.ndarray:
    """Places of the rows in their first principal components, ``(T, components)``; signs fixed by the largest entry."""
    vectors, values = main_directions(values_TG, number)
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    found: np.ndarray = vectors * signs * np.sqrt(values)
    return found
