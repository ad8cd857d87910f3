"""Counts as a negative binomial: its likelihood, and draws that depend on nothing but the cells that they start from.

k ~ Poisson(λ), λ ~ Gamma with mean μ = rate × library size / target sum and shape θ: variance μ + μ² / θ (scVI, Lopez et al. 2018).

Shape legend: S sets, C cells of a set, G genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError

SMALLEST_MEAN = 1e-8
LARGEST_LOG_SHAPE = 9.0  # beyond which a gene is as good as Poisson


class CountLaw(NamedTuple):
    """What a network says of the counts of a set's cells."""

    rate_SG: Tensor  # mean counts per target sum
    log_shape_SG: Tensor  # logarithm of θ


def log_likelihood(counts_SCG: Tensor, mean_SCG: Tensor, log_shape_SG: Tensor) -> Tensor:
    """Of whole counts, ``(sets, cells, genes)``."""
    log_shape = log_shape_SG.clamp(-LARGEST_LOG_SHAPE, LARGEST_LOG_SHAPE).unsqueeze(1)
    shape, log_mean = log_shape.exp(), mean_SCG.clamp(min=SMALLEST_MEAN).log()
    log_both = torch.logaddexp(log_shape, log_mean)
    return (
        torch.lgamma(counts_SCG + shape)
        - torch.lgamma(shape)
        - torch.lgamma(counts_SCG + 1)
        + shape * (log_shape - log_both)
        + counts_SCG * (log_mean - log_both)
    )


def likelihood_loss(law: CountLaw, batch: CellSetBatch) -> dict[str, Tensor]:
    """Mean negative log likelihood of measured cells.

    Returns
    -------
    ``loss`` and ``nb``, the same, ``(sets,)``, float32.
    """
    perturbed_SCG, library_SC = batch.perturbed_SCG, batch.perturbed_library_SC
    assert perturbed_SCG is not None and library_SC is not None and batch.target_sum is not None
    with torch.autocast(perturbed_SCG.device.type, enabled=False):
        per_count_SC1 = (library_SC / batch.target_sum).unsqueeze(-1)
        counts_SCG = (torch.expm1(perturbed_SCG) * per_count_SC1).round()
        mean_SCG = law.rate_SG.float().unsqueeze(1) * per_count_SC1
        lost_SG = -log_likelihood(counts_SCG, mean_SCG, law.log_shape_SG.float()).mean(1)
        known_SG = batch.known_SG
        loss_S = lost_SG.mean(1) if known_SG is None else (lost_SG * known_SG).sum(1) / known_SG.sum(1).clamp(min=1)
    return {"loss": loss_S, "nb": loss_S}


def draw(law: CountLaw, batch: CellSetBatch) -> Tensor:
    """Cells with counts drawn from what a network says, as deep as their control cells: log1p of counts per target sum, ``(sets, cells, genes)``.

    The draws of a set depend on its names and on the library sizes of its control cells, so that a prediction can be repeated.
    """
    library_SC, target_sum = batch.control_library_SC, batch.target_sum
    if library_SC is None or target_sum is None:
        raise VcellError("head=nb draws whole counts, for which a batch needs the library sizes of its cells")
    rate_SG = law.rate_SG.float()
    shape_SG = law.log_shape_SG.float().clamp(-LARGEST_LOG_SHAPE, LARGEST_LOG_SHAPE).exp()
    found = rate_SG.new_empty(*library_SC.shape, rate_SG.shape[1])
    libraries = library_SC.cpu().tolist()
    for number, (context, perturbation) in enumerate(zip(batch.contexts, batch.perturbations, strict=True)):
        generator = torch.Generator(rate_SG.device).manual_seed(_seed(context, perturbation, libraries[number]))
        per_count_C1 = (library_SC[number] / target_sum).unsqueeze(-1)
        shape_CG = shape_SG[number].expand_as(found[number])
        spread_CG = torch._standard_gamma(shape_CG.contiguous(), generator=generator) / shape_CG
        counts_CG = torch.poisson(rate_SG[number] * per_count_C1 * spread_CG, generator=generator)
        found[number] = torch.log1p(counts_CG / per_count_C1)
    return found


def _seed(context: str, perturbation: str, libraries: Sequence[float]) -> int:
    """Of a set's draws: library sizes are whole numbers, the same on every machine."""
    text = "\t".join([context, perturbation, *(str(int(size)) for size in libraries)])
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")
