"""`metrics.csv` of a run, read; without torch, so that a list of runs is there at once."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from vcell.errors import VcellError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.csv`; none where there is no file yet. A last line that was cut short by a kill is left out.

    Raises
    ------
    VcellError
        If the file holds anything else.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()
        if text.strip() and "step" not in text.splitlines()[0].split(","):
            raise ValueError("it has no column step")
        rows = [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(lines)]
        found = [{**row, "step": int(row["step"])} for row in rows if row]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise VcellError(
            f"{path} is damaged ({type(error).__name__}: {error}): it should hold a run's metrics, one row per step. Move it away, and "
            "the run continues with a new one"
        ) from error
    return found
