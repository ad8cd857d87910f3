"""python -m vcell.evaluate: scores a prediction with the official scorer, next to baselines and the noise ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    # imported here, so that --help and mistyped keys are answered at once
    from vcell.score.painter import painter

    if config.pictures:
        painter()  # which gets ready while the scores' own modules are loaded
    from vcell.score.evaluation import evaluate
    from vcell.score.options import ScoreOptions

    evaluate(ScoreOptions.of(config))


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("evaluate")
