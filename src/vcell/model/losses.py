"""Losses between predicted and measured cell sets: named terms, pure functions; their weights are configuration.

Shape legend: S sets, C cells of a set, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vcell.errors import VcellError, nearest


def energy_distance(predicted_SCG: Tensor, measured_SCG: Tensor) -> Tensor:
    """Energy distance between predicted and measured cell sets.

    E|x - y| - E|x - x'| / 2 - E|y - y'| / 2 with Euclidean distances over all genes. The means within a set run over
    all pairs, a cell with itself included (the V-statistic), so equal sets have distance 0.

    Parameters
    ----------
    predicted_SCG, measured_SCG
        log1p of counts, ``(sets, cells, genes)``; cell numbers may differ.

    Returns
    -------
    Non-negative distances, ``(sets,)``, float32, in log1p units.

    References
    ----------
    Székely & Rizzo 2013; Adduri et al. 2025, Methods.
    """
    predicted_SCG, measured_SCG = predicted_SCG.float(), measured_SCG.float()
    between = _distances(predicted_SCG, measured_SCG).mean((1, 2))
    within_predicted = _distances(predicted_SCG, predicted_SCG).mean((1, 2))
    within_measured = _distances(measured_SCG, measured_SCG).mean((1, 2))
    return between - within_predicted / 2 - within_measured / 2


def delta_error(predicted_SCG: Tensor, measured_SCG: Tensor) -> Tensor:
    """Mean absolute error of the pseudobulk (mean log1p over the cells of a set), ``(sets,)``.

    The controls of both cancel out, so this is the error of the pseudobulk delta too.
    """
    return (predicted_SCG.float().mean(1) - measured_SCG.float().mean(1)).abs().mean(1)


def masked(cells_SCG: Tensor, measured_SG: Tensor | None) -> Tensor:
    """Genes that a set's sources never measured set to 0, so that they count in no distance and get no gradient."""
    return cells_SCG if measured_SG is None else cells_SCG * measured_SG.unsqueeze(1)


TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"energy": energy_distance, "delta": delta_error}
MEANS_OVER_GENES = ("delta",)


class SetLoss(nn.Module):
    """A weighted sum of named terms, each averaged over sets.

    Parameters
    ----------
    weights
        Term name to weight; see `TERMS`.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        for name in weights:
            if name not in TERMS:
                raise VcellError(f"loss.weights names {name!r}; terms are {', '.join(TERMS)}.{nearest(name, TERMS)}")
        self.weights = {str(name): float(weight) for name, weight in weights.items() if weight}
        if not self.weights:
            raise VcellError(f"loss.weights gives no term a weight; terms are {', '.join(TERMS)}")

    def forward(
        self, predicted_SCG: Tensor, measured_SCG: Tensor, measured_SG: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted sum as `loss`, beside every unweighted term; scalars.

        Genes where `measured_SG`, bool ``(sets, genes)``, is False are left out.
        """
        predicted_SCG, measured_SCG = masked(predicted_SCG, measured_SG), masked(measured_SCG, measured_SG)
        # a mean over genes is one over those measured
        share = 1.0 if measured_SG is None else measured_SG.float().mean(1).clamp(min=1e-9)
        terms = {
            name: (TERMS[name](predicted_SCG, measured_SCG) / (share if name in MEANS_OVER_GENES else 1.0)).mean()
            for name in self.weights
        }
        return {"loss": torch.stack([w * terms[n] for n, w in self.weights.items()]).sum(), **terms}


def _distances(x_SCG: Tensor, y_SCG: Tensor) -> Tensor:
    """Euclidean distances, ``(sets, cells of x, cells of y)``, in float32 even under bf16 autocast.

    The gradient of a distance at 0 is undefined; there the floor stops it.
    """
    with torch.autocast(x_SCG.device.type, enabled=False):
        # centred first: squared norms of near-equal cells are then small, and their difference keeps its digits
        centre = y_SCG.mean(1, keepdim=True).detach()
        x, y = x_SCG - centre, y_SCG - centre
        squared = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None, :] - 2 * x @ y.transpose(1, 2)
        floor = 1e-6
        return torch.where(squared > floor, squared.clamp(min=floor).sqrt(), 0.0)
