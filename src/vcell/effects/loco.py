"""Leave one context out: the settings of a transfer that predicts each training context best from all others.

Nothing that is reported elsewhere is used: contexts are held out among those trained on. Errors are of bulk effects (log1p of summed
counts per 50,000), against noisy measurements, which shifts them all by the same amount.

Shape legend: T targets of a held-out context, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from vcell.effects.bank import BULK_SUM, SPACES
from vcell.effects.controls import ContextControls
from vcell.effects.distances import l1_distances
from vcell.effects.evidence import Evidence
from vcell.effects.features import Applied, ridge_of
from vcell.effects.linear import cosine, discrimination, products, spread, with_norms_of
from vcell.effects.model import Vectors

FEWEST_TARGETS = 8  # of a context that is held out
MOST_TARGETS = 300  # that are looked at in each
# what a difference is worth in the scores of 2026, where 0 is the context mean and 1 a replicate: pds .50 to .95, error .97 to .30
WORTH_PDS, WORTH_ERROR = 2.2, 1.5
LARGEST_SCALE = 3.0
SMOOTH_COMPONENTS = 100  # at most; a fifth of the targets where they are fewer than 500
FEWEST_CALLED = 10  # genes of a target, for its fold changes to count
FEWEST_TELLING = 20  # targets with as many, from which a scale is read
LARGEST_OVER_USUAL = 6.0
LARGEST_RANKED, LARGEST_RANKED_OVER_USUAL = 4.0, 64.0
RANKED_TARGETS, RANKED_GENES = 100, 2000  # at most, of a context, for scores by L1 distance


@dataclass(frozen=True)
class Held:
    """A context held out: what was measured in it, and what the other contexts say of its targets.

    Parameters
    ----------
    context
        Its name.
    targets
        Targets that others have measured too, ``(T)``.
    truth
        Their effects by space, ``(T, G)``.
    called
        bool: fold changes that stand out of their noise, ``(T, G)``.
    elsewhere
        Their mean centred effects in the other contexts, by space, ``(T, G)``.
    smooth, vectors
        `elsewhere` in its main components only; as a regression on the targets' vectors gives it: by space, ``(T, G)``.
    mean
        The mean effect over the other contexts, by space, ``(G)``.
    agreement, magnitude
        Of the other contexts about each target, ``(T)``.
    reliable
        Reliability of a gene in `elsewhere`, ``(G)``.
    controls
        Control cells of the context.
    """

    context: str
    targets: list[str]
    truth: Mapping[str, np.ndarray]
    called: np.ndarray
    elsewhere: Mapping[str, np.ndarray]
    smooth: Mapping[str, np.ndarray]
    vectors: Mapping[str, np.ndarray]
    mean: Mapping[str, np.ndarray]
    agreement: np.ndarray
    magnitude: np.ndarray
    reliable: np.ndarray
    controls: ContextControls | None


@dataclass(frozen=True)
class Smoothing:
    """Effects elsewhere in fewer dimensions: what they have in common with other targets' effects, and with other targets' vectors.

    Parameters
    ----------
    place
        Row of each target.
    scores
        Places of the targets in the main components, ``(T, K)``.
    effects
        Of all targets in a space, ``(T, G)``.
    by_vectors
        A regression on vectors; None where they say nothing.
    """

    place: Mapping[str, int]
    scores: np.ndarray
    effects: Callable[[str], np.ndarray]
    by_vectors: Applied | None
    _axes: dict[str, np.ndarray] = field(default_factory=dict, repr=False)  # the components by space, ``(K, G)``

    @classmethod
    def of(cls, evidence: Evidence, context: str | None, vectors: Vectors) -> Smoothing:
        """Of the effects outside a context."""
        elsewhere = evidence.elsewhere(context)
        names = elsewhere.targets
        number = min(SMOOTH_COMPONENTS, max(1, len(names) // 5))

        def effects(space: str) -> np.ndarray:
            return evidence.fused(space, names, context)

        useful = vectors.width and len(names) >= FEWEST_TARGETS
        fit = ridge_of(vectors.of(names), effects("bulk")) if useful else None
        scores = elsewhere.vectors[:, :number].astype(np.float32)
        by_vectors = None if fit is None else Applied(fit.regression, effects)
        return cls({t: i for i, t in enumerate(names)}, scores, effects, by_vectors)

    def smooth(self, space: str, targets: Sequence[str]) -> np.ndarray:
        """Main components of the effects of some targets, ``(T, G)``; 0 for targets not measured elsewhere."""
        if space not in self._axes:
            self._axes[space] = self.scores.T @ self.effects(space)
        rows = np.array([self.place.get(t, -1) for t in targets], np.int64)
        known = rows >= 0
        found = np.zeros((len(targets), self._axes[space].shape[1]), np.float32)
        found[known] = self.scores[rows[known]] @ self._axes[space]
        return found

    def from_vectors(self, space: str, targets: Sequence[str], vectors: Vectors) -> np.ndarray:
        """Effects as the regression on vectors gives them, ``(T, G)``."""
        if self.by_vectors is None:
            return np.zeros_like(self.smooth(space, targets))
        return self.by_vectors.predict(space, vectors.of(targets))

    def both(self, space: str, targets: Sequence[str], vectors: Vectors) -> tuple[np.ndarray, np.ndarray]:
        """`smooth` and `from_vectors` where no more targets will be asked for: less is kept."""
        effects_TG = self.effects(space)
        self._axes.setdefault(space, self.scores.T @ effects_TG)
        smooth = self.smooth(space, targets)
        if self.by_vectors is None:
            return smooth, np.zeros_like(smooth)
        return smooth, self.by_vectors.regression.predict(vectors.of(targets), effects_TG)


def held_out(
    evidence: Evidence,
    controls: Mapping[str, ContextControls],
    vectors: Vectors,
    smoothing_of: Callable[[str], Smoothing],
    reliability_of: Callable[[str], np.ndarray],
) -> list[Held]:
    """Every context with enough targets that were measured elsewhere too."""
    found = []
    for context in evidence.context_names:
        here = evidence.rows_in(context)
        names = [t for t in here if len(evidence.usable(t, context))]
        if len(names) < FEWEST_TARGETS:
            continue
        names = [names[i] for i in spread(len(names), MOST_TARGETS)]
        rows = np.array([here[t] for t in names], np.int64)
        called = np.zeros((len(rows), len(evidence.genes)), bool) if evidence.called is None else evidence.called[rows]
        agreement, magnitude = agreements(evidence, names, context)
        smoothing = smoothing_of(context)
        less = {space: smoothing.both(space, names, vectors) for space in SPACES}
        found.append(
            Held(
                context, names,
                {space: np.nan_to_num(evidence.effects_of(space, rows)) for space in SPACES},
                called,
                {space: evidence.fused(space, names, context) for space in SPACES},
                {space: smooth for space, (smooth, _) in less.items()},
                {space: from_vectors for space, (_, from_vectors) in less.items()},
                {space: evidence.mean_elsewhere(space, context) for space in SPACES},
                agreement, magnitude, reliability_of(context), controls.get(context),
            )
        )  # fmt: skip
    return found


def agreements(evidence: Evidence, targets: list[str], without: str | None) -> tuple[np.ndarray, np.ndarray]:
    """How alike a target's effects are in different studies (mean cosine of pairs), and their size with the noise taken off; ``(T)`` each.

    NaN for a target with fewer than two studies, in the first.
    """
    agreement, magnitude = np.full(len(targets), np.nan), np.full(len(targets), np.nan)
    effect_NG = evidence.centred["bulk"]
    for row, target in enumerate(targets):
        rows = evidence.usable(target, without)
        if not len(rows):
            continue
        gram = (effect_NG[rows] @ effect_NG[rows].T).astype(np.float64)
        size = np.sqrt(np.maximum(np.diag(gram), 1e-12))
        magnitude[row] = np.sqrt(max(float(np.mean(np.diag(gram) - evidence.noise[rows])), 0.0))
        if len(rows) > 1:
            pairs = np.triu_indices(len(rows), 1)
            agreement[row] = (gram / np.outer(size, size))[pairs].mean()
    return agreement, magnitude


def amplitude(
    agreement: np.ndarray, magnitude: np.ndarray, alpha: float, beta: float, usual: Mapping[str, float]
) -> np.ndarray:
    """Relative amplitude of each target, ``(T)``: agreement^alpha / magnitude^beta, relative to the usual ones, at most 2."""
    a = (
        np.clip(np.where(np.isnan(agreement), usual["agreement"], agreement), 0.1 * usual["agreement"], None)
        / usual["agreement"]
    )
    m = (
        np.clip(np.where(np.isnan(magnitude), usual["magnitude"], magnitude), 0.2 * usual["magnitude"], None)
        / usual["magnitude"]
    )
    found: np.ndarray = np.minimum(a**alpha * m**-beta, 2.0)
    return found


def usual_values(agreement: np.ndarray, magnitude: np.ndarray) -> dict[str, float]:
    """Medians, by which agreement and magnitude are made relative."""

    def median(values: np.ndarray, otherwise: float) -> float:
        known = values[~np.isnan(values)]
        return max(float(np.median(known)), 0.01) if len(known) else otherwise

    return {"agreement": median(agreement, 0.1), "magnitude": median(magnitude, 1.0)}


def gathered(
    elsewhere: np.ndarray, smooth: np.ndarray, vectors: np.ndarray, settings: Mapping[str, float]
) -> np.ndarray:
    """Effects elsewhere with what they have in common with others' added: of main components, and of a regression on vectors."""
    found = elsewhere
    if settings["smooth"]:
        found = found + np.float32(settings["smooth"]) * smooth
    if settings["vectors"]:
        found = found + np.float32(settings["vectors"]) * vectors
    return found


