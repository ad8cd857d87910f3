"""Losses between predicted and measured cell sets: named terms, pure functions; their weights are configuration.

Every term gives one number per set, so that a set that goes wrong can be named, and so that the mean over the sets of all ranks is
the mean over the sets of one.

Shape legend: S sets, N sets of all ranks, C cells of a set, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError, install, nearest

EPS = torch.finfo(torch.float32).eps


def energy_distance(predicted_SCG: Tensor, observed_SCG: Tensor, block: int | None = None) -> Tensor:
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

    Returns
    -------
    Non-negative distances, ``(sets,)``, float32, in log1p units.

    References
    ----------
    Székely & Rizzo 2013; Adduri et al. 2025, Methods.
    """
    with torch.autocast(predicted_SCG.device.type, enabled=False):  # distances need float32
        predicted_SCG, observed_SCG = predicted_SCG.float(), observed_SCG.float()
        # centred: squared norms of near-equal cells are then small, and their difference keeps its digits
        centre = observed_SCG.mean(1, keepdim=True).detach()
        return _EnergyDistance.apply(predicted_SCG - centre, observed_SCG - centre, block)


class _EnergyDistance(torch.autograd.Function):
    """The energy distance from one Gram matrix of both sets, with its gradient written out.

    With z the cells of both sets and s_ij = 1 / (C_x C_y) between the sets, -1 / C_x^2 and -1 / C_y^2 within them, the distance
    is sum_ij s_ij |z_i - z_j| / 2, and its derivative by z_i is sum_j s_ij (z_i - z_j) / |z_i - z_j|. A cell's distance to itself is
    0 by definition, not by the luck of two sums; so is any that is rounding alone, and it gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x_SCG: Tensor, y_SCG: Tensor, block: int | None) -> Tensor:
        z_SZG = torch.cat([x_SCG, y_SCG], 1)
        ctx.n_x, ctx.block = x_SCG.shape[1], block or z_SZG.shape[1]
        norms_SZ = _squared_norms(z_SZG, ctx.block)
        total_S = z_SZG.new_zeros(len(z_SZG))
        kept: Tensor | None = None  # distances, where they all fit
        for rows in _row_blocks(z_SZG.shape[1], ctx.block):
            distance_SBZ = _distances(z_SZG, norms_SZ, rows)
            total_S += (distance_SBZ * _signs(z_SZG, ctx.n_x, rows)).sum((1, 2))
            kept = distance_SBZ
        whole = kept if ctx.block >= z_SZG.shape[1] else None
        ctx.save_for_backward(z_SZG, norms_SZ, whole)
        return total_S / 2

    @staticmethod
    def backward(ctx: Any, gradient_S: Tensor) -> tuple[Tensor | None, ...]:
        z_SZG, norms_SZ, whole = ctx.saved_tensors
        n_x, n_z = ctx.n_x, z_SZG.shape[1]
        wanted = range(0 if ctx.needs_input_grad[0] else n_x, n_z if ctx.needs_input_grad[1] else n_x)
        out_SZG = torch.empty_like(z_SZG[:, wanted.start : wanted.stop])
        with torch.autocast(z_SZG.device.type, enabled=False):
            for rows in _row_blocks(len(wanted), ctx.block):
                rows = slice(rows.start + wanted.start, rows.stop + wanted.start)
                distance_SBZ = _distances(z_SZG, norms_SZ, rows) if whole is None else whole[:, rows]
                apart = distance_SBZ != 0  # true for NaN, which must show
                share_SBZ = torch.where(apart, _signs(z_SZG, n_x, rows) / torch.where(apart, distance_SBZ, 1.0), 0.0)
                share_SBZ = share_SBZ * gradient_S[:, None, None]
                here = slice(rows.start - wanted.start, rows.stop - wanted.start)
                out_SZG[:, here] = torch.baddbmm(
                    share_SBZ.sum(2, keepdim=True) * z_SZG[:, rows], share_SBZ, z_SZG, alpha=-1
                )
        n_x = max(0, n_x - wanted.start)
        return (
            out_SZG[:, :n_x] if ctx.needs_input_grad[0] else None,
            out_SZG[:, n_x:] if ctx.needs_input_grad[1] else None,
            None,
        )


def _row_blocks(n_cells: int, block: int) -> list[slice]:
    return [slice(first, min(first + block, n_cells)) for first in range(0, n_cells, block)]


def _squared_norms(z_SZG: Tensor, block: int) -> Tensor:
    """Squared norms ``(sets, cells)``, as the diagonal of products: the sums that distances subtract."""
    parts = [z_SZG[:, rows] for rows in _row_blocks(z_SZG.shape[1], block)]
    return torch.cat([torch.bmm(part, part.transpose(1, 2)).diagonal(dim1=1, dim2=2) for part in parts], 1)


def _distances(z_SZG: Tensor, norms_SZ: Tensor, rows: slice) -> Tensor:
    """Distances of the cells `rows` from all cells, ``(sets, rows, cells)``; 0 where they are rounding alone."""
    size_SBZ = norms_SZ[:, rows, None] + norms_SZ[:, None, :]
    squared_SBZ = torch.baddbmm(size_SBZ, z_SZG[:, rows], z_SZG.transpose(1, 2), alpha=-2)
    squared_SBZ = torch.where(
        squared_SBZ <= rounding(z_SZG.shape[2]) * size_SBZ, 0.0, squared_SBZ
    )  # false for NaN, which must show
    number = torch.arange(rows.start, rows.stop, device=z_SZG.device)
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
    share_Z = torch.cat([z_SZG.new_full((n_x,), 1 / n_x), z_SZG.new_full((n_y,), -1 / n_y)])
    return -share_Z[rows, None] * share_Z[None, :]


def delta_error(predicted_SCG: Tensor, observed_SCG: Tensor) -> Tensor:
    """Mean absolute error of the pseudobulk (mean log1p over the cells of a set), ``(sets,)``.

    The controls of both cancel out, so this is the error of the pseudobulk delta too.
    """
    return (predicted_SCG.float().mean(1) - observed_SCG.float().mean(1)).abs().mean(1)


def sorted_error(predicted_SCG: Tensor, observed_SCG: Tensor) -> Tensor:
    """L1 between cells matched gene by gene by rank, ``(sets,)``: the mean over genes of the 1-Wasserstein distance.

    Cells of the two sets have no order in common, so there is no other L1 between them. Needs equally many of both.
    """
    return (predicted_SCG.float().sort(1).values - observed_SCG.float().sort(1).values).abs().mean((1, 2))


def change_size(predicted_SCG: Tensor, control_SCG: Tensor) -> Tensor:
    """Mean absolute predicted pseudobulk delta, ``(sets,)``: an L1 penalty that keeps effects sparse."""
    return delta_error(predicted_SCG, control_SCG)


def discrimination_loss(
    predicted_SG: Tensor,
    measured_NG: Tensor,
    own_S: Tensor,
    rivals_SN: Tensor,
    known_SG: Tensor | None = None,
    known_NG: Tensor | None = None,
    temperature: float = 0.1,
) -> Tensor:
    """How hard a predicted delta is to distinguish from the measured deltas of other perturbations: a smooth discrimination score.

    The cross-entropy of choosing a set's own measured delta among its rivals', by L1 distance as in the score, relative to the mean
    size of a measured delta. 0 for a set without rivals.

    Parameters
    ----------
    predicted_SG, measured_NG
        Pseudobulk deltas, mean log1p of perturbed minus that of control cells. The sets of all ranks may be measured ones.
    own_S
        Which of the N is a set's own.
    rivals_SN
        bool: which of the N are another perturbation of the same context.
    known_SG, known_NG
        bool: genes measured; a distance runs over those measured on both sides.
    temperature
        Distance, in sizes of a delta, that makes a rival e times less likely.

    Returns
    -------
    ``(sets,)``, not negative.

    References
    ----------
    van den Oord et al. 2018 (InfoNCE); the discrimination score is that of cell-eval.
    """
    difference_SNG = (predicted_SG.float().unsqueeze(1) - measured_NG.float()).abs()
    if known_SG is not None and known_NG is not None:
        difference_SNG = difference_SNG * (known_SG.unsqueeze(1) & known_NG)
    size = measured_NG.float().abs().sum(1).mean().clamp(min=1e-6)
    own_S1 = own_S.unsqueeze(1)
    logits_SN = -difference_SNG.sum(2) / (size * temperature)
    considered = rivals_SN.scatter(1, own_S1, True)
    logits_SN = logits_SN.masked_fill(~considered, -torch.inf)
    return logits_SN.logsumexp(1) - logits_SN.gather(1, own_S1).squeeze(1)


@dataclass(frozen=True)
class Compared:
    """Predicted and measured sets with their controls, float32; genes that a set's sources never measured are 0 in all three."""

    predicted_SCG: Tensor
    observed_SCG: Tensor
    control_SCG: Tensor
    batch: CellSetBatch


