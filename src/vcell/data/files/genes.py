"""Gene names to genes: approved, previous and alias symbols and Ensembl ids of HGNC; every decision is recorded. An approved
symbol always means its own gene. A previous symbol means the gene that had it before, an alias the gene that has it; if a name means several
genes (TAZ: formerly TAFAZZIN, also used for WWTR1) the candidates are reported and none is used.

Shape legend: G genes wanted, F genes of a file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from vcell.data.files.conditions import Condition
from vcell.data.files.hgnc import read_hgnc, take_into_use
from vcell.errors import VcellError, shortlist

NAMELESS = {"", "nan", "none", "null", "na", "n/a", "<na>", "-", "."}
DATE = re.compile(
    r"^(\d{1,2}[-/ ]?(Mar|Sep|Sept|Dec|Oct|Apr|Feb)|(Mar|Sep|Sept|Dec|Oct|Apr|Feb)[-/ ]\d{1,2}|\d{4}[-/]\d{1,2}[-/]\d{1,2}( .*)?|"
    r"\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4})$",
    re.IGNORECASE,
)
ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d{11})(\.\d+)?$")
SEPARATORS = re.compile(r"\s*[+;,|&]\s*")
POSITION = re.compile(r"_[+-]_\d+(\.\d+)?(-(P\dP?\d?|ENST\S+|all))*$", re.IGNORECASE)  # of Weissman-lab guides
GUIDE_NUMBER = re.compile(r"^(sg|g|guide|sgrna|p)?\d+$", re.IGNORECASE)
GUIDE_BEFORE = re.compile(r"^(sg|grna|sgrna|g)[-_ ]?(?=\w)", re.IGNORECASE)
GUIDE_AFTER = re.compile(
    r"([-_ .#]+(sg|g|guide|sgrna|grna|p|i)?[-_ ]?\d{1,3}|(sg|g|guide|sgrna|grna)[-_ ]?\d{1,3}|[-_][ACGT]{15,})$",
    re.IGNORECASE,
)
CONTROL_PIECES = {
    "", "ctrl", "control", "nt", "ntc", "neg", "non-targeting", "nontargeting", "non_targeting", "negctrl", "negcontrol", "scramble",
}  # fmt: skip

# previous symbols of one gene that papers use for another, whose alias they are: TAK1 is MAP3K7 or NR2C2, RAGE is MOK or AGER
CONTESTED = {
    "AAC1", "ABC1", "ABP1", "ACBP", "AGC1", "APT1", "ARD1", "ARP1", "BAT1", "CDH14", "CLA1", "CYP1", "DBC1", "DEC1", "ERF1", "G6PT", "GARP", "GLYT1",
    "GLYT2", "HAP2", "HOPS", "INT6", "LAG1", "MLL2", "MOX1", "MOX2", "MRP1", "MTS1", "PABP2", "PKR1", "PLCE", "PRIP", "RAGE", "SAP1", "SAP2", "SIP1",
    "SNT1", "SOAT", "SRC1", "TAK1", "TRP2", "TYRO4", "VPP2",
}  # fmt: skip


@dataclass(frozen=True)
class Meaning:
    """What a name means."""

    name: str
    how: str  # approved, previous, alias, ensembl, ambiguous or unknown
    symbol: str | None = None  # the approved symbol, where there is one meaning
    candidates: tuple[str, ...] = ()  # approved symbols, where there are several

    @property
    def genes(self) -> tuple[str, ...]:
        """Every gene the name may stand for; the name itself where none is known."""
        return (self.symbol,) if self.symbol else self.candidates or (self.name,)


class GeneNames:
    """HGNC's names of human genes, read when they are first needed: labels that are genes of the file need no table. Get it with
    `gene_names()`.

    Parameters
    ----------
    read
        Gives the table and where it is from, as `hgnc.read_hgnc`, whose errors arise where a name is looked up.
    """

    def __init__(self, read: Callable[[], tuple[pd.DataFrame, str]]) -> None:
        self._read = cache(read)

    @property
    def origin(self) -> str:
        """Where the table is from."""
        return self._read()[1]

    @cached_property
    def approved(self) -> set[str]:
        """Approved symbols."""
        return set(self._read()[0]["symbol"])

    @cached_property
    def ensembl(self) -> dict[str, str]:
        """Approved symbol of each Ensembl id."""
        table, _ = self._read()
        return {i: s for i, s in zip(table["ensembl_id"], table["symbol"], strict=True) if i}

    @cached_property
    def former(self) -> dict[str, dict[str, set[str]]]:
        """Approved symbols of each previous symbol (``prev``) and ``alias``."""
        return {kind: _inverted(self._read()[0], f"{kind}_symbols") for kind in ("prev", "alias")}

    def meaning(self, name: str) -> Meaning:
        if name in self.approved:
            return Meaning(name, "approved", name)
        if match := ENSEMBL.match(name):
            symbol = self.ensembl.get(match[1])
            return Meaning(name, "ensembl", symbol) if symbol else Meaning(name, "unknown")
        previous, alias = (self.former[kind].get(name, set()) for kind in ("prev", "alias"))
        if renamed := _renamed(name, previous, alias):
            return Meaning(name, "previous", renamed)
        if len(previous | alias) > 1:
            return Meaning(name, "ambiguous", candidates=tuple(sorted(previous | alias)))
        if previous or alias:
            return Meaning(name, "previous" if previous else "alias", next(iter(previous | alias)))
        return Meaning(name, "unknown")

    def targets(self, label: str, known: Collection[str] = ()) -> tuple[str, ...]:
        """The genes that a perturbation label names: ``A+B``, ``A_B``, ``A+ctrl``, ``sgA-2`` and ``Ag2`` are taken apart.

        A label is taken apart, or read in other case, only where that gives genes of HGNC or of `known`.
        """
        label = POSITION.sub("", Condition.of(label.strip()).name)
        pieces = [p for p in SEPARATORS.split(label) if p.lower() not in CONTROL_PIECES]
        return tuple(dict.fromkeys(gene for piece in pieces for gene in self._joined(piece, known))) or (label,)

    def parts(self, label: str, labels: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """As `targets`, where nothing is known but other labels: one is no gene for being among them."""
        return self.targets(label, labels - {label} if label in labels else labels)

    def _joined(self, piece: str, known: Collection[str]) -> list[str]:
        if self._is_gene(piece, known):
            return [piece]
        for stem in self._stems(piece):
            if ("-" in stem or "_" in stem) and self._is_gene(
                stem, known
            ):  # NKX2-1-1 and AGBL5-IT1-1 are one gene each
                return [stem]
        for separator in "_-":
            parts = [p for p in piece.split(separator) if p.lower() not in CONTROL_PIECES]
            genes = [p for p in parts if self._is_gene(p, known)]
            if separator in piece and genes and all(p in genes or GUIDE_NUMBER.match(p) for p in parts):
                return genes
        for stem in self._stems(piece):
            if gene := self._in_other_case(stem, known):
                return [gene]
        return [piece]

    @staticmethod
    def _stems(piece: str) -> Iterator[str]:
        """The piece, and what is left of it without the marks of a guide: the longest first."""
        yield piece
        left = piece
        for _ in range(3):  # NKX2-1_sg2_ACGT...: one mark after the other
            bare = GUIDE_BEFORE.sub("", left)
            if bare != left:
                yield bare
            match = GUIDE_AFTER.search(left)
            if match is None or match.start() == 0:
                return
            left = left[: match.start()]
            yield left
            if GUIDE_BEFORE.match(left):
                yield GUIDE_BEFORE.sub("", left)

    def _in_other_case(self, name: str, known: Collection[str]) -> str | None:
        """The gene that `name` is, whatever its case; short aliases (T, NT) are taken for none."""
        if name in known or name in self.approved:
            return name
        lowered = _lowered(known) if isinstance(known, frozenset) else {k.lower(): k for k in known}
        if name.lower() in lowered:
            return lowered[name.lower()]
        if name.upper() in self.approved:
            return name.upper()
        return name if len(name) > 2 and self.meaning(name).how != "unknown" else None

    def _is_gene(self, name: str, known: Collection[str]) -> bool:
        return name in known or self.meaning(name).how != "unknown"


@lru_cache(maxsize=8)
def _lowered(known: frozenset[str]) -> dict[str, str]:
    return {name.lower(): name for name in sorted(known, reverse=True)}


@lru_cache(maxsize=1)
def gene_names() -> GeneNames:
    """HGNC's table, read once."""
    return GeneNames(read_hgnc)


