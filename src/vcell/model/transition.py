"""The set-to-set transition model: control cells and a perturbation in, perturbed cells out.

After STATE's ST model (Adduri et al. 2025, bioRxiv 2025.06.26.661135, Methods): a cell encoder and a perturbation
encoder whose outputs add up, transformer blocks over the cells of a set without positions, and a decoder. It differs
in the head: the decoder's output is added to the control cell in log1p *expression* space, so a decoder that says
nothing (as at the start of training) predicts no change. STATE's own heads are there for comparison.

Shape legend: S sets, C cells of a set, G genes, D hidden, P width of a perturbation vector, E of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vcell.effects.make import BASELINES
from vcell.effects.model import EffectModel
from vcell.errors import VcellError, check_choice, check_number
from vcell.model.fused import changed
from vcell.model.layers import Block, Covariate, Linear, RMSNorm, SeveralEncoders, mlp, vector_encoder
from vcell.model.negative_binomial import CountLaw

MOST_LAYERS, MOST_WIDE = 1_000, 1_000_000  # of any network that fits a machine
HEADS = ("expression", "nb", "state_hidden", "state_bottleneck")
LARGEST_CHANGE = 8.0  # of the logarithm of a mean count
LOG_FLOOR = -5.0  # of counts per target sum, before it is learnt
COVARIATES = ("context", "batch")


class TransitionModel(nn.Module):
    """Predicts perturbed cells from control cells.

    Parameters
    ----------
    n_genes, perturbation_width, perturbation_parts, input_width, seen_genes, n_contexts, n_batches
        Given by the data and the perturbation table. Cells are seen through all their genes; with `seen_genes` through
        those only; with an `input_width` through an embedding of that width. The output is expression of all genes in any case.
    hidden, layers, heads, head_width, feed_forward
        Shape of the transformer.
    encoder_layers, decoder_layers
        Linear layers of each encoder and of the decoder; 1 is a linear map.
    dropout
        Between those layers.
    table_encoders
        ``joint``: one encoder of a perturbation's whole vector; ``each``: one for each of the tables that were joined, whose outputs add up.
    head
        ``expression``: the decoder's output is a change of log1p expression, 0 at the start. ``nb``: of the logarithm of the mean count,
        beside a dispersion for each gene; trained by the likelihood of the counts, which predictions are drawn from. ``state_hidden``: STATE's head for
        HVG, whose residual is added to the encoded cell before the decoder. ``state_bottleneck``: STATE's head for all genes,
        whose sum of decoder and control passes a bottleneck of an eighth of the genes.
    covariates
        Of ``context`` and ``batch``, those that are embedded and added. One never trained on gets the mean embedding.
    prior
        A predictor made of effects (``transfer``, or another of `effects.make.BASELINES`) from whose cells the network starts in place of
        control cells. It is fitted before training, and kept in the checkpoint.
    checkpoint_activations
        Computes each block's activations again in the backward pass instead of keeping them: less memory, more time.
    """

    seen_genes: Tensor | None

    def __init__(
        self,
        n_genes: int,
        perturbation_width: int,
        hidden: int,
        layers: int,
        heads: int,
        head_width: int,
        feed_forward: int,
        encoder_layers: int,
        decoder_layers: int,
        dropout: float = 0.1,
        table_encoders: str = "joint",
        head: str = "expression",
        covariates: Sequence[str] = (),
        prior: str | None = None,
        checkpoint_activations: bool = False,
        input_width: int | None = None,
        seen_genes: Sequence[int] | None = None,
        n_contexts: int = 0,
        n_batches: int = 0,
        perturbation_parts: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("model.head", head, HEADS)
        sizes = {
            "hidden": hidden, "layers": layers, "heads": heads, "head_width": head_width, "feed_forward": feed_forward,
            "encoder_layers": encoder_layers, "decoder_layers": decoder_layers,
        }  # fmt: skip
        for name, size in sizes.items():
            check_number(f"model.{name}", size, 1, MOST_LAYERS if name.endswith("layers") else MOST_WIDE)
        check_number("model.dropout", dropout, 0, 1, whole=False)
        covariates = covariates or ()
        if unknown := sorted(set(covariates) - set(COVARIATES)):
            raise VcellError(f"model.covariates names {unknown[0]!r}; there are {', '.join(COVARIATES)}")
        check_choice("model.prior", prior, (None, *BASELINES))
        self.n_genes, self.input_width, self.head = n_genes, input_width, head
        # in a list, for it is no part of the weights
        self._prior: list[EffectModel] = [] if prior is None else [BASELINES[prior](n_genes)]
        self.checkpoint_activations = checkpoint_activations
        self.register_buffer(
            "seen_genes", None if seen_genes is None else torch.as_tensor(seen_genes), persistent=False
        )
        width = input_width or (n_genes if seen_genes is None else len(seen_genes))
        self.cell_encoder = mlp(width, hidden, hidden, encoder_layers, dropout)
        self.perturbation_encoder = vector_encoder(
            table_encoders, perturbation_width, perturbation_parts, hidden, encoder_layers, dropout
        )
        self.context = Covariate(n_contexts, hidden) if "context" in covariates else None
        self.batch = Covariate(n_batches, hidden) if "batch" in covariates else None
        self.blocks = nn.ModuleList(Block(hidden, heads, head_width, feed_forward) for _ in range(layers))
        self.norm = RMSNorm(hidden)
        self.decoder = mlp(hidden, hidden, n_genes, decoder_layers, dropout)
        self.bottleneck = mlp(n_genes, n_genes // 8, n_genes, 2, 0.0) if head == "state_bottleneck" else None
        if head == "nb":
            self.shape_head = Linear(hidden, n_genes)
            self.log_floor_G = nn.Parameter(torch.zeros(n_genes))
            nn.init.zeros_(self.shape_head.weight)
            nn.init.zeros_(self.shape_head.bias)
        if head in ("expression", "nb"):
            last = self.decoder[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @property
    def prior(self) -> EffectModel | None:
        """What the network starts from, where it is not control cells."""
        return self._prior[0] if self._prior else None

    @property
    def covariates(self) -> tuple[str, ...]:
        """Those the model needs to be given."""
        return tuple(name for name in COVARIATES if getattr(self, name) is not None)

    @property
    def axes(self) -> dict[str, dict[int, str]]:
        """What the entries of its parameters stand for, where it has one for each gene, table column, context or batch."""
        last = len(self.decoder) - 1
        found = {f"decoder.{last}.weight": {0: "genes"}, f"decoder.{last}.bias": {0: "genes"}}
        if self.head == "nb":
            found |= {"shape_head.weight": {0: "genes"}, "shape_head.bias": {0: "genes"}, "log_floor_G": {0: "genes"}}
        if self.input_width is None:
            found["cell_encoder.0.weight"] = {1: "input genes"}
        if not isinstance(self.perturbation_encoder, SeveralEncoders):
            found["perturbation_encoder.0.weight"] = {1: "table columns"}
        return found | {
            "context.weight": {0: "contexts"},
            "batch.weight": {0: "batches"},
        }

    def forward(
        self,
        control_SCG: Tensor,
        perturbation_SP: Tensor,
        embedding_SCE: Tensor | None = None,
        context_S: Tensor | None = None,
        batch_SC: Tensor | None = None,
    ) -> Tensor | CountLaw:
        """Predicted cells.

        Parameters
        ----------
        control_SCG
            Control cells, log1p of counts, ``(sets, cells, genes)``; with a prior, its cells.
        perturbation_SP
            One vector per set, ``(sets, perturbation_width)``.
        embedding_SCE
            The control cells' embeddings, ``(sets, cells, input_width)``, for a model that sees those.
        context_S, batch_SC
            Numbers of the contexts ``(sets)`` and of the cells' batches ``(sets, cells)``, for a model with these covariates;
            the number after the last one stands for all others.

        Returns
        -------
        log1p of counts on the same scale, ``(sets, cells, genes)``, not negative. Permuting the cells of a set permutes the output
        the same way. With ``head=nb``: the law that the counts of the set's cells follow.
        """
        encoded_SCD = self.cell_encoder(self._seen(control_SCG, embedding_SCE))
        hidden_SCD = encoded_SCD + self.perturbation_encoder(perturbation_SP).unsqueeze(1)
        if self.context is not None:
            hidden_SCD = hidden_SCD + self.context(context_S).unsqueeze(1)
        if self.batch is not None:
            hidden_SCD = hidden_SCD + self.batch(batch_SC)
        for block in self.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                hidden_SCD = checkpoint(block, hidden_SCD, use_reentrant=False)
            else:
                hidden_SCD = block(hidden_SCD)
        return self._decode(self.norm(hidden_SCD), encoded_SCD, control_SCG)

    def _seen(self, control_SCG: Tensor, embedding_SCE: Tensor | None) -> Tensor:
        if self.input_width is not None:
            assert embedding_SCE is not None
            return embedding_SCE
        return control_SCG if self.seen_genes is None else control_SCG.index_select(2, self.seen_genes)

    def _decode(self, hidden_SCD: Tensor, encoded_SCD: Tensor, control_SCG: Tensor) -> Tensor | CountLaw:
        if self.head == "nb":
            return self._law(hidden_SCD, control_SCG)
        if self.head == "state_hidden":
            return self.decoder(hidden_SCD + encoded_SCD).float().relu()
        change_SCG = self.decoder(hidden_SCD)
        if self.bottleneck is None:
            return changed(control_SCG, change_SCG)
        return self.bottleneck(control_SCG + change_SCG).float().relu()

    def _law(self, hidden_SCD: Tensor, control_SCG: Tensor) -> CountLaw:
        """Rates as those of the set's control cells, changed by the decoder; a gene that they do not show has a small one that is learnt."""
        summary_SD = hidden_SCD.mean(1)
        change_SG = self.decoder(summary_SD).float().clamp(-LARGEST_CHANGE, LARGEST_CHANGE)
        base_SG = torch.expm1(control_SCG.float()).mean(1)
        floor_G = (self.log_floor_G.float() + LOG_FLOOR).exp()
        return CountLaw((base_SG + floor_G) * change_SG.exp(), self.shape_head(summary_SD).float())
