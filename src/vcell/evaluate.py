"""python -m vcell.evaluate: scores a prediction with the official scorer, beside three baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from vcell.score.evaluation import evaluate  # here, so that --help and mistyped keys are answered at once

    evaluate(config)


if __name__ == "__main__":
    from vcell.stopping import listen

    listen("evaluate")  # before anything is loaded that takes seconds
    from vcell.cli import launch

    launch("evaluate", run)
