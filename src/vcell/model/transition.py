"""The set-to-set transition model: control cells and a perturbation in, perturbed cells out.

After STATE's ST model (Adduri et al. 2025, bioRxiv 2025.06.26.661135, Methods): a cell encoder and a perturbation
encoder whose outputs add up, transformer blocks over the cells of a set without positions, and a decoder. It differs
in the head: the decoder's output is added to the control cell in log1p *expression* space, so a decoder that says
nothing (as at the start of training) predicts no change.

Shape legend: S sets, C cells of a set, G genes, D hidden, P width of a perturbation vector, E of an embedding.
"""

from __future__ import annotations

from torch import Tensor, nn

from vcell.model.layers import Block, mlp


class TransitionModel(nn.Module):
    """Predicts perturbed cells from control cells.

    Parameters
    ----------
    n_genes, perturbation_width, input_width
        Given by the data and the perturbation table. With an `input_width`, cells are seen through an embedding of that
        width in place of their expression; the output is expression all the same.
    hidden, layers, heads, head_width, feed_forward
        Shape of the transformer.
    encoder_layers, decoder_layers
        Linear layers of each encoder and of the decoder; 1 is a linear map.
    dropout
        Between those layers.
    """

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
        input_width: int | None = None,
    ) -> None:
        super().__init__()
        self.n_genes, self.perturbation_width, self.input_width = n_genes, perturbation_width, input_width
        self.cell_encoder = mlp(input_width or n_genes, hidden, hidden, encoder_layers, dropout)
        self.perturbation_encoder = mlp(perturbation_width, hidden, hidden, encoder_layers, dropout)
        self.blocks = nn.ModuleList(Block(hidden, heads, head_width, feed_forward) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.decoder = mlp(hidden, hidden, n_genes, decoder_layers, dropout)
        last = self.decoder[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, control_SCG: Tensor, perturbation_SP: Tensor, embedding_SCE: Tensor | None = None) -> Tensor:
        """Predicted cells.

        Parameters
        ----------
        control_SCG
            Control cells, log1p of counts, ``(sets, cells, genes)``.
        perturbation_SP
            One vector per set, ``(sets, perturbation_width)``.
        embedding_SCE
            The control cells' embeddings, ``(sets, cells, input_width)``, for a model that sees those.

        Returns
        -------
        log1p of counts on the same scale, ``(sets, cells, genes)``, not negative. Permuting the cells of a set
        permutes the output the same way.
        """
        seen = control_SCG if self.input_width is None else embedding_SCE
        hidden_SCD = self.cell_encoder(seen) + self.perturbation_encoder(perturbation_SP).unsqueeze(1)
        for block in self.blocks:
            hidden_SCD = block(hidden_SCD)
        change_SCG = self.decoder(self.norm(hidden_SCD))
        return (control_SCG + change_SCG.float()).relu()
