"""An effect bank ready for predictors: effects centred over their study, means of contexts, and which rows know which target.

Shape legend: N groups, T targets, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse

from vcell.effects.bank import SPACES, EffectBank, mean_known

CALLED = 3.5  # standard errors by which a fold change stands out: about what a false discovery rate of 5 % asks for
BLOCK = 256  # groups worked on at a time
FEWEST_CELLS = 5  # of a group that counts as evidence, where there are groups with more


@dataclass(frozen=True)
class Evidence:
    """Effects by group, centred over the targets of their study; 0 where a gene was not measured.

    Parameters
    ----------
    genes
        Names of the columns.
    studies, contexts, targets
        Of each group, ``(N)``.
    centred
        Space to ``(N, G)``.
    study_means
        Space to study to the mean effect of its targets, ``(G)``; of genes that it did not measure, the mean over the others.
    noise
        Sampling variance of each group's bulk effect, summed over genes, ``(N)``.
    gene_noise
        The same of a gene, mean over the groups of a study, ``(G)`` by study.
    called
        bool ``(N, G)``: fold changes that stand out of their sampling noise; not kept in checkpoints, where it is None.
    known
        bool ``(N, G)``: genes that were measured; None: all.
    """

    genes: list[str]
    studies: list[str]
    contexts: list[str]
    targets: list[str]
    centred: Mapping[str, np.ndarray]
    study_means: Mapping[str, Mapping[str, np.ndarray]]
    noise: np.ndarray
    gene_noise: Mapping[str, np.ndarray]
    known: np.ndarray | None = None
    called: np.ndarray | None = None

    @classmethod
    def of(cls, bank: EffectBank, shrunk: bool = False) -> Evidence:
        """From a bank; groups of very few cells are left out where there are others.

        Parameters
        ----------
        shrunk
            Whether each effect is multiplied by the part of its size that is no sampling noise: signal / (signal + standard error²),
            the signal being the group's mean over genes.
        """
        enough = np.flatnonzero(bank.profiles.cells >= FEWEST_CELLS)
        if 0 < len(enough) < len(bank):
            bank = bank.only(enough)
        shape, studies = (len(bank), len(bank.genes)), np.asarray(bank.studies)
        apart = {space: np.empty(shape, np.float32) for space in SPACES}
        called, known = np.zeros(shape, bool), np.ones(shape, bool)
        noise, noise_of = (
            np.zeros(len(bank)),
            {study: np.zeros(len(bank.genes)) for study in dict.fromkeys(bank.studies)},
        )
        for start in range(0, len(bank), BLOCK):
            rows = slice(start, start + BLOCK)
            for space in SPACES:
                apart[space][rows] = bank.effects(space, rows)
            error = bank.standard_errors("fold", rows)
            with np.errstate(invalid="ignore"):
                called[rows] = (np.abs(apart["fold"][rows]) > CALLED * error) & (error > 0)
            known[rows] = ~np.isnan(apart[SPACES[0]][rows])
            variance = np.nan_to_num(bank.standard_errors("bulk", rows)) ** 2
            noise[rows] = variance.sum(1)
            for study, sum_G in noise_of.items():
                sum_G += variance[studies[rows] == study].sum(0)
        means = {space: _centre(effect_NG, bank.studies) for space, effect_NG in apart.items()}
        if shrunk:
            _shrink(apart, bank)
        gene_noise = {
            study: (sum_G / bank.studies.count(study)).astype(np.float32) for study, sum_G in noise_of.items()
        }
        return cls(
            list(bank.genes), list(bank.studies), list(bank.contexts), list(bank.perturbations), apart, means, noise, gene_noise,
            None if known.all() else known, called,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def rows_of(self) -> dict[str, np.ndarray]:
        """Numbers of the groups of each target."""
        rows: dict[str, list[int]] = {}
        for number, target in enumerate(self.targets):
            rows.setdefault(target, []).append(number)
        return {target: np.array(found) for target, found in rows.items()}

    @cached_property
    def context_names(self) -> list[str]:
        return list(dict.fromkeys(self.contexts))

    def targets_in(self, context: str) -> list[str]:
        """Targets measured in a context."""
        return [t for t, c in zip(self.targets, self.contexts, strict=True) if c == context]

    def without(self, context: str) -> Evidence:
        """All that was measured in other contexts."""
        keep = np.array([i for i, c in enumerate(self.contexts) if c != context], np.int64)
        return self.only(keep)

    def only(self, rows: np.ndarray) -> Evidence:
        """Some of the groups; means are those of the contexts that are left."""
        contexts, studies = [self.contexts[i] for i in rows], {self.studies[i] for i in rows}
        return Evidence(
            self.genes, [self.studies[i] for i in rows], contexts, [self.targets[i] for i in rows],
            {space: array[rows] for space, array in self.centred.items()},
            {space: {s: m for s, m in means.items() if s in studies} for space, means in self.study_means.items()},
            self.noise[rows], self.gene_noise, None if self.known is None else self.known[rows],
        )  # fmt: skip

    def usable(self, target: str, without: str | None = None) -> np.ndarray:
        """Numbers of a target's groups outside a context."""
        rows = self.rows_of.get(target, np.zeros(0, np.int64))
        return rows if without is None else np.array([r for r in rows if self.contexts[r] != without], np.int64)

    def fused(
        self, space: str, targets: Sequence[str], without: str | None = None, weights: Mapping[str, float] | None = None
    ) -> np.ndarray:
        """Mean centred effect of each target over the studies outside a context, each weighing the same; 0 where there is none, ``(T, G)``."""
        found: list[int] = []
        starts, values = [0], []
        for target in targets:
            rows = self.usable(target, without).tolist()
            found += rows
            values += [1.0 if weights is None else weights.get(self.studies[r], 1.0) for r in rows]
            starts.append(len(found))
        chosen = sparse.csr_matrix(
            (np.array(values, np.float32), np.array(found, np.int32), starts), (len(targets), len(self))
        )
        total_TG: np.ndarray = chosen @ self.centred[space]
        if self.known is None:
            return total_TG / np.maximum(np.asarray(chosen.sum(1)), 1e-12).astype(np.float32)
        number_TG = np.asarray(chosen.sum(1)) - (chosen @ self._unknown).toarray()
        return np.divide(total_TG, number_TG, out=np.zeros_like(total_TG), where=number_TG > 1e-6)

    @cached_property
    def _unknown(self) -> sparse.csr_matrix:
        """1 where a gene was not measured, ``(N, G)``: few places, for most groups lack their own gene alone."""
        assert self.known is not None
        blocks = [sparse.csr_matrix(~self.known[i : i + BLOCK], dtype=np.float32) for i in range(0, len(self), BLOCK)]
        return (
            sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix((0, len(self.genes)), dtype=np.float32)
        )

    def noise_of_mean(self, without: str | None = None) -> np.ndarray:
        """Sampling variance of a gene in the mean over the studies outside a context, ``(G)``."""
        where = dict(zip(self.studies, self.contexts, strict=True))
        noise = [self.gene_noise[study] for study, context in where.items() if context != without]
        return np.sum(noise, axis=0) / max(len(noise), 1) ** 2 if noise else np.zeros(len(self.genes), np.float32)

    @cached_property
    def largest_cell(self) -> np.ndarray:
        """Of each gene, the largest centred effect measured in the space ``cell``, ``(G)``."""
        centred = self.centred["cell"]
        return np.abs(centred).max(0) if len(centred) else np.zeros(centred.shape[1], np.float32)

    @cached_property
    def means(self) -> dict[str, dict[str, np.ndarray]]:
        """Space to context to the mean effect of its targets, ``(G)``."""
        found: dict[str, dict[str, np.ndarray]] = {space: {} for space in SPACES}
        for context in self.context_names:
            studies = [s for s, c in zip(self.studies, self.contexts, strict=True) if c == context]
            for space in SPACES:
                weighed = [
                    np.float32(studies.count(s) / len(studies)) * self.study_means[space][s]
                    for s in dict.fromkeys(studies)
                ]
                found[space][context] = np.sum(weighed, axis=0)
        return found

    def mean_effect(self, space: str, context: str | None) -> np.ndarray:
        """Mean effect of the targets of a context; of one never measured, over the targets of all contexts, ``(G)``."""
        means = self.means[space]
        if context in means:
            return means[context]
        return self.mean_elsewhere(space, context)

    def mean_elsewhere(self, space: str, context: str | None) -> np.ndarray:
        """Mean effect of the targets of all other contexts, ``(G)``."""
        means = {c: mean_G for c, mean_G in self.means[space].items() if c != context}
        if not means:
            return np.zeros(len(self.genes), np.float32)
        numbers = [self.contexts.count(c) for c in means]
        return np.average(list(means.values()), axis=0, weights=numbers).astype(np.float32)

    def effects_of(self, space: str, rows: np.ndarray) -> np.ndarray:
        """Effects of some groups, with their study's mean in them, ``(rows, G)``; NaN where a gene was not measured."""
        means = self.study_means[space]
        found = self.centred[space][rows] + np.array([means[self.studies[r]] for r in rows], np.float32).reshape(
            len(rows), -1
        )
        return found if self.known is None else np.where(self.known[rows], found, np.nan)

    def measured(self, space: str, context: str) -> tuple[list[str], np.ndarray]:
        """Targets of a context, and their effects with the mean in them, ``(T, G)``; 0 where a gene was not measured."""
        rows = np.array([i for i, c in enumerate(self.contexts) if c == context], np.int64)
        return [self.targets[r] for r in rows], np.nan_to_num(self.effects_of(space, rows))

    def plain(self) -> dict[str, Any]:
        """As it is written into a checkpoint: names and tensors."""
        return {
            "genes": self.genes, "studies": self.studies, "contexts": self.contexts, "targets": self.targets,
            "centred": {space: torch.from_numpy(np.ascontiguousarray(a)) for space, a in self.centred.items()},
            "study_means": {space: {s: torch.from_numpy(m) for s, m in means.items()} for space, means in self.study_means.items()},
            "noise": torch.from_numpy(self.noise),
            "gene_noise": {study: torch.from_numpy(noise) for study, noise in self.gene_noise.items()},
            "known": None if self.known is None else torch.from_numpy(self.known),
        }  # fmt: skip

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Evidence:
        """The inverse of `plain`."""
        return cls(
            list(plain["genes"]), list(plain["studies"]), list(plain["contexts"]), list(plain["targets"]),
            {space: tensor.numpy() for space, tensor in plain["centred"].items()},
            {space: {s: m.numpy() for s, m in means.items()} for space, means in plain["study_means"].items()},
            plain["noise"].numpy(), {study: noise.numpy() for study, noise in plain["gene_noise"].items()},
            None if plain["known"] is None else plain["known"].numpy(),
        )  # fmt: skip


