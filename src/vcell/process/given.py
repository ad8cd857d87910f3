"""What a caller from Python gives: names, files, settings and switches, as plain values, and refused in one line where they are something else.

Names come as lists, tuples, arrays, indexes, columns of a table or categories; a number is a name, as on the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from os import PathLike, fspath
from typing import Any

from vcell.errors import VcellError


def as_name(key: str, value: Any) -> str:
    """One name: of an obs column, a label, or a file.

    Raises
    ------
    VcellError
        For what is no name.
    """
    value = _scalar(value)
    if (name := _name(value)) is None:
        raise VcellError(f"{key} must be one name, not {_what(value)}")
    if not name:
        raise VcellError(f"{key} must be one name, and is empty")
    return name


def as_name_or_none(key: str, value: Any) -> str | None:
    """The same, where None means that there is none."""
    return None if value is None else as_name(key, value)


def as_names(key: str, value: Any) -> list[str] | None:
    """One name or several, as a list; None stays None.

    Raises
    ------
    VcellError
        For what holds no names, or one thing among them that is none.
    """
    value = _scalar(value)
    if value is None:
        return None
    if (name := _name(value)) is not None:
        return [name]
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        table = ". Give one column of the table" if getattr(value, "ndim", 1) == 2 else ""
        raise VcellError(f"{key} must be a name or a list of names, not {_what(value)}{table}")
    found: list[str] = []
    for number, one in enumerate(value, 1):
        if (name := _name(_scalar(one))) is None:
            raise VcellError(f"{key} must be names, and number {number} of them is {_what(one)}")
        found.append(name)
    return sorted(found) if isinstance(value, set | frozenset) else found


def as_names_or_file(key: str, value: Any) -> str | list[str] | None:
    """A file by its name, as text, or names as a list; None stays None."""
    value = _scalar(value)
    return fspath(value) if isinstance(value, str | PathLike) else as_names(key, value)


def as_switch(key: str, value: Any) -> bool:
    """True or False: words such as "false" would count as True."""
    value = _scalar(value)
    if isinstance(value, bool):
        return value
    raise VcellError(f"{key} must be True or False, not {_what(value)}")


def check_switches(**given: Any) -> None:
    """Refuses those that are neither True nor False."""
    for key, value in given.items():
        as_switch(key, value)


def as_part(key: str, value: Any) -> Any:
    """An object that takes the place of a part: a network, a loss, a sampler, or what makes one."""
    if callable(value):
        return value
    raise VcellError(f"{key} must be a name, or an object or class that can be called, not {_what(value)}")


def as_mapping(key: str, value: Any) -> dict[str, Any]:
    """Values by their names; none where nothing is given."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise VcellError(f"{key} must be a dict of names and values, not {_what(value)}")
    return {name: as_plain(one) for name, one in value.items()}


def as_plain(value: Any) -> Any:
    """A value as a configuration holds it: numbers and arrays of numpy, columns of pandas, paths and tuples as Python's own and lists."""
    value = _scalar(value)
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {name: as_plain(one) for name, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(as_plain, value), key=str)
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1:
        return [as_plain(one) for one in value]
    return value


def _scalar(value: Any) -> Any:
    """A single value of numpy or torch as Python's own."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _name(value: Any) -> str | None:
    if isinstance(value, str | PathLike):
        return str(value)
    return str(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _what(value: Any) -> str:
    """A value for a message: itself where it is short, else what it is."""
    short = repr(value) if value is None or isinstance(value, str | bool | int | float | bytes) else ""
    return short if 0 < len(short) <= 40 else f"a value of type {type(value).__name__}"
