"""What is known of a target before it is measured in a context: its vector in the table, and its effects in other contexts.

Shape legend: T targets, G genes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vcell.effects.bank import SPACES
from vcell.effects.evidence import Evidence
from vcell.effects.linear import main_directions, products
from vcell.effects.model import Vectors

COMPONENTS = 32  # of the effects elsewhere
MOST_LANDMARKS = 3000  # targets of a kernel: their likenesses are a square matrix
SHARPNESS = 2.0  # at the median distance, likeness is exp(-2)
SMALLEST_DIRECTION = 1e-6  # of the largest singular value, below which float32 features say nothing
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
    """A ridge regression, and the part of left-out targets' effects that it explains.

    Parameters
    ----------
    kernel
        What the features are compared with first; None: the regression is linear in them.
    basis
        Directions of the features, or of their likenesses, that the targets span, ``(F, K)``; no more than there are targets.
    weights
        Effect of each by space, ``(K, G)``.
    explained
        Of left-out targets' bulk effects.
    inverse_TT
        Of the targets' products with the penalty on their diagonal.
    """

    kernel: Kernel | None
    basis: np.ndarray
    weights: dict[str, np.ndarray]
    explained: float
    inverse_TT: np.ndarray

    def predict(self, space: str, features_TF: np.ndarray) -> np.ndarray:
        """Effects of targets by their features, ``(T, G)``."""
        return predicted(self.plain(), space, features_TF)

    def plain(self) -> dict[str, Any]:
        """What predictions need, as arrays, for a checkpoint."""
        kernel = None if self.kernel is None else {"landmarks": self.kernel.landmarks_TF, "width": self.kernel.width}
        return {"kernel": kernel, "basis": self.basis, "weights": self.weights}


def predicted(fit: Mapping[str, Any], space: str, features_TF: np.ndarray) -> np.ndarray:
    """Effects by a fit's `plain` form, ``(T, G)``; those of checkpoints from before have weights alone."""
    if fit.get("kernel") is not None:
        features_TF = Kernel(fit["kernel"]["landmarks"], fit["kernel"]["width"]).of(features_TF)
    if "basis" in fit:
        features_TF = features_TF @ fit["basis"]
    found: np.ndarray = features_TF @ fit["weights"][space]
    return found


@dataclass(frozen=True)
class Kernel:
    """A Gaussian kernel of the angle between features: targets with like features count, others do not, however far.

    Parameters
    ----------
    landmarks_TF
        Features of the targets fitted to, of length 1 or 0.
    width
        Mean squared distance at which likeness has fallen by a factor of e².
    """

    landmarks_TF: np.ndarray
    width: float

    @classmethod
    def over(cls, features_TF: np.ndarray) -> Kernel:
        """Over some targets, as wide as their median distance."""
        landmarks = _unit(features_TF)
        known = np.flatnonzero(products(landmarks, landmarks) > 0)
        distances = 2 - 2 * (landmarks[known] @ landmarks[known].T)[np.triu_indices(len(known), 1)]
        return cls(landmarks, max(float(np.median(distances)), 1e-3) if len(distances) else 1.0)

    def of(self, features_TF: np.ndarray) -> np.ndarray:
        """Likeness with each landmark, float32 ``(T, landmarks)``; 0 for targets of which nothing is known."""
        unit_TF = _unit(features_TF)
        known_TT = (products(unit_TF, unit_TF) > 0)[:, None] & (products(self.landmarks_TF, self.landmarks_TF) > 0)
        distance_TT = 2 - 2 * (unit_TF @ self.landmarks_TF.T)
        found: np.ndarray = np.where(known_TT, np.exp(-SHARPNESS * distance_TT / self.width), 0).astype(np.float32)
        return found


def _unit(features_TF: np.ndarray) -> np.ndarray:
    length_T = np.sqrt(products(features_TF, features_TF))
    found: np.ndarray = features_TF / np.where(length_T > 0, length_T, 1)[:, None]
    return found


def ridge_of(features_TF: np.ndarray, effects: Mapping[str, np.ndarray]) -> RidgeFit | None:
    """Ridge regression of effects on features, linear or by a `Kernel`, whichever predicts left-out targets better; None where no feature
    says anything. The penalty is chosen by leaving one target out, too."""
    if not features_TF.size or not features_TF.any():
        return None
    truth = effects["bulk"]
    # errors of left-out targets are read off the products of their effects
    products_TT = (truth @ truth.T).astype(np.float64)
    left_TK, values, right_KF = np.linalg.svd(features_TF.astype(np.float64), full_matrices=False)
    linear = _fit(None, left_TK, values, right_KF.T, products_TT, effects)
    if len(features_TF) > MOST_LANDMARKS:
        return linear
    kernel = Kernel.over(features_TF)
    squared, left_TK = np.linalg.eigh(kernel.of(kernel.landmarks_TF).astype(np.float64))
    values = np.sqrt(np.maximum(squared, 0))[::-1]
    left_TK = left_TK[:, ::-1]
    inverse = np.divide(1, values, out=np.zeros_like(values), where=values > SMALLEST_DIRECTION * values[0])
    curved = _fit(kernel, left_TK, values, left_TK * inverse, products_TT, effects)
    return curved if curved.explained > linear.explained else linear


