"""Words in pictures."""

from __future__ import annotations

from typing import Any


def as_they_are(figure: Any) -> Any:
    """A matplotlib figure whose names are shown letter by letter: between two $ of a name matplotlib would read a formula, and fail on most."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure
