"""Loads torch's compiler when something is compiled, not before.

`import lightning`, every optimizer and torch's count of FLOPs import `torch._dynamo`, which takes far longer to load than Lightning itself. They
ask it for three things, which do nothing where nothing is compiled; these are given here. Whatever else is asked for loads the compiler, in
the place that was kept for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import RLock
from types import FunctionType, ModuleType
from typing import Any

from vcell.training.light_start import execute, keep_place

NAME = "torch._dynamo"
LOADING, PATIENCE = RLock(), 60  # seconds


class _Late(ModuleType):
    """The compiler, not loaded yet."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") and _load(self):
            return getattr(self, name)
        raise AttributeError(f"module {NAME!r} has no attribute {name!r}")


def _compiler() -> ModuleType | None:
    """The compiler, if it is loaded."""
    module = sys.modules.get(NAME)
    return None if type(module) is _Late else module


class _Compiled(type):
    """Knows what is compiled by asking the compiler, once that is loaded."""

    def __instancecheck__(cls, found: Any) -> bool:
        return (compiler := _compiler()) is not None and isinstance(found, compiler.OptimizedModule)


class OptimizedModule(metaclass=_Compiled):
    """A compiled network: for `isinstance`, which is all that Lightning uses it for."""


def disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
    """A function that the compiler leaves alone: the function itself, until there is a compiler."""
    if not isinstance(fn, FunctionType):
        module = sys.modules[NAME]
        _load(module)
        return module.disable(fn, recursive, **options)
    left_alone: list[Callable[..., Any]] = []

    @wraps(fn)
    def run(*args: Any, **named: Any) -> Any:
        if not left_alone:
            if (compiler := _compiler()) is None:
                return fn(*args, **named)
            left_alone.append(compiler.disable(fn, recursive, **options))
        return left_alone[0](*args, **named)

    return run


def graph_break(msg: str = "") -> None:
    """Does nothing where nothing is compiled."""


class _Parts(MetaPathFinder):
    """Loads the compiler before any module of it is imported, as Python does with packages that are not there yet."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{NAME}."):
            return None
        _load(sys.modules[NAME])
        return ModuleSpec(fullname, _There(sys.modules[fullname])) if fullname in sys.modules else None


class _There(Loader):
    """Gives a module that was loaded while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


PARTS = _Parts()
EARLY = (OptimizedModule, disable, graph_break)


def _load(module: ModuleType) -> bool:
    """Loads the compiler in the place that was kept for it. False while it is being loaded: within that, and to threads that waited long enough
    to be what it waits for."""
    if not LOADING.acquire(timeout=PATIENCE):
        return False
    try:
        if PARTS in sys.meta_path:
            sys.meta_path.remove(PARTS)
            for early in EARLY:
                delattr(module, early.__name__)
            execute(module)
            module.__class__ = ModuleType
    except BaseException:  # a half of it must not be taken for the whole, as with any other import
        sys.modules.pop(NAME, None)
        raise
    finally:
        LOADING.release()
    return type(module) is not _Late


def load_compiler_late() -> None:
    """Keeps the compiler's place until it is asked for. Does nothing where it is loaded already."""
    if (module := keep_place(NAME, _Late)) is None:
        return
    for early in EARLY:
        setattr(module, early.__name__, early)
    sys.meta_path.insert(0, PARTS)
