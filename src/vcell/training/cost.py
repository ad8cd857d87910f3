"""The cost of a model: FLOPs and memory, without running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

BYTES_PER_PARAMETER = 16  # float32: weight, gradient, and AdamW's two moments


def load_ahead() -> None:
    """Loads what torch needs for `batch_flops`, sympy, while other work goes on."""
    Thread(target=import_module, args=("sympy",), daemon=True).start()


def batch_flops(make: Callable[[], nn.Module], sizes: Mapping[str, Any], sets: int, cells: int) -> int:
    """FLOPs of a network for a batch, forward and backward, without those that save memory by computing again.

    `make` is called with a device that holds no values; 0 for a custom network that cannot do without them.
    """
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model = make().to("meta")
            model.checkpoint_activations = False  # type: ignore[assignment]
            control_SCG = torch.empty(sets, cells, sizes["n_genes"])
            embedding_SCE = torch.empty(sets, cells, sizes["input_width"]) if sizes["input_width"] else None
            context_S = torch.zeros(sets, dtype=torch.int64)
            batch_SC = torch.zeros(sets, cells, dtype=torch.int64)
            vectors_SP = torch.empty(sets, sizes["perturbation_width"])
            said = model(control_SCG, vectors_SP, embedding_SCE, context_S, batch_SC)
            torch.stack([part.sum() for part in ((said,) if isinstance(said, Tensor) else said)]).sum().backward()
        return int(counter.get_total_flops())
    except (RuntimeError, NotImplementedError):
        return 0


def words(number: float) -> str:
    """A count in the unit that suits: 1.2 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number:,.0f} "
