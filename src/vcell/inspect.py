"""python -m vcell.inspect: reports what an h5ad file contains and how to prepare it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    import json  # here, so that --help is answered at once
    from pathlib import Path

    from vcell.data.files.paths import read_gene_list
    from vcell.inspection.inspect import inspect
    from vcell.inspection.report import as_text

    genes = read_gene_list(config.genes, "genes") if config.genes else None
    found = inspect(
        Path(config.path).expanduser(), dict(config.columns), config.control, config.matrix, genes, config.cells
    )
    print(json.dumps(found, indent=1) if config.json else as_text(found))


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("inspect")
