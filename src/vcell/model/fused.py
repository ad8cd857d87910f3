"""Steps of network and loss that pass over all cells and genes, each as one kernel on a GPU with Triton, and as plain torch elsewhere.

Such passes are bound by memory: a step at full size has 37 million numbers a tensor. `torch.compile` fuses them by itself, and gets the plain form.
Those of activations in bf16 are loops of our own on processors too (`fused_cpu`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from vcell.data.gather import has_kernel
from vcell.model import fused_cpu


def changed(base_SCG: Tensor, change_SCG: Tensor) -> Tensor:
    """``max(0, base + change)``: cells changed and not negative, float32 as `base` is; gradients reach `change` alone if fused."""
    if base_SCG.requires_grad or base_SCG.dtype != torch.float32 or not fuses(base_SCG, change_SCG):
        return (base_SCG + change_SCG).relu()
    return _Changed.apply(base_SCG, change_SCG)


def gated(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up``, where gate and up are the halves of the last axis (SwiGLU)."""
    if not (fuses(gate_up) or fused_cpu.fuses(gate_up)):
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up
    return _Gated.apply(gate_up)


def centred(x_SCG: Tensor, y_SCG: Tensor, dtype: torch.dtype) -> Tensor:
    """The cells of both sets relative to the mean of the second, ``(sets, cells of both, genes)``, rounded to `dtype` after that.

    Squared norms of near-equal cells are then small, and their difference keeps its digits.
    """
    n_x, n_y = x_SCG.shape[1], y_SCG.shape[1]
    centre = y_SCG.mean(1, keepdim=True)
    if torch.compiler.is_compiling():  # it makes one pass of this by itself
        return torch.cat([x_SCG - centre, y_SCG - centre], 1).to(dtype)
    z_SZG = x_SCG.new_empty(len(x_SCG), n_x + n_y, x_SCG.shape[2], dtype=dtype)
    if fuses(x_SCG, y_SCG):
        from vcell.model.triton_kernels import centred as fill

        fill(x_SCG.contiguous(), y_SCG.contiguous(), centre, z_SZG)
    else:
        torch.sub(x_SCG, centre, out=z_SZG[:, :n_x])
        torch.sub(y_SCG, centre, out=z_SZG[:, n_x:])
    return z_SZG


def float32_product(a: Tensor, b: Tensor) -> Tensor:
    """Products of matrices ``(rows, columns)``, or of several ``(sets, rows, columns)``, float32 whatever their factors are in."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # CPUs have no such product; the numbers are the same


def fuses(*tensors: Tensor) -> bool:
    """Whether kernels of our own take these: on a GPU, where Triton works, outside of `torch.compile`."""
    return (
        all(t.is_cuda and t.numel() for t in tensors)
        and not torch.compiler.is_compiling()
        and has_kernel(tensors[0].device)
    )


class _Changed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base_SCG: Tensor, change_SCG: Tensor) -> Tensor:
        from vcell.model.triton_kernels import add_relu

        base_SCG, genes = base_SCG.contiguous(), base_SCG.shape[-1]
        if change_SCG.stride(-1) != 1 or change_SCG.stride(-3) != change_SCG.shape[-2] * change_SCG.stride(-2):
            change_SCG = change_SCG.contiguous()
        out_SCG = torch.empty_like(base_SCG)
        change_NG = change_SCG.as_strided((base_SCG.numel() // genes, genes), (change_SCG.stride(-2), 1))
        add_relu(base_SCG.view(-1, genes), change_NG, out_SCG.view(-1, genes))
        ctx.save_for_backward(out_SCG)
        ctx.dtype = change_SCG.dtype
        return out_SCG

    @staticmethod
    def backward(ctx: Any, gradient_SCG: Tensor) -> tuple[None, Tensor]:
        from vcell.model.triton_kernels import relu_gradient

        (out_SCG,) = ctx.saved_tensors
        into_SCG = torch.empty_like(out_SCG, dtype=ctx.dtype)
        relu_gradient(gradient_SCG.contiguous(), out_SCG, into_SCG)
        return None, into_SCG


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        width = gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], width)
        ctx.kernels = _kernels(gate_up)
        ctx.kernels.gated(gate_up.view(-1, 2 * width), out.view(-1, width))
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        into, width = torch.empty_like(gate_up), gate_up.shape[-1] // 2
        gradient_NH = gradient.contiguous().view(-1, width)
        ctx.kernels.gated_gradient(gradient_NH, gate_up.view(-1, 2 * width), into.view(-1, 2 * width))
        return into


def _kernels(x: Tensor) -> Any:
    """What has `gated` and its gradient for tensors like `x`."""
    if fused_cpu.fuses(x):
        return fused_cpu
    from vcell.model import triton_kernels

    return triton_kernels
