"""Steps of a network in bf16 on processors, each as few passes over memory and with its gradient written out.

Plain torch makes a pass of each operation and another of each of its gradients, most of them from float32 copies: with matrix units (AMX),
two thirds of a training step would be spent on those.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

PARTS = 64  # sums that a norm's weights are added up in, whatever the number of threads
NORM_EPS = 1e-6  # added to mean squares
LARGEST_SHARES = 2**27  # bytes of attention's shares that are kept for the gradient


@cache
def _has_team() -> bool:
    from vcell.model.torch_threads import team

    return team() is not None


def fuses(x: Tensor, weight: Tensor | None = None) -> bool:
    """Whether loops of our own take `x`, and a weight in float32: bf16 in memory, outside of `torch.compile`, where torch's threads take loops."""
    return (
        _is_plain(x, torch.bfloat16)
        and (weight is None or _is_plain(weight, torch.float32))
        and not torch.compiler.is_compiling()
        and _has_team()
    )


def _is_plain(x: Tensor, dtype: torch.dtype) -> bool:
    """Numbers in memory: no fake ones, and none spread over machines."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.dtype == dtype and x.numel() > 0


def _run(loop: str, rows: int, *told: Tensor | int) -> None:
    """Runs one of `cpu_kernels`, which are compiled, or loaded, when the first is asked for."""
    from vcell.model import cpu_kernels, torch_threads

    torch_threads.run(getattr(cpu_kernels, loop), rows, *told)


def gated(gate_up_NF: Tensor, out_NH: Tensor) -> None:
    """``out = silu(gate) * up`` of rows that hold gate and up one after the other."""
    _run("gated", *out_NH.shape, gate_up_NF, out_NH)


def gated_gradient(gradient_NH: Tensor, gate_up_NF: Tensor, into_NF: Tensor) -> None:
    """The gradient of `gated` by its rows, from that by its result."""
    _run("gated_gradient", *gradient_NH.shape, gate_up_NF, gradient_NH, into_NF)


class Normed(torch.autograd.Function):
    """Rows over their root mean square, times weights in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        rows = x.numel() // len(weight)
        out, scales = torch.empty_like(x), torch.empty(rows)
        _run("normed", rows, len(weight), x, weight, out, scales)
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, scales = ctx.saved_tensors
        into, parts = torch.empty_like(x), min(PARTS, len(scales))
        by_weight = torch.empty(parts, len(weight))
        told = len(weight), len(scales), x, weight, scales, gradient.contiguous(), into, by_weight
        _run("normed_gradient", parts, *told)
        return into, by_weight.sum(0)


class Dropped(torch.autograd.Function):
    """Numbers of which a share is set to 0. Which ones depends on torch's generator alone; they are drawn again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.told = *torch.randint(2**32, (2,)).tolist(), round(share * 2**32)
        return _dropped(x.contiguous(), ctx.told)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _dropped(gradient.contiguous(), ctx.told), None


def _dropped(x: Tensor, told: tuple[int, ...]) -> Tensor:
    out = torch.empty_like(x)
    _run("dropped", x.numel(), x, out, *told)
    return out


def attends(qkv_SC3HK: Tensor) -> bool:
    """Whether attention goes the way of `Attended`: to train, where its shares are few enough to be kept."""
    sets, cells, _, heads, _ = qkv_SC3HK.shape
    return torch.is_grad_enabled() and fuses(qkv_SC3HK) and 2 * sets * heads * cells**2 <= LARGEST_SHARES


class Attended(torch.autograd.Function):
    """Attention of each cell of a set to all, from ``(sets, cells, 3, heads, width of a head)`` to ``(sets, cells, heads x width)``.

    Scores are float32. Torch's own kernel for processors takes twice as long for the gradient of a few hundred cells.
    """

    @staticmethod
    def forward(ctx: Any, qkv_SC3HK: Tensor) -> Tensor:
        sets, cells, _, heads, width = qkv_SC3HK.shape
        qkv_3NCK = qkv_SC3HK.permute(2, 0, 3, 1, 4).reshape(3, sets * heads, cells, width)
        query_NCK, key_NCK, value_NCK = qkv_3NCK
        with torch.autocast("cpu", enabled=False):  # scores need float32
            scores_NCC = query_NCK.float() @ key_NCK.float().mT
        share_NCC = torch.empty_like(scores_NCC, dtype=torch.bfloat16)
        _run("softmax", sets * heads * cells, cells, width, scores_NCC, share_NCC)
        ctx.save_for_backward(qkv_3NCK, share_NCC)
        return _beside(torch.bmm(share_NCC, value_NCK), sets)

    @staticmethod
    def backward(ctx: Any, gradient_SCD: Tensor) -> Tensor:
        qkv_3NCK, share_NCC = ctx.saved_tensors
        query_NCK, key_NCK, value_NCK = qkv_3NCK
        (n, cells, width), sets = query_NCK.shape, len(gradient_SCD)
        by_out_NCK = gradient_SCD.reshape(sets, cells, -1, width).transpose(1, 2).reshape(n, cells, width)
        by_score_NCC = torch.bmm(by_out_NCK, value_NCK.mT)
        _run("softmax_gradient", n * cells, cells, width, share_NCC, by_score_NCC, by_score_NCC)
        into_3NCK = torch.empty_like(qkv_3NCK)
        torch.bmm(by_score_NCC, key_NCK, out=into_3NCK[0])
        torch.bmm(by_score_NCC.mT, query_NCK, out=into_3NCK[1])
        torch.bmm(share_NCC.mT, by_out_NCK, out=into_3NCK[2])
        return into_3NCK.view(3, sets, -1, cells, width).permute(1, 3, 0, 2, 4).contiguous()


def _beside(heads_NCK: Tensor, sets: int) -> Tensor:
    """Heads side by side, ``(sets, cells, heads x width)``."""
    n, cells, width = heads_NCK.shape
    return heads_NCK.view(sets, n // sets, cells, width).transpose(1, 2).reshape(sets, cells, -1)
