"""What to predict: one set of options for `vcell.infer`, for `vcell.package` from a table, and from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from vcell.challenge import Challenge
from vcell.config import build, plain
from vcell.data.files.paths import read_gene_list
from vcell.errors import MOST_SEED, check_choice, check_number

if TYPE_CHECKING:  # torch takes a second to load, and packing needs none
    from vcell.model.predictor import Predictor

AMPLITUDES = ("auto", "error", "ranks")
COUNTS = ("auto", "donors", "moments")
# what the values of a predicted table are
KINDS = {
    "mean_log1p": "mean over cells of log1p of scaled counts",
    "log1p_pseudobulk": "log1p of scaled mean counts",
    "pseudobulk": "sums or means of counts",
    "delta": "mean log1p minus that of the controls",
}
MOST_POOLED = 4
MOST_CELLS = 10_000_000  # of one target: whole screens have fewer, so that some other number was meant


def any_challenge() -> Challenge:
    """No challenge's rules: any genes, any targets, log1p values."""
    return Challenge("none")


@dataclass(frozen=True)
class PredictOptions:
    """What to predict, from which control cells, and in which form. It can be pickled and sent to other processes.

    Parameters
    ----------
    challenge
        The rules that the file is to follow.
    targets
        A CSV, a template h5ad, or names; None: the run's test split, or where it has none its usual request. Of a table: its rows.
    contexts
        Where to predict them; None: as targets or challenge say, or the only context.
    n_cells
        Cells per target where targets give none.
    batches
        Whether cells of a template are predicted from controls of their batch.
    genes
        A gene list, as a file or as names; None: those of training, or of the table.
    controls
        Control cells to predict from: h5ad files, or a cell store; None: those of the run's store.
    store
        Where the run's cell store lies now; None: where it lay in training.
    perturbation
        An embedding table to use in place of the checkpoint's.
    predictor
        ``model``, a baseline, a checkpoint, a class by its path; several with weights; or an object (`model.predictor.Predictor`).
    draw
        Whether cells are drawn as whole counts around the prediction; None: as the challenge says.
    counts
        How whole counts are drawn: ``donors``, control cells whose molecules are changed; ``moments``, the same with each gene's sum over
        a target's cells made exactly what was predicted; ``auto``: moments where the predictor is made of measured effects.
    pool
        Control cells averaged into each predicted cell, where cells are drawn by moments: 1 to 4.
    knockdown
        What targets keep of their own gene's expression: ``auto``, as measured in training; ``off``, as predicted; or a fraction.
    amplitude
        How large the changes of a predictor made of measured effects are: ``error``, nearest to the truth; ``ranks``, so that targets are
        told apart best by L1 distance, as the scores of 2025 do (larger, chosen by leaving out contexts); ``auto``: as suits the
        challenge's scores, and ``error`` where there is no challenge.
    addition
        How much of what a network adds to its prior is kept: ``auto``, as its validation has found; or 0 to 1.
    target_sum
        Counts per cell of log1p values; None: as the challenge says, or as in training.
    max_controls
        Control cells per context that are written; None: all.
    sets_per_step, seed, device
        How to predict.
    precision
        Of a network's matrix products: ``float32``, ``bf16``, or ``auto`` (`TrainedModel.in_precision`).
    runs
        Where checkpoints are looked for by name.
    trust
        Packages outside vcell whose networks checkpoints may name.
    pred_kind, pred_target_sum
        Of a table: what its values are, and the counts per cell of its log1p values.
    """

    challenge: Challenge = field(default_factory=any_challenge)
    targets: str | Sequence[str] | None = None
    contexts: Sequence[str] | None = None
    n_cells: int | None = None
    batches: bool = True
    genes: str | Sequence[str] | None = None
    controls: str | Sequence[str] | None = None
    store: str | Sequence[str] | None = None
    perturbation: str | None = None
    predictor: str | Mapping[str, Any] | Predictor = "model"
    draw: bool | None = None
    counts: str = "auto"
    pool: int = 1
    knockdown: str | float = "auto"
    amplitude: str = "auto"
    addition: str | float = "auto"
    target_sum: float | None = None
    max_controls: int | None = None
    sets_per_step: int = 8
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    runs: str = "runs"
    trust: Sequence[str] = ()
    pred_kind: str = "auto"
    pred_target_sum: float | None = None

    def __post_init__(self) -> None:
        check_choice("amplitude", self.amplitude, AMPLITUDES)
        check_choice("counts", self.counts, COUNTS)
        check_choice("pred_kind", self.pred_kind, ("auto", *KINDS))
        check_choice("draw", self.draw, (None, True, False))
        if isinstance(self.contexts, str):
            object.__setattr__(self, "contexts", [self.contexts])
        check_number("pool", self.pool, 1, MOST_POOLED)
        check_number("sets_per_step", self.sets_per_step, 1)
        check_number("seed", self.seed, 0, MOST_SEED)
        if self.n_cells is not None:
            check_number("n_cells", self.n_cells, 1, MOST_CELLS)
        if self.max_controls is not None:
            check_number("max_controls", self.max_controls, 0)
        for name in ("target_sum", "pred_target_sum"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, whole=False, above=True)
        if self.addition != "auto":
            check_number("addition", self.addition, 0, 1, whole=False, other="auto")

    @classmethod
    def of(cls, config: Any) -> PredictOptions:
        """From the configuration of a command that predicts."""
        known = {f.name for f in fields(cls)} & set(config)
        given = {name: plain(config[name]) for name in known if name != "challenge"}
        return cls(challenge=build(config.challenge), **given)

    @property
    def gene_list(self) -> list[str] | None:
        """The genes of the file, where they are given.

        Raises
        ------
        VcellError
            If the list cannot be read, or has another length than the challenge's.
        """
        if self.genes is None:
            return None
        genes = read_gene_list(self.genes, "genes") if isinstance(self.genes, str) else [str(g) for g in self.genes]
        self.challenge.check_genes(genes, f"{self.genes if isinstance(self.genes, str) else 'the list'} has")
        return genes

    @property
    def known_amplitude(self) -> str:
        """``error`` or ``ranks``."""
        if self.amplitude != "auto":
            return self.amplitude
        return "error" if self.challenge.name == "none" else self.challenge.amplitude

    @property
    def known_addition(self) -> float | None:
        """How much of what a network adds to its prior is kept; None: as its validation has found."""
        return None if self.addition == "auto" else float(self.addition)

    @property
    def drawn(self) -> bool:
        """Whether cells are drawn as whole counts."""
        return self.challenge.drawn if self.draw is None else self.draw or self.challenge.values == "counts"
