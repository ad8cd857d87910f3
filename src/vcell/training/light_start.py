"""Loads of torchmetrics what Lightning uses: two classes.

`import lightning` imports all of torchmetrics, and with it transformers, scipy.signal, matplotlib and a hundred metrics that nobody
here asks for: a quarter of the time that a command takes to start.
"""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "torchmetrics"
USED = {"Metric": f"{NAME}.metric", "MetricCollection": f"{NAME}.collections"}


class _InPart(ModuleType):
    """torchmetrics with the names that were asked for; any other loads the whole package in its place."""

    def __getattr__(self, name: str) -> Any:
        if name in USED:
            return getattr(importlib.import_module(USED[name]), name)
        if name.startswith("__") or f"{NAME}.{name}" in sys.modules:  # a submodule while it is loaded
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        importlib.reload(sys.modules[f"{NAME}.utilities.plot"])  # with matplotlib
        execute(self)
        return getattr(self, name)


def keep_place(name: str, kind: type[ModuleType]) -> ModuleType | None:
    """A module of some kind, not executed, in the place of one that is not loaded yet; None where that is loaded or not installed."""
    if name in sys.modules or (spec := find_spec(name)) is None:
        return None
    module = sys.modules[name] = module_from_spec(spec)
    module.__class__ = kind
    return module


def execute(module: ModuleType) -> None:
    """Runs a module's own code."""
    assert module.__spec__ is not None and module.__spec__.loader is not None
    module.__spec__.loader.exec_module(module)


def load_in_part() -> None:
    """Has a later `import torchmetrics` load only what is used of it. Does nothing where it is loaded already."""
    if (package := keep_place(NAME, _InPart)) is None:
        return
    package._logger = logging.getLogger(NAME)  # type: ignore[attr-defined]  # its submodules log with it
    package.__version__ = version(NAME)  # type: ignore[attr-defined]  # Lightning compares it
    try:
        _load_without_plots(Path(package.__path__[0]))
    except Exception:  # a version laid out in another way: all of it then
        for loaded in [module for module in sys.modules if module.split(".")[0] == NAME]:
            del sys.modules[loaded]


def _load_without_plots(folder: Path) -> None:
    name = f"{NAME}.utilities.imports"  # by hand: its package loads what it says is there
    spec = spec_from_file_location(name, folder / "utilities" / "imports.py")
    assert spec is not None
    found: Any = module_from_spec(spec)
    sys.modules[name] = found
    execute(found)
    plots, found._MATPLOTLIB_AVAILABLE = found._MATPLOTLIB_AVAILABLE, False
    try:
        importlib.import_module(f"{NAME}.utilities")  # before `metric`, which needs it and is needed by it
        importlib.import_module(f"{NAME}.collections")
    finally:
        found._MATPLOTLIB_AVAILABLE = plots
