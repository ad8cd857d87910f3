"""Which (context, perturbation) trains, validates or tests.

Two ways to hold out, which may be combined: perturbations (few-shot: in some contexts or in all) and whole
contexts (zero-shot); by name, as a random fraction, or fold by fold. Controls of a held-out context belong to no split: they
are the input of its predictions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vcell.atomic import write_text
from vcell.data.files.labels import listed_names, resolve
from vcell.data.files.paths import read_toml
from vcell.errors import MOST_SEED, VcellError, check_choice, check_number, nearest, shortlist

Group = tuple[str, str]  # (context, perturbation)
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class HoldOut:
    """What one of the splits takes out of training.

    Parameters
    ----------
    perturbations
        Names, or a fraction of all perturbations to draw at random.
    within
        The contexts in which those perturbations are held out; all contexts when null.
    contexts
        Contexts held out whole; names, or a fraction of them.
    """

    perturbations: Sequence[str] | float = ()
    within: Sequence[str] | None = None
    contexts: Sequence[str] | float = ()


@dataclass(frozen=True)
class Folds:
    """k-fold cross-validation: the test split is fold `fold` of `number`, drawn with the split's seed.

    Parameters
    ----------
    number, fold
        How many folds (null: none), and which one tests, from 0.
    by
        ``perturbation`` (each is in one fold, in all contexts or in those `within`), ``context``, or ``both``: then the test
        split is the fold's perturbations in the fold's contexts, and what shares only one of the two is left out.
    """

    number: int | None = None
    fold: int = 0
    by: str = "perturbation"
    within: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_choice("data.split.folds.by", self.by, ("perturbation", "context", "both"))
        if self.number is not None:
            check_number("data.split.folds.number", self.number, 2)
            check_number("data.split.folds.fold", self.fold, 0, self.number - 1)

    def test(self, groups: Sequence[Group], seed: int) -> tuple[set[Group], set[Group]]:
        """Groups that test, and groups in no split."""
        contexts = _fold([c for c, _ in groups], self, seed, "context") if self.by != "perturbation" else None
        within = None if self.within is None else set(listed_names(self.within))
        if within is not None:
            check_known(within, {c for c, _ in groups}, "data.split.folds.within", "context")
        inside = [g for g in groups if within is None or g[0] in within]
        perturbations = _fold([p for _, p in inside], self, seed, "perturbation") if self.by != "context" else None
        by_context = {g for g in inside if contexts is not None and g[0] in contexts}
        by_perturbation = {g for g in inside if perturbations is not None and g[1] in perturbations}
        if self.by == "both":
            return by_context & by_perturbation, by_context ^ by_perturbation
        return by_context | by_perturbation, set()


@dataclass(frozen=True)
class Split:
    """Held-out groups. Test takes its groups first, then validation; the rest trains."""

    val: HoldOut = field(default_factory=HoldOut)
    test: HoldOut = field(default_factory=HoldOut)
    folds: Folds = field(default_factory=Folds)
    seed: int = 0
    leaks: str = "refuse"  # see leaks.py

    def assign(self, groups: Iterable[Group], control: str) -> dict[Group, str]:
        """The split of every perturbed group.

        Raises
        ------
        VcellError
            If a named perturbation or context is in no group, or nothing is left to train on.
        """
        check_number("data.split.seed", self.seed, 0, MOST_SEED)
        perturbed = sorted(g for g in groups if g[1] != control)
        assigned = dict.fromkeys(perturbed, "train")
        rng = np.random.default_rng(self.seed)
        if self.folds.number is not None:
            tests, neither = self.folds.test(perturbed, self.seed)
            assigned = {g: "test" if g in tests else s for g, s in assigned.items() if g not in neither}
            perturbed = [g for g in perturbed if g in assigned]
        for name, hold_out in (("test", self.test), ("val", self.val)):
            for group in self._held_out(name, hold_out, perturbed, assigned, rng):
                if assigned[group] == "train":
                    assigned[group] = name
        if perturbed and "train" not in assigned.values():
            raise VcellError("the split leaves nothing to train on: every (context, perturbation) is held out")
        return assigned

    def _held_out(
        self, name: str, hold_out: HoldOut, groups: list[Group], assigned: dict[Group, str], rng: np.random.Generator
    ) -> list[Group]:
        contexts = sorted({c for c, _ in groups})
        within = contexts if hold_out.within is None else listed_names(hold_out.within)
        key = f"data.split.{name}"
        if isinstance(hold_out.contexts, int | float):
            free = sorted({c for c, _ in groups} - {c for (c, _), s in assigned.items() if s != "train"})
            whole = _draw(free, len(contexts), float(hold_out.contexts), f"{key}.contexts", rng)
        else:
            whole = set(listed_names(hold_out.contexts))
            check_known(whole, contexts, f"{key}.contexts", "context")
        check_known(within, contexts, f"{key}.within", "context")
        if isinstance(hold_out.perturbations, int | float):
            # drawn among those still wholly in training there, so that the fraction is met; contexts held out whole aside
            partly = {c for (c, _), s in assigned.items() if s == "train"} - whole
            taken = {p for (c, p), s in assigned.items() if s != "train" and c in partly}
            free = sorted({p for c, p in groups if c in within and c in partly} - taken)
            wanted = _draw(
                free, len({p for _, p in groups}), float(hold_out.perturbations), f"{key}.perturbations", rng
            )
        else:
            wanted = set(resolve(hold_out.perturbations, {p for _, p in groups}))
            check_known(wanted, {p for _, p in groups}, f"{key}.perturbations", "perturbation")
        return [(c, p) for c, p in groups if c in whole or (p in wanted and c in within)]


def _draw(free: list[str], of: int, fraction: float, key: str, rng: np.random.Generator) -> set[str]:
    if not 0 <= fraction < 1:
        raise VcellError(f"{key}={fraction} must be a fraction from 0 to below 1, or a list of names")
    number = min(len(free), round(fraction * of) or int(fraction > 0))
    return set(rng.choice(free, number, replace=False).tolist()) if number else set()


def _fold(names: Iterable[str], folds: Folds, seed: int, what: str) -> set[str]:
    """The names of one fold: all dealt in turn, in an order drawn by the seed."""
    distinct = sorted(set(names))
    assert folds.number is not None
    if len(distinct) < folds.number:
        raise VcellError(f"data.split.folds.number={folds.number} is more than there are {what}s ({len(distinct)})")
    return set(np.random.default_rng(seed).permutation(distinct)[folds.fold :: folds.number].tolist())


def check_known(names: Iterable[str], known: Iterable[str], key: str, what: str) -> None:
    """A `VcellError` that says which of `names`, given at the configuration key `key`, the data does not have."""
    known = set(known)
    unknown = sorted(set(names) - known)
    if unknown:
        raise VcellError(
            f"{key} names {shortlist(unknown, 5)}, which is not a {what} in the data."
            f"{nearest(unknown[0], known)} The data has: {shortlist(sorted(known))}"
        )


def assign_from_toml(path: str | Path, groups: Iterable[Group], control: str) -> dict[Group, str]:
    """The split that a STATE-style TOML declares.

    `[zeroshot] "dataset.context" = split` holds out a context, `[fewshot."dataset.context"] val = [...]` some
    perturbations in it; everything else trains. Perturbations named there but absent from the data are passed over, as
    STATE's lists name targets that a line lacks; an unknown context or split is an error.
    """
    content = read_toml(path)
    assigned = dict.fromkeys(sorted(g for g in groups if g[1] != control), "train")
    contexts = {c for c, _ in assigned}

    def context_of(key: str, table: str) -> str:
        dataset, _, context = key.partition(".")
        check_known([dataset], content["datasets"], f"{path} [{table}]", "dataset")
        check_known([context], contexts, f"{path} [{table}]", "context")
        return context

    def checked(split: Any, table: str) -> str:
        if split not in SPLITS:
            raise VcellError(f"{path} [{table}] says {split!r}; a split is one of {', '.join(SPLITS)}")
        return split

    for key, split in content.get("zeroshot", {}).items():
        context = context_of(key, "zeroshot")
        assigned.update({g: checked(split, "zeroshot") for g in assigned if g[0] == context})
    for key, lists in content.get("fewshot", {}).items():
        context = context_of(key, "fewshot")
        for split, names in lists.items():
            wanted = set(resolve(names, {p for _, p in assigned}))
            assigned.update({g: checked(split, "fewshot") for g in assigned if g[0] == context and g[1] in wanted})
    if "train" not in assigned.values():
        raise VcellError(f"{path} leaves nothing to train on")
    return assigned


def fingerprint(assigned: dict[Group, str], store: str) -> str:
    """A checksum of the split and of its cells."""
    rows = sorted((c, p, split) for (c, p), split in assigned.items())
    return hashlib.blake2b(json.dumps([store, rows]).encode(), digest_size=16).hexdigest()


def write_split(path: Path, assigned: dict[Group, str], cells: dict[Group, np.ndarray], store: str) -> None:
    """The split as JSON: each group with its cells, how many and a checksum of which, and checksums of split and store."""
    rows = [
        {"context": c, "perturbation": p, "split": split, "cells": len(cells[c, p]),
         "hash": hashlib.blake2b(np.asarray(cells[c, p], np.int64).tobytes(), digest_size=8).hexdigest()}
        for (c, p), split in sorted(assigned.items())
    ]  # fmt: skip
    content = {"hash": fingerprint(assigned, store), "store": store, "groups": rows}
    write_text(path, json.dumps(content, indent=1))


def check_split(path: Path, assigned: dict[Group, str], store: str) -> None:
    """A `VcellError` if the split or the cells differ from those recorded by `write_split`."""
    try:
        then = json.loads(path.read_text())
        same_hash, same_store = then["hash"] == fingerprint(assigned, store), then["store"] == store
    except (OSError, ValueError, KeyError) as error:
        raise VcellError(f"{path}, which records the run's split, cannot be read ({error})") from error
    if not same_hash:
        what = "the split is" if same_store else "the cells are"
        raise VcellError(
            f"{what} not what the run was started with ({path}): what it has trained on may now be held out. Begin "
            "another run with name=NEW_NAME, or restart this one with overwrite=true"
        )


def describe(assigned: dict[Group, str], cells: dict[Group, np.ndarray]) -> str:
    """One line per split: groups, perturbations, contexts and cells."""
    lines = []
    for split in SPLITS:
        groups = [g for g, s in assigned.items() if s == split]
        if not groups:
            continue
        n_cells = sum(len(cells[g]) for g in groups)
        names, training = {p for _, p in groups}, {p for (_, p), s in assigned.items() if s == "train"}
        note = ""
        if split != "train":
            note = f"; {len(names & training):,} train in other contexts, {len(names - training):,} nowhere"
        lines.append(
            f"  {split:<5} {n_cells:>9,} cells, {len(names):>5,} perturbations in "
            f"{len({c for c, _ in groups})} contexts{note}"
        )
    return "\n".join(lines)
