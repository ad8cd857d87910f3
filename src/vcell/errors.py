"""The error shown to users: what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Hashable, Iterable
from importlib.metadata import PackageNotFoundError, requires
from math import inf
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any

MOST_SEED = 2**32 - 1  # that all libraries take
MOST_AT_ONCE = 4_096  # threads, processes and devices: some other number was meant
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk says


class VcellError(Exception):
    """Bad input, said in one message without a traceback; commands exit with code 2."""


def nearest(name: Any, known: Iterable[str], label: str = "Did you mean") -> str:
    """A sentence naming the closest of `known`, or an empty string where none is close.

    Examples
    --------
    >>> nearest("non-targetting", ["non-targeting", "STAT1"])
    " Did you mean 'non-targeting'?"
    """
    known = [str(k) for k in known]
    lowered = {k.lower(): k for k in reversed(known)}
    close = difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.6)
    return f" {label} {lowered[close[0]]!r}?" if close else ""


def typed(value: Any) -> str:
    """A value as one would type it: null, true."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def check_choice(key: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuses a value of the setting `key` that is none of `choices`."""
    known = list(choices)
    if not isinstance(value, Hashable) or value not in known:
        words = ", ".join(map(typed, known))
        hint = nearest(value, [c for c in known if isinstance(c, str)]) if isinstance(value, str) else ""
        raise VcellError(f"{key}={typed(value)} must be one of {words}{'.' if hint else ''}{hint}")


def check_ending(key: str, path: Any, endings: Iterable[str], advice: str = "") -> None:
    """Refuses the name of a file to be written, the setting `key`, that ends as another kind of file does; an empty ending is none."""
    known = list(endings)
    if PurePath(str(path)).suffix.lower() not in known:
        named = [ending for ending in known if ending]
        words = named[0] if len(named) == 1 else f"one of {', '.join(named)}"
        raise VcellError(f"{key}={path} must end in {words}{advice}")


def check_number(
    key: str, value: Any, least: float, most: float = inf, *, whole: bool = True, above: bool = False, other: str = ""
) -> None:
    """Refuses a value of the setting `key` that is no number within bounds.

    Parameters
    ----------
    least, most
        The bounds, which are allowed themselves; with `above`, `least` is not. Minus infinity: there is none.
    whole
        Whether it has to be a whole number.
    other
        What else may be set, for the message: ``auto``.
    """
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if number and (value > least or (value == least and not above)) and value <= most and abs(value) != inf:
        return
    if least == -inf:
        bounds = ""
    elif most == inf:
        bounds = f"above {least:,}" if above else f"of at least {least:,}"
    else:
        bounds = f"above {least:,}, at most {most:,}" if above else f"from {least:,} to {most:,}"
    kind = "a whole number" if whole else "a number"
    alternative = f" or {other}" if other else ""
    written = isinstance(value, float) and whole and value.is_integer()  # 1e4 is no whole number to YAML
    hint = f". Write {int(value)}" if written else ""
    raise VcellError(f"{key}={typed(value)} must be {f'{kind} {bounds}'.strip()}{alternative}{hint}")


def no_such_file(path: str | PurePath, advice: str = "", what: str = "file") -> VcellError:
    """The error for a file that is not there, or a link that leads to none; `advice` begins with a blank and is whole sentences."""
    link = Path(path).is_symlink()
    text = f"{path} is a link that leads to no file" if link else f"no such {what}: {path} (looked from {Path.cwd()})"
    return VcellError(f"{text}.{advice}" if advice else text)


def install(extra: str) -> str:
    """How to install what an optional part of vcell needs: its packages by name, since vcell itself is not in a package index."""
    try:
        needed = [r for r in requires("vcell") or [] if re.search(rf"extra == ['\"]{extra}['\"]", r)]
    except PackageNotFoundError:
        needed = []
    packages = [repr(r.split(";")[0].replace(" ", "")) for r in needed]
    return f"pip install {' '.join(packages)}" if packages else f"install vcell with its extra {extra}"


def shortlist(names: Iterable[str], limit: int = 8) -> str:
    """`names` joined by commas, the tail counted: "A, B, C and 12 more"."""
    names = [str(n) for n in names]
    if len(names) <= limit:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit:,} more"
