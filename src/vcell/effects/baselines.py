"""Baselines: what any other predictor has to beat. Each is fitted to the run's training effects, and makes a full submission.

Shape legend: T targets, G genes, F features of a target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from vcell.data.files.genes import gene_names
from vcell.effects.bank import SPACES, mean_known
from vcell.effects.evidence import BLOCK, Evidence
from vcell.effects.features import Applied, Features, LeftOut, ridge_of
from vcell.effects.linear import lengths, likeness, products
from vcell.effects.model import EffectModel

FEWEST_TARGETS = 3  # of a context, for a fit of its own
NEIGHBOURS = (1, 3, 5, 10, 20, 50)


class CopiedControls(EffectModel):
    """No effect: the control cells themselves."""

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        return np.zeros((len(targets), self.n_genes), np.float32)


class ContextMean(EffectModel):
    """The mean effect of the context's training targets, for every target; of a new context, that over all others."""

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        return np.repeat(self.known.mean_effect(space, context)[None], len(targets), 0)


class PerturbationMean(EffectModel):
    """The mean of a target's effects elsewhere; the context mean where it was measured nowhere else."""

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        known = self.known
        found = np.repeat(known.mean_effect(space, context)[None], len(targets), 0)
        for row, target in enumerate(targets):
            rows = known.usable(target, context)
            if len(rows):
                mean_G = mean_known(known.effects_of(space, rows), np.nan)
                found[row] = np.where(np.isnan(mean_G), found[row], mean_G)
        return found


class Additive(EffectModel):
    """The context mean, and on top what the target does elsewhere beyond the means there."""

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        return self.known.fused(space, targets, context) + self.known.mean_effect(space, context)


class SumOfSingles(PerturbationMean):
    """Of a target of several genes the sum of its genes' own effects, each as measured alone in the context, or else the mean of it elsewhere; a gene
    measured nowhere alone adds nothing. Other targets get their mean elsewhere."""

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        found = super().effect(space, context, targets)
        for row, target in enumerate(targets):
            if (total_G := self.summed(space, context, target)) is not None:
                found[row] = total_G
        return found

    def summed(self, space: str, context: str, target: str) -> np.ndarray | None:
        """The sum for a target of several genes, ``(G)``; None for others, and where none of its genes was measured alone."""
        genes = gene_names().parts(target, self._known_genes)
        rows = [one for gene in genes if len(one := self._alone(gene, context))] if len(genes) > 1 else []
        if not rows:
            return None
        found: np.ndarray = np.sum([mean_known(self.known.effects_of(space, one), 0.0) for one in rows], axis=0)
        return found

    @cached_property
    def _known_genes(self) -> frozenset[str]:
        return frozenset(self.known.rows_of)

    def _alone(self, gene: str, context: str) -> np.ndarray:
        """Rows of a gene's effects: of the context itself where it was measured there, of all others where not."""
        everywhere, elsewhere = self.known.usable(gene, None), self.known.usable(gene, context)
        here = np.setdiff1d(everywhere, elsewhere)
        return here if len(here) else elsewhere


