"""Responses that behave like those of real screens: heavy-tailed, sparse, shared by few lines.

The effect of target t in context c (natural-log fold change at full efficiency) is

    strength[t] · size[c, t] · (√r[t] · shared[t] + √(1 - r[t]) · specific[c, t])  +  common[c] · (0.3 + 0.7 · relative strength)

where `shared` and `specific` are each a few of sixty sparse programmes and a few genes of the target's own, strengths are log-normal and
some targets do nothing, and r, the part that contexts share, is larger for strong targets. Contexts of one lineage share part of
`specific`. Figures and their sources: cross-line correlation .15 to .25, effect norms p90/p10 of about 9, a common response that differs
between lines (published pseudobulk effects of K562, CD4, HCT116, HEK293T and KOLF against H1).

Shape legend: K programmes, G genes, D directions in which control cells vary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vcell.errors import check_number

if TYPE_CHECKING:
    from vcell.data.simulation.screen import Truth

PROGRAMMES, USAGE, LINEAGE, STRENGTH, SIZE, COMMON, STATES, PANEL, STUDY, TABLE_VIEW = range(100, 110)
PARTS = ("common", "shared", "specific", "neighbours")
IN_PROGRAMME, PROGRAMMES_USED, OWN_GENES, IN_TEMPLATE = (
    0.1,
    0.08,
    0.02,
    0.3,
)  # fractions of genes, of programmes, of genes, of genes
BY_PROGRAMMES, BY_OWN = 0.8, 0.6  # of a response's norm: energies .64 and .36
DIRECTIONS = 3  # cell cycle, stress, ribosome


@dataclass(frozen=True)
class Field:
    """What makes a screen as hard as a real one. `configs/screen/field.yaml` holds values that reach published figures.

    Parameters
    ----------
    programmes
        Sparse gene programmes that all responses draw on.
    strength_sd, null_targets, null_strength
        Standard deviation of a target's log strength; fraction of targets that do next to nothing, and what is left of their strength.
    shared_weak, shared_strong
        Energy of a response that all contexts share, of weak and of strong targets.
    lineages, lineage_share
        Contexts fall into this many lineages in turn (0: each its own), which share this part of the rest.
    common
        Norm of the response common to all targets of a context, relative to an average target's.
    source_cells, source_depth
        Cells per target and library size of all contexts but the last, as fractions of the last one's.
    study_spread
        Standard deviation of the logarithm of both between studies.
    panel
        Fraction of genes that a context other than the last measures.
    guide_failures
        Fraction of guides that hardly silence their gene.
    confounding
        How unevenly a target's cells lie over batches: 0 evenly, 1 nearly all in one.
    states
        Standard deviation over genes of the directions in which control cells vary (cell cycle, stress, ribosome), which differ
        in level between batches and with library size.
    drift
        Standard deviation of a group's mean along those directions: what makes two measurements of one target differ.
    depletion
        Strong targets lose cells: their number is divided by 1 + depletion × relative strength.
    neighbours
        Fraction of targets whose guides also silence, by half, the next gene of the list.
    """

    programmes: int = 60
    strength_sd: float = 0.5
    null_targets: float = 0.15
    null_strength: float = 0.15
    shared_weak: float = 0.15
    shared_strong: float = 0.25
    lineages: int = 0
    lineage_share: float = 0.5
    common: float = 0.16
    source_cells: float = 0.45
    source_depth: float = 0.32
    study_spread: float = 0.2
    panel: float = 0.97
    guide_failures: float = 0.15
    confounding: float = 0.3
    states: float = 0.1
    drift: float = 0.05
    depletion: float = 0.5
    neighbours: float = 0.05

    def __post_init__(self) -> None:
        for name in ("null_targets", "null_strength", "shared_weak", "shared_strong", "lineage_share", "panel", "guide_failures", "confounding",
                     "neighbours", "source_cells", "source_depth"):  # fmt: skip
            above = name in ("source_cells", "source_depth", "panel")
            check_number(f"field.{name}", getattr(self, name), 0, 1, whole=False, above=above)
        check_number("field.programmes", self.programmes, 1)


class FieldResponses:
    """Effects of a screen with a `Field`."""

    def __init__(self, truth: Truth, field: Field) -> None:
        self.truth, self.field, self.screen = truth, field, truth.screen
        genes, programmes = self.screen.genes, field.programmes
        rng = truth.rng(PROGRAMMES)
        inside = rng.random((programmes, genes)) < IN_PROGRAMME
        self.programmes_KG = unit(rng.standard_t(4, (programmes, genes)) * inside)
        self.size = self.screen.effect_sd * np.sqrt(genes)  # the norm of an average target's effect
        self._lineage = lru_cache(maxsize=4096)(lambda lineage, gene: self._response(LINEAGE, lineage, gene))

    @cached_property
    def strength_T(self) -> np.ndarray:
        """Relative norms of the targets' effects, mean square 1."""
        rng, targets = self.truth.rng(STRENGTH), self.screen.targets
        strength = np.exp(self.field.strength_sd * rng.standard_normal(targets))
        strength[rng.random(targets) < self.field.null_targets] *= self.field.null_strength
        return strength / np.sqrt((strength**2).mean())

    @cached_property
    def relative_T(self) -> np.ndarray:
        """Strengths relative to a strong target's, from 0 to 1."""
        return np.clip(self.strength_T / np.quantile(self.strength_T, 0.9), 0, 1)

    @cached_property
    def states_DG(self) -> np.ndarray:
        """Directions in which control cells vary."""
        rng = self.truth.rng(STATES)
        inside = rng.random((DIRECTIONS, self.screen.genes)) < 0.2
        return self.field.states * rng.standard_normal((DIRECTIONS, self.screen.genes)) * inside / np.sqrt(0.2)

    def effect_parts(self, context: int, target: int) -> dict[str, np.ndarray]:
        """The parts of an effect by name, each ``(genes)``; 0 at the target's own gene."""
        field, gene = self.field, self.truth.target_genes[target]
        relative = self.relative_T[target]
        shared = field.shared_weak + (field.shared_strong - field.shared_weak) * relative
        size = self.size * self.strength_T[target] * self.truth.rng(SIZE, context, target).uniform(0.6, 1.4)
        specific = self._response(USAGE, context + 1, gene)
        if field.lineages:
            near = self._lineage(context % field.lineages, gene)
            specific = np.sqrt(field.lineage_share) * near + np.sqrt(1 - field.lineage_share) * specific
        neighbours = np.zeros(self.screen.genes)
        if gene + 1 < self.screen.genes and self.truth.rng(SIZE, 0, target, 1).random() < field.neighbours:
            neighbours[gene + 1] = np.log(0.5)
        parts = {
            "common": self.size * field.common * (0.3 + 0.7 * relative) * self._template(context),
            "shared": size * np.sqrt(shared) * self._response(USAGE, 0, gene),
            "specific": size * np.sqrt(1 - shared) * specific,
            "neighbours": neighbours,
        }
        for part in parts.values():
            part[gene] = 0.0
        return parts

    def usage(self, stream: int, number: int, gene: int) -> np.ndarray:
        """How a target's response uses the programmes, ``(programmes)``."""
        rng = self.truth.rng(stream, number, gene)
        return rng.standard_t(3, self.field.programmes) * (rng.random(self.field.programmes) < PROGRAMMES_USED)

    def _response(self, stream: int, number: int, gene: int) -> np.ndarray:
        rng = self.truth.rng(stream, number, gene, 1)
        own = rng.standard_t(3, self.screen.genes) * (rng.random(self.screen.genes) < OWN_GENES)
        return BY_PROGRAMMES * unit(self.usage(stream, number, gene) @ self.programmes_KG) + BY_OWN * unit(own)

    @lru_cache(maxsize=64)  # noqa: B019 (as long as the screen is written)
    def _template(self, context: int) -> np.ndarray:
        def one(number: int) -> np.ndarray:
            rng = self.truth.rng(COMMON, number)
            return unit(rng.standard_t(4, self.screen.genes) * (rng.random(self.screen.genes) < IN_TEMPLATE))

        return 0.3 * one(0) + 0.95 * one(context + 1)

    def table(self) -> np.ndarray:
        """``(genes, embedding)``: a noisy view of how each gene, silenced, uses the programmes."""
        screen, rng = self.screen, self.truth.rng(TABLE_VIEW)
        usage_GK = unit(np.array([self.usage(USAGE, 0, gene) for gene in range(screen.genes)]))
        view_KE = rng.standard_normal((self.field.programmes, screen.embedding)) / np.sqrt(screen.embedding)
        signal_GE = usage_GK @ view_KE
        noise = screen.embedding_noise * signal_GE.std() * rng.standard_normal(signal_GE.shape)
        return (signal_GE + noise) * np.sqrt(screen.embedding)

    def is_last(self, context: int) -> bool:
        return context == len(self.screen.contexts) - 1

    def study(self, context: int) -> tuple[float, float]:
        """Factors of cells per target and of library size: 1 in the last context, smaller in the others."""
        if self.is_last(context):
            return 1.0, 1.0
        cells, depth = np.exp(self.field.study_spread * self.truth.rng(STUDY, context).standard_normal(2))
        return min(1.0, self.field.source_cells * cells), min(1.0, self.field.source_depth * depth)

    def panel(self, context: int) -> np.ndarray:
        """bool ``(genes)``: those that a context measures; always its targets."""
        if self.is_last(context) or self.field.panel == 1:
            return np.ones(self.screen.genes, bool)
        measured = self.truth.rng(PANEL, context).random(self.screen.genes) < self.field.panel
        measured[self.truth.target_genes] = True
        return measured

    def group_means(self, context: int, target: int) -> np.ndarray:
        """Where a group's cells lie on average along the directions of control cells, ``(D)``."""
        return self.field.drift * self.truth.rng(STATES, context + 1, target).standard_normal(DIRECTIONS)

    def batch_means(self, context: int, batch: int) -> np.ndarray:
        """The same of a batch."""
        return 0.5 * self.truth.rng(STATES, 0, context, batch).standard_normal(DIRECTIONS)

    def batches_of(self, context: int, target: int) -> np.ndarray:
        """Shares of a target's cells by batch."""
        batches = self.screen.batches
        favourite = self.truth.rng(STATES, 0, context, target, 1).integers(batches)
        return (1 - self.field.confounding) / batches + self.field.confounding * (np.arange(batches) == favourite)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of norm 1; rows of zeros stay."""
    norm = np.sqrt((x**2).sum(-1, keepdims=True))
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
