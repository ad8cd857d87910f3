"""python -m vcell.infer: predicts perturbed cells and writes them as h5ad."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from vcell.predict.infer import infer  # here, so that --help and mistyped keys are answered at once

    infer(config)


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("infer")
