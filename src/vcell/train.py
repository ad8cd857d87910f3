"""python -m vcell.train: trains a model, or continues a run."""

from omegaconf import DictConfig

from vcell.cli import launch


def run(config: DictConfig) -> None:
    from vcell.training import train  # here, so that --help and mistyped keys are answered at once

    train(config)


if __name__ == "__main__":
    launch("train", run)
