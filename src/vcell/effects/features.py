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
from vcell.effects.linear import products, root_directions, singular_directions, spread
from vcell.effects.model import Vectors

ALL = slice(None)
COMPONENTS = 32  # of the effects elsewhere
MOST_LANDMARKS = 3000  # targets of a kernel: their likenesses are a square matrix
MOST_LEFT_OUT = 1000  # targets, evenly spread, whose errors when they are left out choose a penalty
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
    def of(cls, evidence: Evidence) -> Features:
        """Of every target that was measured in some context."""
        scores: dict[str, dict[str, np.ndarray]] = {}
        components: dict[str, int] = {}
        for context in evidence.context_names:
            elsewhere = evidence.elsewhere(context)
            if len(elsewhere.targets) < 3:
                scores[context], components[context] = {}, 0
                continue
            place = elsewhere.scores(COMPONENTS)
            place /= np.sqrt(max(float((place**2).sum(1).mean()), 1e-12))
            scores[context] = dict(zip(elsewhere.targets, place.astype(np.float32), strict=True))
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
class Regression:
    """A ridge regression on features, or on their likenesses with those of the targets fitted to. It knows no gene: what it predicts is a sum of
    these targets' effects, whose weights go by the features.

    Parameters
    ----------
    kernel
        What the features are compared with first; None: the regression is linear in them.
    basis
        Directions of the features, or of their likenesses, that the targets span, ``(F, K)``; no more than there are targets.
    left_TK, gain
        Of each direction, the weights of the targets, and their scale, ``(K)``.
    """

    kernel: Kernel | None
    basis: np.ndarray
    left_TK: np.ndarray
    gain: np.ndarray

    def places(self, features_TF: np.ndarray) -> np.ndarray:
        """Of some targets in the directions, ``(T, K)``."""
        found: np.ndarray = (features_TF if self.kernel is None else self.kernel.of(features_TF)) @ self.basis
        return found

    def weights(self, effects_TG: np.ndarray) -> np.ndarray:
        """The effect of each direction, from those of the targets fitted to, ``(K, G)``."""
        found: np.ndarray = (self.left_TK * self.gain).T @ effects_TG
        return found

    def predict(self, features_TF: np.ndarray, effects_TG: np.ndarray) -> np.ndarray:
        """Effects of targets by their features, from the effects of those fitted to, ``(T, G)``."""
        found: np.ndarray = ((self.places(features_TF) * self.gain) @ self.left_TK.T) @ effects_TG
        return found

    def plain(self) -> dict[str, Any]:
        """As arrays, for a checkpoint."""
        kernel = None if self.kernel is None else {"landmarks": self.kernel.landmarks_TF, "width": self.kernel.width}
        return {"kernel": kernel, "basis": self.basis, "left": self.left_TK, "gain": self.gain}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Regression:
        """The inverse of `plain`."""
        kernel = None if plain["kernel"] is None else Kernel(plain["kernel"]["landmarks"], plain["kernel"]["width"])
        return cls(kernel, plain["basis"], plain["left"], plain["gain"])


@dataclass(frozen=True)
class Applied:
    """A regression with the effects of the targets that it was fitted to, for predictions a few at a time.

    Parameters
    ----------
    regression
        What weighs them.
    effects
        All of them in a space, ``(T, G)``. They are asked for once: what is kept is the effect of each direction, ``(K, G)``.
    """

    regression: Regression
    effects: Callable[[str], np.ndarray]
    _weights: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def predict(self, space: str, features_TF: np.ndarray) -> np.ndarray:
        """Effects of targets by their features, ``(T, G)``."""
        if space not in self._weights:
            self._weights[space] = self.regression.weights(self.effects(space))
        found: np.ndarray = self.regression.places(features_TF) @ self._weights[space]
        return found

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any], effects: Callable[[str], np.ndarray]) -> Applied:
        """From what a checkpoint keeps; former ones kept the effects of the directions, the first ones of the features."""
        if "weights" not in plain:
            return cls(Regression.of_plain(plain), effects)
        width = len(plain["weights"][SPACES[0]])
        nothing = {"left": np.zeros((0, width)), "gain": np.zeros(width)}
        former = {"kernel": None, "basis": np.eye(width, dtype=np.float32), **plain, **nothing}
        return cls(Regression.of_plain(former), effects, dict(plain["weights"]))


@dataclass(frozen=True)
class RidgeFit:
    """A ridge regression with what its own targets are predicted from when they are left out.

    Parameters
    ----------
    regression
        What predicts.
    explained
        The part of left-out targets' bulk effects that it explains.
    values
        Singular values of the features.
    penalty
        The one chosen.
    """

    regression: Regression
    explained: float
    values: np.ndarray
    penalty: float

    def inverse(self, rows: Sequence[int] | slice = ALL) -> np.ndarray:
        """Of the products of the features with the penalty on their diagonal, the rows of some targets, ``(rows, T)``."""
        left_TK = self.regression.left_TK.astype(np.float64)
        found = _shrunk(left_TK[rows], self.values, self.penalty) @ left_TK.T
        np.negative(found, out=found)
        found[np.arange(len(found)), np.arange(len(left_TK))[rows]] += 1
        found /= self.penalty
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


