"""Targets a few at a time: what is worked out of all genes of them stays in the processor's cache, and all cores take part.

Arrays of thousands of targets by all genes are hundreds of megabytes each; to have room for another from the system takes longer than to
fill it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from vcell.system import in_threads

VALUES = 250_000  # of a block
Result = TypeVar("Result")


def by_targets(function: Callable[[slice], Result], n_targets: int, n_genes: int) -> list[Result]:
    """`function` of rows of ``(targets, genes)``, block by block, on all cores."""
    return list(in_threads(function, blocks(n_targets, n_genes)))


def blocks(n_targets: int, n_genes: int) -> list[slice]:
    """Rows of ``(targets, genes)``, some at a time."""
    step = max(1, VALUES // max(1, n_genes))
    return [slice(first, min(first + step, n_targets)) for first in range(0, n_targets, step)]


def one_array(parts: list[np.ndarray]) -> np.ndarray:
    """What blocks gave, one after the other; nothing of no blocks."""
    return np.concatenate(parts) if parts else np.zeros(0)
