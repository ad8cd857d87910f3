"""python -m vcell.infer: predicts perturbed cells and writes them as h5ad."""

from omegaconf import DictConfig

from vcell.cli import launch


def run(config: DictConfig) -> None:
    from vcell.inference import infer  # here, so that --help and mistyped keys are answered at once

    infer(config)


if __name__ == "__main__":
    launch("infer", run)
