"""Who draws the pictures of a report, while scoring goes on."""

from __future__ import annotations

from functools import cache

from vcell.process.helper import Helper
from vcell.system import cores


@cache
def painter() -> Helper:
    """A process of its own, where there is a core for it: drawing is Python's work, and would hold up the scores."""
    modules = "vcell.score.figures", "matplotlib.figure", "matplotlib.backends.backend_agg"
    return Helper(*modules) if cores() > 1 else Helper()
