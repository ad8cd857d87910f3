"""The effect bank: what each (context, perturbation) of a cell store measured, summed over its cells, beside its batches' controls.

Effects are differences between the perturbed cells of a group and control cells of the same context, weighted by the batches in which
the perturbed cells lie. They come in three spaces:

    fold   log2 ratio of mean counts per million, each plus 10 (differential expression; 10 keeps rare genes quiet)
    bulk   difference of log1p of summed counts per 50,000 (the pseudobulk of the 2026 scores)
    cell   difference of the mean over cells of log1p of counts per target sum (the pseudobulk of the 2025 scores)

Shape legend: N groups, B batches with controls, G genes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from vcell.atomic import written_folder
from vcell.data.files.normalize import scaled_log1p
from vcell.data.gather import Gather
from vcell.data.sampler import ControlPool
from vcell.data.splits import Group
from vcell.data.store.store import Cells
from vcell.errors import VcellError
from vcell.process.progress import progress_bar
from vcell.system import in_threads

VERSION = 1
SPACES = ("fold", "bulk", "cell")
PSEUDOCOUNT = 10.0  # counts per million
BULK_SUM = 50_000.0
MILLION = 1e6
BLOCK_CELLS = 512  # that a thread sums up at a time
GIVEN_CELLS = 1_000_000  # that effects from elsewhere count as: none of them is too few


@dataclass(frozen=True)
class Profiles:
    """What some groups of cells measured; NaN for genes that their source did not measure.

    Parameters
    ----------
    cells
        How many they are, ``(N)``.
    share
        Summed counts as a share of all, ``(N, G)``.
    cpm, cpm_variance
        Mean and variance over cells of counts per million, ``(N, G)``.
    log1p
        Mean over cells of log1p of counts per target sum, ``(N, G)``.
    """

    cells: np.ndarray
    share: np.ndarray
    cpm: np.ndarray
    cpm_variance: np.ndarray
    log1p: np.ndarray

    @classmethod
    def empty(cls, groups: int, genes: int) -> Self:
        return cls(np.zeros(groups, np.int64), *(np.full((groups, genes), np.nan, np.float32) for _ in range(4)))

    @classmethod
    def measure(cls, gather: Gather, groups: Sequence[np.ndarray], what: str | None = None) -> Self:
        """Of the `groups` of cells of a store, with a progress bar where it is said what they are."""
        found = cls.empty(len(groups), gather.store.n_genes)

        def one(number: int) -> int:
            found.cells[number] = len(groups[number])
            rows = _sums(gather, groups[number])
            for array, row in zip(found.arrays, rows, strict=True):
                array[number] = row
            return number

        with progress_bar(len(groups), what or "", "groups", disable=what is None) as progress:
            for _ in in_threads(one, range(len(groups))):
                progress.update()
        return found

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.share, self.cpm, self.cpm_variance, self.log1p

    def rows(self, chosen: np.ndarray | Sequence[int] | slice) -> Profiles:
        """Those of some groups."""
        return Profiles(self.cells[chosen], *(array[chosen] for array in self.arrays))

    def value(self, space: str) -> np.ndarray:
        """What is compared between perturbed and control cells in a space, ``(N, G)``."""
        if space == "fold":
            return np.log2(self.cpm + np.float32(PSEUDOCOUNT))
        if space == "bulk":
            return np.log1p(self.share * np.float32(BULK_SUM))
        return self.log1p

    def variance(self, space: str) -> np.ndarray:
        """Sampling variance of `value`, ``(N, G)``: that of the mean over cells, through its slope there."""
        of_mean = self.cpm_variance / np.maximum(self.cells, 1)[:, None]
        if space == "fold":
            return of_mean / ((self.cpm + PSEUDOCOUNT) * np.log(2)) ** 2
        scale = BULK_SUM / MILLION
        return of_mean * (scale / (1 + scale * self.cpm)) ** 2


class Controls(Profiles):
    """Profiles that many groups are held against: what is compared is worked out once."""

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """`value` by space."""
        return {space: self.value(space) for space in SPACES}

    @cached_property
    def variances(self) -> dict[str, np.ndarray]:
        """`variance` by space."""
        return {space: self.variance(space) for space in SPACES}


def _sums(gather: Gather, cells: np.ndarray) -> tuple[np.ndarray, ...]:
    """Share, mean and variance of counts per million, and mean log1p of some cells, each ``(G)``."""
    store, n_genes = gather.store, gather.store.n_genes
    total_G, first_G, second_G, log1p_G = (np.zeros(n_genes) for _ in range(4))
    library = 0.0
    for start in range(0, len(cells), BLOCK_CELLS):
        rows = store.rows(cells[start : start + BLOCK_CELLS])
        size = np.repeat(rows.library_size.astype(np.float64), np.diff(rows.indptr))
        values = rows.values.astype(np.float64)
        library += float(rows.library_size.sum(dtype=np.float64))
        cpm = values * (MILLION / size)
        for sums, weights in (
            (total_G, values), (first_G, cpm), (second_G, cpm**2),
            (log1p_G, scaled_log1p(values, gather.target_sum / size)),
        ):  # fmt: skip
            sums += np.bincount(rows.indices, weights, n_genes)
    n_G = gather.cells_knowing(cells).astype(np.float64)
    known_G = n_G > 0
    n_G = np.where(known_G, n_G, np.nan)
    mean_G = first_G / n_G
    # where a gene was measured in some of the cells only, these stand for all
    share_G = total_G / max(library, 1e-9) * (len(cells) / n_G)
    variance_G = np.maximum(second_G / n_G - mean_G**2, 0) * n_G / np.maximum(n_G - 1, 1)
    return share_G, mean_G, variance_G, log1p_G / n_G


@dataclass(frozen=True)
class EffectBank:
    """Profiles of perturbed groups and of the controls of each batch.

    Parameters
    ----------
    genes
        Names, in the order of the columns.
    target_sum
        Counts per cell of the mean log1p.
    studies, contexts, perturbations
        Of each group, ``(N)``.
    profiles
        Of the groups.
    controls
        Of the control cells of each batch, then of each context as a whole, ``(B)``.
    weights
        Which controls each group is held against, ``(N, B)``: shares of its cells by batch.
    given
        Effects that came as numbers, not as cells: space to ``(N, G)``, NaN for groups with cells.
    store
        Fingerprint of the cell store that was measured.
    """

    genes: list[str]
    target_sum: float
    studies: list[str]
    contexts: list[str]
    perturbations: list[str]
    profiles: Profiles
    controls: Controls
    weights: np.ndarray
    given: Mapping[str, np.ndarray] = field(default_factory=dict)
    store: str = ""

    @classmethod
    def measure(cls, gather: Gather, groups: Iterable[Group]) -> EffectBank:
        """Streams the cells of `groups` and their controls out of a store."""
        bank = StreamedBank.of(gather, groups)
        return bank.only(range(len(bank)), "effects")

    @classmethod
    def kept(cls, folder: Path, gather: Gather, groups: Sequence[Group]) -> ChosenGroups:
        """That of some groups out of the bank in a folder, which is measured over all groups of the store where it is not there yet.

        Raises
        ------
        VcellError
            If the bank that is there was measured on other cells, in other genes, or on another scale.
        """
        store = gather.store
        if not folder.exists():
            cls.measure(gather, store.groups).save(folder)
        bank = cls.open(folder)
        for what, there, here in (
            ("on other cells", bank.store, store.fingerprint),
            ("in other genes", bank.genes, list(store.genes)),
            ("per another target sum", bank.target_sum, float(gather.target_sum)),
        ):
            if there != here:
                raise VcellError(
                    f"the effect bank {folder} was measured {what}: give a folder that is not there yet (bank=FOLDER), or remove it"
                )
        wanted = set(groups)
        rows = [i for i, g in enumerate(zip(bank.contexts, bank.perturbations, strict=True)) if g in wanted]
        return ChosenGroups(bank, np.array(rows, np.int64))

    def __len__(self) -> int:
        return len(self.perturbations)

    @property
    def cells(self) -> np.ndarray:
        """How many each group has, ``(N)``."""
        return self.profiles.cells

    @cached_property
    def own_gene(self) -> np.ndarray:
        """The column of each group's own gene, -1 where it is not measured, ``(N)``."""
        place = {gene: i for i, gene in enumerate(self.genes)}
        return np.array([place.get(name, -1) for name in self.perturbations], np.int64)

    def effects(self, space: str) -> np.ndarray:
        """Effects in a space, float32 ``(N, G)``; NaN where a gene was not measured, and at a target's own gene."""
        effect, known = self._raw_effects(space), np.flatnonzero(self.own_gene >= 0)
        effect[known, self.own_gene[known]] = np.nan
        return effect

    def own_effects(self, space: str = "fold") -> np.ndarray:
        """The effect of each target on its own gene, ``(N)``; NaN where it is not measured."""
        found = np.full(len(self), np.nan)
        rows = np.flatnonzero(self.own_gene >= 0)
        found[rows] = self._raw_effects(space)[rows, self.own_gene[rows]]
        return found

    def _raw_effects(self, space: str) -> np.ndarray:
        if space not in SPACES:
            raise VcellError(f"there is no space {space!r} of effects; there are {', '.join(SPACES)}")
        effect = self.profiles.value(space) - self._matched(self.controls.values[space], self.weights)
        if space in self.given:
            given = self.given[space]
            known = ~np.isnan(given)
            effect[known] = given[known]
        return effect

    def standard_errors(self, space: str) -> np.ndarray:
        """Of `effects`, from the spread between cells, ``(N, G)``; in the space ``cell`` those of ``bulk``."""
        return np.sqrt(self.profiles.variance(space) + self._matched(self.controls.variances[space], self.weights**2))

    def _matched(self, values_BG: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Values of the batches' controls, weighted as the cells of each group lie in them, ``(N, G)``."""
        known_BG = ~np.isnan(values_BG)
        total = weights @ np.where(known_BG, values_BG, 0).astype(np.float32)
        if known_BG.all():
            return total
        measured = weights @ known_BG.astype(np.float32)
        scale = np.divide(weights.sum(1)[:, None], measured, out=np.full_like(measured, np.nan), where=measured > 0)
        return total * scale

    def only(self, chosen: np.ndarray | Sequence[int]) -> EffectBank:
        """A bank of some of the groups, by number."""
        chosen = np.asarray(chosen, np.int64)
        return replace(
            self,
            studies=[self.studies[i] for i in chosen],
            contexts=[self.contexts[i] for i in chosen],
            perturbations=[self.perturbations[i] for i in chosen],
            profiles=self.profiles.rows(chosen),
            weights=self.weights[chosen],
            given={space: array[chosen] for space, array in self.given.items()},
        )

    def elsewhere(self, study: str, targets: Sequence[str], genes: Sequence[str], fold_TG: np.ndarray) -> EffectBank:
        """Effects from elsewhere in the genes of this bank, as a study and a context of their own.

        Parameters
        ----------
        study
            Its name; that of a context which is there already makes it another study of that context.
        targets, genes
            Of the rows and columns of `fold_TG`; genes that the bank lacks are left out.
        fold_TG
            log2 fold changes, NaN where not known. Other spaces are taken from them, at the expression of the bank's control cells.
        """
        place = {gene: i for i, gene in enumerate(self.genes)}
        columns = [(place[gene], i) for i, gene in enumerate(genes) if gene in place]
        if len(columns) < 2:
            raise VcellError(
                f"the effects of {study} share {len(columns)} genes with the cells: none of them can be used"
            )
        rows = len(targets)
        fold = np.full((rows, len(self.genes)), np.nan, np.float32)
        fold[:, [to for to, _ in columns]] = fold_TG[:, [i for _, i in columns]]
        cpm_G, log1p_G = (np.nan_to_num(mean_known(array)) for array in (self.controls.cpm, self.controls.log1p))
        level_G = cpm_G * (BULK_SUM / MILLION)
        bulk = np.log1p(level_G * np.exp2(fold)) - np.log1p(level_G)
        slope_G = np.divide(log1p_G, np.log1p(level_G), out=np.zeros_like(level_G), where=level_G > 0)
        profiles = Profiles.empty(rows, len(self.genes))
        profiles.cells[:] = GIVEN_CELLS
        return replace(
            self, studies=[study] * rows, contexts=[study] * rows, perturbations=list(targets), profiles=profiles,
            weights=np.zeros((rows, self.weights.shape[1]), np.float32),
            given={"fold": fold, "bulk": bulk.astype(np.float32), "cell": (bulk * slope_G).astype(np.float32)},
        )  # fmt: skip

    def save(self, folder: Path) -> None:
        """Writes the bank to the new folder `folder`, whole or not at all."""
        about = {
            "version": VERSION, "genes": self.genes, "target_sum": self.target_sum, "studies": self.studies,
            "contexts": self.contexts, "perturbations": self.perturbations, "given": sorted(self.given), "store": self.store,
        }  # fmt: skip
        with written_folder(folder, "the effect bank") as scratch:
            for name, profiles in (("groups", self.profiles), ("controls", self.controls)):
                for key in ("cells", "share", "cpm", "cpm_variance", "log1p"):
                    np.save(scratch / f"{name}.{key}.npy", getattr(profiles, key))
            np.save(scratch / "weights.npy", self.weights)
            for space, array in self.given.items():
                np.save(scratch / f"given.{space}.npy", array)
            (scratch / "bank.json").write_text(json.dumps(about))

    @classmethod
    def open(cls, folder: Path) -> EffectBank:
        """Reads a bank; its arrays stay on the disk until they are used.

        Raises
        ------
        VcellError
            If there is none, it is damaged, or of another version.
        """
        about = _about(folder)

        def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
            try:
                found: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise VcellError(f"the effect bank {folder} is damaged: {name}.npy cannot be read ({error})") from error
            if found.shape != shape:
                raise VcellError(
                    f"the effect bank {folder} is damaged: {name}.npy has the shape {found.shape}, not {shape}"
                )
            return found

        def profiles(kind: type[Profiles], name: str, rows: int) -> Any:
            shape = (rows, len(about["genes"]))
            keys = ("share", "cpm", "cpm_variance", "log1p")
            return kind(array(f"{name}.cells", (rows,)), *(array(f"{name}.{key}", shape) for key in keys))

        rows = len(about["perturbations"])
        batches = (
            int(np.load(folder / "controls.cells.npy").shape[0]) if (folder / "controls.cells.npy").is_file() else 0
        )
        return cls(
            about["genes"], about["target_sum"], about["studies"], about["contexts"], about["perturbations"],
            profiles(Profiles, "groups", rows), profiles(Controls, "controls", batches), array("weights", (rows, batches)),
            {space: array(f"given.{space}", (rows, len(about["genes"]))) for space in about["given"]}, str(about.get("store", "")),
        )  # fmt: skip


@dataclass(frozen=True)
class ChosenGroups:
    """Some groups of a bank, by number, which stay on the disk until they are asked for."""

    bank: EffectBank
    rows: np.ndarray

    @property
    def cells(self) -> np.ndarray:
        """How many each group has, ``(N)``."""
        return self.bank.cells[self.rows]

    def only(self, chosen: np.ndarray | Sequence[int]) -> EffectBank:
        """A bank of some of them."""
        return self.bank.only(self.rows[np.asarray(chosen, np.int64)])


@dataclass(frozen=True)
class StreamedBank:
    """An effect bank whose groups are measured when they are asked for, some at a time: whole, it is four arrays of groups by genes.

    Parameters
    ----------
    gather
        The store, and its scale.
    groups
        Study, context, perturbation and cells of each.
    pool
        The control cells.
    controls
        Of the control cells of each batch, then of each context as a whole, ``(B)``.
    """

    gather: Gather
    groups: list[tuple[str, str, str, np.ndarray]]
    pool: ControlPool
    controls: Controls

    @classmethod
    def of(cls, gather: Gather, groups: Iterable[Group]) -> StreamedBank:
        """Of some groups of a store; only control cells are measured now."""
        found = _by_study(gather.store, groups)
        pool = ControlPool(gather.store, {context for _, context, _, _ in found})
        cells = [*pool.of_batch.values(), *pool.of_context.values()]
        return cls(gather, found, pool, Controls.measure(gather, cells, "controls by batch"))

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def cells(self) -> np.ndarray:
        """How many each group has, ``(N)``."""
        return np.array([len(cells) for _, _, _, cells in self.groups], np.int64)

    def only(self, chosen: np.ndarray | Sequence[int], what: str | None = None) -> EffectBank:
        """A bank of some of the groups, by number, which are measured now, with a progress bar where it is said what they are."""
        studies, contexts, perturbations, cells = (
            zip(*(self.groups[i] for i in chosen), strict=True) if len(chosen) else ((),) * 4
        )
        profiles = Profiles.measure(self.gather, cells, what)
        store = self.gather.store
        return EffectBank(
            list(store.genes), float(self.gather.target_sum), list(studies), list(contexts), list(perturbations), profiles, self.controls,
            self._weights(contexts, cells), store=store.fingerprint,
        )  # fmt: skip

    def _weights(self, contexts: Sequence[str], groups: Sequence[np.ndarray]) -> np.ndarray:
        """Shares of each group's cells by batch, ``(N, B)``."""
        names = [*self.pool.of_batch, *self.pool.of_context]
        places = {name: i for i, name in enumerate(names)}
        weights = np.zeros((len(groups), len(names)), np.float32)
        for number, (context, cells) in enumerate(zip(contexts, groups, strict=True)):
            found, counts = np.unique(self.pool.batch_of_cell[cells], return_counts=True)
            for batch, count in zip(found.tolist(), counts.tolist(), strict=True):
                weights[number, places.get(batch, places[context])] += count / counts.sum()
        return weights


AnyBank = EffectBank | ChosenGroups | StreamedBank


def _by_study(store: Cells, groups: Iterable[Group]) -> list[tuple[str, str, str, np.ndarray]]:
    """Study, context, perturbation and cells of each group; one that lies in several source files is several."""
    names = store.obs["source"].cat.categories.astype(str)
    found = []
    for context, perturbation in groups:
        if (context, perturbation) not in store.groups or perturbation == store.control:
            continue
        cells = store.groups[context, perturbation]
        sources = store.source_of_cell[cells]
        for source in np.unique(sources).tolist():
            found.append((f"{names[source]}/{context}", context, perturbation, cells[sources == source]))
    return found


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / "bank.json").read_text())
        lists = [about[key] for key in ("genes", "studies", "contexts", "perturbations")]
        sound = (
            all(isinstance(item, str) for one in lists for item in one) and len({len(one) for one in lists[1:]}) == 1
        )
    except FileNotFoundError:
        raise VcellError(f"no effect bank in {folder}: it has no bank.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VcellError(f"the effect bank {folder} is damaged: bank.json cannot be read ({error})") from error
    if about.get("version") != VERSION:
        raise VcellError(
            f"the effect bank {folder} is of version {about.get('version')}, and this vcell reads version {VERSION}: make it again"
        )
    if not sound or not set(about["given"]) <= set(SPACES):
        raise VcellError(f"the effect bank {folder} is damaged: bank.json does not describe its groups")
    return about


def mean_known(values_NG: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    """Mean over the rows that are not NaN, ``(G)``; `otherwise` for a gene that none knows."""
    known = ~np.isnan(values_NG)
    number = known.sum(0)
    total = np.where(known, values_NG, 0).sum(0, dtype=np.float64)
    return np.where(number > 0, total / np.maximum(number, 1), otherwise).astype(np.float32)
