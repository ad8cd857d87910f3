"""Cells in memory as a file: what reads h5ad files then reads an AnnData too, with the same checks."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from vcell.errors import VcellError, no_such_file

if TYPE_CHECKING:  # it takes half a second to load, and most commands only read files
    from anndata import AnnData

Given: TypeAlias = "str | Path | AnnData"


def is_anndata(cells: Any) -> TypeGuard[AnnData]:
    """Whether these are cells in memory."""
    anndata = sys.modules.get("anndata")  # not loaded: nobody can have made one
    return anndata is not None and isinstance(cells, anndata.AnnData)


def given_list(cells: Any) -> list[Given]:
    """Cells given as one or as several, as a list.

    Raises
    ------
    VcellError
        If they are neither, or there are none.
    """
    if isinstance(cells, str | Path) or is_anndata(cells):
        return [cells]
    if not isinstance(cells, Iterable):
        raise VcellError(
            f"cells must be given as a path, an AnnData, or a list of these, not as {type(cells).__name__}"
        )
    found = list(cells)
    if not found:
        raise VcellError("no cells are given")
    return found


@contextmanager
def as_file(cells: Given, name: str = "cells.h5ad") -> Iterator[Path]:
    """The path of a file of these cells: the one given, or one written for as long as the block runs.

    Raises
    ------
    VcellError
        If they are neither a path nor an AnnData, if there is no such file, or if they cannot be written as one.
    """
    if isinstance(cells, str | Path):
        path = Path(cells).expanduser()
        if cells == "":
            raise VcellError("the name of a file of cells is empty")
        try:
            path.stat()
        except FileNotFoundError as error:
            raise no_such_file(path) from error
        except (OSError, ValueError) as error:  # too long a name, or one with a null byte
            why = getattr(error, "strerror", None) or error
            raise VcellError(f"{str(path)[:60]} cannot be read: {why}") from error
        yield path
        return
    if not is_anndata(cells):
        raise VcellError(f"cells must be given as a path or as an AnnData, not as {type(cells).__name__}")
    with tempfile.TemporaryDirectory(prefix="vcell-cells-") as folder:
        path = Path(folder) / name
        try:
            cells.write_h5ad(path)
        except Exception as error:  # of anndata: a column or an entry of uns that h5ad cannot hold
            raise VcellError(f"the AnnData cannot be written as h5ad: {error}") from error
        yield path
