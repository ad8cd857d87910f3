"""What perturbation labels mean: controls, cells without a guide, guides of one gene, doubles, spellings. One reader for all commands.

Screens label the same thing in many ways: ``STAT1 ``, ``Stat1``, ``STAT1g1``, ``sgSTAT1-2``, ``STAT1+ctrl``; ``non-targeting``,
``NT``, ``NTC_003``; ``nan``, ``unassigned``. Taken literally, controls would be trained on as a perturbation, and a gene would
be trained on under one name while it is held out under another. Here every label is read once, by its meaning, and each
decision is recorded (``labels.csv`` in the store). A label that is an approved gene is always that gene.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vcell.data.files.conditions import Condition
from vcell.data.files.genes import CONTROL_PIECES, gene_names
from vcell.errors import VcellError, check_choice, nearest, shortlist

CONTROL = "non-targeting"  # what control cells are called where nothing else is said
NO_GUIDE = ""  # the label that cells without a usable guide are given while files are read; they are not stored
_NUMBER = r"([-_ .#]*(g|sg|guide|grna|sgrna)?[-_ ]*\d+)?"
# guides that target nothing, or nothing that matters
NON_TARGETING = re.compile(
    r"^(non[-_ ]?target(ing|ed)?|nt|ntc|nt[-_ ]?c(on)?tro?l|control|ctrl|neg(ative)?[-_ ]?(control|ctrl)|scrambled?|safe[-_ ]?(targeting|harbou?r)|"
    r"intergenic|luciferase|lacz)([-_ ]?(control|ctrl|guide|sgrna|grna|cells?))?s?" + _NUMBER + "$",
    re.IGNORECASE,
)
# cells that were not treated: controls where a screen has no better ones
UNTREATED = re.compile(
    r"^(unperturbed|vehicle|dmso|untreated|unstim(ulated)?|mock|wt|wild[-_ ]?type|pbs|neg(ative)?|parental|empty([-_ ]?vector)?)"
    r"([-_ ]?(control|ctrl|guide|sgrna|cells?))?s?([-_ ]?\d+)?$",
    re.IGNORECASE,
)
WITHOUT_GUIDE = re.compile(
    r"^(|nan|none|null|na|n/a|<na>|unassigned|un[-_ ]?known|undetermined|undefined|unidentified|not[-_ ]?(assigned|detected|available)|"
    r"no[-_ ]?(s?g(uide)?(rna)?s?|call|assignment|perturbation|label|target)|ambiguous|multiplet|doublet|multiple|multi|filtered|-|\.|\?)$",
    re.IGNORECASE,
)
CHOICES = {"controls": ("usual", "listed"), "no_guide": ("drop", "refuse", "control"), "guides": ("gene", "keep"), "spelling": ("gene", "keep")}  # fmt: skip


@dataclass(frozen=True)
class LabelRules:
    """How labels are read; every decision can be overridden.

    Parameters
    ----------
    controls
        ``usual``: the usual names of non-targeting guides are controls besides the one that was named; ``listed``: only that.
    no_guide
        Cells without a guide (``nan``, ``unassigned`` ...): ``drop`` them, ``refuse`` the files, or take them for ``control`` cells.
    guides
        ``gene``: guides of one gene (STAT1g1, sgSTAT1-2) are that gene; ``keep`` each as a perturbation of its own.
    spelling
        ``gene``: spellings of one gene in other case, ``GENE+control``, and doubles in either order are one perturbation;
        ``keep`` them as they are.
    rename
        What single labels are, whatever the rules say: ``{OLD: NEW}``.
    """

    controls: str = "usual"
    no_guide: str = "drop"
    guides: str = "gene"
    spelling: str = "gene"
    rename: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for key, known in CHOICES.items():
            check_choice(f"data.labels.{key}", getattr(self, key), known)


@dataclass(frozen=True)
class LabelTable:
    """What every label of some files is taken for.

    Attributes
    ----------
    control
        The one label that all controls are given.
    meaning
        By file and label as it stands: the label it is given, `NO_GUIDE` for cells that are left out.
    decisions
        One row for each label that is not taken as it stands: file, label, cells, decision, became.
    """

    control: str
    meaning: Mapping[str, Mapping[str, str]]
    decisions: pd.DataFrame = field(compare=False)

    def notes(self) -> list[str]:
        """One line for each kind of decision."""
        lines = []
        for decision, rows in self.decisions.groupby("decision", sort=False):
            shown = [
                f"{label!r} → {became}" if became else repr(label)
                for label, became in zip(rows["label"], rows["became"], strict=True)
            ]
            lines.append(f"{int(rows['cells'].sum()):,} cells {decision}: {shortlist(dict.fromkeys(shown), 4)}")
        return lines


def listed_names(value: Any) -> list[str]:
    """Names from a configuration: one or several, numbers as text."""
    if value is None:
        return []
    names = [value] if isinstance(value, str | int | float) else list(value)
    return [str(name).strip() for name in names]


def is_control(label: str) -> bool:
    """Whether a label has a usual name of non-targeting guides; one that is an approved gene never has."""
    return _each_piece(label, NON_TARGETING)


def usual_controls(labels: Collection[str], control: str) -> dict[str, str] | None:
    """Usual names of control cells among labels of which none is `control`, each with that name; nothing where one is, and None where no label
    is that of controls."""
    if any(_key(label) == _key(control) for label in labels):
        return {}
    return {label: control for label in labels if is_control(label)} or None


def is_untreated(label: str) -> bool:
    return bool(UNTREATED.match(label.strip())) and not _approved(label)


def is_without_guide(label: str) -> bool:
    """Whether a label says that the cell has no guide, or no single one."""
    return bool(WITHOUT_GUIDE.match(label.strip())) and not _approved(label)


def read_labels(
    files: Mapping[str, Mapping[str, int]],
    control: str | Sequence[str],
    rules: LabelRules | None = None,
    genes: Collection[str] = (),
    key: str = "data.control",
) -> LabelTable:
    """What the labels of `files` mean, together.

    Parameters
    ----------
    files
        By file: cells of each label, as they stand; the empty label for cells that have none.
    control
        Labels that are controls.
    genes
        Names of genes that the files measure.
    key
        The configuration key of `control`, for messages.

    Raises
    ------
    VcellError
        If no cell is a control, or some have no guide and that is refused.
    """
    rules, named = rules or LabelRules(), listed_names(control)
    if not all(named or [""]):
        raise VcellError(f"name the label of control cells: {key}=LABEL")
    new = rules.rename or {}
    present = {
        _key(new.get(label.strip(), label)) for labels in files.values() for label, cells in labels.items() if cells
    }
    absent = [name for name in named if _key(name) not in present and name != NO_GUIDE]
    if absent:
        counted = Counter({label: 0 for labels in files.values() for label in labels})
        for labels in files.values():
            counted.update({label.strip(): cells for label, cells in labels.items() if cells})
        common = [label for label, cells in counted.most_common() if cells]
        raise VcellError(
            f"no cell in {shortlist(files, 3)} is labelled as control {absent[0]!r}.{nearest(absent[0], common)} Most frequent "
            f"labels: {shortlist(map(repr, common), 5)}. Set {key}=LABEL, or several: {key}=[A,B]"
        )
    spellings = _Spellings(files, rules, set(genes))
    meaning: dict[str, dict[str, str]] = {}
    rows = []
    for file, labels in files.items():
        kinds = {label: _kind(label, named, rules) for label, cells in labels.items() if cells}
        controls = {_key(name) for name in named}
        proper = any(
            kind in ("named", "usual") or (kind == "renamed" and _key(new[label.strip()]) in controls)
            for label, kind in kinds.items()
        )
        meaning[file] = {}
        for label, cells in labels.items():
            if not cells:
                continue
            became, decision = _decide(label, kinds[label], named[0], proper, rules, spellings)
            meaning[file][label] = became
            if became != label or kinds[label] == "no guide":
                rows.append({"file": file, "label": label, "cells": cells, "decision": decision, "became": became})
    table = pd.DataFrame(rows, columns=["file", "label", "cells", "decision", "became"])
    lost = table[table["decision"].str.startswith("without a guide")] if len(table) else table
    if len(lost) and rules.no_guide == "refuse":
        raise VcellError(
            f"{int(lost['cells'].sum()):,} cells have no guide ({shortlist(map(repr, dict.fromkeys(lost['label'])), 4)}) in "
            f"{shortlist(dict.fromkeys(lost['file']), 3)}. Leave them out with data.labels.no_guide=drop"
        )
    return LabelTable(named[0], meaning, table)


def resolve(names: Iterable[Any], known: Collection[str], control: str | None = None) -> list[str]:
    """Names as a user gives them, as the labels of a store: exactly, else by their meaning. Unknown ones are kept as they are."""
    known_names = frozenset(known)
    by_key = {_key(name): name for name in sorted(known_names)}
    by_genes = None
    found = []
    for name in listed_names(names):
        if name in known_names:
            found.append(name)
            continue
        if control is not None and is_control(name):
            found.append(control)
            continue
        match = by_key.get(_key(name))
        if match is None:
            if by_genes is None:
                by_genes = {_meaning(label, known_names): label for label in sorted(known_names)}
            match = by_genes.get(_meaning(name, known_names))
        found.append(name if match is None else match)
    return found


def _meaning(label: str, known: Collection[str]) -> tuple[Any, ...]:
    """Genes in any order, dose and type."""
    condition = Condition.of(label)
    return frozenset(genes_of(condition.name, known)), condition.dose, condition.type


def genes_of(label: str, known: Collection[str] = ()) -> tuple[str, ...]:
    """The genes that a label names, guides and control pieces taken off; the label itself where none is known."""
    return gene_names().targets(label, known)


def as_labels(values: pd.Series) -> pd.Series:
    """A column as labels: categories of text without spaces around; cells without a value have the empty label."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        values = pd.Series(pd.Categorical(values))
    text = [_text(category) for category in values.cat.categories]
    codes = values.cat.codes.to_numpy()
    distinct = sorted({*text, *([NO_GUIDE] if (codes < 0).any() else [])})
    place = {name: i for i, name in enumerate(distinct)}
    new = pd.array([place[name] for name in text] + [place.get(NO_GUIDE, -1)], dtype="int32").to_numpy()
    return pd.Series(pd.Categorical.from_codes(new[codes], distinct), index=values.index)


