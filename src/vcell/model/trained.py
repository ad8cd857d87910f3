"""A trained model: network, perturbation table and identity, ready to predict. Lightning is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vcell.data.batch import CellSetBatch
from vcell.effects.model import EffectModel
from vcell.errors import VcellError, check_choice, shortlist
from vcell.model.checkpoint import Identity, make_model, read_checkpoint, table_of
from vcell.model.lora import merged
from vcell.model.negative_binomial import CountLaw, draw
from vcell.model.predictor import prior_of
from vcell.model.table import PerturbationTable
from vcell.system import auto_precision

PRECISIONS = ("auto", "float32", "bf16")


@dataclass
class TrainedModel:
    """A network, the vectors of the perturbations it knows, and what its checkpoint says of itself. Make one with `load`.

    Parameters
    ----------
    model
        A `predictor.TrainableModel`.
    table
        Vectors of the perturbations.
    identity
        What the checkpoint says of itself.
    addition
        How much of what the network adds to its prior is kept, 0 to 1; None: as its validation has found.
    products
        Precision of the network's matrix products where it predicts; in training Lightning says it.
    """

    model: nn.Module
    table: PerturbationTable
    identity: Identity
    addition: float | None = None
    products: torch.dtype = torch.float32
    _vectors: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._share_table()

    def cover(self, perturbations: Sequence[str]) -> None:
        """Gives the table a row for each of these that it can say something of: other names of genes that it has, genes in combination."""
        asked = self.identity.config.get("perturbation") or {}
        table = self.table.covering(perturbations, asked.get("combine"), asked.get("missing") or "error")
        if table is not self.table:
            self.table, self._vectors = table, None
            self._share_table()

    def _share_table(self) -> None:
        for one in (self.model, prior_of(self.model)):
            if isinstance(one, EffectModel):
                one.use_table(self.table)

    @classmethod
    def load(
        cls,
        path: str | Path,
        table: PerturbationTable | None = None,
        trust: Sequence[str] = (),
        model: nn.Module | None = None,
    ) -> TrainedModel:
        """The model of a checkpoint, on the CPU and ready to predict.

        Parameters
        ----------
        path
            A checkpoint.
        table
            Takes the place of the checkpoint's perturbation table; must have the same width. That its vectors mean the same
            is for the caller to know.
        trust
            Packages outside vcell whose network the checkpoint may name.
        model
            A network to load the weights into, in place of the one the checkpoint describes.

        Raises
        ------
        VcellError
            If the checkpoint is damaged, names a network that is not trusted, or its table is in a file that is gone or has changed.
        """
        path = Path(path)
        checkpoint = read_checkpoint(path)
        identity = Identity.of(checkpoint["vcell"], path)
        try:
            table = table_of(identity, table, path)
            network = model if model is not None else make_model(identity.config["model"], identity.sizes, path, trust)
            weights = {
                k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")
            }
            weights = merged(weights, identity.config)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise VcellError(
                f"the checkpoint {path} has a damaged description of its model ({type(error).__name__}: {error})"
            ) from error
        try:
            network.load_state_dict(weights)
            if (prior := prior_of(network)) is not None:
                prior.set_extra_state(identity.prior)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # of a model that keeps names and effects
            raise VcellError(
                f"the checkpoint {path} has a damaged model ({type(error).__name__}: {error}); train it again"
            ) from error
        except RuntimeError as error:
            raise VcellError(
                f"the weights in {path} do not fit the model it names: {misfit(network, weights) or error}"
            ) from error
        return cls(network.eval(), table, identity)

    def predict(self, batch: CellSetBatch) -> Tensor:
        """Predicted cells, log1p of counts per target sum, ``(sets, cells, genes)``."""
        if isinstance(self.model, EffectModel):
            return self.model.predict(batch)
        return self.predict_from(self.start(batch), batch)

    def predict_from(self, start_SCG: Tensor, batch: CellSetBatch) -> Tensor:
        """What a network predicts from cells that it `start`s from."""
        said = self._say(batch, start_SCG)
        if isinstance(said, CountLaw):
            return draw(said, batch)
        prior = prior_of(self.model)
        if prior is None or self.model.training:
            return said
        predicted_SCG = said if self.kept == 1 else torch.lerp(start_SCG, said, self.kept)
        if prior.amplitude != "error":  # the network has learnt what to add at the prior's usual amplitude
            predicted_SCG = (predicted_SCG + (prior.predict(batch) - start_SCG)).relu()
        return predicted_SCG

    @property
    def adds(self) -> bool:
        """Whether the network adds to a prior's cells, and part of that can be kept: a law of counts is kept whole."""
        return prior_of(self.model) is not None and getattr(self.model, "head", None) != "nb"

    @property
    def kept(self) -> float:
        """How much of what the network adds to its prior is kept."""
        found = self.identity.addition if self.addition is None else self.addition
        return 1.0 if found is None else found

    def _say(self, batch: CellSetBatch, control_SCG: Tensor) -> Tensor | CountLaw:
        """What the network says of a batch: predicted cells, or the law that their counts follow."""
        vectors_SP = self.lookup(batch.perturbations, control_SCG.device)
        arguments = control_SCG, vectors_SP, batch.embedding_SCE, batch.context_S, batch.batch_SC
        if self.products == torch.float32:
            said: Tensor | CountLaw = self.model(*arguments)
            return said
        with torch.autocast(control_SCG.device.type, self.products):
            return self.model(*arguments)

    def start(self, batch: CellSetBatch) -> Tensor:
        """The cells that the network changes: control cells, or its prior's."""
        prior = prior_of(self.model)
        if prior is None:
            return batch.control_SCG
        return prior.training_start(batch) if self.model.training else prior.predict(batch, "error")

    def to(self, device: torch.device | str) -> TrainedModel:
        """Moves the network to `device`; gives the same object."""
        self.model.to(device)
        return self

    def in_precision(self, precision: str) -> TrainedModel:
        """Has the network predict in ``float32`` or ``bf16``, or as suits it and its device best (``auto``); gives the same object.

        ``auto`` is `system.auto_precision`, but float32 on GPUs without bf16: fp16 has no room for a network's largest values.
        """
        check_choice("precision", precision, PRECISIONS)
        if precision == "auto":
            weights = list(self.model.parameters())
            device = weights[0].device if weights else torch.device("cpu")
            best = auto_precision(device, sum(weight.numel() for weight in weights))
            precision = "bf16" if best == "bf16-mixed" else "float32"
        self.products = torch.bfloat16 if precision == "bf16" else torch.float32
        return self

    def lookup(self, perturbations: list[str], device: torch.device) -> Tensor:
        """Vectors of perturbations, ``(sets, width)``. On a GPU the table lies there, and only row numbers travel, without waiting."""
        if device.type != "cuda":
            return self.table.lookup(perturbations).to(device)
        if self._vectors is None or self._vectors.device != device:
            self._vectors = self.table.vectors.to(device)
        rows = torch.tensor(self.table.rows(perturbations)).pin_memory()
        return self._vectors[rows.to(device, non_blocking=True)]


def misfit(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """In what weights differ from those of a network, by name and shape; no words where they do not."""
    known = network.state_dict()
    both = [name for name in known if name in weights]
    shapes = [(name, *(list(getattr(of[name], "shape", ())) for of in (known, weights))) for name in both]
    other = [f"{name} is {found}, not {wanted}" for name, wanted, found in shapes if found != wanted]
    missing, unknown = sorted(known.keys() - weights.keys()), sorted(weights.keys() - known.keys())
    parts = (
        f"it lacks {shortlist(missing, 4)}" if missing else "",
        f"it does not know {shortlist(unknown, 4)}" if unknown else "",
        shortlist(other, 4),
    )
    return "; ".join(part for part in parts if part)
