"""python -m vcell.package: checks a prediction against a challenge's rules and writes the .vcc."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from vcell.packaging import package  # here, so that --help and mistyped keys are answered at once

    package(config)


if __name__ == "__main__":
    from vcell.stopping import listen

    listen("package")  # before anything is loaded that takes seconds
    from vcell.cli import launch

    launch("package", run)
