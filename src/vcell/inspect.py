"""python -m vcell.inspect: says what an h5ad file holds and how to prepare it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    import json  # here, so that --help is answered at once
    from pathlib import Path

    from vcell.data.files import read_gene_list
    from vcell.inspection.inspect import inspect
    from vcell.inspection.report import describe

    genes = read_gene_list(config.genes, "genes") if config.genes else None
    found = inspect(
        Path(config.path).expanduser(), dict(config.columns), config.control, config.matrix, genes, config.cells
    )
    print(json.dumps(found, indent=1) if config.json else describe(found))


if __name__ == "__main__":
    from vcell.stopping import listen

    listen("inspect")  # before anything is loaded that takes seconds
    from vcell.cli import launch

    launch("inspect", run)
