"""python -m vcell.inspect: says what an h5ad file holds and how to prepare it."""

from omegaconf import DictConfig

from vcell.cli import launch


def run(config: DictConfig) -> None:
    import json  # here, so that --help is answered at once
    from pathlib import Path

    from vcell.data.files import read_gene_list
    from vcell.inspection.inspect import inspect
    from vcell.inspection.report import describe

    genes = read_gene_list(config.genes) if config.genes else None
    found = inspect(
        Path(config.path).expanduser(), dict(config.columns), config.control, config.matrix, genes, config.cells
    )
    print(json.dumps(found, indent=1) if config.json else describe(found))


if __name__ == "__main__":
    launch("inspect", run)
