"""The error shown to users: what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk says


class VcellError(Exception):
    """Bad input, said in one message without a traceback; commands exit with code 2."""


def nearest(name: str, known: Iterable[str], label: str = "Did you mean") -> str:
    """A sentence naming the closest of `known`, or an empty string where none is close.

    Examples
    --------
    >>> nearest("non-targetting", ["non-targeting", "STAT1"])
    " Did you mean 'non-targeting'?"
    """
    known = [str(k) for k in known]
    lowered = {k.lower(): k for k in reversed(known)}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return f" {label} {lowered[close[0]]!r}?" if close else ""


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