class Loss(Protocol):
    """What training needs of a loss: terms ``(sets)`` by name, of which the mean of ``loss`` is minimised.

    With an attribute `weights` (term to weight), validation reports each of these terms as ``val/TERM``.
    """

    def __call__(self, predicted_SCG: Tensor, batch: CellSetBatch) -> Mapping[str, Tensor]: ...


def weights_of(loss: Loss) -> Mapping[str, float]:
    """Weights of a loss's terms; none for one that does not tell."""
    found: Mapping[str, float] = getattr(loss, "weights", {})
    return found


class SetLoss(nn.Module):
    """A weighted sum of named terms, each averaged over sets.

    Parameters
    ----------
    weights
        Term name to weight; see `TERMS`. Terms of weight 0 are not computed.
    block
        Of `energy_distance`.
    blur
        Of `sinkhorn` and `mmd`: the length, in log1p units, below which cells count as the same.
    temperature
        Of `discrimination_loss`.
    """

    def __init__(
        self, weights: Mapping[str, float], block: int | None = None, blur: float = 0.5, temperature: float = 0.1
    ) -> None:
        super().__init__()
        for name in weights:
            if name not in TERMS:
                raise VcellError(f"loss.weights names {name!r}; terms are {', '.join(TERMS)}.{nearest(name, TERMS)}")
        self.weights = {str(name): float(weight) for name, weight in weights.items() if weight}
        if not self.weights:
            raise VcellError(f"loss.weights gives no term a weight; terms are {', '.join(TERMS)}")
        if min(self.weights.values()) < 0:
            raise VcellError(f"loss.weights must not be negative: {self.weights}")
        for name, value in (("block", block), ("blur", blur), ("temperature", temperature)):
            if value is not None and value <= 0:
                raise VcellError(f"loss.{name}={value} must be above 0")
        self.block, self.temperature = block, temperature
        self.samples: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            name: _geomloss(name, blur) for name in GEOMLOSS if name in self.weights
        }

    def forward(self, predicted_SCG: Tensor, batch: CellSetBatch) -> dict[str, Tensor]:
        """The weighted sum as `loss`, and every unweighted term; float32 ``(sets,)``. A step's loss is their mean.

        Genes where `batch.known_SG` is False are left out.
        """
        assert batch.perturbed_SCG is not None
        with torch.autocast(predicted_SCG.device.type, enabled=False):  # sums over thousands of genes need float32
            compared = Compared(
                masked(predicted_SCG.float(), batch.known_SG),
                masked(batch.perturbed_SCG, batch.known_SG),
                masked(batch.control_SCG, batch.known_SG),
                batch,
            )
            # a mean over genes is one over those measured
            share_S = 1.0 if batch.known_SG is None else batch.known_SG.float().mean(1).clamp(min=1e-9)
            terms = {
                name: TERMS[name](self, compared) / (share_S if name in MEANS_OVER_GENES else 1.0)
                for name in self.weights
            }
            return {"loss": self.weighted(terms), **terms}

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum(0)

    def contrastive(self, compared: Compared) -> Tensor:
        """`discrimination_loss` against the measured deltas of all ranks, so that more ranks are like a larger step."""
        control_SG = compared.control_SCG.mean(1)
        batch, device = compared.batch, control_SG.device
        observed_SG = compared.observed_SCG.mean(1) - control_SG
        codes_S2 = codes(batch.contexts, batch.perturbations).to(device, non_blocking=True)
        own_S = torch.arange(len(observed_SG), device=device) + _rank() * len(observed_SG)
        measured_NG, codes_N2 = _of_all_ranks(observed_SG.detach()), _of_all_ranks(codes_S2)
        known_NG = None if batch.known_SG is None else _of_all_ranks(batch.known_SG.to(torch.uint8)).bool()
        same_SN2 = codes_S2.unsqueeze(1) == codes_N2
        return discrimination_loss(
            compared.predicted_SCG.mean(1) - control_SG,
            measured_NG,
            own_S,
            same_SN2[..., 0] & ~same_SN2[..., 1],
            batch.known_SG,
            known_NG,
            self.temperature,
        )