class WrongTarget(Additive):
    """`Additive` with the targets exchanged: a control, from which nothing specific to a target can be learnt."""

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        names = sorted(self.known.rows_of)
        place = {name: i for i, name in enumerate(names)}
        other = [names[(place[t] + 1 + len(names) // 2) % len(names)] if t in place else t for t in targets]
        return super().effect(space, context, other)


class Featured(EffectModel):
    """Base of predictors that go by what is known of a target: its vector in the table, and its effects in other contexts."""

    uses_vectors = True

    def __init__(self, n_genes: int) -> None:
        super().__init__(n_genes)
        self._features: Features | None = None

    def fit(self, evidence: Evidence) -> list[str]:
        """Fits each training context by itself, and then new contexts, "", to the means over all."""
        super().fit(evidence)
        self._features = Features.of(evidence)
        self.fitted = {"features": self._features.plain(), "contexts": {}}
        lines = []
        for context in [*evidence.context_names, ""]:
            targets = list(evidence.rows_in(context) if context else evidence.rows_of)
            matrix = self.features.matrix(context, targets, self.vectors)
            if len(targets) >= FEWEST_TARGETS and matrix.any():
                truth = effects_in(evidence, context, targets, "bulk")
                self.fitted["contexts"][context], line = self.fit_context(context, targets, matrix, truth)
                lines.append(line)
        return lines

    def fit_context(
        self, context: str, targets: list[str], matrix_TF: np.ndarray, truth_TG: np.ndarray
    ) -> tuple[dict[str, Any], str]:
        """What is learnt of the targets of a context from their bulk effects, and a line for the log."""
        raise NotImplementedError

    def forget(self) -> None:
        super().forget()
        self._features = None

    @property
    def features(self) -> Features:
        """Of every target that was measured in some context."""
        if self._features is None:
            self._features = Features.of_plain(self.fitted["features"])
        return self._features

    def fitted_for(self, context: str) -> str | None:
        """The context whose fit serves a context: its own, or that of new ones; None where there is neither."""
        return next((one for one in (context, "") if one in self.fitted["contexts"]), None)


class Ridge(Featured):
    """Ridge regression from what is known of a target to its effect beyond the context's mean.

    The penalty is chosen by leaving out one target at a time; for a new context, effects are the means over contexts, and only vectors
    are used.
    """

    def __init__(self, n_genes: int) -> None:
        super().__init__(n_genes)
        self.left_out: dict[str, LeftOut] = {}  # only after `fit`
        self._applied: dict[str, Applied] = {}

    def forget(self) -> None:
        super().forget()
        self._applied = {}

    def fit_context(
        self, context: str, targets: list[str], matrix_TF: np.ndarray, truth_TG: np.ndarray
    ) -> tuple[dict[str, Any], str]:
        found = ridge_of(matrix_TF, truth_TG)
        assert found is not None  # for some feature says something
        rows = {target: row for row, target in enumerate(targets)}
        self.left_out[context] = LeftOut(rows, found, partial(effects_in, self.known, context, targets))
        name = context or "new contexts"
        by = "linear" if found.regression.kernel is None else "by a kernel"
        return found.regression.plain() | {"targets": targets}, (
            f"ridge        {name}: {len(targets):,} targets, explains {found.explained:.3f} of left-out ones, {by}"
        )

    def beyond_mean(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        """Predicted effects beyond the context's mean, ``(T, G)``; 0 where nothing is known of a target."""
        known = self.fitted_for(context)
        if known is None:
            return np.zeros((len(targets), self.n_genes), np.float32)
        if known not in self._applied:
            fitted = self.fitted["contexts"][known]
            effects = partial(effects_in, self.known, known, fitted.get("targets", []))
            self._applied[known] = Applied.of_plain(fitted, effects)
        return self._applied[known].predict(space, self.features.matrix(known, targets, self.vectors))

    def beyond_mean_without(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        """The same where each target that the regression was fitted to is left out of it, ``(T, G)``; only after `fit`."""
        left_out = self.left_out.get(self.fitted_for(context) or "")
        rows = np.array([-1 if left_out is None else left_out.rows.get(t, -1) for t in targets], np.int64)
        found, own = np.zeros((len(targets), self.n_genes), np.float32), rows >= 0
        if not own.all():
            found[~own] = self.beyond_mean(space, context, [targets[i] for i in np.flatnonzero(~own).tolist()])
        if left_out is not None and own.any():
            found[own] = left_out.of(space, rows[own].tolist())
        return found

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        return self.beyond_mean(space, context, targets) + self.known.mean_effect(space, context)


class Nearest(Featured):
    """The mean effect of the targets most like a target; how many, and their scale, by leaving out one at a time."""

    def __init__(self, n_genes: int) -> None:
        super().__init__(n_genes)
        self._fitted_to: dict[str, _Seen] = {}

    def forget(self) -> None:
        super().forget()
        self._fitted_to = {}

    def fit_context(
        self, context: str, targets: list[str], matrix_TF: np.ndarray, truth_TG: np.ndarray
    ) -> tuple[dict[str, Any], str]:
        alike = likeness(matrix_TF, matrix_TF)
        np.fill_diagonal(alike, -2.0)
        numbers = [n for n in NEIGHBOURS if n < len(targets)]
        order = _most_alike(alike, numbers[-1])
        errors, scales = {}, {}
        for number in numbers:
            predicted = _mean_of(order[:, :number], truth_TG)
            scales[number] = float(
                np.clip(products(predicted, truth_TG).sum() / max(products(predicted, predicted).sum(), 1e-12), 0, 1)
            )
            predicted *= np.float32(scales[number])
            predicted -= truth_TG
            errors[number] = float(products(predicted, predicted).sum(dtype=np.float64))
        best = min(errors, key=errors.__getitem__)
        name = context or "new contexts"
        return {"number": best, "scale": scales[best], "targets": targets}, (
            f"nearest      {name}: {best} of {len(targets):,} targets, times {scales[best]:.2f}"
        )

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        mean = self.known.mean_effect(space, context)
        known = self.fitted_for(context)
        if known is None:
            return np.repeat(mean[None], len(targets), 0)
        here, fitted = self.fitted["contexts"][known], self._seen(known)
        alike = likeness(self.features.matrix(known, targets, self.vectors), fitted.features_TF, fitted.lengths)
        for row, target in enumerate(targets):  # a target is no neighbour of itself
            if target in fitted.place:
                alike[row, fitted.place[target]] = -2.0
        chosen, neighbours = np.unique(_most_alike(alike, here["number"]), return_inverse=True)
        effects = effects_in(self.known, known, [here["targets"][i] for i in chosen], space)
        found: np.ndarray = here["scale"] * _mean_of(neighbours.reshape(len(targets), -1), effects) + mean
        return found

    def _seen(self, context: str) -> _Seen:
        """The targets that a context's fit may take neighbours from; looked up once."""
        if context not in self._fitted_to:
            targets = self.fitted["contexts"][context]["targets"]
            features_TF = self.features.matrix(context, targets, self.vectors)
            place = {target: number for number, target in enumerate(targets)}
            self._fitted_to[context] = _Seen(place, features_TF, lengths(features_TF))
        return self._fitted_to[context]


class _Seen(NamedTuple):
    """Targets: the place of each, their features ``(T, F)``, and the lengths of these ``(T)``."""

    place: Mapping[str, int]
    features_TF: np.ndarray
    lengths: np.ndarray


class Covariance(EffectModel):
    """The response read off the control cells: proportional to how each gene varies with the target's own gene among them.

    Fluctuation and response: near a steady state, what a small push does to a gene is proportional to its covariance with what is
    pushed. No perturbed cell is needed but for the amplitude, one number for each space, fitted to the training effects.
    """

    def fit(self, evidence: Evidence) -> list[str]:
        super().fit(evidence)
        self.fitted = {"genes": evidence.genes, "amplitude": {}}
        above, below = dict.fromkeys(SPACES, 0.0), dict.fromkeys(SPACES, 0.0)
        for context in evidence.context_names:
            row_TG = self._rows(context, evidence.targets_in(context))
            squares = float((row_TG**2).sum())
            for space in SPACES:
                truth_TG = evidence.measured(space, context)[1]
                size = max(float((truth_TG**2).sum()), 1e-12)
                above[space] += float((row_TG * truth_TG).sum()) / size
                below[space] += squares / size
        self.fitted["amplitude"] = {s: above[s] / below[s] if below[s] > 0 else 0.0 for s in SPACES}
        self.evidence = evidence.only(np.zeros(0, np.int64))  # of which nothing else is used
        return ["covariance   amplitude " + ", ".join(f"{s} {a:.3f}" for s, a in self.fitted["amplitude"].items())]

    def _rows(self, context: str, targets: Sequence[str]) -> np.ndarray:
        place = {gene: i for i, gene in enumerate(self.fitted["genes"])}
        controls = self.controls.get(context)
        genes = np.array([place.get(t, -1) for t in targets], np.int64)
        if controls is None or not len(controls.cells_CG):
            return np.zeros((len(targets), self.n_genes), np.float32)
        variance_G = controls.variance_G
        own = np.where(genes >= 0, variance_G[genes], 0) + variance_G.mean()
        # where no control cell differs from another, nothing can be read off them
        found = -controls.covariance(genes) / np.where(own > 0, own, np.inf)[:, None]
        known = np.flatnonzero(genes >= 0)
        found[known, genes[known]] = 0
        return found

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        return np.float32(self.fitted["amplitude"][space]) * self._rows(context, targets)


def effects_in(evidence: Evidence, context: str, targets: Sequence[str], space: str) -> np.ndarray:
    """Centred effects of targets in a space, in a context where they were measured, or for "" their means over all, ``(T, G)``."""
    if not context:
        return evidence.fused(space, targets)
    rows = evidence.rows_in(context)
    found: np.ndarray = evidence.centred[space][np.array([rows[t] for t in targets], np.int64)]
    return found


def _most_alike(likeness_TU: np.ndarray, number: int) -> np.ndarray:
    """The most alike of each row, the first of equals first, ``(T, number)``."""
    found = np.empty((len(likeness_TU), number), np.int64)
    for start in range(0, len(found), BLOCK):
        some = likeness_TU[start : start + BLOCK]
        least = np.partition(some, -number, axis=1)[:, -number, None]
        above, equal = some > least, some == least
        chosen = above | (equal & (equal.cumsum(1) <= number - above.sum(1, keepdims=True)))
        columns = np.nonzero(chosen)[1].reshape(len(some), number)
        order = np.argsort(-np.take_along_axis(some, columns, 1), axis=1, kind="stable")
        found[start : start + BLOCK] = np.take_along_axis(columns, order, 1)
    return found


def _mean_of(rows_TN: np.ndarray, effects_UG: np.ndarray) -> np.ndarray:
    """Of some rows of effects for each target, ``(T, G)``."""
    targets, number = rows_TN.shape
    weights = np.full(rows_TN.size, 1 / number, np.float32)
    starts = np.arange(0, rows_TN.size + 1, number)
    chosen = sparse.csr_matrix((weights, rows_TN.ravel(), starts), (targets, len(effects_UG)))
    found: np.ndarray = chosen @ effects_UG
    return found
