"""Lists and tables of text: CSV and similar formats, as spreadsheets and programs write them in any locale. One reader for all commands.

Encoding (UTF-8 with or without a byte-order mark, UTF-16, Windows code pages), separator (comma, semicolon, tab) and header are
detected; names are stripped; labels stay text, so that a batch ``01`` is not a number and a gene ``NA`` is not missing.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vcell.errors import VcellError, nearest, no_such_file, shortlist

HEADERS = {
    "gene", "genes", "gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "symbols", "hgnc_symbol", "feature_name", "features",
    "feature", "var_names", "index", "name", "names", "gene_id", "gene_ids", "target_gene", "x", "v1", "0",
}  # fmt: skip
SEPARATORS = ",;\t|"
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: str | Path, key: str = "FILE") -> str:
    """The text of a file, whatever its encoding.

    Parameters
    ----------
    key
        The configuration key that named it, for messages.

    Raises
    ------
    VcellError
        If it is absent, a folder, or no text.
    """
    path = Path(path).expanduser()
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except FileNotFoundError as error:
        raise no_such_file(path, f" Set {key}") from error
    except IsADirectoryError as error:
        raise VcellError(f"{path} is a folder, not a file. Set {key}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise VcellError(f"{path} cannot be read: {error}") from error
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data[:4096]:
        raise VcellError(f"{path} is not a text file. Set {key}")
    for name in [encoding] if encoding else ["utf-8", "cp1252", "latin-1"]:
        try:
            return data.decode(name).replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError:
            continue
    raise VcellError(f"{path} cannot be read as text ({encoding}). Save it as CSV UTF-8")


def read_rows(path: str | Path, key: str = "FILE") -> list[list[str]]:
    """The rows of a table, cells stripped; lines without anything are left out.

    Raises
    ------
    VcellError
        If it cannot be read.
    """
    text = read_text(path, key)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        separator = _separator(lines)
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
        if len(rows) < len(lines):  # a quoted cell of several lines, or one that never ends
            for _ in csv.reader(lines, delimiter=separator, strict=True):
                pass
    except csv.Error as error:
        why = 'a quotation mark (") is opened and never closed' if "unexpected end" in str(error) else error
        raise VcellError(f"{path} cannot be read as a table: {why}") from error
    return [row for row in rows if any(row)]


def _separator(lines: Sequence[str]) -> str:
    """The separator that splits the first lines alike, into the most columns."""
    some = lines[:20]
    best, most = ",", 0
    for separator in SEPARATORS:
        counts = {len(row) for row in csv.reader(some, delimiter=separator)}
        if len(counts) == 1 and (n := counts.pop()) > 1 and n > most:
            best, most = separator, n
    if not most and some:  # rows of several lengths: whatever the header has
        best = max(SEPARATORS, key=some[0].count)
    return best


def read_list(path: str | Path, key: str) -> list[str]:
    """Names, one in each row, with or without a header; of several columns the one that holds them.

    Raises
    ------
    VcellError
        If the file cannot be read, or names nothing.
    """
    rows = read_rows(path, key)
    column = 0
    if rows and len(rows[0]) > 1:
        header = [cell.lower() for cell in rows[0]]
        named = [i for i, cell in enumerate(header) if cell in HEADERS - {"0", "x", "v1", "index"}]
        named.sort(key=lambda i: "id" in header[i].split("_"))  # symbols before ids
        numbers = all(row[0].isdigit() for row in rows[1:] if row)  # what pandas writes for an index
        column = named[0] if named else 1 if numbers and len(rows) > 1 else 0
    names = [row[column] for row in rows if len(row) > column and row[column]]
    if (
        names
        and names[0].lower() in HEADERS
        and (len(names) == 1 or names[0].lower() not in {n.lower() for n in names[1:]})
    ):
        names = names[1:]
    if not names:
        raise VcellError(f"{path} is empty: it should hold one name per line. Set {key}")
    return names


def read_table(
    path: str | Path, key: str, wanted: str, known: Sequence[str] = (), other: Mapping[str, str | None] | None = None
) -> pd.DataFrame:
    """A table with a header as text, its columns stripped.

    Parameters
    ----------
    wanted
        A column that must be there. A file of a single column without a header is taken for it.
    known
        Further columns that mean something; all others are named on the screen, and not read.
    other
        What a column may be called instead, where there is none of its name.

    Raises
    ------
    VcellError
        If the file cannot be read, has no such column, or a row longer than the header.
    """
    rows = read_rows(path, key)
    if not rows:
        raise VcellError(f"{path} is empty. Set {key}")
    header = [cell.strip() for cell in rows[0]]
    if len(rows) > 1 and all(len(row) == len(header) + 1 and row[0].isdigit() for row in rows[1:]):
        header = ["", *header]  # R numbers the rows, and leaves the corner out
    for number, row in enumerate(rows[1:], 2):
        if any(row[len(header) :]):
            raise VcellError(f"{path}: row {number} has {len(row)} cells, the header {len(header)}")
    lowered = {name.lower(): i for i, name in enumerate(header)}
    for name, instead in (other or {}).items():
        if instead is not None and instead.lower() in lowered and name.lower() not in lowered:
            header[lowered[instead.lower()]] = name
            lowered[name.lower()] = lowered[instead.lower()]
    if wanted.lower() not in lowered:
        if len(header) == 1 and all(len(row) == 1 for row in rows) and header[0].lower() not in HEADERS:
            return pd.DataFrame({wanted: [row[0] for row in rows]}, dtype=object)
        if len(header) == 1 and header[0].lower() in HEADERS:
            lowered[wanted.lower()] = 0
        else:
            raise VcellError(f"{path} has no column {wanted}.{nearest(wanted, header)} It has: {shortlist(header)}")
    found = {}
    for name in (wanted, *known):
        at = lowered.get(name.lower())
        if at is not None:
            found[name] = [row[at] if at < len(row) else "" for row in rows[1:]]
    others = [name for name in header if name and name.lower() not in {n.lower() for n in (wanted, *known)}]
    if others and len(header) > 1:
        print(f"note         {path}: the columns {shortlist(others)} are not known here and are ignored", flush=True)
    table = pd.DataFrame(found, dtype=object)
    return table[table[wanted] != ""].reset_index(drop=True)


def numbers(values: pd.Series) -> pd.Series:
    """Text as numbers, NaN where it is none; a decimal comma is one where there is no point."""
    text = values.astype(str).str.strip()
    return pd.to_numeric(
        text.where(text.str.contains(".", regex=False), text.str.replace(",", ".", regex=False)), errors="coerce"
    )


def read_matrix(path: str | Path, key: str) -> pd.DataFrame:
    """A table of numbers with names in its first row; columns of text stay text.

    Raises
    ------
    VcellError
        If it cannot be read, or its rows differ in length.
    """
    rows = read_rows(path, key)
    if len(rows) < 2:
        raise VcellError(f"{path} {'has a header but no rows' if rows else 'is empty'}")
    while len(rows[0]) > 1 and not any(row[-1] for row in rows):  # a comma at the end of each line
        rows = [row[:-1] for row in rows]
    header = rows[0]
    if len(rows[1]) == len(header) + 1:  # R leaves the corner out
        header = ["", *header]
    uneven = [i + 1 for i, row in enumerate(rows[1:], 1) if len(row) != len(header)]
    if uneven:
        raise VcellError(f"{path}: row {uneven[0]} has {len(rows[uneven[0] - 1])} cells, the header {len(header)}")
    columns = list(zip(*rows[1:], strict=True))
    parsed = [_parsed(pd.Series(column, dtype=object)) for column in columns]
    frame = pd.concat(parsed, axis=1)
    frame.columns = pd.Index(header)
    return frame


def _parsed(column: pd.Series) -> pd.Series:
    found = numbers(column)
    empty = column.str.strip().str.lower().isin(["", "nan", "na", "inf", "-inf"])
    if (found.isna() & ~empty).any() or (empty.all() and len(column)):
        return column
    return found.astype(np.float64)
