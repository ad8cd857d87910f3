"""The energy distance between cell sets, from one Gram matrix and with its gradient written out.

Shape legend: S sets, C cells of a set, Z cells of both sets, B cells of a block, G genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from vcell.model.fused import centred, float32_product
from vcell.system import gpu_has_bf16, matrix_products

PRECISIONS = ("auto", "float32", "tf32", "bf16")
EPS = torch.finfo(torch.float32).eps


def energy_distance(
    predicted_SCG: Tensor, observed_SCG: Tensor, block: int | None = None, precision: str = "float32"
) -> Tensor:
    """Energy distance between predicted and measured cell sets.

    E|x - y| - E|x - x'| / 2 - E|y - y'| / 2 with Euclidean distances over all genes. The means within a set run over
    all pairs, a cell with itself included (the V-statistic), so equal sets have distance 0.

    Parameters
    ----------
    predicted_SCG, observed_SCG
        log1p of counts, ``(sets, cells, genes)``; cell numbers may differ.
    block
        Cells whose distances are held at a time, and computed again in the backward pass: for sets of thousands of cells. The
        result is the same.
    precision
        Of the products: ``float32``; ``tf32``, products of rounded factors where a GPU has them; ``bf16``: cells are rounded to bf16
        once they are centred, and all sums are float32, so that it is the exact distance of the rounded cells.

    Returns
    -------
    Non-negative distances, ``(sets,)``, float32, in log1p units.

    References
    ----------
    Székely & Rizzo 2013; Adduri et al. 2025, Methods.
    """
    with torch.autocast(predicted_SCG.device.type, enabled=False):  # distances need float32
        return _EnergyDistance.apply(predicted_SCG.float(), observed_SCG.float(), block, precision)


def energy_precision(asked: str, device: torch.device) -> str:
    """`asked`, or for ``auto`` bf16 on GPUs that have it, else float32."""
    if asked != "auto":
        return asked
    return "bf16" if gpu_has_bf16(device) else "float32"


class _EnergyDistance(torch.autograd.Function):
    """The energy distance from one Gram matrix of both sets, with its gradient written out.

    With z the cells of both sets and s_ij = 1 / (C_x C_y) between the sets, -1 / C_x^2 and -1 / C_y^2 within them, the distance
    is sum_ij s_ij |z_i - z_j| / 2, and its derivative by z_i is sum_j s_ij (z_i - z_j) / |z_i - z_j|. A cell's distance to itself is
    0 by definition, not by the luck of two sums; so is any that is rounding alone, and it gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x_SCG: Tensor, y_SCG: Tensor, block: int | None, precision: str) -> Tensor:
        z_SZG = centred(x_SCG, y_SCG, torch.bfloat16 if precision == "bf16" else torch.float32)
        ctx.n_x, ctx.block, ctx.tf32 = x_SCG.shape[1], block or z_SZG.shape[1], precision == "tf32"
        with _products(ctx.tf32):
            blocks = _row_blocks(z_SZG.shape[1], ctx.block)
            whole: Tensor | None = None  # distances, where they all fit
            if len(blocks) == 1:
                gram_SZZ = float32_product(z_SZG, z_SZG.mT)
                norms_SZ = gram_SZZ.diagonal(dim1=1, dim2=2)
                whole = _distances(gram_SZZ, norms_SZ, blocks[0], z_SZG.shape[2])
                total_S = (whole * _signs(z_SZG, ctx.n_x, blocks[0])).sum((1, 2))
            else:
                norms_SZ = _squared_norms(z_SZG, blocks)
                total_S = norms_SZ.new_zeros(len(z_SZG))
                for rows in blocks:
                    total_S += (_distances_of(z_SZG, norms_SZ, rows) * _signs(z_SZG, ctx.n_x, rows)).sum((1, 2))
        ctx.save_for_backward(z_SZG, norms_SZ, whole)
        return total_S / 2

    @staticmethod
    def backward(ctx: Any, gradient_S: Tensor) -> tuple[Tensor | None, ...]:
        z_SZG, norms_SZ, whole = ctx.saved_tensors
        n_x, n_z = ctx.n_x, z_SZG.shape[1]
        wanted = range(0 if ctx.needs_input_grad[0] else n_x, n_z if ctx.needs_input_grad[1] else n_x)
        found = []
        with torch.autocast(z_SZG.device.type, enabled=False), _products(ctx.tf32):
            for rows in _row_blocks(len(wanted), ctx.block):
                rows = slice(rows.start + wanted.start, rows.stop + wanted.start)
                distance_SBZ = _distances_of(z_SZG, norms_SZ, rows) if whole is None else whole[:, rows]
                weight_SBZ = _weights(distance_SBZ, _signs(z_SZG, n_x, rows), rows) * gradient_S[:, None, None]
                found.append(float32_product(weight_SBZ.to(z_SZG.dtype), z_SZG))
        out_SZG = found[0] if len(found) == 1 else torch.cat(found, 1)
        n_x = max(0, n_x - wanted.start)
        return (
            out_SZG[:, :n_x] if ctx.needs_input_grad[0] else None,
            out_SZG[:, n_x:] if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def _weights(distance_SBZ: Tensor, signs_BZ: Tensor, rows: slice) -> Tensor:
    """By how much each cell enters the gradient of the cells `rows`: s_ij / d_ij times their difference, summed over j."""
    apart = distance_SBZ != 0  # true for NaN, which must show
    share_SBZ = torch.where(apart, signs_BZ / torch.where(apart, distance_SBZ, 1.0), 0.0)
    number = torch.arange(rows.start, rows.stop, device=distance_SBZ.device)
    weight_SBZ = -share_SBZ
    weight_SBZ[:, number - rows.start, number] += share_SBZ.sum(2)
    return weight_SBZ


def _products(tf32: bool) -> AbstractContextManager[None]:
    return matrix_products("high") if tf32 else nullcontext()


def _row_blocks(n_cells: int, block: int) -> list[slice]:
    return [slice(first, min(first + block, n_cells)) for first in range(0, n_cells, block)]


def _squared_norms(z_SZG: Tensor, blocks: Sequence[slice]) -> Tensor:
    """Squared norms ``(sets, cells)``, as the diagonal of products: the sums that distances subtract."""
    parts = [z_SZG[:, rows] for rows in blocks]
    return torch.cat([float32_product(part, part.mT).diagonal(dim1=1, dim2=2) for part in parts], 1)


def _distances_of(z_SZG: Tensor, norms_SZ: Tensor, rows: slice) -> Tensor:
    """Distances of the cells `rows` from all cells, ``(sets, rows, cells)``."""
    return _distances(float32_product(z_SZG[:, rows], z_SZG.mT), norms_SZ, rows, z_SZG.shape[2])


def _distances(inner_SBZ: Tensor, norms_SZ: Tensor, rows: slice, n_genes: int) -> Tensor:
    """The same from inner products; 0 where they are rounding alone."""
    size_SBZ = norms_SZ[:, rows, None] + norms_SZ[:, None, :]
    squared_SBZ = size_SBZ - 2 * inner_SBZ
    squared_SBZ = torch.where(
        squared_SBZ <= rounding(n_genes) * size_SBZ, 0.0, squared_SBZ
    )  # false for NaN, which must show
    number = torch.arange(rows.start, rows.stop, device=inner_SBZ.device)
    own = squared_SBZ[:, number - rows.start, number]
    squared_SBZ[:, number - rows.start, number] = torch.where(own.isnan(), own, 0.0)
    return squared_SBZ.sqrt()


def rounding(n_genes: int) -> float:
    """Error of a squared distance relative to the two cells' squared norms, at most.

    It is norm + norm - 2 x product, each a sum over genes: in the worst order of summation such a sum is off by about
    sqrt(genes) units in the last place (Higham & Mary 2019, SIAM J. Sci. Comput. 41), in the blocks of a BLAS by far less, but by some.
    """
    return EPS * max(16.0, n_genes**0.5)


def _signs(z_SZG: Tensor, n_x: int, rows: slice) -> Tensor:
    """The weight s_ij of each pair, ``(rows, cells)``."""
    n_y = z_SZG.shape[1] - n_x
    own, other = (torch.full((n,), 1 / n, dtype=torch.float32, device=z_SZG.device) for n in (n_x, n_y))
    share_Z = torch.cat([own, -other])
    return -share_Z[rows, None] * share_Z[None, :]
