"""Elements of an HDF5 file: found by name whatever links lead there, and looked at before they are used, for a file may hold anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vcell.errors import VcellError

DAMAGED = "the file is damaged, or was written in part"
NUMBERS = "biuf"  # kinds of numpy types


def element(file: h5py.Group, name: str, path: Path) -> Any:
    """An element of a file, whatever links lead to it.

    Raises
    ------
    VcellError
        If it is not there, or a link on the way leads nowhere, in a circle, or out of the file's folder.
    """
    here: Any = file
    for piece in _pieces(name):
        if not isinstance(here, h5py.Group) or not _linked(here, piece):
            raise VcellError(f"{path}: {_full(file, name)} is not there: {DAMAGED}")
        link = here.get(piece, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            target = (path.parent / link.filename).resolve()
            inside = path.parent.resolve() in target.parents
            if not inside and os.environ.get("VCELL_EXTERNAL_LINKS") != "allow":
                raise VcellError(
                    f"{path}: {_full(file, name)} lies in another file, {link.filename}, outside its folder; it is not opened. If you "
                    "trust it: export VCELL_EXTERNAL_LINKS=allow"
                )
        try:
            here = here[piece]
        except (KeyError, OSError, RuntimeError) as error:
            where = f" to {link.path}" if isinstance(link, h5py.SoftLink | h5py.ExternalLink) else ""
            raise VcellError(
                f"{path}: {_full(file, name)} is a link{where} that leads nowhere, or is damaged ({error}). Write the file again"
            ) from error
    return here


def has(file: h5py.Group, name: str) -> bool:
    """Whether there is an element or a link of that name, wherever it leads."""
    here: Any = file
    pieces = _pieces(name)
    for piece in pieces[:-1]:
        if not isinstance(here, h5py.Group) or not _linked(here, piece):
            return False
        try:
            here = here[piece]
        except (KeyError, OSError, RuntimeError):  # a link that leads nowhere
            return False
    return bool(pieces) and isinstance(here, h5py.Group) and _linked(here, pieces[-1])


def members(file: h5py.Group, name: str, path: Path) -> list[str]:
    """Names of what the group `name` holds; none where there is no such group."""
    if not has(file, name):
        return []
    node = element(file, name, path)
    return list(node) if isinstance(node, h5py.Group) else list(node.dtype.names or ())  # anndata before 0.7: a table


def array(group: h5py.Group, name: str, path: Path, kinds: str = "") -> h5py.Dataset:
    """A list of values in a file: an array of one dimension.

    Parameters
    ----------
    kinds
        Of numpy types that its values may have; empty: those of numbers and of text.

    Raises
    ------
    VcellError
        If it is not there or something else.
    """
    node = element(group, name, path)
    if not isinstance(node, h5py.Dataset) or node.shape is None or node.ndim != 1:
        kind = f"an array of shape {node.shape}" if isinstance(node, h5py.Dataset) else "a group"
        raise VcellError(f"{path}: {_full(group, name)} is {kind}, not a list of values: {DAMAGED}")
    text = h5py.check_string_dtype(node.dtype) is not None
    if node.dtype.kind not in (kinds or NUMBERS) and (kinds or not text):
        wanted = "not numbers" if kinds else "neither text nor numbers"
        raise VcellError(f"{path}: {_full(group, name)} holds values of type {node.dtype}, {wanted}")
    return node


def attribute(node: h5py.Group | h5py.Dataset, name: str, path: Path) -> Any:
    """An attribute of an element, bytes as text; None where it has none."""
    try:
        value = node.attrs.get(name)
        value = value.decode() if isinstance(value, bytes) else value
    except (OSError, UnicodeError, TypeError) as error:
        raise VcellError(
            f"{path}: {node.name.strip('/')}: its attribute {name} cannot be read ({error}): {DAMAGED}"
        ) from error
    return None if isinstance(value, h5py.Empty) else value


def names_in(value: Any) -> list[str]:
    """The names that an attribute lists."""
    return [
        name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in np.ravel(value).tolist()
    ]


def _pieces(name: str) -> list[str]:
    return [piece for piece in name.split("/") if piece]


def _full(group: h5py.Group, name: str) -> str:
    """A name as seen from the file's root."""
    return "/".join([*_pieces(group.name or ""), *_pieces(name)])


def _linked(group: h5py.Group, name: str) -> bool:
    """Whether a group has a link of that name; h5py's own test passes over those that lead nowhere."""
    return bool(group.id.links.exists(name.encode()))
