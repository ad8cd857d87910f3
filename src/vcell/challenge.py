"""The rules of a challenge, as data: a new year is a new yaml file in configs/challenge/.

Sources: the released packages `cell-eval` 0.8.2 (``cell-eval prep``) and `vcc-cli` 0.3.0 (``vcc prep``), which decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcell.config import build, check_group, compose
from vcell.errors import VcellError, check_choice, check_number, nearest, shortlist
from vcell.process.given import as_name, as_name_or_none, as_names, as_plain, as_switch

CONTROLS = ("required", "allowed", "forbidden")
VALUES = ("log1p", "counts")
CONTAINERS = ("cell-eval", "vcc-cli", None)
SCORERS = ("cell-eval", "cell-eval2")


@dataclass(frozen=True)
class Challenge:
    """The rules of a challenge. A rule that is None does not apply.

    Parameters
    ----------
    name
        As in ``challenge=NAME``.
    perturbation, context
        obs columns of the submission; `context` None: it has none.
    control
        Label of control cells; None: as the run calls them.
    controls
        Whether control cells belong into the file: ``required``, ``allowed`` or ``forbidden``.
    values
        ``log1p`` of counts scaled to one total per cell, or whole ``counts``.
    draw
        Whether predicted cells are drawn as whole counts first (`predict.counts`), which ``values: counts`` takes for granted.
    target_sum
        Of log1p values: ``median`` library size of the control cells, or a number; None: as in training.
    n_genes
        Length of the challenge's gene list.
    contexts
        Sets of contexts, one for each phase; a file holds all of one set.
    n_targets
        Length of the challenge's list of targets.
    cells
        Cells of each target in each context.
    max_cells, max_stored, max_counts_per_cell, below_log1p
        Limits on cells, stored values, counts of one cell, and log1p values.
    container
        Whose ``.vcc`` it is: ``cell-eval`` or ``vcc-cli``.
    scorer
        Whose scores count: ``cell-eval`` (2025) or ``cell-eval2`` (2026).
    """

    name: str
    perturbation: str = "target_gene"
    context: str | None = "cell_type"
    control: str | None = None
    controls: str = "allowed"
    values: str = "log1p"
    draw: bool = False
    target_sum: str | float | None = None
    n_genes: int | None = None
    contexts: Sequence[Sequence[str]] = ()
    n_targets: int | None = None
    cells: int | None = None
    max_cells: int | None = None
    max_stored: int | None = None
    max_counts_per_cell: int | None = None
    below_log1p: float | None = None
    container: str | None = None
    scorer: str = "cell-eval"

    @property
    def scores_calls(self) -> bool:
        """Whether its scores look at the genes that a test calls, more than at the error over all genes."""
        return self.scorer == "cell-eval2"

    @property
    def amplitude(self) -> str:
        """How large predicted changes have to be for its scores (`predict.options.PredictOptions`)."""
        return "error" if self.scores_calls else "ranks"

    def __post_init__(self) -> None:
        for key in ("name", "perturbation"):
            object.__setattr__(self, key, as_name(f"challenge.{key}", getattr(self, key)))
        for key in ("context", "control"):
            object.__setattr__(self, key, as_name_or_none(f"challenge.{key}", getattr(self, key)))
        object.__setattr__(self, "draw", as_switch("challenge.draw", self.draw))
        for key, known in (("controls", CONTROLS), ("values", VALUES), ("container", CONTAINERS), ("scorer", SCORERS)):
            check_choice(f"challenge.{key}", getattr(self, key), known)
        object.__setattr__(self, "target_sum", as_plain(self.target_sum))
        if self.target_sum is not None and not (isinstance(self.target_sum, str) and self.target_sum == "median"):
            check_number("challenge.target_sum", self.target_sum, 0, whole=False, above=True, other="median or null")
        for key in ("n_genes", "n_targets", "cells", "max_cells", "max_stored", "max_counts_per_cell", "below_log1p"):
            if (number := getattr(self, key)) is not None:
                check_number(f"challenge.{key}", number, 0, whole=key != "below_log1p", above=True, other="null")
        object.__setattr__(self, "contexts", _phases(self.contexts))

    @property
    def drawn(self) -> bool:
        """Whether predicted cells are drawn as whole counts."""
        return self.draw or self.values == "counts"

    def check_genes(self, genes: Sequence[str], what: str) -> None:
        """Refuses a list whose length differs from the challenge's."""
        if self.n_genes is not None and len(genes) != self.n_genes:
            raise VcellError(
                f"challenge={self.name} requires {self.n_genes:,} genes; {what} {len(genes):,}. Give the challenge's list, "
                "genes=gene_names.csv, or use challenge=none"
            )

    def phase(self, contexts: Iterable[str]) -> tuple[str, ...]:
        """The phase whose set of contexts this is.

        Raises
        ------
        VcellError
            Naming contexts that are unknown or missing.
        """
        found = list(dict.fromkeys(contexts))
        if not self.contexts or any(set(found) == set(phase) for phase in self.contexts):
            return tuple(sorted(found))
        wanted = max(self.contexts, key=lambda phase: len(set(phase) & set(found)))
        choices = " or ".join(", ".join(phase) for phase in self.contexts)
        parts = []
        if unknown := [c for c in found if c not in wanted]:
            parts.append(
                f"{shortlist(unknown)} {'is' if len(unknown) == 1 else 'are'} none of them.{nearest(unknown[0], wanted)}"
            )
        if missing := [c for c in wanted if c not in found]:
            parts.append(f"{shortlist(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
        raise VcellError(f"challenge={self.name} requires the contexts {choices}, all of one phase: {' '.join(parts)}")

    def check_labels(self, cells: Mapping[tuple[str, str], int], targets: Mapping[str, int | None] | None) -> None:
        """Targets and cell numbers, context by context.

        Parameters
        ----------
        cells
            Perturbed cells by (context, target).
        targets
            The challenge's list, with the cells of each where it says so; None where it is not at hand.

        Raises
        ------
        VcellError
            Naming the context, and targets that are missing, unknown, or of another number of cells than wanted.
        """
        for context in dict.fromkeys(c for c, _ in cells):
            here = {target: n for (c, target), n in cells.items() if c == context}
            where = f"context {context}: " if self.contexts else ""
            if targets is not None:
                _check_targets(here, targets, where)
            elif self.n_targets is not None and len(here) != self.n_targets:
                raise VcellError(f"{where}{len(here):,} targets; challenge={self.name} requires {self.n_targets:,}")
            others = [f"{target} ({n:,})" for target, n in here.items() if n != self.cells]
            if self.cells is not None and others:
                raise VcellError(
                    f"{where}challenge={self.name} requires exactly {self.cells:,} cells of each target; other numbers: "
                    f"{shortlist(others, 5)}"
                )

    def check_size(self, n_cells: int, stored: int | None = None) -> None:
        """Limits on cells and stored values."""
        if self.max_cells is not None and n_cells > self.max_cells:
            raise VcellError(
                f"{n_cells:,} cells are more than challenge={self.name} allows ({self.max_cells:,}): "
                f"{n_cells - self.max_cells:,} too many"
            )
        if self.max_stored is not None and stored is not None and stored > self.max_stored:
            raise VcellError(
                f"{stored:,} stored values ({stored / n_cells:,.0f} per cell) are more than challenge={self.name} allows "
                f"({self.max_stored:,}): the cells have too few zeros. Whole counts drawn by vcell have those of real cells"
            )


def challenge_of(asked: str | Challenge) -> Challenge:
    """The rules of a challenge by its name; those given as an object, unchanged."""
    if isinstance(asked, Challenge):
        return asked
    check_group("challenge", asked)
    rules: Challenge = build(compose("infer", [f"challenge={asked}"]).challenge)
    return rules


def _phases(given: Any) -> tuple[tuple[str, ...], ...]:
    phases = () if given is None else given
    if isinstance(phases, str | bytes) or not isinstance(phases, Iterable):
        raise VcellError(f"challenge.contexts={phases!r} must be lists of contexts, one for each phase: [[C, D]]")
    return tuple(tuple(as_names("challenge.contexts", phase) or ()) for phase in phases)


def _check_targets(here: Mapping[str, int], targets: Mapping[str, int | None], where: str) -> None:
    parts = []
    if missing := [t for t in targets if t not in here]:
        parts.append(f"{len(missing):,} of the list's {len(targets):,} targets are missing: {shortlist(missing, 5)}")
    if unknown := [t for t in here if t not in targets]:
        guide = next((t for t in unknown if t.rsplit("-", 1)[0] in targets and t.rsplit("-", 1)[-1].isdigit()), None)
        hint = f" {guide} looks like a guide: the label is the gene alone" if guide else nearest(unknown[0], targets)
        parts.append(f"{len(unknown):,} are not in the list: {shortlist(unknown, 5)}.{hint}")
    if parts:
        raise VcellError(f"{where}the targets are not the challenge's. {'; '.join(parts)}")
