"""Pickles of arrays, numbers, text and dicts of these, read without calling anything that they name."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import numpy as np

from vcell.data.files.elements import NUMBERS
from vcell.errors import VcellError


class _Kind:
    """A numpy type as a pickle describes it. Only its name is looked at: numpy itself would take the rest for true, and crash where it is not."""

    def __init__(self, name: str, *_: Any) -> None:
        self.found = np.dtype(str(name))
        if self.found.kind not in NUMBERS:
            raise ValueError(f"values of type {name}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.found = self.found.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """An array as a pickle describes it: its shape, type and bytes."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        self.values = np.frombuffer(content, kind.found).reshape(shape, order="F" if by_columns else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values.astype(dtype or self.values.dtype)


def _of_bytes(content: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(content, kind.found).reshape(shape, order="F" if order == "F" else "C")


def _number(kind: _Kind, content: bytes) -> Any:
    return np.frombuffer(content, kind.found)[0]


def _as_bytes(text: str, encoding: str) -> bytes:
    """Bytes as the oldest pickles write them."""
    return text.encode("latin-1")


class PlainUnpickler(pickle.Unpickler):
    """Reads arrays, numbers, text and dicts of these; anything else a pickle names is refused, not called."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "numpy.ndarray": _Array, "numpy.dtype": _Kind, "numpy.core.multiarray._reconstruct": _Array, "numpy.core.multiarray.scalar": _number,
            "numpy.core.numeric._frombuffer": _of_bytes, "collections.OrderedDict": OrderedDict, "_codecs.encode": _as_bytes,
        }  # fmt: skip
        found = known.get(f"{module.replace('numpy._core', 'numpy.core')}.{name}")
        if found is None:
            raise VcellError(
                f"the pickle asks for {module}.{name}, and loading it could run code. Save a plain dict from gene to tensor instead: "
                "torch.save({gene: tensor, ...}, path)"
            )
        return found
