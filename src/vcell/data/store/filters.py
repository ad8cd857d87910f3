"""Which cells of a screen are good enough to keep: perturbations that silenced their target, groups large enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vcell.data.files.genes import gene_names
from vcell.data.files.labels import listed_names
from vcell.errors import VcellError, check_number, nearest, shortlist


@dataclass(frozen=True)
class Filters:
    """What is left out of a store. Expression is the share of a cell's counts; controls are those of its context and file.

    Parameters
    ----------
    residual_expression
        Perturbations of a context that leave this fraction, or more, of their target's mean control expression are
        left out; 0.30 is `cell-load`'s threshold. For knockdown screens only: an activating guide raises its target.
    cell_residual_expression
        So are single cells of the others at this fraction, or more; 0.50 there.
    min_cells
        Afterwards, perturbations of a context with fewer cells; 30 there.
    min_controls_per_batch
        Batches with fewer control cells are left out.
    drop_batches
        Batches left out by name.
    unknown_genes
        ``refuse``, ``keep`` or ``drop`` perturbations whose name is no known gene, when expression is asked for. Those
        whose gene is known but was not measured, or is 0 in all controls, cannot be judged and are kept.
    """

    residual_expression: float | None = None
    cell_residual_expression: float | None = None
    min_cells: int | None = None
    min_controls_per_batch: int | None = None
    drop_batches: Sequence[str] = ()
    unknown_genes: str = "refuse"

    def __post_init__(self) -> None:
        for name in ("residual_expression", "cell_residual_expression", "min_cells", "min_controls_per_batch"):
            if (value := getattr(self, name)) is not None:
                check_number(f"data.filter.{name}", value, 0, whole=name.startswith("min"), above=True, other="null")
        if self.unknown_genes not in ("refuse", "keep", "drop"):
            raise VcellError(f"data.filter.unknown_genes={self.unknown_genes} must be refuse, keep or drop")

    def apply(self, cells: pd.DataFrame, control: str) -> tuple[np.ndarray, list[str]]:
        """Which cells stay, and one line for each reason to leave some out.

        Parameters
        ----------
        cells
            context, source, batch, perturbation, and `residual`: expression of the cell's own target as a fraction of
            the control mean, NaN where that cannot be said.
        """
        keep, notes = np.ones(len(cells), bool), []
        is_control = (cells["perturbation"] == control).to_numpy()
        residual = cells["residual"].to_numpy()
        group = cells.groupby(["context", "perturbation"], observed=True).ngroup().to_numpy()

        def leave_out(where: np.ndarray, reason: str) -> None:
            groups = cells.loc[keep & where & ~is_control, ["context", "perturbation"]].drop_duplicates()
            if (keep & where).any():
                notes.append(f"{int((keep & where).sum()):,} cells of {len(groups):,} perturbations: {reason}")
            keep[where] = False

        if self.drop_batches:
            leave_out(self._named_batches(cells["batch"]), "in a batch named in drop_batches")
        if self.min_controls_per_batch:
            place = cells.groupby(["context", "source", "batch"], observed=True).ngroup().to_numpy()
            controls = np.bincount(place, is_control, place.max(initial=0) + 1)
            leave_out(controls[place] < self.min_controls_per_batch,
                      f"in batches with fewer than {self.min_controls_per_batch} control cells")  # fmt: skip
        if self.residual_expression or self.cell_residual_expression:
            leave_out(self._unknown(cells, residual, is_control), "of no known gene")
        if self.residual_expression:
            mean = _mean_by(group, np.where(keep, residual, np.nan))
            leave_out(~is_control & (mean >= self.residual_expression),
                      f"their target keeps {self.residual_expression:.0%} or more of its control expression")  # fmt: skip
        if self.cell_residual_expression:
            leave_out(~is_control & (residual >= self.cell_residual_expression),
                      f"their own target is at {self.cell_residual_expression:.0%} or more of its control expression")  # fmt: skip
        if self.min_cells:
            number = np.bincount(group, keep)
            leave_out(~is_control & (number[group] < self.min_cells), f"fewer than {self.min_cells} cells are left")
        if notes and not (keep & ~is_control).any():
            raise VcellError(f"data.filter leaves no perturbed cell: {'; '.join(notes)}")
        if notes and not (keep & is_control).any():
            raise VcellError(f"data.filter leaves no control cell: {'; '.join(notes)}")
        return keep, notes

    def _named_batches(self, batch: pd.Series) -> np.ndarray:
        """Cells of the batches to drop; a `VcellError` where a name is no batch."""
        known = set(batch.astype(str))
        unknown = sorted(set(listed_names(self.drop_batches)) - known)
        if unknown:
            raise VcellError(
                f"data.filter.drop_batches names {shortlist(unknown)}, which is not a batch.{nearest(unknown[0], known)}"
            )
        return batch.isin(listed_names(self.drop_batches)).to_numpy()

    def _unknown(self, cells: pd.DataFrame, residual: np.ndarray, is_control: np.ndarray) -> np.ndarray:
        """Cells whose perturbation is no known gene, where those are to be left out."""
        unjudged = cells.loc[np.isnan(residual) & ~is_control, "perturbation"].astype(str)
        names = gene_names()
        unknown = [p for p in unjudged.unique() if any(names.meaning(t).how == "unknown" for t in names.targets(p))]
        if unknown and self.unknown_genes == "refuse":
            raise VcellError(
                f"{len(unknown):,} perturbations are neither a gene of the data nor of HGNC: {shortlist(unknown)}."
                f"{nearest(unknown[0], names.approved)} Their knockdown cannot be assessed: correct the names, or set "
                "data.filter.unknown_genes=keep (or drop)"
            )
        drop = unknown if self.unknown_genes == "drop" else []
        return cells["perturbation"].isin(drop).to_numpy()


def residual_expression(own: np.ndarray, control_mean: np.ndarray) -> np.ndarray:
    """Expression left of a cell's own targets: of several, the one that was silenced least.

    Parameters
    ----------
    own, control_mean
        ``(cells, targets)``: share of the library in the cell, and mean share in its controls; NaN for no target.

    Returns
    -------
    float32 ``(cells)``; NaN where no target can be judged.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(control_mean > 0, own / control_mean, np.nan)
    judged = ~np.isnan(ratio).all(axis=1)
    out = np.full(len(own), np.nan, np.float32)
    out[judged] = np.nanmax(ratio[judged], axis=1)
    return out


def _mean_by(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each cell's mean over the known values of its group; NaN where there are none."""
    known = ~np.isnan(values)
    total, number = np.bincount(group, np.where(known, values, 0.0)), np.bincount(group, known)
    return np.divide(total, number, out=np.full(len(total), np.nan), where=number > 0)[group]