def shaped(
    effect_TG: np.ndarray, controls: ContextControls | None, reliable_G: np.ndarray, settings: Mapping[str, float]
) -> np.ndarray:
    """Effects without what lies along the main directions in which control cells vary, and less of genes that vary or are measured badly.

    Norms are kept: only the shape changes.

    Parameters
    ----------
    reliable_G
        Of the effects, by gene (`reliability`).
    settings
        ``components`` that are taken out; ``whitening``, the power of the genes' variance between control cells by which they are
        divided; ``denoising``, the power of their reliability (signal over signal and noise) by which they are multiplied.
    """
    found = effect_TG
    if settings["denoising"]:
        found = found * reliable_G ** np.float32(settings["denoising"])
    if controls is not None and settings["components"]:
        axes = controls.components(int(settings["components"]))
        found = found - (found @ axes.T) @ axes
    if controls is not None and settings["whitening"]:
        variance_G = controls.variance_G
        usual = float(np.median(variance_G[variance_G > 0])) if (variance_G > 0).any() else 1.0
        found = found / np.maximum(variance_G / usual, 0.1).astype(np.float32) ** np.float32(settings["whitening"])
    return with_norms_of(found, effect_TG)


def reliability(evidence: Evidence, context: str | None, controls: ContextControls | None) -> np.ndarray:
    """Part of each gene's variance over targets, in the mean over studies outside a context, that is no sampling noise, ``(G)``.

    Signal is taken to be of one size as a fold change, which shows in log1p by as much as a gene is expressed.
    """
    noise_G = evidence.noise_of_mean(context).astype(np.float64)
    shows_G = np.ones(len(noise_G))
    if controls is not None:
        level_G = BULK_SUM * controls.share_G.astype(np.float64)
        shows_G = (level_G / (1 + level_G)) ** 2
    effect_TG = evidence.fused("bulk", list(evidence.rows_of), context)
    signal = float(np.maximum((effect_TG**2).mean(0) - noise_G, 0).mean()) if len(effect_TG) else 0.0
    signal_G = max(signal, 1e-9) * shows_G / max(float(shows_G.mean()), 1e-9)
    return (signal_G / np.maximum(signal_G + noise_G, 1e-12)).astype(np.float32)


