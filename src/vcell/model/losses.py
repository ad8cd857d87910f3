"""Losses between predicted and measured cell sets: named terms, pure functions; their weights are configuration.

Every term gives one number per set, so that a set that goes wrong can be named, and so that the mean over the sets of all ranks is
the mean over the sets of one.

Shape legend: S sets, N sets of all ranks, C cells of a set, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vcell.data.batch import CellSetBatch, codes
from vcell.errors import VcellError, check_choice, check_number, install, nearest, typed
from vcell.model.energy import PRECISIONS, energy_distance, energy_precision


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
    precision
        Of the products of `energy_distance`: ``float32``, ``tf32``, ``bf16``; ``auto``: bf16 on GPUs that have it, else float32.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        block: int | None = None,
        blur: float = 0.5,
        temperature: float = 0.1,
        precision: str = "auto",
    ) -> None:
        super().__init__()
        check_choice("loss.precision", precision, PRECISIONS)
        if not isinstance(weights, Mapping):
            raise VcellError(f"loss.weights={typed(weights)} needs terms with their weights: '{{energy: 1}}'")
        for name in weights:
            if name not in TERMS:
                raise VcellError(f"loss.weights names {name!r}; terms are {', '.join(TERMS)}.{nearest(name, TERMS)}")
            check_number(f"loss.weights.{name}", weights[name], 0, whole=False)
        self.weights = {str(name): float(weight) for name, weight in weights.items() if weight}
        if not self.weights:
            raise VcellError(f"loss.weights gives no term a weight; terms are {', '.join(TERMS)}")
        for name, value in (("block", block), ("blur", blur), ("temperature", temperature)):
            if value is not None:
                check_number(f"loss.{name}", value, 0, whole=name == "block", above=True)
        self.block, self.temperature, self.precision = block, temperature, precision
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
        found = codes(batch.contexts, batch.perturbations) if batch.codes_S2 is None else batch.codes_S2
        codes_S2 = found.to(device, non_blocking=True)
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
    "energy": lambda loss, c: energy_distance(
        c.predicted_SCG, c.observed_SCG, loss.block, energy_precision(loss.precision, c.predicted_SCG.device)
    ),
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
