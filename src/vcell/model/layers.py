"""Parts of the transition model: an MLP, a covariate's embedding, and attention without positions.

Shape legend: S sets, C cells of a set, D hidden, H heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, rms_norm, scaled_dot_product_attention

from vcell.errors import VcellError
from vcell.model.fused import gated

ENCODERS = ("joint", "each")


HEAD_ALIGNED = 8  # numbers: kernels of attention take heads as wide as a multiple of this
ALIGNED = 64  # numbers: rows of this many begin at addresses that fast kernels need, in any precision


class AlignedLinear(nn.Linear):
    """A linear layer whose rows are padded with zeros where a GPU would else multiply slowly.

    In half precision, rows of an odd number of genes begin at addresses that its matrix units cannot load from. Weights and input are cast
    each step anyway, and are padded as they are; what is kept and what comes out have the true width.
    """

    def forward(self, x: Tensor) -> Tensor:
        pads = -self.in_features % ALIGNED, -self.out_features % ALIGNED
        if not any(pads) or max(self.weight.shape) < 1024 or not in_half_precision(x):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(x.device.type)
        weight = pad(self.weight.to(dtype), (0, pads[0], 0, pads[1]))
        bias = None if self.bias is None else pad(self.bias.to(dtype), (0, pads[1]))
        return linear(pad(x.to(dtype), (0, pads[0])), weight, bias)[..., : self.out_features]


def in_half_precision(x: Tensor) -> bool:
    return x.device.type == "cuda" and torch.is_autocast_enabled("cuda")


def mlp(width_in: int, hidden: int, width_out: int, layers: int, dropout: float) -> nn.Sequential:
    """`layers` linear layers with GELU and dropout between them; one layer is a plain linear map."""
    widths = [width_in, *[hidden] * (layers - 1), width_out]
    parts: list[nn.Module] = []
    for i in range(layers):
        parts.append(AlignedLinear(widths[i], widths[i + 1]))
        if i < layers - 1:
            parts += [nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts)


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
        super().__init__(hidden, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False) if x.device.type in ("cpu", "cuda") else nullcontext():
            return rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Every cell of a set attends to every other. Nothing marks a cell's place, so cells may come in any order."""

    def __init__(self, hidden: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.query_key_value = nn.Linear(hidden, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, hidden, bias=False)

    def forward(self, x_SCD: Tensor) -> Tensor:
        sets, cells, _ = x_SCD.shape
        more = -self.head_width % HEAD_ALIGNED if in_half_precision(x_SCD) and self._plain else 0
        width = self.head_width + more
        qkv = self._into_heads(x_SCD, more).view(sets, cells, 3, self.heads, width)
        query_SHCK, key_SHCK, value_SHCK = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_SHCK = scaled_dot_product_attention(query_SHCK, key_SHCK, value_SHCK, scale=self.head_width**-0.5)
        return self._out_of_heads(mixed_SHCK.transpose(1, 2).reshape(sets, cells, -1), more)

    # In half precision a GPU's kernels take heads of certain widths, and would copy others to pad them, forward and backward. So the
    # projections are padded with zeros, by `more` for each head: they are much smaller.

    @property
    def _plain(self) -> bool:
        """Whether the projections are what they were made as, not wrapped (LoRA)."""
        return type(self.query_key_value) is nn.Linear and type(self.out) is nn.Linear

    def _into_heads(self, x_SCD: Tensor, more: int) -> Tensor:
        if not more:
            return self.query_key_value(x_SCD)
        weight = self.query_key_value.weight.to(torch.get_autocast_dtype(x_SCD.device.type))
        hidden = weight.shape[1]
        return linear(x_SCD, pad(weight.view(-1, self.head_width, hidden), (0, 0, 0, more)).view(-1, hidden))

    def _out_of_heads(self, mixed: Tensor, more: int) -> Tensor:
        if not more:
            return self.out(mixed)
        weight = self.out.weight.to(torch.get_autocast_dtype(mixed.device.type))
        hidden = len(weight)
        return linear(mixed, pad(weight.view(hidden, self.heads, self.head_width), (0, more)).view(hidden, -1))


class GatedMlp(nn.Module):
    """SwiGLU (Shazeer 2020), the feed-forward part of a Llama block."""

    def __init__(self, hidden: int, feed_forward: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * feed_forward, bias=False)
        self.down = nn.Linear(feed_forward, hidden, bias=False)

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
