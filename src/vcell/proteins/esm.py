"""A protein language model of the ESM2 family: sequences to vectors, the mean of the last layer over residues (Lin et al. 2023).

Shape legend: B sequences of a batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vcell.errors import VcellError, install


@dataclass
class ProteinModel:
    """An ESM2 model, ready to embed.

    Attributes
    ----------
    name, revision
        Of the checkpoint.
    window, overlap
        Residues that are read at once, and by which the windows of longer proteins overlap.
    """

    network: nn.Module
    tokenizer: Any
    name: str
    revision: str | None
    window: int
    overlap: int

    @classmethod
    def load(
        cls, name: str, device: torch.device, dtype: torch.dtype = torch.float32, window: int = 1022, overlap: int = 256
    ) -> ProteinModel:
        """A checkpoint by its name on the Hugging Face Hub, or a local folder.

        Raises
        ------
        VcellError
            If `transformers` is not installed, the checkpoint cannot be had, or is no ESM2 model.
        """
        if find_spec("transformers") is None:
            raise VcellError(f"vcell embed needs transformers: {install('embed')}")
        if not 0 <= overlap < window:
            raise VcellError(f"overlap={overlap} must be at least 0 and below window={window}")
        from transformers import AutoConfig, AutoTokenizer, EsmModel
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            described = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except Exception as error:
            raise VcellError(_cannot(name, error)) from error
        if described.model_type != "esm" or getattr(described, "is_folding_model", False):
            raise VcellError(
                f"checkpoint={name} is {described.model_type}, not ESM2. vcell embed takes ESM2's checkpoints: facebook/esm2_t33_650M_UR50D and its sizes"
            )
        longest = (
            int(described.max_position_embeddings or 0) - 2
            if described.position_embedding_type == "absolute"
            else window
        )
        if window > longest:
            raise VcellError(f"window={window} is more than the {longest} residues that {name} reads at once")
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            network: Any = EsmModel.from_pretrained(name, add_pooling_layer=False, trust_remote_code=False)
        except Exception as error:
            raise VcellError(_cannot(name, error)) from error
        return cls(
            network.to(device, dtype).eval(), tokenizer, name, getattr(described, "_commit_hash", None), window, overlap
        )

    @property
    def width(self) -> int:
        return int(self.network.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def pieces(self, sequence: str) -> list[str]:
        """The windows of a sequence: one, or several of `window` residues that overlap by `overlap`, the last ending with the sequence."""
        if len(sequence) <= self.window:
            return [sequence]
        step = self.window - self.overlap
        starts = list(range(0, len(sequence) - self.window, step))
        return [sequence[s : s + self.window] for s in [*starts, len(sequence) - self.window]]

    @torch.inference_mode()
    def embed(self, pieces: Sequence[str]) -> Tensor:
        """The mean over residues of the last layer for each piece, special tokens excluded, float32 ``(B, D)``."""
        tokens = self.tokenizer(list(pieces), return_tensors="pt", padding=True, add_special_tokens=True)
        device = next(self.network.parameters()).device
        ids_BL, mask_BL = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        states_BLD = self.network(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state.float()
        special_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
        for token in (self.tokenizer.cls_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id):
            special_BL |= ids_BL == token
        residue_BL = (~special_BL).float().unsqueeze(-1)
        return ((states_BLD * residue_BL).sum(1) / residue_BL.sum(1)).cpu()

    def of_sequences(self, sequences: Sequence[str]) -> Tensor:
        """Vectors of whole sequences: the mean of their windows, weighted by residues, ``(B, D)``."""
        pieces = [self.pieces(sequence) for sequence in sequences]
        found = self.embed([piece for some in pieces for piece in some])
        vectors, start = [], 0
        for some in pieces:
            weight = torch.tensor([float(len(piece)) for piece in some]).unsqueeze(1)
            vectors.append((found[start : start + len(some)] * weight).sum(0) / weight.sum())
            start += len(some)
        return torch.stack(vectors)


def _cannot(name: str, error: Exception) -> str:
    where = (
        "the folder is no checkpoint of transformers"
        if Path(name).is_dir()
        else "it is no local folder, and could not be downloaded"
    )
    return (
        f"checkpoint={name} cannot be loaded: {where} ({type(error).__name__}: {str(error).splitlines()[0][:200]}). Give a name such as "
        "facebook/esm2_t33_650M_UR50D, or the folder of a checkpoint"
    )
