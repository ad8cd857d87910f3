"""The list of data sets: ours, and entries that a user adds or replaces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

import yaml

from vcell.errors import VcellError, nearest

OURS = Path(__file__).with_name("catalogue.yaml")
CHECKSUM = re.compile(r"(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})")
SCHEMES = ("http", "https", "file")


@dataclass(frozen=True)
class RemoteFile:
    """One file: its address, and what is known of it.

    Attributes
    ----------
    name
        What it is called here.
    bytes
        Its size; None: not known.
    checksum
        ``md5:...`` or ``sha256:...``; None: none was published.
    unpack
        Of a zip: True for everything in it, or the names of some members.
    """

    url: str
    name: str
    bytes: int | None = None
    checksum: str | None = None
    unpack: bool | tuple[str, ...] = False


@dataclass(frozen=True)
class Dataset:
    """One entry of the list. `by_hand` says what a person has to do where no address leads to the files."""

    name: str
    title: str
    licence: str
    page: str
    files: tuple[RemoteFile, ...]
    next: str | None = None
    by_hand: str | None = None

    @property
    def bytes(self) -> int | None:
        """Of all its files; None where one is not known."""
        sizes = [file.bytes for file in self.files]
        return None if not sizes or None in sizes else sum(size for size in sizes if size)


def read_catalogue(more: str | Path | None = None) -> dict[str, Dataset]:
    """Our list, with the entries of the YAML file `more` added to it or in place of ours.

    Raises
    ------
    VcellError
        If the file cannot be read, naming the entry and what is wrong with it.
    """
    found = _read(OURS)
    if more is not None:
        found |= _read(Path(more).expanduser())
    return found


def _read(path: Path) -> dict[str, Dataset]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise VcellError(f"catalogue={path} cannot be read as YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise VcellError(f"catalogue={path} must hold entries, NAME: {{title: ..., licence: ..., files: [...]}}")
    return {str(name): _dataset(str(name), entry, path) for name, entry in content.items()}


def _dataset(name: str, entry: Any, path: Path) -> Dataset:
    where = f"catalogue={path}, entry {name}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise VcellError(f"{where}: the name becomes a folder, so it may have letters, digits, - _ and . only")
    _check_keys(where, entry, Dataset, required=("title", "licence"))
    files = entry.get("files") or []
    if not isinstance(files, list) or (not files and not entry.get("by_hand")):
        raise VcellError(f"{where}: files must be a list of {{url: ...}}")
    return Dataset(
        name=name,
        title=str(entry["title"]),
        licence=str(entry["licence"]),
        page=str(entry.get("page") or ""),
        files=tuple(_file(file, f"{where}, file {i + 1}") for i, file in enumerate(files)),
        next=entry.get("next"),
        by_hand=entry.get("by_hand"),
    )


def _file(entry: Any, where: str) -> RemoteFile:
    _check_keys(where, entry, RemoteFile, required=("url",))
    url = str(entry["url"])
    if urlparse(url).scheme not in SCHEMES:
        raise VcellError(f"{where}: url={url} must begin with {', '.join(s + '://' for s in SCHEMES)}")
    name = str(entry.get("name") or unquote(PurePosixPath(urlparse(url).path).name))
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise VcellError(f"{where}: {name!r} is no name of a file; set name: FILE")
    size, checksum, unpack = entry.get("bytes"), entry.get("checksum"), entry.get("unpack") or False
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise VcellError(f"{where}: bytes={size} must be a whole number")
    if checksum is not None and not CHECKSUM.fullmatch(str(checksum).lower()):
        raise VcellError(f"{where}: checksum={checksum} must be md5: and 32, or sha256: and 64 hexadecimal digits")
    return RemoteFile(
        url, name, size, None if checksum is None else str(checksum).lower(),
        tuple(map(str, unpack)) if isinstance(unpack, list) else bool(unpack),
    )  # fmt: skip


def _check_keys(where: str, entry: Any, kind: type, required: tuple[str, ...]) -> None:
    if not isinstance(entry, dict):
        raise VcellError(f"{where}: it must be a set of keys, as in {OURS.name}")
    known = [field.name for field in fields(kind) if field.name != "name" or kind is RemoteFile]
    for key in entry:
        if key not in known:
            raise VcellError(f"{where} has no key {key!r}.{nearest(str(key), known)} Keys: {', '.join(known)}")
    for key in required:
        if not entry.get(key):
            raise VcellError(f"{where}: {key} is missing")


def chosen(catalogue: Mapping[str, Dataset], names: list[str]) -> list[Dataset]:
    """The entries called `names`.

    Raises
    ------
    VcellError
        For a name that is not in the list, with the nearest one; for one without files, with what to do by hand.
    """
    for name in names:
        if name not in catalogue:
            raise VcellError(
                f"there is no data set {name!r}.{nearest(name, catalogue)} vcell download shows the list; entries of your own: "
                "catalogue=FILE.yaml"
            )
        if not catalogue[name].files:
            entry = catalogue[name]
            raise VcellError(f"{name} has to be fetched by hand, from {entry.page}: {entry.by_hand}")
    return [catalogue[name] for name in dict.fromkeys(names)]


def size_text(number: int | None) -> str:
    """Bytes for people, in decimal units as servers and disks state them."""
    if number is None:
        return "size unknown"
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def as_text(catalogue: Mapping[str, Dataset]) -> str:
    """The list for the terminal."""
    width = max(len(name) for name in catalogue)
    lines = []
    for entry in catalogue.values():
        size = "by hand" if entry.by_hand else size_text(entry.bytes)
        lines += [
            f"{entry.name:<{width}}  {size:>12}  {entry.title}",
            f"{'':<{width + 16}}{entry.licence}; {entry.page}",
        ]
    return "\n".join(
        [*lines, "", "Fetch one: vcell download NAME    First see what it would do: vcell download NAME --dry-run"]
    )
