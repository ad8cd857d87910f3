"""python -m vcell.doctor: looks at this machine: versions, GPU, memory, disk, and what of it matters for vcell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    import json  # here, so that --help is answered at once
    from pathlib import Path

    from vcell.records.doctor import as_text, examine

    found = examine(Path(config.folder).expanduser(), disk=config.disk)
    print(json.dumps([line.__dict__ for line in found], indent=1) if config.json else as_text(found))


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("doctor")
