"""python -m vcell.infer: predicts perturbed cells and writes them as h5ad."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from pathlib import Path  # here, so that --help and mistyped keys are answered at once

    from vcell.config import plain
    from vcell.model.find import find_checkpoint
    from vcell.predict.infer import infer
    from vcell.predict.key import key_of
    from vcell.predict.options import PredictOptions
    from vcell.predict.parts import PartsFolder

    ckpt = find_checkpoint(config.ckpt, config.runs)
    key = key_of("infer", plain(config), ("controls", "targets", "genes", "perturbation"), ckpt)
    parts = PartsFolder(Path(config.out), key)
    infer(PredictOptions.of(config), ckpt, parts, config.devices, config.compression, config.overwrite)


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("infer")