def renamed(labels: pd.Series, meaning: Mapping[str, str]) -> pd.Series:
    """Labels (categories) by what they mean; those that `meaning` does not name stay."""
    names = [meaning.get(name, name) for name in labels.cat.categories]
    distinct = list(dict.fromkeys(names))
    place = {name: i for i, name in enumerate(distinct)}
    codes = pd.array([place[name] for name in names] + [-1], dtype="int32").to_numpy()[labels.cat.codes.to_numpy()]
    return pd.Series(pd.Categorical.from_codes(codes, distinct), index=labels.index)


class _Spellings:
    """Labels of all files that mean the same genes, and the one that stands for them."""

    def __init__(self, files: Mapping[str, Mapping[str, int]], rules: LabelRules, genes: set[str]) -> None:
        self.rules, self.genes = rules, frozenset(genes)
        cells: Counter[str] = Counter()
        for labels in files.values():
            cells.update({label: n for label, n in labels.items() if n})
        doubles: dict[frozenset[str], list[str]] = defaultdict(list)
        self.single = {label: self._canonical(label) for label in cells}
        for label, became in self.single.items():
            some = genes_of(became, self.genes)
            if len(some) > 1 and rules.spelling == "gene":
                doubles[frozenset(some)].append(label)
        for same in doubles.values():
            best = max(same, key=lambda label: (cells[label], label))
            if len(same) > 1:
                self.single.update(dict.fromkeys(same, self.single[best]))

    def of(self, label: str) -> tuple[str, str]:
        """The label that stands for this one, and why."""
        became = self.single[label]
        some = genes_of(label, self.genes)
        why = "of the same perturbation" if len(some) > 1 else "of the same gene"
        return became, f"labelled as guides or spellings {why}"

    def _canonical(self, label: str) -> str:
        stripped = label.strip()
        if stripped in self.genes or _approved(stripped):
            return stripped
        some = genes_of(stripped, self.genes)
        if len(some) != 1 or some == (stripped,):
            return stripped
        plain = re.fullmatch(re.escape(some[0]), stripped, re.IGNORECASE) is not None
        control_piece = any(piece.lower() in CONTROL_PIECES for piece in re.split(r"[+;,|&_]", stripped))
        wanted = self.rules.spelling if plain or control_piece else self.rules.guides
        return some[0] if wanted == "gene" else stripped


