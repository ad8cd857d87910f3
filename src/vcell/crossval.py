"""python -m vcell.crossval: trains, predicts and scores fold by fold."""

from omegaconf import DictConfig

from vcell.cli import launch


def run(config: DictConfig) -> None:
    from vcell.folds import crossval  # here, so that --help and mistyped keys are answered at once

    crossval(config)


if __name__ == "__main__":
    launch("crossval", run)
