"""What a model costs: parameters, FLOPs and memory, without running it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vcell.config import build

BYTES_A_PARAMETER = 16  # float32: weight, gradient, and AdamW's two moments


def batch_flops(model_config: Any, sizes: dict[str, Any], sets: int, cells: int) -> int:
    """FLOPs of the model for a batch, forward and backward, without those that save memory by computing again."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build({**model_config, "checkpoint_activations": False}, **sizes)
        control_SCG = torch.empty(sets, cells, sizes["n_genes"])
        embedding_SCE = torch.empty(sets, cells, sizes["input_width"]) if sizes["input_width"] else None
        context_S = torch.zeros(sets, dtype=torch.int64)
        batch_SC = torch.zeros(sets, cells, dtype=torch.int64)
        vectors_SP = torch.empty(sets, sizes["perturbation_width"])
        model(control_SCG, vectors_SP, embedding_SCE, context_S, batch_SC).sum().backward()
    return counter.get_total_flops()


def words(number: float) -> str:
    """A count in the unit that suits: 1.2 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number:,.0f} "
