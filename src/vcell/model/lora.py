"""Fine-tuning by low-rank changes of linear maps (LoRA, Hu et al. 2021), through `peft`; a checkpoint of it is read without.

A linear map W becomes W + (alpha / rank) · B A; A and B are trained, W is not. B is 0 at the start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from vcell.errors import VcellError, install

BASE, DOWN, UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def add_lora(model: nn.Module, rank: int, alpha: int, whole: Collection[str]) -> str:
    """Gives every linear map of a network a low-rank change, in place, and freezes all else but `whole`; a line for the log.

    Parameters
    ----------
    rank, alpha
        Of the changes.
    whole
        Parameters that are trained as they are, for they begin untrained.

    Raises
    ------
    VcellError
        If `peft` is not installed, or the numbers are no rank and scale.
    """
    if find_spec("peft") is None:
        raise VcellError(f"finetune=lora needs peft: {install('lora')}")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int) or alpha < 1:
        raise VcellError(f"lora.rank={rank} and lora.alpha={alpha} must be whole numbers of at least 1")
    from peft import LoraConfig, inject_adapter_in_model

    before = {name for name, _ in model.named_parameters()}
    maps = [
        n
        for n, part in model.named_modules()
        if isinstance(part, nn.Linear) and not {f"{n}.weight", f"{n}.bias"} & set(whole)
    ]
    if not maps:
        raise VcellError("finetune=lora finds no linear map to change: all of them begin untrained")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=maps, bias="none"), model)
    for name, parameter in model.named_parameters():
        if name in set(whole) & before:
            parameter.requires_grad_(True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"lora: {trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters are trained, rank {rank}"


def merged(weights: Mapping[str, Tensor], written: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a plain network, whose maps have taken up their changes; of a network without such, as they are.

    Parameters
    ----------
    weights
        By name, as a run left them.
    written
        The configuration that the run wrote.
    """
    if written.get("finetune") != "lora":
        return dict(weights)
    scale = float(written["lora"]["alpha"]) / int(written["lora"]["rank"])
    found = {name.replace(BASE, "."): weight for name, weight in weights.items() if ".lora_" not in name}
    for name, down in weights.items():
        if name.endswith(DOWN):
            linear = name.removesuffix(DOWN)
            found[f"{linear}.weight"] = found[f"{linear}.weight"] + scale * (weights[linear + UP] @ down)
    return found
