"""What all pictures have in common: names as they are, and margins."""

from __future__ import annotations

import warnings
from typing import Any


def as_they_are(figure: Any) -> Any:
    """A matplotlib figure whose names are shown letter by letter: between two $ of a name matplotlib would read a formula, and fail on most.

    A letter that its font lacks is drawn as a box, without a warning for each.
    """
    from matplotlib.text import Text

    warnings.filterwarnings("ignore", message="Glyph .* missing from font")
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def margins(figure: Any, left: float, right: float, bottom: float, top: float, **between: float) -> None:
    """Room around the axes of a matplotlib figure, in inches. To have matplotlib find out how much is needed takes as long as drawing.

    `between`: room between axes, `wspace` and `hspace`, as parts of one.
    """
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, **between)
