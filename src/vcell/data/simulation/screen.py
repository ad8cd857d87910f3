"""Perturb-seq screens with known truth, of any size, streamed.

A cell of context c, batch b and perturbation t, whose guide reached efficiency e, has gene g at

    log mean = log baseline[g] + programme[c, g] + batch[b, g] + state · cycle[g] + e · effect[c, t, g]

before scaling to the cell's library size; counts are negative binomial around that. The target's own gene is
knocked down to the fraction 1 - e. The effect (natural-log fold change at full efficiency) is the sum of four parts
whose variance shares are those measured in real screens:

    common    28 %  all perturbations of a context
    shared    29 %  the target, in every context
    specific  24 %  the target in one context
    noise     19 %  neither: no model can know it

`shared` and `specific` are functions of a latent vector of the target gene, of which the embedding table is a noisy
linear view: the table says something about targets never measured. With a `field` (`simulation.field`) the effects, studies and
guides are those of a real screen instead, and as hard to predict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vcell.data.simulation.field import PARTS, Field, FieldResponses
from vcell.errors import MOST_SEED, VcellError, check_number, nearest

SHARES = {"common": 0.28, "shared": 0.29, "specific": 0.24, "noise": 0.19}
BLOCK_COUNTS = 4_000_000
# second word of a random key, so that every quantity has a stream of its own
GENES, CONTEXT, TARGETS, LOADINGS, NOISE, TABLE, CELLS, COUNTS = range(8)


@dataclass(frozen=True)
class Screen:
    """What to simulate. `configs/screen/` holds named screens; every field can be overridden.

    Parameters
    ----------
    genes, targets
        Measured genes; genes perturbed in each context.
    contexts
        Names of the cell lines. The last is the challenge's: its test targets are withheld.
    test_targets
        Targets of the last context whose cells go to a file of their own, the hidden truth.
    cells_per_target, controls_per_context
        Cells, the first as an average over targets.
    batches, guides
        Batches per context; guides per target.
    library_size, library_sd
        Median counts per cell and the standard deviation of its logarithm.
    effect_sd
        Standard deviation of effects over genes, natural-log fold change.
    programme_sd, batch_sd
        The same of differences between contexts and between batches.
    guide_efficiency
        Mean fraction by which a guide silences its gene.
    dispersion
        Size parameter of the negative binomial; smaller is noisier.
    latent, embedding
        Dimensions of the latent gene vector and of the embedding table.
    embedding_noise
        Standard deviation of the table's noise, as a fraction of its signal's.
    seed
        Of everything.
    field
        What makes the screen as hard as a real one (`simulation.field.Field`); None: equally strong, dense effects, equally well
        measured in every context.
    """

    genes: int = 1000
    contexts: tuple[str, ...] = ("simA", "simB", "simC")
    targets: int = 150
    test_targets: int = 30
    cells_per_target: int = 50
    controls_per_context: int = 1000
    batches: int = 4
    guides: int = 3
    library_size: float = 5000.0
    library_sd: float = 0.3
    effect_sd: float = 0.25
    programme_sd: float = 0.5
    batch_sd: float = 0.1
    guide_efficiency: float = 0.8
    dispersion: float = 4.0
    latent: int = 16
    embedding: int = 64
    embedding_noise: float = 0.2
    seed: int = 0
    field: Field | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "contexts", tuple(map(str, self.contexts or ())))
        if isinstance(self.field, Mapping):
            known = [one.name for one in fields(Field)]
            if unknown := [str(name) for name in self.field if name not in known]:
                raise VcellError(f"field has no {unknown[0]}.{nearest(unknown[0], known)} It has: {', '.join(known)}")
            object.__setattr__(self, "field", Field(**self.field))
        positive = ("genes", "targets", "cells_per_target", "controls_per_context", "batches", "guides", "latent")
        for name in (*positive, "embedding"):
            check_number(name, getattr(self, name), 1)
        check_number("seed", self.seed, 0, MOST_SEED)
        for name in ("library_size", "dispersion"):
            check_number(name, getattr(self, name), 0, whole=False, above=True)
        for name in ("library_sd", "effect_sd", "programme_sd", "batch_sd", "embedding_noise"):
            check_number(name, getattr(self, name), 0, whole=False)
        if self.targets * 2 > self.genes:
            raise VcellError(f"targets={self.targets} must be at most half of genes={self.genes}")
        check_number("test_targets", self.test_targets, 0, self.targets - 1)
        unnamed = [name for name in self.contexts if Path(name).name != name]
        if unnamed:
            raise VcellError(f"contexts={list(self.contexts)}: {unnamed[0]!r} cannot be the name of a file")
        if len(set(self.contexts)) < max(1, len(self.contexts)) or not self.contexts:
            raise VcellError(f"contexts={list(self.contexts)} must be one or more different names")
        check_number("guide_efficiency", self.guide_efficiency, 0, whole=False, above=True)
        if self.guide_efficiency >= 1:
            raise VcellError(f"guide_efficiency={self.guide_efficiency} must lie between 0 and 1")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of an effect."""
        return tuple(SHARES) if self.field is None else PARTS

    @property
    def block(self) -> int:
        """Cells drawn at a time: about 4 million counts, whatever the number of genes."""
        return max(16, BLOCK_COUNTS // self.genes)


class Truth:
    """The quantities behind a screen; effects are computed when asked for."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        rng = self.rng(GENES)
        width = max(4, len(str(screen.genes)))
        self.gene_names = [f"GENE{i + 1:0{width}d}" for i in range(screen.genes)]
        self.log_baseline_G = rng.normal(0.0, 1.3, screen.genes)
        self.cycle_G = self._sparse(rng, (screen.genes,)) * 0.3
        # targets are expressed genes, so that silencing them shows
        expressed = np.flatnonzero(self.log_baseline_G >= np.median(self.log_baseline_G))
        pool = expressed if len(expressed) >= screen.targets else np.arange(screen.genes)
        self.target_genes = np.sort(self.rng(TARGETS).choice(pool, screen.targets, replace=False))
        self.targets = [self.gene_names[g] for g in self.target_genes]
        self.test_targets = sorted(
            self.rng(TARGETS, 1).choice(self.targets, screen.test_targets, replace=False).tolist()
        )
        self.latent_GL = rng.standard_normal((screen.genes, screen.latent))
        self.loadings_LG = self._loadings(len(screen.contexts))
        self.field = None if screen.field is None else FieldResponses(self, screen.field)
        self._log_mean = lru_cache(maxsize=len(screen.contexts) * screen.batches)(self._log_mean_of)
        self._effect = lru_cache(maxsize=64)(lambda c, t: np.sum(list(self.effect_parts(c, t).values()), axis=0))

    def effect_parts(self, context: int, target: int) -> dict[str, np.ndarray]:
        """The parts of ``effect[context, target]`` by name, each ``(genes)``; 0 at the target's own gene."""
        if self.field is not None:
            return self.field.effect_parts(context, target)
        screen, gene = self.screen, self.target_genes[target]
        # tanh of a standard normal has standard deviation 0.628
        features = np.tanh(self.latent_GL[gene]) / 0.628
        scale = screen.effect_sd / np.sqrt(screen.latent)
        raw = {
            "common": screen.effect_sd * self._sparse(self.rng(CONTEXT, context, 1), (screen.genes,)),
            "shared": scale * features @ self.loadings_LG,
            "specific": scale * features @ self._loadings(context),
            "noise": screen.effect_sd * self._sparse(self.rng(NOISE, context, target), (screen.genes,)),
        }
        parts = {name: np.sqrt(SHARES[name]) * part for name, part in raw.items()}
        for part in parts.values():
            part[gene] = 0.0
        return parts

    def effect(self, context: int, target: int) -> np.ndarray:
        """Natural-log fold change at full efficiency, ``(genes)``."""
        return self._effect(context, target)

    def table(self) -> dict[str, torch.Tensor]:
        """The embedding table: gene to float32 vector, for every gene."""
        screen, rng = self.screen, self.rng(TABLE)
        if self.field is not None:
            rows = torch.from_numpy(self.field.table().astype(np.float32))
            return {name: rows[i].clone() for i, name in enumerate(self.gene_names)}
        view_LE = rng.standard_normal((screen.latent, screen.embedding)) / np.sqrt(screen.latent)
        noise = screen.embedding_noise * rng.standard_normal((screen.genes, screen.embedding))
        vectors = torch.from_numpy((self.latent_GL @ view_LE + noise).astype(np.float32))
        return {name: vectors[i].clone() for i, name in enumerate(self.gene_names)}

    def guide_efficiencies(self, context: int) -> np.ndarray:
        """``(targets, guides)``: a guide silences as well in every batch of a context, but guides differ."""
        mean, spread = self.screen.guide_efficiency, 12.0
        shape = (self.screen.targets, self.screen.guides)
        rng = self.rng(CONTEXT, context, 2)
        found = rng.beta(mean * spread, (1 - mean) * spread, shape)
        if self.field is not None:
            found[rng.random(shape) < self.field.field.guide_failures] *= 0.05
        return found

    def counts(self, context: int, cells: pd.DataFrame, block: int) -> np.ndarray:
        """Negative-binomial counts, ``(cells, genes)``."""
        screen, rng = self.screen, self.rng(COUNTS, context, block)
        log_mean = np.stack([self._log_mean(context, b) for b in cells["batch_number"]])
        log_mean += rng.standard_normal((len(cells), 1)) * self.cycle_G
        if self.field is not None:
            log_mean += self._states(context, cells, rng) @ self.field.states_DG
        for row, (target, efficiency) in enumerate(zip(cells["target_number"], cells["efficiency"], strict=True)):
            if target >= 0:
                log_mean[row] += efficiency * self.effect(context, target)
                log_mean[row, self.target_genes[target]] += np.log1p(-efficiency)
        mean = np.exp(log_mean)
        if self.field is not None:
            mean *= self.field.panel(context)
        mean *= (cells["library_size"].to_numpy() / mean.sum(axis=1))[:, None]
        return rng.poisson(rng.standard_gamma(screen.dispersion, mean.shape) * (mean / screen.dispersion))

    def _states(self, context: int, cells: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
        """Where cells lie along the directions in which controls vary, ``(cells, directions)``: with their batch, group and library."""
        assert self.field is not None
        means = {b: self.field.batch_means(context, b) for b in set(cells["batch_number"])}
        groups = {t: self.field.group_means(context, t) if t >= 0 else 0.0 for t in set(cells["target_number"])}
        log_library = np.log(cells["library_size"].to_numpy())
        larger = (log_library - log_library.mean()) / max(self.screen.library_sd, 1e-9)
        own = [means[b] + groups[t] for b, t in zip(cells["batch_number"], cells["target_number"], strict=True)]
        found: np.ndarray = (
            np.stack(own) + rng.standard_normal((len(cells), len(self.field.states_DG))) + 0.3 * larger[:, None]
        )
        return found

    def _log_mean_of(self, context: int, batch: int) -> np.ndarray:
        screen = self.screen
        programme = screen.programme_sd * self._sparse(self.rng(CONTEXT, context, 0), (screen.genes,))
        return (
            self.log_baseline_G
            + programme
            + screen.batch_sd * self.rng(CONTEXT, context, 3, batch).standard_normal(screen.genes)
        )

    @lru_cache(maxsize=16)  # noqa: B019 (a Truth lives as long as its screen is written)
    def _loadings(self, stream: int) -> np.ndarray:
        return self._sparse(self.rng(LOADINGS, stream), (self.screen.latent, self.screen.genes))

    def rng(self, *key: int) -> np.random.Generator:
        """The stream of random numbers for one purpose; the same whenever asked."""
        return np.random.default_rng([self.screen.seed, *key])

    @staticmethod
    def _sparse(rng: np.random.Generator, shape: tuple[int, ...], density: float = 0.3) -> np.ndarray:
        """Normal numbers of which most are 0, with variance 1: a programme moves some genes, not all."""
        return rng.standard_normal(shape) * (rng.random(shape) < density) / np.sqrt(density)
