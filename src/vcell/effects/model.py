"""Predictors made of measured effects: no gradient, one pass over the effects. Control cells are moved by the effect of their target.

Shape legend: S sets, C cells of a set, T targets, G genes, P width of the perturbation table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vcell.data.batch import CellSetBatch
from vcell.effects.controls import ContextControls
from vcell.effects.evidence import Evidence
from vcell.errors import VcellError

COVERED = 1e-12  # vectors of a smaller norm say nothing
COLUMNS = 128  # of vectors worked on at a time


class Table(Protocol):
    """What is used of a perturbation table."""

    @property
    def vectors(self) -> Tensor: ...
    @property
    def row(self) -> Mapping[str, int]: ...
    @property
    def is_one_hot(self) -> bool: ...


class Vectors:
    """Vectors of the perturbations, where the table says something of targets never measured.

    Parameters
    ----------
    table
        None, and a one-hot table, say nothing.
    """

    def __init__(self, table: Table | None) -> None:
        useful = table is not None and not table.is_one_hot
        self._table = table if useful else None
        self.width = int(table.vectors.shape[1]) if useful and table is not None else 0
        self._scaled: np.ndarray | None = None

    def of(self, targets: Sequence[str]) -> np.ndarray:
        """Columns at mean 0 and variance 1 over the table, divided by √width; 0 for targets that it lacks, ``(T, P)``."""
        found = np.zeros((len(targets), self.width), np.float32)
        if self._table is None:
            return found
        if self._scaled is None:
            self._scaled = _standardised(self._table.vectors.numpy())
        rows = [self._table.row.get(t, -1) for t in targets]
        known = np.array([r >= 0 for r in rows], bool)
        found[known] = self._scaled[[r for r in rows if r >= 0]]
        return found

    def knows(self, targets: Sequence[str]) -> np.ndarray:
        """bool ``(T)``: which of them have a vector."""
        row = {} if self._table is None else self._table.row
        return np.array([t in row for t in targets], bool)


def _standardised(vectors_NP: np.ndarray) -> np.ndarray:
    """Columns at mean 0 and variance 1, divided by √width, float32; some at a time, in float64."""
    rows, width = vectors_NP.shape
    found = np.empty((rows, width), np.float32)
    for start in range(0, width, COLUMNS):
        some = vectors_NP[:, start : start + COLUMNS].astype(np.float64)
        spread = some.std(0)
        some -= some.mean(0)
        some /= np.maximum(spread, 1e-8)
        some[:, spread <= 1e-8] = 0
        some /= np.sqrt(width)
        found[:, start : start + COLUMNS] = some
    return found


class EffectModel(nn.Module):
    """Base of predictors that are fitted to measured effects in one go.

    Parameters
    ----------
    n_genes
        Genes of the effects.
    """

    uses_vectors = False  # whether the vectors of the perturbations matter

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.evidence: Evidence | None = None
        self.vectors = Vectors(None)
        self.controls: dict[str, ContextControls] = {}
        self._starts: dict[tuple[str, str], Tensor] = {}  # effects of training groups, worked out once
        self.amplitude = (
            "error"  # or ``ranks``: at which cells are told apart best by L1 distance, where the predictor knows one
        )
        self.shrunk = False  # whether the effects that it is fitted to are shrunk by their standard errors
        self.recentred = True  # whether a set's mean is made that of its context
        self.fitted: dict[str, Any] = {}  # what `fit` found: numbers, text, arrays, and dicts of these

    def fit(self, evidence: Evidence) -> list[str]:
        """Learns from the effects of training groups, `self.controls` and `self.vectors`; gives lines for the log."""
        self.evidence = evidence
        self.forget()
        return []

    def forget(self) -> None:
        """Drops what was worked out from evidence and controls to be used again."""
        self._starts.clear()

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        """Predicted effects in a space, float32 ``(T, G)``."""
        raise NotImplementedError

    def training_effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        """Effects of training targets in their own context, as a network that adds to them has to meet them: what the cells of
        a target in the context itself say of it is left out, as it is missing where the network predicts, ``(T, G)``."""
        return self.effect(space, context, targets)

    def use_table(self, table: Table | None) -> None:
        """Takes the vectors of the perturbations from a table."""
        self.vectors = Vectors(table)

    def observe(self, controls: Mapping[str, ContextControls]) -> None:
        """Shows the control cells of contexts that are going to be predicted."""
        self.controls.update(controls)
        self.forget()

    def known_targets(self) -> list[str]:
        """Targets that were measured somewhere."""
        return [] if self.evidence is None else list(self.evidence.rows_of)

    def predict(self, batch: CellSetBatch, amplitude: str | None = None) -> Tensor:
        """Control cells moved by the effect of their set's target, ``(sets, cells, genes)``, log1p, not negative.

        Where all control cells of the context have been shown, a set's mean is theirs plus the effect: what the few cells of a set stray
        from the mean by would be taken for an effect, and is larger than most effects. Not so with `recentred` off: where cells of certain
        batches are asked for, which differ from the context's mean for good reason.

        Parameters
        ----------
        amplitude
            ``error`` or ``ranks``, in place of the predictor's own.
        """
        asked, self.amplitude = self.amplitude, amplitude or self.amplitude
        try:
            return self._moved(batch)
        finally:
            self.amplitude = asked

    def _moved(self, batch: CellSetBatch) -> Tensor:
        control_SCG = batch.control_SCG
        deltas = np.zeros((len(batch.perturbations), control_SCG.shape[-1]), np.float32)
        for context in dict.fromkeys(batch.contexts):
            sets = [s for s, c in enumerate(batch.contexts) if c == context]
            deltas[sets] = self.effect("cell", context, [batch.perturbations[s] for s in sets])
            if self.recentred and context in self.controls:
                changed = (deltas[sets] != 0).any(1)[:, None]
                mean_G = np.nan_to_num(self.controls[context].profile.log1p[0])
                deltas[sets] += np.where(changed, mean_G - control_SCG.mean(1)[sets].cpu().numpy(), 0)
        return (control_SCG + torch.from_numpy(deltas).to(control_SCG.device).unsqueeze(1)).relu_()

    def training_start(self, batch: CellSetBatch) -> Tensor:
        """Control cells moved by `training_effect`, from which a network in training starts, ``(sets, cells, genes)``, log1p."""
        control_SCG, groups = batch.control_SCG, list(zip(batch.contexts, batch.perturbations, strict=True))
        for context, target in dict.fromkeys(groups):
            if (context, target) not in self._starts:
                effect_G = self.training_effect("cell", context, [target])[0]
                self._starts[context, target] = torch.from_numpy(np.ascontiguousarray(effect_G))
        effect_SG = torch.stack([self._starts[group] for group in groups])
        if control_SCG.device.type == "cuda":
            effect_SG = effect_SG.pin_memory().to(control_SCG.device, non_blocking=True)
        return (control_SCG + effect_SG.to(control_SCG.device).unsqueeze(1)).relu_()

    def ratios(self, context: str, targets: Sequence[str], calls: bool = False) -> np.ndarray:
        """Predicted expression relative to the control cells, ``(T, G)``; the context must have been observed.

        Parameters
        ----------
        calls
            Whether the fold changes of genes that a test calls matter most, as in the scores of 2026, not the error over all genes.
        """
        return self.controls[context].ratios_of(self.effect("bulk", context, targets), "bulk")

    def forward(self, *args: Any) -> Tensor:
        raise VcellError(
            "a predictor made of effects is called with predict(batch): it needs the names of contexts and targets"
        )

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain values, names and tensors."""
        evidence = None if self.evidence is None else self.evidence.plain()
        trained = [] if self.evidence is None else self.evidence.context_names
        controls = {c: self.controls[c].plain() for c in trained if c in self.controls}
        return {"evidence": evidence, "fitted": _packed(self.fitted), "controls": controls}

    def set_extra_state(self, state: Any) -> None:
        self.evidence = None if state["evidence"] is None else Evidence.of_plain(state["evidence"])
        self.fitted = _unpacked(state["fitted"])
        kept = state.get("controls", {})  # those of contexts trained on; checkpoints from before have none
        self.controls = {context: ContextControls.of_plain(one) for context, one in kept.items()} | self.controls
        self.forget()

    @property
    def known(self) -> Evidence:
        """The evidence.

        Raises
        ------
        VcellError
            If nothing was fitted yet.
        """
        if self.evidence is None:
            raise VcellError(f"{type(self).__name__} was not fitted")
        return self.evidence


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, dict):
        return {key: _packed(one) for key, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    return {key: _unpacked(one) for key, one in value.items()} if isinstance(value, dict) else value
