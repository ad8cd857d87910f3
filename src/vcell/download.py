"""python -m vcell.download: fetches public data sets, gene lists and embedding tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from pathlib import Path  # here, so that --help is answered at once

    from vcell.config import plain
    from vcell.downloads.catalogue import as_text, read_catalogue
    from vcell.downloads.fetch import download

    catalogue = read_catalogue(config.catalogue)
    names = [str(name) for name in plain(config.names)]
    if not names:
        print(as_text(catalogue))
        return
    download(catalogue, names, Path(config.out).expanduser(), config.dry_run, config.retries)


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("download")