def _fit(
    kernel: Kernel | None,
    left_TK: np.ndarray,
    values: np.ndarray,
    basis_FK: np.ndarray,
    products_TT: np.ndarray,
    effects: Mapping[str, np.ndarray],
) -> RidgeFit:
    """A ridge regression in the targets' own directions, where every penalty is a division.

    Parameters
    ----------
    left_TK, values, basis_FK
        Singular vectors and values of the features: features @ basis = left * values.
    """
    kept = values > SMALLEST_DIRECTION * values[0]
    left_TK, values, basis_FK = left_TK[:, kept], values[kept], basis_FK[:, kept]
    size = float((values**2).sum()) / len(left_TK)
    spans = Spans.of(left_TK, values, products_TT)
    errors = {p: float(spans.left_out_errors(p * size).sum()) for p in PENALTIES}
    best = min(errors, key=errors.__getitem__)
    back_KT = ((values / (values**2 + best * size))[:, None] * left_TK.T).astype(np.float32)
    explained = 1 - errors[best] / max(float(spans.size_T.sum()), 1e-12)
    weights = {space: back_KT @ effects[space] for space in SPACES}
    basis = np.ascontiguousarray(basis_FK).astype(np.float32)
    return RidgeFit(kernel, basis, weights, explained, spans.inverse(best * size).astype(np.float32))


@dataclass(frozen=True)
class Spans:
    """Features of some targets by their singular vectors, and the products of the targets' effects in these.

    With it, the error of left-out targets at a penalty takes no product over genes: it is a diagonal of H K H, where K are the products of
    effects and H = (1 - Q W Q') / penalty the inverse of the features' products.

    Parameters
    ----------
    left_TK, values
        Singular vectors, and singular values.
    size_T
        Squared size of each effect.
    cross_TK, inner_KK
        K Q, and Q' K Q.
    """

    left_TK: np.ndarray
    values: np.ndarray
    size_T: np.ndarray
    cross_TK: np.ndarray
    inner_KK: np.ndarray

    @classmethod
    def of(cls, left_TK: np.ndarray, values: np.ndarray, products_TT: np.ndarray) -> Spans:
        cross_TK = products_TT @ left_TK
        return cls(left_TK, values, np.diag(products_TT).copy(), cross_TK, left_TK.T @ cross_TK)

    def _shrunk(self, penalty: float) -> np.ndarray:
        return self.left_TK * (self.values**2 / (self.values**2 + penalty))

    def left_out_errors(self, penalty: float) -> np.ndarray:
        """Squared error of each target when it alone is left out, ``(T)``."""
        shrunk_TK = self._shrunk(penalty)
        explained = ((shrunk_TK @ self.inner_KK) * shrunk_TK).sum(1) - 2 * (shrunk_TK * self.cross_TK).sum(1)
        influence = (shrunk_TK * self.left_TK).sum(1)
        found: np.ndarray = np.maximum(self.size_T + explained, 0) / np.maximum(1 - influence, 1e-9) ** 2
        return found

    def inverse(self, penalty: float) -> np.ndarray:
        """Of the products of the features with the penalty on their diagonal, ``(T, T)``."""
        found: np.ndarray = (np.eye(len(self.left_TK)) - self._shrunk(penalty) @ self.left_TK.T) / penalty
        return found


def leave_one_out(
    inverse_TT: np.ndarray, truth_TG: np.ndarray, rows: Sequence[int] | slice = slice(None)
) -> np.ndarray:
    """Predictions of a ridge regression for each target when it alone is left out, of all or of some ``rows``, ``(T, G)``."""
    residual = (inverse_TT[rows].astype(np.float32) @ truth_TG) / np.diag(inverse_TT)[rows].astype(np.float32)[:, None]
    found: np.ndarray = truth_TG[rows] - residual
    return found


@dataclass
class LeftOut:
    """What a regression predicts of each of its own targets when that one is left out.

    Parameters
    ----------
    rows
        Place of each target.
    inverse_TT
        Of the fit (`RidgeFit`).
    effects
        The effects fitted to, by space.
    """

    rows: Mapping[str, int]
    inverse_TT: np.ndarray
    effects: Callable[[str], np.ndarray]
    _all: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, space: str, rows: Sequence[int]) -> np.ndarray:
        """Predictions of some targets, by place, ``(rows, G)``. All are kept once one alone is asked for: others will follow."""
        if space not in self._all and len(rows) > 1:
            return leave_one_out(self.inverse_TT, self.effects(space), rows)
        if space not in self._all:
            self._all[space] = leave_one_out(self.inverse_TT, self.effects(space))
        return self._all[space][rows]


def principal_scores(values_TG: np.ndarray, number: int) -> np.ndarray:
    """Places of the rows in their first principal components, ``(T, components)``; signs fixed by the largest entry."""
    vectors, values = main_directions(values_TG, number)
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    found: np.ndarray = vectors * signs * np.sqrt(values)
    return found
