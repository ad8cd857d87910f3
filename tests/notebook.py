"""Executes the code of a notebook in this process, its commands included: a kernel, and a process for each command, take a minute."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat

from vcell.cli.main import main


def command(verb: str, *arguments: str, watch: str | None = None) -> None:
    """What the notebook's own `vcell` does, without a process."""
    sys.argv = [verb, *arguments]
    main(verb)


if __name__ == "__main__":
    namespace: dict[str, Any] = {}
    for cell in nbformat.read(Path(sys.argv[1]), as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "cell", "exec"), namespace)
            if "vcell" in namespace:
                namespace["vcell"] = command
