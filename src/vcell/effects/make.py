"""Predictors made of effects, by the names that configurations and `predictor=` give them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vcell.data.files.labels import genes_of
from vcell.data.gather import Gather
from vcell.data.splits import Group
from vcell.effects import names
from vcell.effects.bank import AnyBank, EffectBank, StreamedBank
from vcell.effects.baselines import (
    Additive,
    ContextMean,
    CopiedControls,
    Covariance,
    Nearest,
    PerturbationMean,
    Ridge,
    SumOfSingles,
    WrongTarget,
)
from vcell.effects.controls import ContextControls
from vcell.effects.evidence import Evidence
from vcell.effects.model import EffectModel, Table
from vcell.effects.residual import TransferResidual
from vcell.effects.transfer import Transfer
from vcell.errors import VcellError
from vcell.process.progress import progress_bar
from vcell.system import in_threads

# made of a run's training cells, by the names they have in `predictor=`
KINDS = (
    CopiedControls, ContextMean, PerturbationMean, Additive, SumOfSingles, Ridge, Nearest, Covariance, WrongTarget, Transfer,
)  # fmt: skip
BASELINES: dict[str, type[EffectModel]] = dict(zip(names.BASELINES, KINDS, strict=True))
FITTED: list[type[EffectModel]] = [*BASELINES.values(), TransferResidual]  # what a checkpoint may hold


@dataclass(frozen=True)
class GivenEffects:
    """log2 fold changes from elsewhere, ``(targets, genes)``, as a study of their own."""

    study: str
    targets: list[str]
    genes: list[str]
    fold_TG: np.ndarray


def training_evidence(
    gather: Gather,
    assigned: Mapping[Group, str],
    tables: Sequence[GivenEffects] = (),
    bank_folder: Path | None = None,
    shrunk: bool = False,
) -> Evidence:
    """The effects of a run's training groups, and of `tables` from elsewhere.

    Parameters
    ----------
    bank_folder
        Of an effect bank over all groups of the store, which is made there; None: the training groups are measured anew.
    shrunk
        Whether effects are shrunk by their standard errors.

    Raises
    ------
    VcellError
        If there are none.
    """
    groups = [group for group, split in assigned.items() if split == "train" and group in gather.store.groups]
    if not groups:
        raise VcellError("there are no training groups to take effects from")
    if bank_folder is not None:
        bank: AnyBank = EffectBank.kept(bank_folder, gather, groups)
    elif shrunk:  # which looks at each group twice
        bank = EffectBank.measure(gather, groups)
    else:
        bank = StreamedBank.of(gather, groups)
    none = bank.only([])
    given = [none.elsewhere(table.study, table.targets, table.genes, table.fold_TG) for table in tables]
    return Evidence.of(bank, *given, shrunk=shrunk)


def observed(gather: Gather, contexts: Iterable[str]) -> dict[str, ContextControls]:
    """The control cells of some contexts, where the store has them."""
    known = set(gather.store.control_contexts)
    there = [context for context in contexts if context in known]
    found: dict[str, ContextControls] = {}
    with progress_bar(len(there), "control cells", "contexts") as progress:
        for measured in in_threads(lambda c: ContextControls.measure(gather, gather.store.controls_of(c)), there):
            found[there[len(found)]] = measured
            progress.update()
    return found


def fit_model(
    model: EffectModel, evidence: Evidence, controls: Mapping[str, ContextControls], table: Table | None
) -> list[str]:
    """Fits a predictor to the effects of training groups; gives lines for the log."""
    model.use_table(table)
    model.observe(controls)
    return model.fit(evidence)


def make_baselines(
    gather: Gather,
    assigned: Mapping[Group, str],
    table: Table | None = None,
    names: Collection[str] | None = None,
    contexts: Iterable[str] = (),
    bank_folder: Path | None = None,
    kept: Transfer | None = None,
) -> dict[str, EffectModel]:
    """Baselines fitted to a run's training cells, by name.

    Parameters
    ----------
    names
        Those wanted; None: all but `wrong_target` that can say something of their own here.
    contexts
        Those that will be predicted from control cells of the same store: they are shown to the baselines.
    bank_folder
        Of the run's effect bank, if it has one.
    kept
        The transfer that the run has fitted to these cells already, as its checkpoint keeps it: it is not fitted again, nor are effects measured.
    """
    wanted = [name for name in BASELINES if (name != "wrong_target" if names is None else name in names)]
    if set(wanted) <= {"copied_controls"}:
        return {name: BASELINES[name](gather.store.n_genes) for name in wanted}
    evidence = training_evidence(gather, assigned, bank_folder=bank_folder) if kept is None else kept.known
    controls = observed(gather, dict.fromkeys([*evidence.context_names, *contexts]))
    useful = table is not None and not table.is_one_hot
    if names is None and len(evidence.context_names) < 2:
        wanted = [n for n in wanted if n not in ("additive", "transfer")]
        wanted = wanted if useful else [n for n in wanted if n not in ("ridge", "nearest")]
    genes = frozenset(gather.store.genes)
    if names is None and not any(len(genes_of(target, genes)) > 1 for target in {t for _, t in assigned}):
        wanted.remove("sum_of_singles")
    found: dict[str, EffectModel] = {}
    # a transfer has a ridge regression in it, which need not be fitted twice
    for name in sorted(wanted, key=lambda name: name != "transfer"):
        if name == "transfer" and kept is not None:
            found[name] = kept
            kept.use_table(table)
            kept.observe(controls)
        elif name == "ridge" and isinstance(transfer := found.get("transfer"), Transfer):
            found[name] = transfer.regression
            found[name].observe(controls)
        else:
            found[name] = BASELINES[name](gather.store.n_genes)
            fit_model(found[name], evidence, controls, table)
    return {name: found[name] for name in wanted}


def fallbacks(evidence: Evidence | None, groups: Iterable[Group]) -> tuple[list[Group], list[Group]]:
    """Of some groups, those whose context has no training effects, and those whose target has none in another context."""
    groups = list(groups)
    if evidence is None:
        return groups, groups
    contexts = set(evidence.context_names)
    return [g for g in groups if g[0] not in contexts], [g for g in groups if not len(evidence.usable(g[1], g[0]))]
