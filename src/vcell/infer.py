"""python -m vcell.infer: predicts perturbed cells and writes them as h5ad."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from vcell.inference import infer  # here, so that --help and mistyped keys are answered at once

    infer(config)


if __name__ == "__main__":
    from vcell.stopping import listen

    listen("infer")  # before anything is loaded that takes seconds
    from vcell.cli import launch

    launch("infer", run)