def scales(predicted: list[np.ndarray], means: list[np.ndarray], truths: list[np.ndarray]) -> tuple[float, float]:
    """The scales of prediction and mean at which their sum is nearest to the truth, contexts weighing the same."""
    normal, right = np.zeros((2, 2)), np.zeros(2)
    for effect, mean, truth in zip(predicted, means, truths, strict=True):
        size = max(float((truth.astype(np.float64) ** 2).sum()), 1e-12)
        n = len(truth)
        normal += (
            np.array([[(effect**2).sum(), (effect @ mean).sum()], [(effect @ mean).sum(), n * (mean**2).sum()]]) / size
        )
        right += np.array([(effect * truth).sum(), (truth @ mean).sum()]) / size
    if normal[0, 0] <= 0:
        return 0.0, float(np.clip(right[1] / max(normal[1, 1], 1e-12), 0, 1)) if normal[1, 1] > 0 else 0.0
    if normal[1, 1] <= 1e-12 or abs(np.linalg.det(normal)) < 1e-12:
        return float(np.clip(right[0] / normal[0, 0], 0, LARGEST_SCALE)), 0.0
    own, mean_scale = np.linalg.solve(normal, right)
    if mean_scale < 0 or own < 0 or mean_scale > 1:
        mean_scale = float(np.clip(mean_scale, 0, 1))
        own = (right[0] - normal[0, 1] * mean_scale) / normal[0, 0]
    return float(np.clip(own, 0, LARGEST_SCALE)), float(mean_scale)


