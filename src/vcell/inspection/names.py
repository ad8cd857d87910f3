"""Gene names looked up one by one, or those of a file, and a newer table of HGNC taken into use: `vcell genes`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import h5py
import pandas as pd

from vcell.atomic import written_file
from vcell.data.files.genes import DATE, gene_names, use_table
from vcell.data.files.h5ad import open_h5ad, read_genes
from vcell.data.files.hgnc import mouse_symbols, own_table
from vcell.data.files.lists import read_list
from vcell.errors import VcellError, nearest, shortlist

DEEDS = ("lookup", "check", "update")
COLUMNS = ["name", "meaning", "symbol", "candidates", "remark"]
# how a name was understood, in the words of a report
WORDS = {
    "approved": "approved symbol",
    "previous": "previous symbol",
    "alias": "alias",
    "ensembl": "Ensembl id",
    "ambiguous": "ambiguous",
    "mouse": "mouse symbol",
    "date": "turned to a date by a spreadsheet",
    "unknown": "unknown",
}
Given = TypeVar("Given")


def needed(given: Given | None, what: str) -> Given:
    """`given`; a `VcellError` that asks for it where it is nothing."""
    if not given:
        raise VcellError(f"vcell genes needs {what}")
    return given


def looked_up(names: Sequence[str]) -> pd.DataFrame:
    """What each name means: `COLUMNS`, one row per name.

    ``symbol`` is the approved symbol where there is one meaning; ``candidates`` those it may be, joined by ``|``; ``remark`` says what else is
    known: the human gene of a mouse symbol's name, the nearest symbol to one that is unknown.
    """
    return pd.DataFrame([_row(str(name).strip()) for name in names], columns=COLUMNS)


def _row(name: str) -> list[str]:
    known = gene_names()
    meaning = known.meaning(name)
    if meaning.how != "unknown":
        return [
            name,
            WORDS[meaning.how],
            meaning.symbol or "",
            "|".join(meaning.candidates),
            _remark(name, meaning.how),
        ]
    if DATE.match(name):
        return [name, WORDS["date"], "", "", "Take the gene list from its source, not from a spreadsheet"]
    if name in mouse_symbols():
        human = name.upper()
        return [
            name,
            WORDS["mouse"],
            "",
            "",
            f"The human gene of that name is {human}" if human in known.approved else "",
        ]
    if known.meaning(name.upper()).how == "approved":
        return [name, WORDS["unknown"], "", name.upper(), "In capitals it is a gene"]
    return [name, WORDS["unknown"], "", "", nearest(name, _approved()).strip()]


def _remark(name: str, how: str) -> str:
    if how != "ambiguous":
        return ""
    return f"Say which: data.rename={{{name}: SYMBOL}}, or give Ensembl ids"


@lru_cache(maxsize=1)
def _approved() -> tuple[str, ...]:
    return tuple(sorted(gene_names().approved))


def as_lines(found: pd.DataFrame) -> str:
    """The meanings as text, and where they come from."""
    width = max(len(name) for name in found["name"])
    lines = []
    for row in found.itertuples():
        said = f"{row.symbol}  ({row.meaning})" if row.symbol else str(row.meaning)
        if row.candidates:
            said += f": {' or '.join(str(row.candidates).split('|'))}"
        lines.append(f"{row.name:<{width}}  {said}{f'. {row.remark}' if row.remark else ''}")
    return "\n".join([*lines, "", gene_names().origin])


def names_of(path: str) -> list[str]:
    """The gene names of a list, or of an h5ad file."""
    where = Path(path).expanduser()
    if where.is_file() and h5py.is_hdf5(where):
        with open_h5ad(where) as file:
            return [str(name) for name in read_genes(file, where)]
    return read_list(path, "path")


def summary(path: str, found: pd.DataFrame) -> str:
    """How many names of a file are understood, and which need a look."""
    lines = [f"{path}: {len(found):,} names"]
    for word in WORDS.values():
        some = found[found["meaning"] == word]
        if not len(some):
            continue
        shown = [
            f"{r.name} → {r.symbol}" if r.symbol else f"{r.name} ({' or '.join(str(r.candidates).split('|'))})" if r.candidates else str(r.name)
            for r in some.itertuples()
        ]  # fmt: skip
        lines.append(
            f"  {word:<34} {len(some):>7,}" + ("" if word == WORDS["approved"] else f"  {shortlist(shown, 6)}")
        )
    genes = found["symbol"].where(found["symbol"] != "")
    doubled = sorted(set(genes[genes.duplicated()].dropna()))
    if doubled:
        lines.append(f"  {'several names of one gene':<34} {len(doubled):>7,}  {shortlist(doubled, 6)}")
    return "\n".join([*lines, "", gene_names().origin])


def write_csv(found: pd.DataFrame, out: str) -> None:
    """Every decision, one row per name."""
    with written_file(Path(out).expanduser()) as scratch:
        found.to_csv(scratch, index=False)


def update(path: str) -> str:
    """Takes a download of HGNC's complete set into use, for all commands of this user.

    Returns
    -------
    What is used now, and how to go back.
    """
    before = gene_names().approved
    use_table(Path(path).expanduser())
    now = gene_names().approved
    changed = sorted(now ^ before)
    return (
        f"{gene_names().origin}\n{len(now):,} symbols; {len(now - before):,} are new and {len(before - now):,} gone"
        f"{f' ({shortlist(changed, 5)})' if changed else ''}\n"
        f"kept in {own_table()}; without that file vcell uses the table that comes with it"
    )
