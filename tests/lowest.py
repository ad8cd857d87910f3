"""Prints the lowest version that pyproject.toml allows of every direct dependency, as constraints for pip.

    python tests/lowest.py > lowest.txt && pip install --constraint lowest.txt --editable '.[score,dev]' && pytest

shows that the lower bounds hold (what uv calls --resolution lowest-direct). `--but torch==2.13.0` sets one differently.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
BOUND = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(?:>=|==)\s*([0-9][^,;\s]*)")


def lowest(extras: bool = True) -> dict[str, str]:
    """The lowest version of each package by its name."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    if extras:
        wanted += [one for group in project["optional-dependencies"].values() for one in group]
    found = {}
    for requirement in wanted:
        if match := BOUND.match(requirement):
            found[match[1].lower()] = match[2]
    return found


if __name__ == "__main__":
    changed = dict(argument.split("==") for argument in sys.argv[1:] if "==" in argument)
    print("\n".join(f"{name}=={version}" for name, version in sorted({**lowest(), **changed}.items())))
