"""python -m vcell.prepare: reads h5ad files once into a cell store."""

from omegaconf import DictConfig

from vcell.cli import launch


def run(config: DictConfig) -> None:
    from vcell.data.prepare import describe_store, ensure_store  # here, so that --help is answered at once

    print(describe_store(ensure_store(config.data, config.overwrite, **config.prepare)))


if __name__ == "__main__":
    launch("prepare", run)
