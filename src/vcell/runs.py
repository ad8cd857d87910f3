"""python -m vcell.runs: lists the runs here with their state and scores, and compares them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    import json  # here, so that --help is answered at once
    from pathlib import Path

    from vcell.config import plain
    from vcell.records import compare, listing

    runs = Path(config.runs).expanduser()
    if config.do == "list":
        found = listing.find_runs(runs) if runs.exists() or config.runs != "runs" else []  # none yet is no mistake
        print(json.dumps([run.plain() for run in found], indent=1) if config.json else listing.as_text(found, runs))
        return
    compared = compare.compare([str(name) for name in plain(config.names)], runs)
    print(json.dumps(compared.plain(), indent=1, default=str) if config.json else compare.as_text(compared))
    if config.out:
        from vcell.pages.curves import write_curves

        write_curves(Path(config.out).expanduser(), compared.curves, f"{', '.join(compared.names)}")
        print(f"\ncurves       {config.out}")


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("runs")