def use_table(path: Path) -> None:
    """Takes a download of HGNC's complete set into use (`hgnc.take_into_use`)."""
    take_into_use(path)
    gene_names.cache_clear()


@dataclass(frozen=True)
class Alignment:
    """Where a file's genes go.

    Parameters
    ----------
    position
        int64 ``(F)``: the wanted gene of each of the file's genes, -1 where it is none of them.
    decisions
        One row for each name that needed one: `gene` (in the file), `decision`, `became`, `candidates`.
    called
        The file's genes by the names that `rename` and plain errors of writing (HLA.A) give them.
    """

    position: np.ndarray
    decisions: pd.DataFrame
    called: list[str] = field(default_factory=list)

    def measured(self, n_wanted: int) -> np.ndarray:
        """bool ``(G)``: which of the wanted genes the file has."""
        return np.isin(np.arange(n_wanted), self.position)


def align(
    names: Sequence[str],
    wanted: Sequence[str],
    ensembl: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
) -> Alignment:
    """Matches the genes of a file to those wanted: by name first, what is left by the gene that both names mean.

    Parameters
    ----------
    names
        Genes of the file, each once.
    wanted
        Genes wanted, each once.
    ensembl
        Ensembl ids of the file's genes, which settle what an ambiguous symbol means.
    rename
        The user's own decisions: a name in the file to a wanted name.
    """
    rename = {**_without_dots(names, wanted), **(rename or {})}
    place = {gene: i for i, gene in enumerate(wanted)}
    called = [rename.get(name, name) for name in names]
    position = np.array([place.get(name, -1) for name in called], dtype=np.int64)
    rows = [_row(n, "renamed", c) for n, c in zip(names, called, strict=True) if n != c and (c in place or not place)]
    rows += [
        _row(n, "turned to a date by a spreadsheet: no gene is known by that name", "") for n in names if DATE.match(n)
    ]
    rows += [_row(n, "left out: it has no name", "") for n in names if not n]
    left = np.flatnonzero(position < 0)
    taken = set(position[position >= 0].tolist())
    free: dict[str, list[int]] = defaultdict(list)  # gene -> wanted names that mean it
    if left.size and len(taken) < len(wanted):
        for i, gene in enumerate(wanted):
            if i not in taken:
                for symbol in gene_names().meaning(gene).genes:
                    free[symbol].append(i)
    claims: dict[int, list[int]] = defaultdict(list)
    meanings = {}
    for f in left.tolist() if free else ():
        meaning = meanings[f] = _meaning_of(called[f], ensembl[f] if ensembl is not None else None)
        found = sorted({i for symbol in meaning.genes for i in free.get(symbol, ())})
        if meaning.how == "ambiguous" or len(found) > 1:
            if found:
                rows.append(_row(names[f], "ambiguous", "", meaning.candidates or [wanted[i] for i in found]))
        elif found:
            claims[found[0]].append(f)
    for i, files in claims.items():
        if len(files) > 1:
            rows += [_row(names[f], "left out: several names of one gene", wanted[i]) for f in files]
        else:
            position[files[0]] = i
            how = meanings[files[0]].how
            rows.append(_row(names[files[0]], {"approved": "present symbol"}.get(how, f"by {how}"), wanted[i]))
    return Alignment(position, pd.DataFrame(rows, columns=["gene", "decision", "became", "candidates"]), called)