def ridge_of(features_TF: np.ndarray, truth_TG: np.ndarray) -> RidgeFit | None:
    """Ridge regression of effects on features, linear or by a `Kernel`, whichever predicts left-out targets better; None where no feature
    says anything. The penalty is chosen by leaving one target out, too."""
    if not features_TF.size or not features_TF.any():
        return None
    # errors of left-out targets are read off the products of their effects
    products_TT = (truth_TG @ truth_TG.T).astype(np.float64)
    left_TK, values, right_FK = singular_directions(features_TF, SMALLEST_DIRECTION)
    linear = _fit(None, left_TK, values, right_FK, products_TT)
    if len(features_TF) > MOST_LANDMARKS:
        return linear
    kernel = Kernel.over(features_TF)
    left_TK, values = root_directions(kernel.of(kernel.landmarks_TF).astype(np.float64), SMALLEST_DIRECTION)
    curved = _fit(kernel, left_TK, values, left_TK / values, products_TT)
    return curved if curved.explained > linear.explained else linear


def _fit(
    kernel: Kernel | None, left_TK: np.ndarray, values: np.ndarray, basis_FK: np.ndarray, products_TT: np.ndarray
) -> RidgeFit:
    """A ridge regression in the targets' own directions, where every penalty is a division.

    Parameters
    ----------
    left_TK, values, basis_FK
        Singular vectors and values of the features: features @ basis = left * values.
    """
    size = float((values**2).sum()) / len(left_TK)
    spans, some = Spans.of(left_TK, values, products_TT), spread(len(left_TK), MOST_LEFT_OUT)
    errors = {p: float(spans.left_out_errors(p * size, some).sum()) for p in PENALTIES}
    best = min(errors, key=errors.__getitem__)
    explained = 1 - errors[best] / max(float(spans.size_T[some].sum()), 1e-12)
    gain = (values / (values**2 + best * size)).astype(np.float32)
    basis, left = (np.ascontiguousarray(array, np.float32) for array in (basis_FK, left_TK))
    return RidgeFit(Regression(kernel, basis, left, gain), explained, values, best * size)


def _shrunk(left_TK: np.ndarray, values: np.ndarray, penalty: float) -> np.ndarray:
    """Singular vectors, each by what a penalty leaves of it."""
    found: np.ndarray = left_TK * (values**2 / (values**2 + penalty))
    return found


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

    def left_out_errors(self, penalty: float, rows: np.ndarray | slice = ALL) -> np.ndarray:
        """Squared error of some targets, each when it alone is left out, ``(rows)``."""
        shrunk_TK = _shrunk(self.left_TK[rows], self.values, penalty)
        explained = products(shrunk_TK @ self.inner_KK, shrunk_TK) - 2 * products(shrunk_TK, self.cross_TK[rows])
        influence = products(shrunk_TK, self.left_TK[rows])
        found: np.ndarray = np.maximum(self.size_T[rows] + explained, 0) / np.maximum(1 - influence, 1e-9) ** 2
        return found


def leave_one_out(inverse_RT: np.ndarray, truth_TG: np.ndarray, rows: Sequence[int] | slice = ALL) -> np.ndarray:
    """Predictions of a ridge regression for each of some targets when it alone is left out, ``(rows, G)``.

    Parameters
    ----------
    inverse_RT
        The rows of these targets (`RidgeFit.inverse`).
    """
    own = np.arange(len(truth_TG))[rows]
    residual = (inverse_RT.astype(np.float32) @ truth_TG) / inverse_RT[np.arange(len(own)), own, None].astype(
        np.float32
    )
    found: np.ndarray = truth_TG[rows] - residual
    return found


@dataclass
class LeftOut:
    """What a regression predicts of each of its own targets when that one is left out.

    Parameters
    ----------
    rows
        Place of each target.
    fit
        The regression.
    effects
        The effects fitted to, by space.
    """

    rows: Mapping[str, int]
    fit: RidgeFit
    effects: Callable[[str], np.ndarray]
    _all: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, space: str, rows: Sequence[int]) -> np.ndarray:
        """Predictions of some targets, by place, ``(rows, G)``. All are kept once one alone is asked for: others will follow."""
        if space not in self._all and len(rows) > 1:
            return leave_one_out(self.fit.inverse(rows), self.effects(space), rows)
        if space not in self._all:
            self._all[space] = leave_one_out(self.fit.inverse(), self.effects(space))
        return self._all[space][rows]