def scale_of_calls(
    predicted: list[np.ndarray], truths: list[np.ndarray], called: list[np.ndarray], usual: float
) -> float | None:
    """The scale at which fold changes of called genes are nearest to the truth, relative to their size (the NMAE of 2026).

    Genes are called by the truth, so that this scale is larger than that of all genes together, `usual`. None where too few targets have
    enough called genes to tell.
    """
    trials = usual * np.geomspace(1.0, LARGEST_OVER_USUAL, 15)
    errors, targets = np.zeros(len(trials)), 0
    for effect, truth, which in zip(predicted, truths, called, strict=True):
        enough = which.sum(1) >= FEWEST_CALLED
        if not enough.any():
            continue
        targets += int(enough.sum())
        size = np.where(which, np.abs(truth), 0)[enough].sum(1)
        for number, scale in enumerate(trials):
            off = np.where(which, np.abs(np.float32(scale) * effect - truth), 0)[enough].sum(1)
            errors[number] += float((off / size).mean())
    return float(trials[errors.argmin()]) if targets >= FEWEST_TELLING and usual > 0 else None


def scale_of_ranks(
    predicted: list[np.ndarray], means: list[np.ndarray], truths: list[np.ndarray], usual: float, largest_G: np.ndarray
) -> float:
    """The scale that is worth most in the scores of 2025, which tell targets apart by L1 distance.

    By L1 distance, small predictions all lie nearest to the targets of small effects, whichever they are: telling targets apart takes
    larger amplitudes than the least squared error does, which is `usual`. The mean absolute error counts as it does in the overall score:
    relative to that of the mean response, and not at all where it is worse. The smallest scale is taken that is not worse than the best by more
    than a standard error over contexts.

    Parameters
    ----------
    means
        What is added to the predictions whatever their scale, ``(G)``.
    largest_G
        Beyond which scaled effects do not go.
    """
    trials = np.minimum(usual * np.geomspace(1.0, LARGEST_RANKED_OVER_USUAL, 13), max(LARGEST_RANKED, usual))
    worth_NS = np.array([_worth_ranked(*one, trials, largest_G) for one in zip(predicted, means, truths, strict=True)])
    lost_NS = worth_NS[:, [worth_NS.mean(0).argmax()]] - worth_NS
    error_S = lost_NS.std(0, ddof=1) / np.sqrt(len(lost_NS)) if len(lost_NS) > 1 else np.zeros(len(trials))
    return float(trials[np.flatnonzero(lost_NS.mean(0) <= error_S)[0]])


def _worth_ranked(
    effect_TG: np.ndarray, mean_G: np.ndarray, truth_TG: np.ndarray, trials: np.ndarray, largest_G: np.ndarray
) -> list[float]:
    """Discrimination by L1 distance and mean absolute error in a context at some scales, each 0 at chance or with the mean alone, and 1 at best."""
    targets, genes = spread(len(truth_TG), RANKED_TARGETS), spread(truth_TG.shape[1], RANKED_GENES)
    some, measured = effect_TG[np.ix_(targets, genes)], truth_TG[np.ix_(targets, genes)]
    unchanged = float(np.abs(mean_G[genes] - measured).mean(dtype=np.float64))
    found = []
    for scale in trials:
        guess = np.clip(np.float32(scale) * some, -largest_G[genes], largest_G[genes]) + mean_G[genes]
        distance = l1_distances(guess, measured)
        own = distance.diagonal()[:, None]
        rank = (distance < own).sum(1) + ((distance == own).sum(1) - 1) / 2
        pds = float((1 - rank / max(len(targets) - 1, 1)).mean())
        error = float(np.abs(guess - measured).mean(dtype=np.float64))
        found.append(2 * pds - 1 + max(0.0, 1 - error / max(unchanged, 1e-12)))
    return found


def judged(predicted_TG: np.ndarray, truth_TG: np.ndarray) -> dict[str, float]:
    """Discrimination, squared error relative to the truth, and cosine of predicted effects."""
    size = max(float(products(truth_TG, truth_TG).sum(dtype=np.float64)), 1e-12)
    off_TG = predicted_TG - truth_TG
    return {
        "pds": discrimination(predicted_TG, truth_TG),
        "error": float(products(off_TG, off_TG).sum(dtype=np.float64)) / size,
        "cosine": float(cosine(predicted_TG, truth_TG).mean()),
    }


def worth(table: pd.DataFrame) -> pd.Series:
    """What predictions are worth by context: discrimination and error as the scores of 2026 weigh them."""
    return WORTH_PDS * table["pds"] - WORTH_ERROR * table["error"]
