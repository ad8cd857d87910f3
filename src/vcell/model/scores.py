"""The 2025 scores as tensor functions, for validation during training; on equal cells they equal the official ones.

Differential expression is a two-sided Wilcoxon rank-sum test of every gene (normal approximation, corrected for ties and
continuity) with Benjamini-Hochberg's correction per target, as in `cell-eval` 0.8.2, profile ``vcc``.

Shape legend: C cells, G genes, P perturbations of one context.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIGNIFICANT = 0.05
GENES_AT_A_TIME = 4096


@dataclass(frozen=True)
class Differential:
    """Differential expression of one target against controls."""

    significant_G: Tensor  # bool
    log2_fold_change_G: Tensor  # of geometric means; infinite where one of them is 0


def differential(cells_CG: Tensor, control_CG: Tensor) -> Differential:
    """Which genes differ between cells and controls, both log1p of counts."""
    p_G = rank_sum_p(cells_CG, control_CG)
    cells_G, control_G = cells_CG.double().mean(0).expm1(), control_CG.double().mean(0).expm1()
    fold_G = torch.log2(cells_G / control_G).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return Differential(false_discovery_rate(p_G) < SIGNIFICANT, fold_G)


def rank_sum_p(x_CG: Tensor, y_CG: Tensor) -> Tensor:
    """Two-sided p-values of the Wilcoxon rank-sum test, float64 ``(genes)``; 1 for a gene that is constant."""
    parts = zip(x_CG.t().split(GENES_AT_A_TIME), y_CG.t().split(GENES_AT_A_TIME), strict=True)
    return torch.cat([Reference.of(y_GC).rank_sum_p(x_GC) for x_GC, y_GC in parts])


@dataclass(frozen=True)
class Reference:
    """Cells that others are tested against, sorted once.

    Attributes
    ----------
    sorted_GC
        Values ascending, gene by gene.
    ties_G
        Sum of t³ - t over equal values, float64.
    """

    sorted_GC: Tensor
    ties_G: Tensor

    @classmethod
    def of(cls, cells_GC: Tensor) -> Reference:
        sorted_GC = cells_GC.contiguous().sort(dim=1).values
        below_GC, up_to_GC = _ranks(sorted_GC, sorted_GC)
        equal_GC = (up_to_GC - below_GC).double()
        return cls(sorted_GC, (equal_GC.square() - 1).sum(1))

    def rank_sum_p(self, x_GC: Tensor) -> Tensor:
        """p-values ``(genes)`` of cells ``(genes, cells)``."""
        n_x, n_y = x_GC.shape[1], self.sorted_GC.shape[1]
        n = n_x + n_y
        x_GC = x_GC.contiguous().sort(dim=1).values
        below_GC, up_to_GC = _ranks(x_GC, x_GC)
        below_y_GC, up_to_y_GC = _ranks(self.sorted_GC, x_GC)
        # rank of a value among all: those below it, and half of its equals
        ranks_G = (below_GC + below_y_GC + up_to_GC + up_to_y_GC + 1).double().sum(1) / 2
        u_G = ranks_G - n_x * (n_x + 1) / 2
        # groups of equals that the cells join, each counted at its first
        first_GC = below_GC == torch.arange(n_x, device=x_GC.device)
        own_GC, others_GC = (up_to_GC - below_GC).double(), (up_to_y_GC - below_y_GC).double()
        both_GC = own_GC + others_GC
        joined_GC = (both_GC**3 - both_GC) - (others_GC**3 - others_GC)
        ties_G = self.ties_G + (joined_GC * first_GC).sum(1)
        spread_G = (n_x * n_y / 12 * ((n + 1) - ties_G / (n * (n - 1)))).clamp(min=0).sqrt()
        distance_G = ((u_G - n_x * n_y / 2).abs() - 0.5) / spread_G
        p_G = torch.special.erfc(distance_G / 2**0.5)
        return torch.where(spread_G > 0, p_G.clamp(max=1.0), 1.0)


def _ranks(sorted_GC: Tensor, values_GC: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the sorted are below each value, and how many are not above it."""
    return torch.searchsorted(sorted_GC, values_GC), torch.searchsorted(sorted_GC, values_GC, right=True)


def false_discovery_rate(p: Tensor) -> Tensor:
    """p-values ``(..., genes)`` adjusted by Benjamini and Hochberg (1995), each row by itself.

    The numbers are those of `scipy.stats.false_discovery_control`.
    """
    ordered, order = p.sort(-1)
    n = p.shape[-1]
    place = torch.arange(1, n + 1, device=p.device, dtype=p.dtype)
    # a number over a tensor would be its product with reciprocals, rounded twice
    scaled = ordered * (torch.full_like(place, n) / place)
    adjusted = scaled.flip(-1).cummin(-1).values.flip(-1).clamp(max=1.0) if n else scaled
    return torch.empty_like(p).scatter(-1, order, adjusted)


def de_overlap(predicted: Differential, measured: Differential) -> Tensor:
    """Share of the truly changed genes that are called (`overlap_at_N`), a scalar; 0 where none changed.

    More genes called than truly changed are cut to those with the largest absolute fold changes.
    """
    number = measured.significant_G.sum()
    size_G = torch.where(predicted.significant_G, predicted.log2_fold_change_G.abs(), -1.0)
    place_G = torch.empty_like(size_G).scatter(0, size_G.argsort(descending=True), torch.arange(
        len(size_G), device=size_G.device, dtype=size_G.dtype))  # fmt: skip
    called_G = predicted.significant_G & (place_G < number)
    return (called_G & measured.significant_G).sum() / number.clamp(min=1)


def discrimination_l1(predicted_PG: Tensor, observed_PG: Tensor, own_gene_P: Tensor) -> Tensor:
    """Discrimination score of each perturbation (`discrimination_score_l1`), ``(P)``: 1 is best, 0.5 is chance.

    Parameters
    ----------
    predicted_PG, observed_PG
        Pseudobulk deltas of the perturbations of one context.
    own_gene_P
        Number of the target's own gene, which is left out; -1 for none.
    """
    distance_PP = torch.cdist(predicted_PG, observed_PG, p=1)
    has_own_P = own_gene_P >= 0
    own_P = own_gene_P.clamp(min=0)
    own_difference_PP = (predicted_PG.gather(1, own_P[:, None]) - observed_PG[:, own_P].t()).abs()
    distance_PP = distance_PP - own_difference_PP * has_own_P[:, None]
    rank_P = (distance_PP < distance_PP.diagonal()[:, None]).sum(1)
    return 1 - rank_P / len(observed_PG)


def delta_correlation(predicted_PG: Tensor, observed_PG: Tensor, known_PG: Tensor | None = None) -> Tensor:
    """Pearson correlation over measured genes of predicted and measured pseudobulk deltas, ``(P)``."""
    known_PG = torch.ones_like(predicted_PG) if known_PG is None else known_PG.to(predicted_PG.dtype)

    def centred(delta_PG: Tensor) -> Tensor:
        mean_P1 = (delta_PG * known_PG).sum(1, keepdim=True) / known_PG.sum(1, keepdim=True).clamp(min=1)
        return (delta_PG - mean_P1) * known_PG

    return torch.cosine_similarity(centred(predicted_PG), centred(observed_PG), dim=1)


def distinctness(delta_PG: Tensor) -> Tensor:
    """Share of the size of some deltas that is not common to all of them, a scalar from 0 (all one profile) up."""
    spread = (delta_PG - delta_PG.mean(0)).square().sum()
    return spread / delta_PG.square().sum().clamp(min=1e-12)
