"""python -m vcell.package: checks a prediction against a challenge's rules and writes the .vcc."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from vcell.submission.options import PackageOptions  # here, so that --help is answered at once
    from vcell.submission.package import package

    package(PackageOptions.of(config))


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("package")
