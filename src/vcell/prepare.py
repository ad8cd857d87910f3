"""python -m vcell.prepare: reads h5ad files once into a cell store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from vcell.data.store.ensure import describe_store, ensure_store  # here, so that --help is answered at once
    from vcell.data.store.options import StoreOptions

    options = StoreOptions.of(config.data)
    print(describe_store(ensure_store(options, config.overwrite, verify=config.verify or None, **config.prepare)))


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("prepare")
