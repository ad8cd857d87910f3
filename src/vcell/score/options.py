"""What is scored, against what, and how: the options of `vcell.evaluate` and `vcell.crossval`, and of scoring from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vcell.challenge import Challenge
from vcell.config import build, plain
from vcell.data.splits import Group
from vcell.effects.names import BASELINES
from vcell.errors import MOST_AT_ONCE, MOST_SEED, VcellError, check_choice, check_ending, check_number, nearest
from vcell.score.cells import Columns

ENGINES = ("auto", "official", "fast")
# keys of vcell.crossval itself; all others are those of vcell.train
CROSSVAL_KEYS = (
    "challenge",
    "folds",
    "by",
    "within",
    "fold",
    "use",
    "draw",
    "engine",
    "threads",
    "trust",
    "ablate",
    "compare",
)
# rules of a whole submission, which a fold of some targets need not keep
RELAXED = ("n_genes", "n_targets", "cells", "max_cells", "max_stored")


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored, and how.

    Parameters
    ----------
    pred, real
        Predicted and measured cells: h5ad files; `real` may be a cell store.
    challenge
        Whose scores count, and whose obs columns.
    against
        Other predictions to compare with, target by target.
    out
        Folder of the scores; None: next to `pred`.
    engine
        ``auto``: predictions by the official package, references by ours; ``official``; ``fast``.
    ckpt, store
        The run whose training cells make the references, and where its cell store lies; None: as `pred` says.
    columns
        obs columns of target and context, and the label of control cells.
    real_perturbation, real_context, real_matrix
        Columns and matrix of the measured cells, where they are named otherwise.
    real_stores, real_groups
        Cell stores in place of `real`, and the (context, perturbation) of them to score; None: all.
    allow_leaks
        Score targets that the run was trained on all the same.
    pds_subset
        Say what the discrimination score would be among this many targets.
    baselines
        Which baselines to make of the run's training cells; None: all that can be made.
    pictures, show
        Whether to draw, and which targets.
    device, threads
        Of our scorer, and of the official package.
    runs
        Where checkpoints are looked for by name.
    recorded
        What scores.json says was asked for.
    """

    pred: Path
    real: Path
    challenge: Challenge
    columns: Columns
    against: Sequence[Path] = ()
    out: Path | None = None
    engine: str = "auto"
    ckpt: str | None = None
    store: str | Sequence[str] | None = None
    real_perturbation: str | None = None
    real_context: str | None = None
    real_matrix: str | None = None
    real_stores: Sequence[str] = ()
    real_groups: Sequence[Group] | None = None
    allow_leaks: bool = False
    pds_subset: int | None = None
    baselines: Sequence[str] | None = None
    pictures: bool = True
    show: Sequence[str] | None = None
    device: str = "cpu"
    threads: int | None = None
    runs: str = "runs"
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any) -> ScoreOptions:
        """From the configuration of ``vcell.evaluate``."""
        for name in ("pred", "real"):
            if OmegaConf.is_missing(config, name):
                raise VcellError(
                    "specify what was measured: python -m vcell.evaluate pred=PRED.h5ad real=MEASURED.h5ad"
                )
        given = plain(config.against) or []
        baselines = plain(config.baselines)
        if isinstance(baselines, str) and baselines != "all":
            baselines = [baselines]
        for name in baselines if isinstance(baselines, list) else []:
            if name not in BASELINES:
                raise VcellError(
                    f"baselines names {name!r}, which is none of {', '.join(BASELINES)}.{nearest(name, BASELINES)}"
                )
        named = {
            name: plain(config[name])
            for name in ("engine", "ckpt", "store", "real_matrix", "allow_leaks", "pds_subset", "pictures", "show", "device", "threads", "runs")
        }  # fmt: skip
        return cls(
            pred=Path(config.pred),
            real=Path(config.real),
            challenge=build(config.challenge),
            columns=Columns(config.columns.perturbation, config.columns.context, config.control),
            against=[Path(p) for p in ([given] if isinstance(given, str) else given)],
            out=Path(config.out) if config.out else None,
            baselines=None if baselines in ("all", None) else baselines,
            real_perturbation=config.real_columns.perturbation,
            real_context=config.real_columns.context,
            recorded=plain(config),
            **named,
        )

    def __post_init__(self) -> None:
        check_choice("engine", self.engine, ENGINES)
        if self.pds_subset is not None:
            check_number("pds_subset", self.pds_subset, 2)
        if self.threads is not None:
            check_number("threads", self.threads, 1, MOST_AT_ONCE)

    @property
    def folder(self) -> Path:
        """Where the scores go."""
        return self.out or self.pred.with_name(f"{self.pred.stem}_scores")


@dataclass(frozen=True)
class CrossvalOptions:
    """Which folds are trained, predicted and scored.

    Parameters
    ----------
    name, folder
        Of the cross-validation; a fold lies in ``folder/fold_N``.
    folds, by, within
        How many, and what is held out.
    fold
        Only this one; None: all.
    use
        The checkpoint of a fold that predicts.
    challenge, draw, seed, trust
        Of the predictions.
    engine, threads
        Of the scores.
    training
        The configuration of vcell.train, to be completed for each fold.
    ablate
        ``table``: everything also with a shuffled perturbation table; None: not.
    compare
        ``counts``: predictions also with every way of drawing whole counts; None: not.
    """

    name: str
    folder: Path
    folds: int
    by: str
    within: Sequence[str] | None
    fold: int | None
    use: str
    challenge: Challenge
    draw: bool | None
    seed: int
    trust: Sequence[str]
    engine: str
    threads: int | None
    overwrite: bool
    plan: Mapping[str, Any]
    training: Mapping[str, Any]
    ablate: str | None = None
    compare: str | None = None

    @classmethod
    def of(cls, config: Any) -> CrossvalOptions:
        """From the configuration of ``vcell.crossval``."""
        check_number("folds", config.folds, 2)
        check_number("seed", config.seed, 0, MOST_SEED)
        if config.fold is not None:
            check_number("fold", config.fold, 0, config.folds - 1, other="null")
        if config.threads is not None:
            check_number("threads", config.threads, 1, MOST_AT_ONCE)
        # what is looked at after training only must not wait for it
        check_choice("engine", config.engine, ENGINES)
        check_choice("draw", config.draw, (None, True, False))
        check_ending("use", config.use, [".ckpt"], ": best.ckpt or last.ckpt")
        rules = {**plain(config.challenge), **dict.fromkeys(RELAXED), "contexts": []}
        named = {name: plain(config[name]) for name in ("name", "folds", "by", "within", "fold", "use", "draw", "seed", "trust", "engine", "threads", "overwrite", "ablate", "compare")}  # fmt: skip
        whole: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
        return cls(
            folder=Path(config.run_dir),
            challenge=build(rules),
            plan={
                key: plain(config[key])
                for key in CROSSVAL_KEYS
                if key not in ("fold", "threads", "trust", "ablate", "compare")
            },
            # references stay: where checkpoints and logs go depends on the fold
            training={key: value for key, value in whole.items() if key not in CROSSVAL_KEYS},
            **named,
        )

    def training_of(self, fold: int) -> DictConfig:
        """The configuration of a fold's run: as vcell.train would have it, with the fold as its test split."""
        run = OmegaConf.create(dict(self.training))
        run.name, run.run_dir = f"{self.name}/fold_{fold}", str(self.folder_of(fold))
        run.data.split.folds.update(number=self.folds, fold=fold, by=self.by, within=self.within)
        return run

    def folder_of(self, fold: int) -> Path:
        return self.folder / f"fold_{fold}"