def _centre(effect_NG: np.ndarray, studies: Sequence[str]) -> dict[str, np.ndarray]:
    """Takes the mean over each study's targets out, in place, and gives it; genes that were not measured become 0."""
    label = np.asarray(studies)
    blocks = {
        study: np.array_split(rows := np.flatnonzero(label == study), -(-len(rows) // BLOCK))
        for study in dict.fromkeys(studies)
    }
    means = _filled({study: _mean_over(effect_NG, rows) for study, rows in blocks.items()})
    for study, some in blocks.items():
        for rows in some:
            effect_NG[rows] = np.nan_to_num(effect_NG[rows] - means[study])
    return means


def _shrink(apart: Mapping[str, np.ndarray], bank: EffectBank) -> None:
    """Multiplies centred effects by how much of them is signal, in place."""
    for space, effect_NG in apart.items():
        for start in range(0, len(bank), BLOCK):
            rows = slice(start, start + BLOCK)
            noise = np.nan_to_num(bank.standard_errors(space, rows)) ** 2
            signal_N1 = np.maximum((effect_NG[rows] ** 2 - noise).mean(1, keepdims=True), 0)
            effect_NG[rows] *= np.divide(signal_N1, signal_N1 + noise, out=np.ones_like(noise), where=noise > 0)


def _mean_over(effect_NG: np.ndarray, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the rows that know a gene, ``(G)``; NaN where none does."""
    total, number = np.zeros(effect_NG.shape[1]), np.zeros(effect_NG.shape[1])
    for rows in blocks:
        some = effect_NG[rows]
        missing = np.isnan(some)
        total += np.where(missing, 0, some).sum(0, dtype=np.float64)
        number += len(rows) - missing.sum(0)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)


def _filled(means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Genes that a study knows nothing of get the mean over the others that do; 0 where none does."""
    over_all = np.nan_to_num(mean_known(np.array(list(means.values())), np.nan)) if means else 0.0
    return {study: np.where(np.isnan(mean_G), over_all, mean_G).astype(np.float32) for study, mean_G in means.items()}
