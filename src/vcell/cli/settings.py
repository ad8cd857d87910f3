"""vcell config: shows in what the configurations of runs differ, from each other or from the defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    import json  # here, so that --help is answered at once
    from pathlib import Path

    from vcell.config import plain
    from vcell.errors import VcellError
    from vcell.records.compare import against_defaults, side_by_side, table
    from vcell.records.listing import find_run, read_config

    names = [str(name) for name in plain(config.names)]
    if not names:
        raise VcellError("name one run, to see what it has other than the defaults, or several: vcell config diff A B")
    configs = [read_config(find_run(name, Path(config.runs).expanduser())) for name in names]
    found = against_defaults(configs[0]) if len(names) == 1 else side_by_side(configs)
    heads = ["default", names[0]] if len(names) == 1 else names
    if config.json:
        print(
            json.dumps(
                {key: dict(zip(heads, values, strict=True)) for key, values in found.items()}, indent=1, default=str
            )
        )
    else:
        print(table("key", heads, found) or "no differences")
