"""python -m vcell.crossval: trains, predicts and scores fold by fold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from vcell.folds import crossval  # here, so that --help and mistyped keys are answered at once

    crossval(config)


if __name__ == "__main__":
    from vcell.stopping import listen

    listen("crossval")  # before anything is loaded that takes seconds
    from vcell.cli import launch

    launch("crossval", run)