TERMS: dict[str, Callable[[SetLoss, Compared], Tensor]] = {
    "energy": lambda loss, c: energy_distance(c.predicted_SCG, c.observed_SCG, loss.block),
    "delta": lambda loss, c: delta_error(c.predicted_SCG, c.observed_SCG),
    "l1": lambda loss, c: sorted_error(c.predicted_SCG, c.observed_SCG),
    "sparsity": lambda loss, c: change_size(c.predicted_SCG, c.control_SCG),
    "contrastive": SetLoss.contrastive,
    "sinkhorn": lambda loss, c: loss.samples["sinkhorn"](c.predicted_SCG, c.observed_SCG),
    "mmd": lambda loss, c: loss.samples["mmd"](c.predicted_SCG, c.observed_SCG),
}
MEANS_OVER_GENES = ("delta", "l1", "sparsity")
GEOMLOSS: dict[str, dict[str, Any]] = {"sinkhorn": {"loss": "sinkhorn", "p": 2}, "mmd": {"loss": "gaussian"}}


def masked(cells_SCG: Tensor, observed_SG: Tensor | None) -> Tensor:
    """Genes that a set's sources never measured set to 0, so that they count in no distance and get no gradient."""
    return cells_SCG if observed_SG is None else cells_SCG * observed_SG.unsqueeze(1)


def codes(contexts: Sequence[str], perturbations: Sequence[str]) -> Tensor:
    """int64 ``(sets, 2)`` that stand for the names, the same on every rank; pinned where there is a GPU."""
    numbers = torch.tensor(
        [[int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True) for name in pair]
         for pair in zip(contexts, perturbations, strict=True)]
    )  # fmt: skip
    return numbers.pin_memory() if torch.cuda.is_available() else numbers


def _geomloss(name: str, blur: float) -> nn.Module:
    if find_spec("geomloss") is None:
        raise VcellError(f"the loss term {name} needs geomloss: {install('losses')}")
    from geomloss import SamplesLoss

    return SamplesLoss(blur=blur, backend="tensorized", **GEOMLOSS[name])


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _of_all_ranks(part: Tensor) -> Tensor:
    """The parts of all ranks one after the other; without a gradient, and without waiting."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)
