"""python -m vcell.train: trains a model, or continues a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from vcell.training import train  # here, so that --help and mistyped keys are answered at once

    train(config)


if __name__ == "__main__":
    from vcell.stopping import listen

    listen("train")  # before anything is loaded that takes seconds
    from vcell.cli import launch

    launch("train", run)
