"""The two protocols, of predictors and of networks, and the defaults for a network without the optional attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from vcell.data.batch import CellSetBatch
from vcell.effects.model import EffectModel


@runtime_checkable
class Predictor(Protocol):
    """Control cells and perturbation names to perturbed cells. Baselines, blends and trained models are predictors.

    One that learns from the run's training cells has a method ``fit(gather, assigned)`` besides: it is called once, with the reader of
    the cells (`data.gather.Gather`) and the split of every (context, perturbation).
    """

    def predict(self, batch: CellSetBatch) -> Tensor:
        """Predicted cells, log1p of counts per target sum, ``(sets, cells, genes)``."""
        ...


class TrainableModel(Protocol):
    """A network that can be trained: a `torch.nn.Module` with this `forward`.

    Its constructor is given those of these sizes that it has parameters for: ``n_genes``, ``perturbation_width``, ``perturbation_parts`` (its parts: of tables joined), ``input_width`` (of the
    embedding that it sees, or None), ``seen_genes`` (numbers of the genes that it sees, or None), ``n_contexts``, ``n_batches``.

    It may have four attributes more:

    - ``covariates``: those of ``context`` and ``batch`` that `forward` uses (default: none);
    - ``blocks``: its large parts, each of which is sharded by itself under FSDP (default: the network is sharded as a whole);
    - ``axes``: of parameters, by name, what the entries along a dimension stand for, ``{"decoder.weight": {0: "genes"}}``: ``genes``,
      ``input genes``, ``table columns``, ``contexts`` or ``batches``. A warm start then carries entries over by their names (default:
      none; parameters of equal shape are carried over whole);
    - ``prior``: a predictor made of effects, whose cells `forward` is given in place of control cells (default: None).
    """

    def __call__(
        self,
        control_SCG: Tensor,
        perturbation_SP: Tensor,
        embedding_SCE: Tensor | None = None,
        context_S: Tensor | None = None,
        batch_SC: Tensor | None = None,
    ) -> Tensor:
        """Predicted cells, log1p of counts, ``(sets, cells, genes)``; `TransitionModel.forward` explains the arguments."""
        ...


def covariates_of(model: nn.Module) -> tuple[str, ...]:
    """Covariates that a network uses."""
    return tuple(getattr(model, "covariates", ()))


def prior_of(model: nn.Module) -> EffectModel | None:
    """The predictor made of effects from whose cells a network starts."""
    found = getattr(model, "prior", None)
    return found if isinstance(found, EffectModel) else None


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """Parts of a network that are sharded one by one."""
    return list(getattr(model, "blocks", ()))


def axes_of(model: nn.Module) -> Mapping[str, Mapping[int, str]]:
    """What the entries along the dimensions of a network's parameters stand for."""
    found: Mapping[str, Mapping[int, str]] = getattr(model, "axes", {})
    return found