def appended(genes: list[str], names: Sequence[str], position: np.ndarray) -> tuple[list[str], np.ndarray]:
    """`genes` followed by those `names` that are none of them, and every name's place among them, from `position`.

    A gene without a name is none: its place is -1.
    """
    new = np.array([at < 0 and bool(name) for name, at in zip(names, position, strict=True)], dtype=bool)
    fresh = [name for name, is_new in zip(names, new, strict=True) if is_new]
    position = position.copy()
    position[new] = len(genes) + np.arange(len(fresh))
    return [*genes, *fresh], position


def check_unique(
    names: Sequence[str],
    what: str,
    mend: str = "Keep one of each, or make them distinct: adata.var_names_make_unique()",
) -> None:
    """A `VcellError` where gene names are duplicated, or no gene has one."""
    index = pd.Index([name for name in names if name])
    if len(names) and not len(index):
        raise VcellError(
            f"{what}: none of its {len(names):,} genes has a name. Put names into var's index and write it again: "
            "adata.var_names = adata.var[COLUMN]"
        )
    if not index.is_unique:
        twice = index[index.duplicated()].unique()
        raise VcellError(f"{what}: {len(twice):,} gene names are duplicated ({shortlist(twice, 5)}). {mend}")


def _without_dots(names: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Names that R has written with dots (HLA.A, NKX2.1), to the genes that they are, where those are wanted or approved."""
    known, there = set(wanted), set(names)
    found = {}
    for name in names:
        if "." in name and name not in known and not ENSEMBL.match(name):
            plain = name.replace(".", "-")
            if plain not in there and (plain in known or plain in gene_names().approved):
                found[name] = plain
    return found


def _meaning_of(name: str, ensembl: str | None) -> Meaning:
    if ensembl:
        by_id = gene_names().meaning(ensembl)
        if by_id.how == "ensembl":
            return by_id
    return gene_names().meaning(name)


def _renamed(name: str, previous: Collection[str], alias: Collection[str]) -> str | None:
    """The gene that was called `name` until it was renamed, where other genes only have the name as an alias.

    Lists and screens made before have it for that gene (MPP6: PALS2, not MPHOSPH6). Of several former bearers it is the one that only got a
    number (QARS: QARS1, not EPRS1). Names in `CONTESTED`, and those of three letters, stand for the others as often.
    """
    numbered = [gene for gene in previous if re.fullmatch(re.escape(name) + r"\d", gene)]
    former = numbered if len(numbered) == 1 else list(previous)
    if len(former) != 1 or (set(alias) - set(former) and (len(name) <= 3 or name in CONTESTED)):
        return None
    return former[0]


def _row(gene: str, decision: str, became: str, candidates: Iterable[str] = ()) -> dict[str, str]:
    return {"gene": gene, "decision": decision, "became": became, "candidates": "|".join(candidates)}


def _inverted(table: pd.DataFrame, column: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for symbol, names in zip(table["symbol"], table[column], strict=True):
        for name in names.split("|") if names else ():
            found[name].add(symbol)
    return dict(found)
