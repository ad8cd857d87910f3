"""Executes the code of a notebook in this process, its commands included: a kernel, and a process for each command, take a minute.

`python -m tests.notebook NOTEBOOK` runs it; `python -m tests.notebook NOTEBOOK FILE.json` also keeps what a reader would see of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nbformat

from vcell.cli.main import main


def command(verb: str, *arguments: str, watch: str | None = None) -> None:
    """What the notebook's own `vcell` does, without a process."""
    sys.argv = [verb, *arguments]
    main(verb)


def code_of(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def execute(path: Path) -> None:
    namespace: dict[str, Any] = {}
    for source in code_of(path):
        exec(compile(source, "cell", "exec"), namespace)
        if "vcell" in namespace:
            namespace["vcell"] = command


def formatted(shell: Any, value: Any) -> dict[str, str]:
    return {kind: str(text)[:10_000] for kind, text in shell.display_formatter.format(value)[0].items()}


def shown(path: Path) -> list[dict[str, Any]]:
    """For each cell what it prints, and what a notebook shows of its last line, by MIME type."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell, found = InteractiveShell.instance(), list[dict[str, Any]]()
    values: list[Any] = []
    shell.display_trap.hook = values.append  # what else would be printed
    for source in code_of(path):
        values.clear()
        with capture_output(display=False) as printed:
            shell.run_cell(source).raise_error()
        types = {kind: text for value in values if value is not None for kind, text in formatted(shell, value).items()}
        found.append({"printed": printed.stdout + printed.stderr, "types": types})
    return found


if __name__ == "__main__":
    notebook, *out = map(Path, sys.argv[1:])
    if out:
        out[0].write_text(json.dumps(shown(notebook)))
    else:
        execute(notebook)
