"""python -m vcell.package: checks a prediction against a challenge's rules and writes the .vcc."""

from omegaconf import DictConfig

from vcell.cli import launch


def run(config: DictConfig) -> None:
    from vcell.packaging import package  # here, so that --help and mistyped keys are answered at once

    package(config)


if __name__ == "__main__":
    launch("package", run)
