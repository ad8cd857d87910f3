"""The transfer prior: a target's effects in other contexts, averaged, shaped for the context and scaled.

    effect = mean_scale · mean  +  scale · amplitude[target] · shape(average over studies of its centred effects)

A study weighs as much as any other, and effects are not shrunk by their standard errors: both were tried by several teams on real
screens and lost. `shape` takes out the main directions in which control cells of the context vary; `amplitude` is larger where studies
agree. All settings (seven numbers and a scale for each space) are chosen by leaving out one training context at a time (`loco`), and a
setting departs from its default only where that is better by more than a standard error over contexts. A target measured nowhere
else is predicted from its vector; in a context with training targets of its own, a regression on both may be blended in.

Shape legend: T targets, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcell.effects.bank import BULK_SUM, SPACES
from vcell.effects.baselines import Ridge, SumOfSingles, effects_in
from vcell.effects.choose import chosen_settings, fitted_weights, scales_of_spaces, settled
from vcell.effects.evidence import Evidence
from vcell.effects.features import LeftOut
from vcell.effects.linear import spread
from vcell.effects.loco import (
    FEWEST_TARGETS,
    MOST_TARGETS,
    Smoothing,
    agreements,
    amplitude,
    gathered,
    held_out,
    judged,
    reliability,
    shaped,
    usual_values,
    worth,
)
from vcell.effects.model import EffectModel
from vcell.effects.promoters import Promoters
from vcell.effects.sign import SignEvidence, SignHead, Signs, alike_by, reweighed, signs_of
from vcell.errors import VcellError

BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
FEWEST_OWN = 8  # training targets of a context, for its own regression


class Transfer(EffectModel):
    """The transfer prior.

    Parameters
    ----------
    n_genes
        Genes of the effects.
    denoising, smooth, vectors, components, whitening, alpha, beta
        How effects are gathered and shaped (`loco.gathered`, `loco.shaped`), and powers of agreement and magnitude in a target's
        amplitude. None: by leaving out one context at a time.
    weights
        ``equal``, or ``fitted``: a weight for each study, by leaving out one context at a time, where there are four or more.
    sign_power
        Power of the probability that an effect's sign is right (`sign.SignHead`) by which fold changes are multiplied in whole counts for
        2026; norms are kept. 0: none.
    neighbours
        A GTF, or a table of gene, chromosome and tss: genes that start within 5,000 bp of a target change as they do in training.
    shrinkage
        Whether measured effects are shrunk by their standard errors first.
    """

    uses_vectors = True

    def __init__(
        self,
        n_genes: int,
        denoising: float | None = None,
        smooth: float | None = None,
        vectors: float | None = None,
        components: int | None = None,
        whitening: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        weights: str = "equal",
        sign_power: float = 0.0,
        neighbours: str | None = None,
        shrinkage: bool = False,
    ) -> None:
        super().__init__(n_genes)
        self.shrunk = shrinkage
        self.positions = None if neighbours is None else Path(str(neighbours))
        if weights not in ("equal", "fitted"):
            raise VcellError(f"model.weights={weights} must be equal or fitted")
        self.weights, self.sign_power = weights, sign_power
        given = {
            "denoising": denoising, "smooth": smooth, "vectors": vectors, "components": components, "whitening": whitening, "alpha": alpha,
            "beta": beta,
        }  # fmt: skip
        self._without: dict[
            str, LeftOut
        ] = {}  # by the regression; outlives `forget`, for a continued run restores the rest from its checkpoint
        self.given = {key: value for key, value in given.items() if value is not None}
        self.forget()

    def forget(self) -> None:
        super().forget()
        self._reliable: dict[str, np.ndarray] = {}
        self._smoothings: dict[str | None, Smoothing] = {}
        self._signs_seen: SignEvidence | None = None
        # one at most, in lists: a module's attribute would be saved with it
        self._ridge: list[Ridge] = []
        self._sums: list[SumOfSingles] = []
        self._promoters: Promoters | None = None

    def fit(self, evidence: Evidence) -> list[str]:
        super().fit(evidence)
        usual = usual_values(*agreements(evidence, list(evidence.rows_of), None))
        held = held_out(evidence, self.controls, self.vectors, self._smoothing, self._reliability)
        settings, table = chosen_settings(held, usual, self.given)
        # of few targets, the mean is most of what each does
        few = max(len(evidence.rows_in(c)) for c in evidence.context_names) < FEWEST_TARGETS
        found = [settled(h, settings, usual) for h in held]
        scale, mean_scale = scales_of_spaces(held, found, evidence.largest_cell, float(few))
        self.fitted = {
            "settings": settings, "usual": usual, "scale": scale, "mean_scale": mean_scale, "loco": table.to_dict("index"),
            "weights": fitted_weights(evidence, held) if self.weights == "fitted" else None, "signs": self._fitted_signs(evidence),
        }  # fmt: skip
        regression = Ridge(self.n_genes)
        regression.vectors = self.vectors
        regression.fit(evidence)
        self.fitted["regression"] = regression.fitted
        self._ridge, self._without = [regression], regression.left_out
        self.fitted["own"] = self._own_contexts(evidence)
        lines = self.lines(table)
        if self.positions is not None:
            promoters, line = Promoters.of(self.positions, evidence)
            self.fitted["promoters"], lines = promoters.plain(), [*lines, line]
        return lines

    def lines(self, table: pd.DataFrame) -> list[str]:
        """The settings and what leaving contexts out has shown, for the log."""
        f = self.fitted
        settings = ", ".join(f"{key} {value:g}" for key, value in f["settings"].items())
        by_space = ", ".join(f"{space} {f['scale'][space]:.3f} (mean {f['mean_scale'][space]:.2f})" for space in SPACES)
        by_space += f"; of called genes {f['scale']['calls']:.3f}, for ranks {f['scale']['ranks']:.3f}"
        lines = [f"settings     {settings}", f"scales       {by_space}"]
        if len(table):
            columns = ["targets", "pds", "error", "cosine", "pds copied", "error copied"]
            head = f"{'left out':12s}" + "".join(f"{c:>14s}" for c in columns)
            rows = [f"{name!s:12s}" + "".join(f"{row[c]:14.3f}" if c != "targets" else f"{int(row[c]):14d}" for c in columns)
                    for name, row in table.iterrows()]  # fmt: skip
            lines += [head, *rows]
        else:
            lines.append(
                "left out     no context could be left out: there are too few with the same targets, and settings are the defaults"
            )
        for context, own in f["own"].items():
            lines.append(
                f"{context:12s} {own['targets']} targets of its own: regression weighs {own['blend']:.2f}, their mean {own['mean_scale']:.2f}"
            )
        return lines

    @property
    def regression(self) -> Ridge:
        """The regression on vectors and effects elsewhere."""
        if not self._ridge:
            found = Ridge(self.n_genes)
            found.evidence, found.vectors, found.fitted = self.evidence, self.vectors, self.fitted["regression"]
            found.left_out = self._without
            self._ridge.append(found)
        return self._ridge[0]

    @property
    def sums(self) -> SumOfSingles:
        """What perturbations of several genes do by what each does alone."""
        if not self._sums:
            self._sums.append(SumOfSingles(self.n_genes))
            self._sums[0].evidence = self.evidence
        return self._sums[0]

    @property
    def promoters(self) -> Promoters:
        """Genes that start next to targets, of a fit that was given positions."""
        if self._promoters is None:
            self._promoters = Promoters.of_plain(self.fitted["promoters"])
        return self._promoters

    def transferred(self, space: str, context: str, targets: Sequence[str], scaled: bool = True) -> np.ndarray:
        """Effects beyond the mean from other contexts, ``(T, G)``; 0 for targets that none has measured."""
        f, known = self.fitted, self.known
        settings = f["settings"]
        effect = known.fused(space, targets, context, f["weights"])
        if settings["smooth"] or settings["vectors"]:
            smoothing = self._smoothing(context)
            measured = np.array([len(known.usable(t, context)) > 0 for t in targets], bool)[:, None]
            effect = gathered(
                effect,
                smoothing.smooth(space, targets) if settings["smooth"] else effect,
                np.where(measured, smoothing.from_vectors(space, targets, self.vectors), 0)
                if settings["vectors"]
                else effect,
                settings,
            )
        effect = shaped(effect, self.controls.get(context), self._reliability(context), settings)
        size = amplitude(*agreements(known, list(targets), context), settings["alpha"], settings["beta"], f["usual"])
        found: np.ndarray = effect * (size * (self._scale(space) if scaled else 1.0)).astype(np.float32)[:, None]
        return found

    def _scale(self, space: str) -> float:
        """That of effects in a space, at the amplitude asked for."""
        scale = self.fitted["scale"]
        return float(
            scale.get("ranks", scale["cell"]) if space == "cell" and self.amplitude == "ranks" else scale[space]
        )

    def ratios(self, context: str, targets: Sequence[str], calls: bool = False) -> np.ndarray:
        if not calls or self.fitted["scale"]["fold"] <= 0:
            return super().ratios(context, targets)
        larger = np.float32(self.fitted["scale"]["calls"] / self.fitted["scale"]["fold"])
        effect = larger * self.effect("fold", context, targets)
        signs = self.fitted.get("signs")
        if signs is not None and signs["power"]:
            head, place = SignHead(signs["weights"]), {t: i for i, t in enumerate(signs["targets"])}
            evidence = self._sign_evidence(signs)
            for row, target in enumerate(targets):
                if target in place:
                    up_G = head.of_target(evidence, place[target])
                    effect[row] = reweighed(effect[row : row + 1], up_G[None], signs["power"])[0]
        return self.controls[context].ratios_of(effect, "fold")

    def _fitted_signs(self, evidence: Evidence) -> dict[str, Any] | None:
        """A sign head, fitted to the called genes of the training contexts; None where there are too few of them, or none is wanted."""
        if not self.sign_power or evidence.called is None:
            return None
        signs, place = signs_of(evidence.called, evidence.centred["fold"], evidence.contexts, evidence.targets)
        try:
            head = SignHead.fit(signs, alike_by(self.vectors.of(list(place))))
        except VcellError:
            return None
        return {
            "power": self.sign_power, "weights": head.weights, "targets": list(place), "context": signs.context, "target": signs.target,
            "gene": signs.gene, "up": signs.up,
        }  # fmt: skip

    def _sign_evidence(self, fitted: Mapping[str, Any]) -> SignEvidence:
        """What the training contexts say of signs; made once."""
        if self._signs_seen is None:
            names = fitted["targets"]
            signs = Signs(fitted["context"], fitted["target"], fitted["gene"], fitted["up"], len(names), self.n_genes)
            self._signs_seen = SignEvidence(signs, alike_by(self.vectors.of(names)))
        return self._signs_seen

    def _reliability(self, context: str) -> np.ndarray:
        """Of each gene in the other contexts' mean; computed once."""
        if context not in self._reliable:
            self._reliable[context] = reliability(self.known, context, self.controls.get(context))
        return self._reliable[context]

    def _smoothing(self, context: str) -> Smoothing:
        """Of the effects in other contexts; computed once, for all contexts never measured together."""
        without = self.known.left_out(context)
        if without not in self._smoothings:
            self._smoothings[without] = Smoothing.of(self.known, without, self.vectors)
        return self._smoothings[without]

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        return self._blended(space, context, targets, self.regression.beyond_mean)

    def training_effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        return self._blended(space, context, targets, self.regression.beyond_mean_without)

    def _blended(
        self,
        space: str,
        context: str,
        targets: Sequence[str],
        regressed: Callable[[str, str, Sequence[str]], np.ndarray],
    ) -> np.ndarray:
        """Effects from other contexts and of a regression, each in its part, and the mean, ``(T, G)``."""
        f, known = self.fitted, self.known
        measured_T1 = np.array([len(known.usable(t, context)) > 0 for t in targets], bool)[:, None]
        own = f["own"].get(context)
        if own is not None:
            weight_T1 = np.where(measured_T1, own["blend"], 1.0).astype(np.float32)
            scale = self._scale(space) / f["scale"][space] if f["scale"][space] > 0 else 1.0
            mean_scale = own["mean_scale"] if space != "cell" else 1.0
        else:
            weight_T1 = np.where(measured_T1, 0.0, 1.0).astype(np.float32)
            scale, mean_scale = self._scale(space), f["mean_scale"][space]
        total: np.ndarray = np.zeros((len(targets), self.n_genes), np.float32)
        some = np.flatnonzero(weight_T1[:, 0] < 1)  # of the others, nothing has to be fitted
        if len(some):
            total[some] = (1 - weight_T1[some]) * self.transferred(space, context, [targets[i] for i in some.tolist()])
        if weight_T1.any():
            total = total + weight_T1 * np.float32(scale) * regressed(space, context, targets)
        if space == "cell" and self.amplitude == "ranks":  # no change is larger than any that was measured
            total = np.clip(total, -known.largest_cell, known.largest_cell)
        total = total + np.float32(mean_scale) * known.mean_effect(space, context)
        # effects of several genes are nearly additive (Ahlmann-Eltze et al. 2025)
        for row in np.flatnonzero(~measured_T1[:, 0]).tolist():
            if (summed_G := self.sums.summed(space, context, targets[row])) is not None:
                total[row] = summed_G
        if f.get("promoters") and f["promoters"]["change"]:
            promoters = self.promoters
            promoters.add(total, targets, self._shown(space, context, promoters.change))
        return total

    def _shown(self, space: str, context: str, change: float) -> np.ndarray:
        """How a log2 fold change of every gene shows in a space, by how much it is expressed in a context, ``(G)``."""
        controls = self.controls.get(context)
        if space == "fold" or controls is None:
            return np.full(self.n_genes, change if space == "fold" else 0.0, np.float32)
        level_G = BULK_SUM * controls.share_G.astype(np.float64)
        bulk_G = np.log1p(level_G * 2.0**change) - np.log1p(level_G)
        if space == "cell":
            log1p_G = np.nan_to_num(controls.profile.log1p[0])
            bulk_G = bulk_G * np.divide(log1p_G, np.log1p(level_G), out=np.zeros_like(level_G), where=level_G > 0)
        return bulk_G.astype(np.float32)

    def _own_contexts(self, evidence: Evidence) -> dict[str, Any]:
        """Of each context with training targets: how much its own regression weighs beside what other contexts say, and its mean."""
        found: dict[str, Any] = {}
        for context in evidence.context_names:
            everyone = list(evidence.rows_in(context))
            if len(everyone) < FEWEST_OWN:
                continue
            targets = [everyone[i] for i in spread(len(everyone), MOST_TARGETS)]
            truth = effects_in(evidence, context, targets, "bulk")
            transferred = self.transferred("bulk", context, targets)
            fitted = context in self.regression.fitted["contexts"]
            regressed = self.regression.beyond_mean_without("bulk", context, targets)
            mean = evidence.means["bulk"][context]
            best = (-np.inf, 0.0, 0.0)
            for blend in BLENDS if fitted else (0.0,):
                effect = blend * regressed + (1 - blend) * transferred
                for mean_scale in (0.0, 0.5, 1.0):
                    value = float(worth(pd.DataFrame([judged(effect + mean_scale * mean, truth + mean)])).iloc[0])
                    if value > best[0] + 1e-9:
                        best = (value, blend, mean_scale)
            found[context] = {"targets": len(everyone), "blend": best[1], "mean_scale": best[2]}
        return found
