"""Parts of the transition model: an MLP, a covariate's embedding, and attention without positions.

Shape legend: S sets, C cells of a set, D hidden, H heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import pad, rms_norm, scaled_dot_product_attention

from vcell.errors import VcellError
from vcell.model import fused_cpu
from vcell.model.fused import float32_product, gated

ENCODERS = ("joint", "each")


ALIGNED = 8  # numbers: rows of this many begin at addresses that matrix units load from (16 bytes) in half precision


class Linear(nn.Linear):
    """A linear layer whose gradients keep float32's digits on a GPU in half precision, and whose rows may be of any length there.

    Matrix units add up in float32; plain torch rounds the weights' gradient to half precision nevertheless, to cast it back. And it
    multiplies slowly where rows begin at addresses that those units cannot load from, as with an odd number of genes. Both cost passes over all
    weights or cells.
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` with weights in float32, as `Linear` says."""
    if not in_half_precision(x) or torch.compiler.is_compiling():
        return functional.linear(x, weight, bias)
    return _HalfLinear.apply(x, weight, bias, torch.get_autocast_dtype(x.device.type))


def in_half_precision(x: Tensor) -> bool:
    return x.device.type == "cuda" and torch.is_autocast_enabled("cuda")


class _HalfLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            rows_NI = _padded(x.reshape(-1, x.shape[-1]).to(dtype), 0)
            half_OI = _padded(weight.to(dtype), -len(weight) % ALIGNED)
            half_O = None if bias is None else pad(bias.to(dtype), (0, -len(bias) % ALIGNED))
            out = functional.linear(rows_NI, half_OI, half_O)[:, : len(weight)].unflatten(0, x.shape[:-1])
        ctx.save_for_backward(rows_NI, half_OI)
        ctx.width, ctx.dtypes = weight.shape, (x.dtype, weight.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, half_OI = ctx.saved_tensors
        (n_out, n_in), (x_dtype, weight_dtype) = ctx.width, ctx.dtypes
        with torch.autocast(gradient.device.type, enabled=False):
            by_out_NO = _padded(gradient.reshape(-1, n_out).to(half_OI.dtype), 0)
            by_x = by_weight = by_bias = None
            if ctx.needs_input_grad[0]:
                by_x = (by_out_NO @ half_OI)[:, :n_in].unflatten(0, gradient.shape[:-1]).to(x_dtype)
            if ctx.needs_input_grad[1]:
                by_weight = float32_product(by_out_NO.t(), rows_NI)[:n_out, :n_in].to(weight_dtype).contiguous()
            if ctx.needs_input_grad[2]:
                by_bias = by_out_NO.sum(0, dtype=torch.float32)[:n_out].to(weight_dtype)
        return by_x, by_weight, by_bias, None


def _padded(rows: Tensor, more: int) -> Tensor:
    """`more` rows of zeros below, and as many columns as rows need to begin at good addresses."""
    pads = -rows.shape[-1] % ALIGNED, more
    return pad(rows, (0, pads[0], 0, pads[1])) if any(pads) else rows


def mlp(width_in: int, hidden: int, width_out: int, layers: int, dropout: float) -> nn.Sequential:
    """`layers` linear layers with GELU and dropout between them; one layer is a plain linear map."""
    widths = [width_in, *[hidden] * (layers - 1), width_out]
    parts: list[nn.Module] = []
    for i in range(layers):
        parts.append(Linear(widths[i], widths[i + 1]))
        if i < layers - 1:
            parts += [nn.GELU(), Dropout(dropout)]
    return nn.Sequential(*parts)


class Dropout(nn.Dropout):
    """Sets a share of its input to 0 in training; in bf16 on processors without a mask in memory, and without drawing on one core alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and fused_cpu.fuses(x):
            return fused_cpu.Dropped.apply(x, self.p)
        return super().forward(x)


class SeveralEncoders(nn.Module):
    """An encoder for each part of a vector, whose outputs add up; `widths` are those of the parts."""

    def __init__(self, widths: Sequence[int], hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.widths = list(widths)
        self.encoders = nn.ModuleList(mlp(width, hidden, hidden, layers, dropout) for width in self.widths)

    def forward(self, vectors_SP: Tensor) -> Tensor:
        parts = vectors_SP.split(self.widths, -1)
        return torch.stack([encoder(part) for encoder, part in zip(self.encoders, parts, strict=True)]).sum(0)


def vector_encoder(
    which: str, width: int, parts: Sequence[int] | None, hidden: int, layers: int, dropout: float
) -> nn.Module:
    """The encoder of a perturbation's vector: one for all of it (``joint``), or for ``each`` of its parts."""
    if which not in ENCODERS:
        raise VcellError(f"model.table_encoders={which} must be {' or '.join(ENCODERS)}")
    if which == "each" and parts is not None and len(parts) > 1:
        return SeveralEncoders(parts, hidden, layers, dropout)
    return mlp(width, hidden, hidden, layers, dropout)


class Covariate(nn.Module):
    """Embeddings of `number` known values; the number after the last stands for any other, and gets their mean."""

    def __init__(self, number: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(number, hidden))

    def forward(self, index: Tensor) -> Tensor:
        return torch.cat([self.weight, self.weight.mean(0, keepdim=True)])[index]


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm in the precision of its input, with sums in float32.

    With float32 weights and bf16 input torch has no fused kernel; and autocast would cast input, weights and result to and fro.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden, eps=fused_cpu.NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        if fused_cpu.fuses(x, self.weight):
            return fused_cpu.Normed.apply(x, self.weight)
        with torch.autocast(x.device.type, enabled=False) if x.device.type in ("cpu", "cuda") else nullcontext():
            return rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Every cell of a set attends to every other. Nothing marks a cell's place, so cells may come in any order."""

    def __init__(self, hidden: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.query_key_value = Linear(hidden, 3 * heads * head_width, bias=False)
        self.out = Linear(heads * head_width, hidden, bias=False)

    def forward(self, x_SCD: Tensor) -> Tensor:
        sets, cells, _ = x_SCD.shape
        plain = type(self.query_key_value) is type(self.out) is Linear  # not wrapped, as LoRA does
        # a GPU's kernels take heads of certain widths, and would copy others to pad them, forward and backward; projections are much smaller
        more = -self.head_width % ALIGNED if plain and in_half_precision(x_SCD) else 0
        qkv = self._into_heads(x_SCD, more).view(sets, cells, 3, self.heads, self.head_width + more)
        if not more and fused_cpu.attends(qkv):
            return self.out(fused_cpu.Attended.apply(qkv))
        query_SHCK, key_SHCK, value_SHCK = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_SHCK = scaled_dot_product_attention(query_SHCK, key_SHCK, value_SHCK, scale=self.head_width**-0.5)
        return self._out_of_heads(mixed_SHCK.transpose(1, 2).reshape(sets, cells, -1), more)

    def _into_heads(self, x_SCD: Tensor, more: int) -> Tensor:
        """Queries, keys and values of all heads, each with `more` zeros."""
        if not more:
            return self.query_key_value(x_SCD)
        weight = self.query_key_value.weight
        wide = pad(weight.view(-1, self.head_width, weight.shape[1]), (0, 0, 0, more))
        return linear(x_SCD, wide.view(-1, weight.shape[1]))

    def _out_of_heads(self, mixed: Tensor, more: int) -> Tensor:
        if not more:
            return self.out(mixed)
        weight = self.out.weight
        return linear(mixed, pad(weight.view(-1, self.heads, self.head_width), (0, more)).view(len(weight), -1))


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020), the feed-forward part of a Llama block."""

    def __init__(self, hidden: int, feed_forward: int) -> None:
        super().__init__()
        self.gate_up = Linear(hidden, 2 * feed_forward, bias=False)
        self.down = Linear(feed_forward, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gated(self.gate_up(x)))


class Block(nn.Module):
    """A pre-norm transformer block as in Llama, without positions and without a causal mask."""

    def __init__(self, hidden: int, heads: int, head_width: int, feed_forward: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = RMSNorm(hidden), RMSNorm(hidden)
        self.attention = Attention(hidden, heads, head_width)
        self.mlp = GatedMlp(hidden, feed_forward)

    def forward(self, x_SCD: Tensor) -> Tensor:
        x_SCD = x_SCD + self.attention(self.attention_norm(x_SCD))
        return x_SCD + self.mlp(self.mlp_norm(x_SCD))
