"""python -m vcell.table: looks at a table of gene vectors: names, nearest neighbours, what it covers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    import json  # here, so that --help is answered at once
    from pathlib import Path

    from vcell.config import plain
    from vcell.errors import VcellError
    from vcell.inspection import tables

    if config.do != "show":
        raise VcellError(f"vcell table {config.do}: it has show")
    found = tables.look_at(config.path, [str(gene) for gene in plain(config.genes)], config.neighbours, config.of)
    if config.plot:
        tables.plot(found, Path(config.plot).expanduser())
    print(json.dumps(found.plain(), indent=1) if config.json else found.text())


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("table")
