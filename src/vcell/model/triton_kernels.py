"""Passes over all cells and genes of a step as one kernel each, where plain torch makes several; used by `fused`.

What plain torch rounds on its way to a result is rounded here too.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # numbers at a time


def add_relu(base_NG: Tensor, change_NG: Tensor, out_NG: Tensor) -> None:
    """``out = max(0, base + change)``; rows of `change` may lie further apart than they are long."""
    rows, genes = base_NG.shape
    _add_relu[(triton.cdiv(genes, BLOCK), rows)](base_NG, change_NG, out_NG, genes, change_NG.stride(0), BLOCK=BLOCK)


@triton.jit
def _add_relu(base, change, out, genes, stride, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    gene = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = gene < genes
    total = tl.load(base + row * genes + gene, mask=here, other=0.0)
    total += tl.load(change + row * stride + gene, mask=here, other=0.0).to(tl.float32)
    tl.store(out + row * genes + gene, tl.where(total <= 0.0, 0.0, total), mask=here)  # NaN is not <= 0, and must show


def relu_gradient(gradient: Tensor, out: Tensor, into: Tensor) -> None:
    """``into = gradient`` where ``out`` is above 0, else 0; all contiguous."""
    n = out.numel()
    _relu_gradient[(triton.cdiv(n, BLOCK),)](gradient, out, into, n, BLOCK=BLOCK)


@triton.jit
def _relu_gradient(gradient, out, into, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < n
    kept = tl.where(tl.load(out + at, mask=here, other=0.0) <= 0.0, 0.0, tl.load(gradient + at, mask=here, other=0.0))
    tl.store(into + at, kept.to(into.dtype.element_ty), mask=here)


def centred(x_SCG: Tensor, y_SCG: Tensor, centre_SG: Tensor, z_SZG: Tensor) -> None:
    """``z = [x - centre, y - centre]`` along the cells, rounded to z's precision; all contiguous."""
    sets, cells, genes = z_SZG.shape
    _centred[(triton.cdiv(genes, BLOCK), cells, sets)](
        x_SCG, y_SCG, centre_SG, z_SZG, genes, x_SCG.shape[1], y_SCG.shape[1], BLOCK=BLOCK
    )


@triton.jit
def _centred(x, y, centre, z, genes, n_x, n_y, BLOCK: tl.constexpr):
    cell, one = tl.program_id(1), tl.program_id(2).to(tl.int64)
    gene = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = gene < genes
    if cell < n_x:
        value = tl.load(x + (one * n_x + cell) * genes + gene, mask=here, other=0.0)
    else:
        value = tl.load(y + (one * n_y + cell - n_x) * genes + gene, mask=here, other=0.0)
    difference = value - tl.load(centre + one * genes + gene, mask=here, other=0.0)
    tl.store(z + (one * (n_x + n_y) + cell) * genes + gene, difference.to(z.dtype.element_ty), mask=here)


def gated(gate_up_NF: Tensor, out_NH: Tensor) -> None:
    """``out = silu(gate) * up`` of rows that hold gate and up one after the other."""
    rows, width = out_NH.shape
    _gated[(triton.cdiv(width, BLOCK), rows)](gate_up_NF, out_NH, width, BLOCK=BLOCK)


@triton.jit
def _gated(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < width
    gate = tl.load(gate_up + row * 2 * width + at, mask=here, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + at, mask=here, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + at, (silu * up).to(out.dtype.element_ty), mask=here)


def gated_gradient(gradient_NH: Tensor, gate_up_NF: Tensor, into_NF: Tensor) -> None:
    """The gradient of `gated` by its rows, from that by its result."""
    rows, width = gradient_NH.shape
    _gated_gradient[(triton.cdiv(width, BLOCK), rows)](gradient_NH, gate_up_NF, into_NF, width, BLOCK=BLOCK)


@triton.jit
def _gated_gradient(gradient, gate_up, into, width, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < width
    gate = tl.load(gate_up + row * 2 * width + at, mask=here, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + at, mask=here, other=0.0).to(tl.float32)
    given = tl.load(gradient + row * width + at, mask=here, other=0.0).to(tl.float32)
    share = 1.0 / (1.0 + tl.exp(-gate))
    silu = (gate * share).to(into.dtype.element_ty).to(tl.float32)
    by_silu = (given * up).to(into.dtype.element_ty).to(tl.float32)
    by_gate = by_silu * share * (1.0 + gate * (1.0 - share))
    tl.store(into + row * 2 * width + at, by_gate.to(into.dtype.element_ty), mask=here)
    tl.store(into + row * 2 * width + width + at, (given * silu).to(into.dtype.element_ty), mask=here)
