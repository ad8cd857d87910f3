"""The key of a command's result: a checksum of its configuration and of the files it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcell import __version__
from vcell.config import may_change
from vcell.data.files.paths import content_of, expand
from vcell.errors import VcellError


def key_of(verb: str, resolved: dict[str, Any], files: Sequence[str], *more: Path) -> str:
    """A checksum of the configuration, and of the content of the files that it names under the keys `files`."""
    what = {key: value for key, value in resolved.items() if not may_change(verb, key)}
    paths = list(more)
    for value in (resolved[key] for key in files):
        named = [value] if isinstance(value, str) else value or []
        paths += [path for name in named for path in _files(name)]
    states = [[path.name, content_of(path)] for path in paths]
    return hashlib.blake2b(json.dumps([__version__, what, states], sort_keys=True).encode(), digest_size=16).hexdigest()


def _files(name: str) -> list[Path]:
    try:
        return expand(name)
    except VcellError:  # a target's name, or a file whose absence is said where it is read
        return []
