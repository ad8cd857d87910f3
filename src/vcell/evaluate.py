"""python -m vcell.evaluate: scores a prediction with the official scorer, beside three baselines."""

from omegaconf import DictConfig

from vcell.cli import launch


def run(config: DictConfig) -> None:
    from vcell.score.evaluation import evaluate  # here, so that --help and mistyped keys are answered at once

    evaluate(config)


if __name__ == "__main__":
    launch("evaluate", run)
