"""The perturbation table: each perturbation's vector, from a file or one-hot; what it says of names that it lacks."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vcell.data.files.conditions import Condition, types_of
from vcell.data.files.genes import gene_names
from vcell.errors import VcellError, nearest, shortlist
from vcell.model.table_file import read_table_file

ONE_HOT = "one-hot"
CELLS = "cells"  # as a path: vectors from the run's own control cells (`coexpression`)
COMBINE = ("sum", "mean", "learned", None)
MISSING = ("error", "mean", "family", "learned")
FEWEST_STANDARD = 3
STEM = re.compile(r"^([A-Za-z][A-Za-z0-9-]*?[A-Za-z])\d+[A-Za-z]?$")  # HOXA of HOXA7, KLF of KLF1


# ways in which a name gets a vector, in the words of a report
HOW = {
    "by name": "perturbations under another name of their gene",
    "sum of": "of several genes, as the sum of their vectors",
    "mean of": "of several genes, as the mean of their vectors",
    "learned of": "of several genes, as the sum and the product of their vectors",
    "learned": "perturbations are missing, and what they do is learnt of each by itself",
    "condition": "perturbations at another dose, or of another type, than the table's",
    "family": "perturbations are missing and get the mean of their gene family",
    "mean": "perturbations are missing and get the mean of the table",
    "mean in": "perturbations are missing in one of several tables, and get its mean there",
}


class Decision(NamedTuple):
    """How a table came to have a vector for a name that it lacks."""

    name: str
    how: str  # by name, sum of, mean of, family, mean
    of: str


@dataclass(frozen=True)
class PerturbationTable:
    """Vectors by name. A name it lacks is an error, never a zero vector.

    Parameters
    ----------
    names
        Perturbations, each once.
    vectors
        ``(names, width)``, float32.
    origin
        The file it came from, or `ONE_HOT`.
    decisions
        How names that the file lacks came to have a vector.
    widths
        Of the tables that it was joined from; empty for a single one.
    """

    names: list[str]
    vectors: Tensor
    origin: str
    decisions: tuple[Decision, ...] = ()
    widths: tuple[int, ...] = ()
    row: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "row", {name: i for i, name in enumerate(self.names)})
        if len(self.row) < len(self.names):
            twice = [name for name, number in Counter(self.names).items() if number > 1]
            raise VcellError(
                f"the perturbation table {self.origin} has several vectors of {shortlist(twice, 5)}. Keep one of each"
            )
        if self.vectors.shape[:1] != (len(self.names),):
            raise VcellError(
                f"the perturbation table {self.origin} has {len(self.names):,} names, and {len(self.vectors):,} vectors"
            )
        if not np.isfinite(self.vectors.numpy()).all():
            bad = [n for n, v in zip(self.names, self.vectors, strict=True) if not torch.isfinite(v).all()]
            raise VcellError(f"the perturbation table {self.origin} holds NaN or infinity for {shortlist(bad, 5)}")

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @property
    def parts(self) -> list[int]:
        """Widths of what its vectors consist of: tables joined, and columns of its own."""
        rest = self.width - sum(self.widths)
        return [*self.widths, *([rest] if rest else [])]

    @property
    def fingerprint(self) -> str:
        """A checksum of names and vectors."""
        digest = hashlib.blake2b("\n".join(self.names).encode(), digest_size=16)
        digest.update(self.vectors.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def is_one_hot(self) -> bool:
        """Whether it names perturbations and says nothing of them."""
        return self.origin == ONE_HOT

    def require(self, names: Sequence[str]) -> None:
        """Raises a `VcellError` that names the perturbations the table lacks."""
        missing = sorted({n for n in names if n not in self.row})
        if not missing:
            return
        if self.origin == ONE_HOT:
            reason = "a one-hot table covers only the perturbations it was made for. Train with an embedding table"
        else:
            reason = f"it has {len(self.names):,} others.{nearest(missing[0], self.names)} Use a table that has them"
        raise VcellError(
            f"the perturbation table {self.origin} lacks {len(missing):,} perturbations: {shortlist(missing)}; {reason} "
            "(perturbation.path=FILE.pt), name them as it does (perturbation.aliases={OLD: NEW}), or leave them out of training "
            "(data.exclude=[NAME])"
        )

    def rows(self, names: Sequence[str]) -> list[int]:
        """Numbers of the rows of `names`; a `VcellError` for a name the table lacks."""
        if any(n not in self.row for n in names):
            self.require(names)
        return [self.row[n] for n in names]

    def lookup(self, names: Sequence[str]) -> Tensor:
        """Vectors of `names`, ``(len(names), width)``."""
        return self.vectors[self.rows(names)]

    def standardised(self, over: Sequence[str] = ()) -> PerturbationTable:
        """Every column shifted and scaled to mean 0 and variance 1 over the table's names.

        Tables come in scales from 0.01 (ESM2) to 10; networks start best from about 1. A constant column becomes 0.

        Parameters
        ----------
        over
            Names, and ``A+B``, whose genes' vectors count alone; of too few to tell, all do.
        """
        rows = {
            row
            for name in over
            for gene in gene_names().parts(name, self._known)
            if (row := self._row_of(gene)) is not None
        }
        some = self.vectors[sorted(rows)] if len(rows) >= FEWEST_STANDARD else self.vectors
        mean, std = some.mean(0), some.std(0, correction=0)
        vectors = (self.vectors - mean).div_(std.clamp(min=1e-8))
        vectors[:, std <= 1e-8] = 0.0
        return PerturbationTable(self.names, vectors, self.origin)

    @classmethod
    def one_hot(cls, trained: Sequence[str], held_out: Sequence[str] = ()) -> PerturbationTable:
        """One column per trained perturbation. Held-out ones get the zero vector: a model can say nothing of them but
        the mean response, and `silent_on` tells which."""
        trained = sorted(set(trained))
        held_out = sorted(set(held_out) - set(trained))
        vectors = torch.cat([torch.eye(len(trained)), torch.zeros(len(held_out), len(trained))])
        return cls([*trained, *held_out], vectors, ONE_HOT)

    def with_aliases(self, aliases: Mapping[str, str]) -> PerturbationTable:
        """The same table with further names for some of its rows: alias to name. Both must be what they are said to be.

        Raises
        ------
        VcellError
            If an alias is a name of its own in the table, or its name is not in the table.
        """
        clashing = sorted(set(aliases) & set(self.names))
        if clashing:
            raise VcellError(f"perturbation.aliases renames {shortlist(clashing)}, which {self.origin} has already")
        self.require(list(aliases.values()))
        if not aliases:
            return self
        vectors = torch.cat([self.vectors, self.lookup(list(aliases.values()))])
        return PerturbationTable([*self.names, *aliases], vectors, self.origin)

    def silent_on(self, names: Sequence[str]) -> list[str]:
        """Those of `names` of which the table says nothing: held-out perturbations in a one-hot table."""
        if self.origin != ONE_HOT:
            return []
        return sorted({n for n in names if n in self.row and not self.vectors[self.row[n]].any()})

    @classmethod
    def load(cls, path: str | Path) -> PerturbationTable:
        """Reads a table; its formats and errors are those of `table_file.read_table_file`.

        Raises
        ------
        VcellError
            Also if names are doubled, or a vector holds NaN or infinity.
        """
        names, vectors = read_table_file(Path(path))
        return cls(names, vectors, str(path))

    def shuffled(self, seed: int) -> PerturbationTable:
        """The same vectors, dealt to the names at random: what a model still predicts with it, it does not know from the table."""
        order = np.random.default_rng(seed).permutation(len(self.names))
        return PerturbationTable(
            self.names, self.vectors[torch.from_numpy(order)], f"{self.origin} (shuffled, seed {seed})"
        )

    def times(self, weight: float) -> PerturbationTable:
        """The same table, its vectors multiplied by a weight."""
        return self if weight == 1 else replace(self, vectors=self.vectors * weight)

    def with_own_columns(self, names: Sequence[str]) -> PerturbationTable:
        """The table with a further column for each of `names`, which it lacks: 1 in their own rows, so that what they do can be learnt."""
        names = list(dict.fromkeys(names))
        if not names:
            return self
        before, own = torch.zeros(len(self.names), len(names)), torch.eye(len(names))
        vectors = torch.cat(
            [torch.cat([self.vectors, before], 1), torch.cat([torch.zeros(len(names), self.width), own], 1)]
        )
        decisions = tuple(Decision(name, "learned", name) for name in names)
        return replace(self, names=[*self.names, *names], vectors=vectors, decisions=(*self.decisions, *decisions))

    def with_products(self) -> PerturbationTable:
        """The table with as many columns more, which are 0 for single genes: of several, their vectors' product goes there."""
        return replace(self, vectors=torch.cat([self.vectors, torch.zeros_like(self.vectors)], 1))

    def covering(self, names: Sequence[str], combine: str | None = None, missing: str = "error") -> PerturbationTable:
        """The table with a row for each of `names` that it can say something of; `decisions` tell how.

        Names it lacks are understood through HGNC (MARCH8 is MARCHF8), and in other case. ``A+B``, and every other way to write it, gets its genes' rows, combined.

        Parameters
        ----------
        combine
            ``sum`` or ``mean`` of the genes of a perturbation of several; ``learned``: the sum, and in the table's second half (`with_products`)
            the product, from which a network can learn how two genes act together; None leaves such names missing.
        missing
            What the others get: ``error`` leaves them missing, ``mean`` is the mean of the table, ``family`` that of the genes with the same
            stem (HOXA7: of HOXA1, HOXA2 ...), where there are any; ``learned`` leaves them missing, too: they need columns of their own.
        """
        if combine not in COMBINE or missing not in MISSING:
            raise VcellError(
                f"perturbation.combine={combine} must be one of {', '.join(str(c or 'null') for c in COMBINE)}, and perturbation.missing={missing} "
                f"one of {', '.join(MISSING)}"
            )
        found: dict[str, Tensor] = {}
        decisions: list[Decision] = []
        for name in dict.fromkeys(names):
            if name not in self.row and (said := self._understood(name, combine, missing)) is not None:
                found[name] = said[0]
                decisions.append(Decision(name, *said[1:]))
        if not found:
            return self
        vectors = torch.cat([self.vectors, torch.stack(list(found.values()))])
        return replace(self, names=[*self.names, *found], vectors=vectors, decisions=(*self.decisions, *decisions))

    def _understood(self, name: str, combine: str | None, missing: str) -> tuple[Tensor, str, str] | None:
        known = gene_names()
        if not self.is_one_hot and (row := self._row_of(name)) is not None:
            return self.vectors[row], "by name", self.names[row]
        if not (condition := Condition.of(name)).plain:
            return self._understood_condition(name, condition)
        genes = known.parts(name, self._known)
        rows = [self._row_of(gene) for gene in genes]
        if len(genes) == 1 and rows[0] is not None and not self.is_one_hot:
            return self.vectors[rows[0]], "by name", self.names[rows[0]]
        if len(genes) > 1 and combine is not None and all(row is not None for row in rows):
            parts = self.vectors[[row for row in rows if row is not None]]
            return self._combined(parts, combine), f"{combine} of", "+".join(genes)
        if missing == "family" and (kin := self._family(name)):
            return self.vectors[[self.row[one] for one in kin]].mean(0), "family", shortlist(kin, 4)
        if missing in ("error", "learned") or self.is_one_hot:
            return None
        return self.vectors.mean(0), "mean", "the whole table"

    def _understood_condition(self, name: str, condition: Condition) -> tuple[Tensor, str, str] | None:
        """Another dose of a perturbation, or another type of those that the table has columns for."""
        dose, types = self.conditions
        row, width = self._row_of(condition.name), dose + len(types)
        unknown = (condition.dose is not None and not dose) or (
            condition.type is not None and condition.type not in types
        )
        if row is None or unknown or not width:
            return None
        return self._conditioned(row, condition, types, width), "condition", condition.name

    def _combined(self, parts: Tensor, combine: str) -> Tensor:
        if combine == "mean":
            return parts.mean(0)
        if combine == "sum" or self.is_one_hot:  # the product of one-hot vectors is 0
            return parts.sum(0)
        dose, types = self.conditions
        width = dose + len(types)
        half = (self.width - width) // 2
        own = parts[:, :half]
        return torch.cat([own.sum(0), own.prod(0), torch.zeros(width)])

    @cached_property
    def conditions(self) -> tuple[bool, list[str]]:
        """Whether its last columns have one for the dose, and the types that have one each."""
        return any(Condition.of(name).dose is not None for name in self.names), types_of(self.names)

    def with_conditions(self, labels: Sequence[str]) -> PerturbationTable:
        """The table with columns for the doses and types of `labels` (``NAME@DOSE@TYPE``), and the labels' rows: a name's vector, log1p of
        the dose, and 1 at its type."""
        conditioned = [label for label in dict.fromkeys(labels) if not Condition.of(label).plain]
        types = types_of(conditioned)
        width = any(Condition.of(label).dose is not None for label in conditioned) + len(types)
        if not width:
            return self
        wider = replace(self, vectors=torch.cat([self.vectors, torch.zeros(len(self.names), width)], 1))
        rows = {}
        for label in conditioned:
            if (row := wider._row_of(Condition.of(label).name)) is not None:
                rows[label] = wider._conditioned(row, Condition.of(label), types, width)
        if not rows:
            return wider
        return replace(
            wider, names=[*self.names, *rows], vectors=torch.cat([wider.vectors, torch.stack(list(rows.values()))])
        )

    def _conditioned(self, row: int, condition: Condition, types: Sequence[str], width: int) -> Tensor:
        vector = self.vectors[row].clone()
        start = self.width - width
        if condition.dose is not None:
            vector[start] = np.log1p(condition.dose)
        if condition.type is not None:
            vector[self.width - len(types) + types.index(condition.type)] = 1.0
        return vector

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _by_symbol(self) -> dict[str, list[int]]:
        """Rows by the approved symbol that their names mean."""
        found: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            if symbol := gene_names().meaning(name).symbol:
                found.setdefault(symbol, []).append(row)
        return found

    @cached_property
    def _by_lowered(self) -> dict[str, list[int]]:
        """Rows by their names in lower case."""
        found: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            found.setdefault(name.lower(), []).append(row)
        return found

    def _row_of(self, gene: str) -> int | None:
        """The row of a gene under its name, under another name of it, or under its name in other case (Stat1, as of mice)."""
        if gene in self.row:
            return self.row[gene]
        symbol = gene_names().meaning(gene).symbol
        rows = (self._by_symbol.get(symbol, []) if symbol else []) or self._by_lowered.get(gene.lower(), [])
        return rows[0] if len(rows) == 1 else None

    def _family(self, name: str) -> list[str]:
        stem = STEM.match(name)
        return [] if stem is None else [n for n in self.names if (m := STEM.match(n)) and m[1] == stem[1]]


def decision_lines(decisions: Sequence[Decision]) -> list[str]:
    """What was done with names that a table lacks, a line for each way."""
    lines = []
    for how, said in HOW.items():
        if some := [
            d.name if d.of == d.name else f"{d.name} {'is' if how == 'by name' else '='} {d.of}"
            for d in decisions
            if d.how == how
        ]:
            lines.append(f"{len(some):,} {said}: {shortlist(some, 4)}")
    return lines
