"""Finding the files a data set is made of: paths, globs with {a,b}, and STATE's TOML."""

from __future__ import annotations

import glob
import hashlib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcell.errors import VcellError, no_such_file

PIECE, PIECES = 2**16, 64  # bytes, and how many, read to recognise a file


def expand(path: str | Sequence[str], key: str = "data.path") -> list[Path]:
    """Files that `path`, the value of the setting `key`, means: a file, a glob, braces (`a/{x,y}.h5`), or a list of these; sorted, each once.

    Raises
    ------
    VcellError
        Naming every pattern that matches no file, or a link that leads to none.
    """
    patterns = [path] if isinstance(path, str) else list(path)
    found: dict[Path, None] = {}
    missing = []
    for pattern in (alternative for p in patterns for alternative in alternatives(str(Path(p).expanduser()))):
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            missing.append(pattern)
        if broken := [m for m in matches if not Path(m).exists()]:
            raise no_such_file(broken[0], f" Set {key}=FILE.h5ad")
        found.update({Path(m): None for m in matches if Path(m).is_file() or is_zarr(Path(m))})
        folders = [m for m in matches if Path(m).is_dir() and not is_zarr(Path(m))]
        if folders and not any(Path(m).is_file() for m in matches):
            raise VcellError(f"{folders[0]} is a folder. Name the files in it: {key}='{folders[0]}/*.h5ad'")
    if missing:
        raise no_such_file(", ".join(missing), f" Set {key}=FILE.h5ad")
    return list(found)


def alternatives(pattern: str) -> list[str]:
    """A pattern with its braces resolved; the name of an existing file is not a pattern, whatever brackets it contains."""
    return [glob.escape(pattern)] if Path(pattern).exists() else braces(pattern)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return path.is_dir() and any((path / name).is_file() for name in (".zgroup", "zarr.json", ".zmetadata"))


def check_required(data: Any) -> None:
    """A `VcellError` that lists the missing files of a distributed data set, and where to get them."""
    required = data.required or {}
    missing = {name: what for name, what in required.items() if not (Path(data.root) / str(name)).is_file()}
    if missing:
        width = max(len(str(name)) for name in missing)
        listed = "\n".join(f"  {name!s:<{width}}  {what}" for name, what in missing.items())
        raise VcellError(
            f"{len(missing)} of the {len(required)} files of data={data.name} are not in {data.root}/ "
            f"(looked from {Path.cwd()}):\n{listed}\n{data.where}"
        )


def content_of(path: Path) -> str:
    """A fingerprint of a file without reading it all: a checksum of its size and of pieces of it.

    Its beginning, its end and pieces between are read, so that a fresh copy is recognised as the same file, and another file of the same
    length is not.
    """
    if path.is_dir():  # zarr: a file for each chunk
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        listing = "\n".join(f"{p.relative_to(path)} {p.stat().st_size}" for p in inside)
        pieces = [content_of(p) for p in inside[:: max(1, len(inside) // PIECES)]]
        return hashlib.blake2b("\n".join([listing, *pieces]).encode(), digest_size=16).hexdigest()
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for start in sorted({max(0, (size - PIECE) * i // (PIECES - 1)) for i in range(PIECES)}):
            file.seek(start)
            digest.update(file.read(PIECE))
    return digest.hexdigest()


def braces(pattern: str) -> list[str]:
    """`a/{x,y}.h5` as `a/x.h5`, `a/y.h5`; nested braces are not read."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [rest for option in match[1].split(",") for rest in braces(head + option.strip() + tail)]


def read_gene_list(path: str, key: str = "data.genes") -> list[str]:
    """Gene names, one in each row, as the challenge's `gene_names.csv`; a header is skipped."""
    from vcell.data.files.genes import check_unique
    from vcell.data.files.lists import read_list

    genes = read_list(path, key)
    check_unique(genes, path, "Keep one of each")
    return genes


def read_toml(path: str | Path) -> dict[str, Any]:
    """A STATE-style TOML with `[datasets]`, `[training]`, `[zeroshot]` and `[fewshot."ds.celltype"]`.

    Raises
    ------
    VcellError
        If the file is absent, not TOML, or has no `[datasets]`.
    """
    from vcell.data.files.lists import read_text

    try:
        content = tomllib.loads(read_text(path, "data.toml"))
    except tomllib.TOMLDecodeError as error:
        raise VcellError(f"{path} is not TOML: {error}") from error
    if not content.get("datasets"):
        raise VcellError(f'{path} names no data. Add:  [datasets]\n  my_screen = "folder/*.h5ad"')
    unknown = set(content) - {"datasets", "training", "zeroshot", "fewshot"}
    if unknown:
        raise VcellError(f"{path} has unknown tables: {', '.join(sorted(unknown))}")
    for table, form, fits in TABLES:
        entries = content.get(table, {})
        wrong = next((name for name in entries if not fits(entries[name])), None) if isinstance(entries, dict) else ""
        if wrong is not None:
            raise VcellError(f"{path}: [{table}] {wrong + ' ' if wrong else ''}must be written {form}")
    return content


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_lists(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(names, list) and all(map(_is_text, names)) for names in value.values()
    )


TABLES = (  # of a TOML: how their entries are written
    ("datasets", 'NAME = "folder/*.h5ad"', _is_text),
    ("training", 'NAME = "train"', _is_text),
    ("zeroshot", '"NAME.CONTEXT" = "test"', _is_text),
    ("fewshot", '"NAME.CONTEXT" = {val = ["TARGET"], test = ["TARGET"]}', _are_lists),
)


def toml_patterns(path: str | Path) -> list[str]:
    """The file patterns of a TOML's `[datasets]`.

    A relative pattern is taken from the working folder, as STATE takes it; where that has no such folder, from
    the TOML's own folder or the one above it. A pattern that names a folder means the h5 and h5ad files in it.
    """
    path = Path(path)
    patterns = []
    for pattern in read_toml(path)["datasets"].values():
        bases = [Path(), path.parent, path.parent.parent]
        for base in bases:
            candidate = base / Path(str(pattern)).expanduser()
            alternatives = [Path(p) for p in braces(str(candidate))]
            if any(a.exists() or glob.glob(str(a)) for a in alternatives):
                break
        else:
            candidate = Path(str(pattern)).expanduser()
        patterns.append(str(candidate / "*.h5*") if candidate.is_dir() else str(candidate))
    return patterns
