"""An effect bank ready for predictors: effects centred over their study, means of contexts, and which rows know which target.

Shape legend: N groups, T targets, G genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse

from vcell.effects.bank import SPACES, AnyBank, StreamedBank, mean_known
from vcell.effects.linear import main_directions
from vcell.process.progress import progress_bar
from vcell.system import in_threads

CALLED = 3.5  # standard errors by which a fold change stands out: about what a false discovery rate of 5 % asks for
BLOCK = 256  # groups worked on at a time
MEASURED = 64  # groups measured at a time by a thread
FEWEST_DIRECTIONS, MOST_DIRECTIONS = 32, 100  # of effects elsewhere; a fifth of the targets between
FEWEST_CELLS = 5  # of a group that counts as evidence, where there are groups with more


@dataclass(frozen=True)
class Elsewhere:
    """Targets measured outside a context, in the main directions of their mean bulk effects there.

    Parameters
    ----------
    targets
        Their names, ``(T)``.
    vectors, values
        The directions in the space of targets, ``(T, K)``, and their squared sizes ``(K)``, largest first.
    """

    targets: list[str]
    vectors: np.ndarray
    values: np.ndarray

    def scores(self, number: int) -> np.ndarray:
        """Places of the targets in the first directions, ``(T, at most number)``; signs fixed by the largest entry."""
        vectors, values = self.vectors[:, :number], self.values[:number]
        signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
        found: np.ndarray = vectors * signs * np.sqrt(values)
        return found


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
    _elsewhere: dict[str | None, Elsewhere] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, *banks: AnyBank, shrunk: bool = False) -> Evidence:
        """From one bank or several with the same genes, some groups at a time; those of very few cells are left out where there are others.

        Parameters
        ----------
        shrunk
            Whether each effect is multiplied by the part of its size that is no sampling noise: signal / (signal + standard error²),
            the signal being the group's mean over genes.
        """
        blocks = _blocks(banks)
        groups, genes = sum(len(chosen) for _, _, chosen in blocks), banks[0].only([]).genes
        found = _Arrays.empty(groups, len(genes))
        names: list[tuple[str, str, str]] = []
        noise_of: dict[str, np.ndarray] = {}
        with progress_bar(
            groups, "effects", "groups", disable=not any(isinstance(b, StreamedBank) for b in banks)
        ) as bar:
            for block, noise_G_of in in_threads(found.take, blocks):
                names += block
                for study, noise_G in noise_G_of.items():
                    noise_of[study] = noise_of.get(study, 0.0) + noise_G
                bar.update(len(block))
        studies = [study for study, _, _ in names]
        means = {space: _centre(effect_NG, studies) for space, effect_NG in found.effects.items()}
        if shrunk:
            for _ in in_threads(found.shrink, blocks):
                pass
        gene_noise = {study: (sum_G / studies.count(study)).astype(np.float32) for study, sum_G in noise_of.items()}
        return cls(
            genes, studies, [context for _, context, _ in names], [target for _, _, target in names], found.effects, means,
            found.noise, gene_noise, None if found.known.all() else found.known, found.called,
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

    @cached_property
    def _places(self) -> dict[str, dict[str, int]]:
        places: dict[str, dict[str, int]] = {}
        for number, (context, target) in enumerate(zip(self.contexts, self.targets, strict=True)):
            places.setdefault(context, {}).setdefault(target, number)
        return places

    def rows_in(self, context: str) -> dict[str, int]:
        """Number of the group of each target of a context; of several studies there, that of the first."""
        return self._places.get(context, {})

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

    def left_out(self, context: str | None) -> str | None:
        """What has to be left out to know nothing of a context: itself, or nothing, None, of one never measured."""
        return context if context in self._places else None

    def elsewhere(self, context: str | None) -> Elsewhere:
        """What was measured outside a context, in its main directions; worked out once, for all contexts never measured together."""
        context = self.left_out(context)
        if context not in self._elsewhere:
            names = [t for t in self.rows_of if len(self.usable(t, context))]
            number = min(MOST_DIRECTIONS, max(FEWEST_DIRECTIONS, len(names) // 5))
            self._elsewhere[context] = Elsewhere(names, *main_directions(self.fused("bulk", names, context), number))
        return self._elsewhere[context]

    def noise_of_mean(self, without: str | None = None) -> np.ndarray:
        """Sampling variance of a gene in the mean over the studies outside a context, ``(G)``."""
        where = dict(zip(self.studies, self.contexts, strict=True))
        noise = [self.gene_noise[study] for study, context in where.items() if context != without]
        return np.sum(noise, axis=0) / max(len(noise), 1) ** 2 if noise else np.zeros(len(self.genes), np.float32)

    @cached_property
    def largest_cell(self) -> np.ndarray:
        """Of each gene, the largest centred effect measured in the space ``cell``, ``(G)``."""
        centred = self.centred["cell"]
        return np.maximum(centred.max(0), -centred.min(0)) if len(centred) else np.zeros(centred.shape[1], np.float32)

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


Block = tuple[AnyBank, slice, np.ndarray]  # a bank, rows among all groups that are used, and their numbers in the bank


def _blocks(banks: Sequence[AnyBank]) -> list[Block]:
    """Some groups at a time of all that have cells enough, or of all where none has."""
    fewest = FEWEST_CELLS if any((bank.cells >= FEWEST_CELLS).any() for bank in banks) else 0
    found: list[Block] = []
    first = 0
    for bank in banks:
        chosen = np.flatnonzero(bank.cells >= fewest)
        for start in range(0, len(chosen), MEASURED):
            some = chosen[start : start + MEASURED]
            found.append((bank, slice(first, first + len(some)), some))
            first += len(some)
    return found


@dataclass(frozen=True)
class _Arrays:
    """What is kept of the groups of a bank: as in `Evidence`, effects not centred."""

    effects: dict[str, np.ndarray]
    called: np.ndarray
    known: np.ndarray
    noise: np.ndarray

    @classmethod
    def empty(cls, groups: int, genes: int) -> _Arrays:
        effects = {space: np.empty((groups, genes), np.float32) for space in SPACES}
        return cls(effects, np.empty((groups, genes), bool), np.empty((groups, genes), bool), np.zeros(groups))

    def take(self, block: Block) -> tuple[list[tuple[str, str, str]], dict[str, np.ndarray]]:
        """Study, context and target of each group, and the sampling variance of a gene summed over the groups of each study, ``(G)``."""
        bank, rows, chosen = block
        some = bank.only(chosen)
        for space in SPACES:
            self.effects[space][rows] = some.effects(space)
        fold, error = self.effects["fold"][rows], some.standard_errors("fold")
        with np.errstate(invalid="ignore"):
            self.called[rows] = (np.abs(fold) > CALLED * error) & (error > 0)
        self.known[rows] = ~np.isnan(fold)
        variance = np.nan_to_num(some.standard_errors("bulk")) ** 2
        self.noise[rows] = variance.sum(1)
        studies = np.array(some.studies)
        noise_of = {study: variance[studies == study].sum(0, dtype=np.float64) for study in dict.fromkeys(some.studies)}
        return list(zip(some.studies, some.contexts, some.perturbations, strict=True)), noise_of

    def shrink(self, block: Block) -> None:
        """Multiplies centred effects by how much of them is signal, in place."""
        bank, rows, chosen = block
        some = bank.only(chosen)
        for space, effect_NG in self.effects.items():
            noise = np.nan_to_num(some.standard_errors(space)) ** 2
            signal_N1 = np.maximum((effect_NG[rows] ** 2 - noise).mean(1, keepdims=True), 0)
            effect_NG[rows] *= np.divide(signal_N1, signal_N1 + noise, out=np.ones_like(noise), where=noise > 0)


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
