"""python -m vcell.simulate: writes a simulated screen with known truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from pathlib import Path  # here, so that --help is answered at once

    from vcell.config import plain
    from vcell.data.simulation.screen import Screen
    from vcell.data.simulation.write import simulate

    out = Path(config.out)
    arguments = {key: value for key, value in plain(config).items() if key != "out"}
    simulate(out, Screen(**arguments))
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        print(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("simulate")