def _kind(label: str, named: Sequence[str], rules: LabelRules) -> str:
    if rules.rename and label.strip() in rules.rename:
        return "renamed"
    if _key(label) in {_key(name) for name in named}:
        return "named"
    if is_without_guide(label):
        return "no guide"
    if rules.controls == "usual" and is_control(label):
        return "usual"
    if rules.controls == "usual" and is_untreated(label):
        return "untreated"
    return "perturbation"


def _decide(
    label: str, kind: str, control: str, proper: bool, rules: LabelRules, spellings: _Spellings
) -> tuple[str, str]:
    """The label's new name and the decision in words."""
    if kind == "renamed":
        assert rules.rename is not None
        return str(rules.rename[label.strip()]), "renamed by data.labels.rename"
    if kind == "named":
        return control, "are controls by data.control"
    if kind == "usual":
        return control, "are controls under another usual name (data.labels.controls=listed keeps them apart)"
    if kind == "untreated":
        if not proper:
            return control, "are the controls of a file without non-targeting guides"
        return _without(rules, control, "without a guide or treatment, in files with non-targeting controls")
    if kind == "no guide":
        return _without(rules, control, "without a guide")
    return spellings.of(label)


def _without(rules: LabelRules, control: str, words: str) -> tuple[str, str]:
    if rules.no_guide == "control":
        return control, f"{words} are controls (data.labels.no_guide=control)"
    return NO_GUIDE, f"{words} are left out (data.labels.no_guide)"


def _each_piece(label: str, pattern: re.Pattern[str]) -> bool:
    """Whether a label matches whole, or in every piece: dual guides are labelled ``NT_NT`` or ``ctrl+ctrl``."""
    label = label.strip()
    if not label:
        return False
    if pattern.match(label):
        return not _approved(label)
    pieces = [p for p in re.split(r"[+;,|&]|_{1,2}", label) if p]
    matching = len(pieces) > 1 and all(pattern.match(p) for p in pieces)
    return matching and not any(map(_approved, (label, *pieces)))


def _approved(label: str) -> bool:
    """Whether a label is an approved symbol; each of these has a capital, without which the table need not be read."""
    label = label.strip()
    return any(map(str.isupper, label)) and label in gene_names().approved


def _key(label: str) -> str:
    return str(label).strip().lower()


def _text(value: Any) -> str:
    """A label as text; numbers without a needless fraction."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return str(value).strip()
