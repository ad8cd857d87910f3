"""A page from its template and its data: one file, which opens anywhere."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

HERE = Path(__file__).parent
DIGITS = 6  # of numbers for a page's script
CHARTS = ("d3.min.js", "plot.min.js")


def render(template: str, data: Mapping[str, Any], **words: Any) -> str:
    """The page `template`, with `data` for its script and `words` for its text.

    Text is escaped; `data` may hold numbers, text, lists and dicts, and numpy arrays by `packed`.
    """
    return _environment().get_template(template).render(data=_for_script(data), **words)


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
    made.globals["asset"] = lambda name: Markup(_text(f"templates/{name}"))
    made.globals["charts"] = lambda: Markup("\n".join(_text(f"vendor/{name}") for name in CHARTS))
    return made


@cache
def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _for_script(data: Mapping[str, Any]) -> Markup:
    """JSON that ends no script element, whatever names it holds."""
    return Markup(json.dumps(for_json(data, DIGITS), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def for_json(value: Any, digits: int | None = None) -> Any:
    """For JSON, which has no NaN and no numpy numbers; floats to some significant digits, where pages are to stay small."""
    if isinstance(value, Mapping):
        return {str(key): for_json(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(one, digits) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if not np.isfinite(value) else value if digits is None else float(f"{value:.{digits}g}")
    return value


def packed(array: np.ndarray) -> str:
    """Bytes of an array (int8 or uint8), compressed, as text; the page's script unpacks them."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 6)).decode()
