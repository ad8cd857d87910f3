"""Baseline predictions for the same request as the one scored: what it has to beat."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from vcell.data.splits import Group
from vcell.errors import VcellError, shortlist
from vcell.model.find import find_checkpoint
from vcell.score.grouped import GroupedCells, Lazy, Pool
from vcell.score.options import ScoreOptions
from vcell.score.pairs import Pair

if TYPE_CHECKING:
    from vcell.effects.model import EffectModel
    from vcell.effects.own_gene import OwnGenes
    from vcell.predict.cells import CellMaker, Source

CHECKED = 64  # targets whose effects are compared at a time

# what reads a run is imported where one is at hand: it takes torch, and torch a second to load


class References:
    """Baselines from the training cells of a run, or copied controls only where no run is at hand."""

    def __init__(self, seed: int, drawn: bool, calls: bool = False) -> None:
        self.seed, self.drawn = seed, drawn  # cells are made as those of the prediction were
        self.counts = "auto"  # how they are drawn
        self.calls = calls  # whether fold changes of called genes matter most
        self.predictors: dict[str, EffectModel] = {}
        self.own: OwnGenes | None = None  # what is done to targets' own genes, as in the prediction
        self.own_measured: Mapping[str, Any] | None = None
        self.asked: set[Group] = set()  # groups that baselines were made for
        self.remarks: list[str] = []
        self.source: Source | None = None
        self.run_folder: Path | None = None
        self.split: dict[Group, str] = {}
        self.without: set[str] = set()  # contexts for which only copied controls could be made

    @classmethod
    def find(cls, options: ScoreOptions, about: dict[str, Any]) -> References:
        """From the run that made the prediction, or the one given; with a remark where there is none."""
        references = cls(int(about.get("seed", 0)), bool(about.get("drawn", False)), options.challenge.scores_calls)
        references.counts = str(about.get("counts", "auto"))
        ckpt = options.ckpt or about.get("ckpt")
        if ckpt is None:
            references.remarks.append(
                "context mean and perturbation mean need training cells: set ckpt=FILE.ckpt of a run on them"
            )
            return references
        try:
            references._train(
                find_checkpoint(str(ckpt), options.runs), options.store or about.get("store"), options.baselines
            )
            references._take_own_genes(about.get("knockdown", "off"))
            for predictor in references.predictors.values():
                predictor.amplitude = str(about.get("amplitude", "error"))
        except VcellError as error:
            if options.ckpt is not None or options.store:  # what was asked for is not left out
                raise
            references.remarks.append(f"context mean and perturbation mean are left out: {error}")
        return references

    def _train(self, ckpt: Path, store_path: str | Sequence[str] | None, names: Sequence[str] | None) -> None:
        from vcell.effects.make import make_baselines
        from vcell.model.checkpoint import Identity, read_checkpoint, table_of
        from vcell.predict.controls import open_run_store
        from vcell.predict.infer import make_source
        from vcell.predict.predictors import bank_of, transfer_kept

        checkpoint = read_checkpoint(ckpt)
        identity = Identity.of(checkpoint["vcell"], ckpt)
        self.split, self.own_measured = identity.assigned, identity.own_gene
        store = open_run_store(store_path, identity, ckpt)
        self.source = make_source(store, identity, set(store.control_contexts), 8, self.seed)
        try:
            table = table_of(identity, None, ckpt)
        except VcellError as error:
            table = None
            self.remarks.append(f"ridge and nearest are made without an embedding table: {error}")
        made = make_baselines(
            self.source.gather, identity.assigned, table, names, self.source.pool.of_context, bank_of(identity),
            None if table is None else transfer_kept(identity, checkpoint["state_dict"], ckpt),
        )  # fmt: skip
        self.predictors = {name: model for name, model in made.items() if name != "copied_controls"}
        self.run_folder = ckpt.resolve().parents[1] if ckpt.resolve().parent.name == "checkpoints" else None

    def _take_own_genes(self, asked: Any) -> None:
        """Has baselines do to targets' own genes what the prediction did."""
        from vcell.effects.own_gene import own_genes

        assert self.source is not None
        self.own, _ = own_genes(asked, self.own_measured, self.source.gather.store.genes, self.source.store.control)

    def predictions(self, pair: Pair) -> Iterator[tuple[str, GroupedCells | str]]:
        """Each baseline's name and its cells, one at a time: as many of every target as predicted, with the prediction's controls. For one that
        predicts what another does, as several do for targets that were measured nowhere else, the name of that one."""
        yield "copied_controls", copied(pair.pred, self.seed)
        if len(pair.pred.targets) > 1:
            yield "wrong_target", wrong_targets(pair.pred, self.seed)
        if self.source is None:
            return
        context = pair.context or self._only_context()
        if context not in self.source.pool.of_context or not set(pair.pred.genes) <= set(
            self.source.gather.store.genes
        ):
            self.without.add(str(context))
            return
        import torch

        from vcell.predict.infer import make_maker
        from vcell.predict.layout import Layout

        numbers = {t: pair.pred.n_cells(t) for t in pair.pred.targets}
        values = "counts" if pair.target_sum is None else "log1p"
        layout = Layout.of(pair.pred.genes, self.source.store, values, pair.target_sum or self.source.gather.target_sum)
        drawn = self.drawn or values == "counts"
        self.asked |= {(context, target) for target in numbers}
        said: dict[bytes, str] = {}
        for name, predictor in self.predictors.items():
            alike = said.setdefault(self._checksum(predictor, context, pair.pred.targets, drawn), name)
            if alike != name:
                yield name, alike
                continue
            maker = make_maker(
                predictor, self.source, layout, torch.device("cpu"), drawn, self.counts, self.calls, self.own
            )
            # what is worked out once for a context is so before several threads ask for it
            _maker(maker, context, dict.fromkeys(numbers, 1))(pair.pred.targets[0])
            cells = GroupedCells(Lazy(numbers, _maker(maker, context, numbers)), pair.pred.genes, pair.pred.control)
            yield name, cells.with_controls(pair.pred.controls)

    def _checksum(self, predictor: EffectModel, context: str, targets: Sequence[str], drawn: bool) -> bytes:
        """Of all that a predictor says of some targets."""
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(targets), CHECKED):
            some = targets[start : start + CHECKED]
            digest.update(np.ascontiguousarray(predictor.effect("cell", context, some)).data)
            if drawn:
                digest.update(np.ascontiguousarray(predictor.ratios(context, some, self.calls)).data)
        return digest.digest()

    def trained_on(self, context: str, targets: list[str]) -> list[str]:
        """Targets whose measured cells of this context the run was trained on: a score on them says nothing."""
        return [t for t in targets if self.split.get((context or str(self._only_context()), t)) == "train"]

    def chosen_by(self, context: str, targets: list[str]) -> list[str]:
        """Targets that the run was validated on."""
        return [t for t in targets if self.split.get((context or str(self._only_context()), t)) == "val"]

    def _only_context(self) -> str | None:
        contexts = list(self.source.pool.of_context) if self.source else []
        return contexts[0] if len(contexts) == 1 else None

    def notes(self) -> list[str]:
        evidence = next((m.evidence for m in self.predictors.values() if m.known_targets()), None)
        notes = list(self.remarks)
        if evidence is not None and self.asked:
            from vcell.effects.make import fallbacks

            new_contexts, new_targets = fallbacks(evidence, sorted(self.asked))
            if new_targets:
                notes.append(
                    f"perturbation mean: {len(new_targets):,} targets have none in training; the context mean is used instead"
                )
            if new_contexts:
                notes.append(
                    f"context mean: {len(new_contexts):,} targets have none in training; the mean of all contexts is used instead"
                )
        if self.without:
            notes.append(
                f"context mean and perturbation mean are left out for {shortlist(sorted(self.without))}: the run's store "
                "has no control cells of that context, or other genes"
            )
        return notes


def copied(cells: GroupedCells, seed: int) -> GroupedCells:
    """The prediction's own controls, drawn again under every target's label."""
    rng, controls, drawn = np.random.default_rng(seed), cells.controls, {}
    for target in cells.targets:
        number = cells.n_cells(target)
        drawn[target] = rng.choice(controls.shape[0], number, replace=number > controls.shape[0])
    return GroupedCells.drawn(Pool(controls, drawn), cells.genes, cells.control, controls)


def _maker(maker: CellMaker, context: str, numbers: Mapping[str, int]) -> Callable[[str], sparse.csr_matrix]:
    """Makes the cells of a target when they are asked for."""

    from vcell.predict.request import Wanted

    def make(target: str) -> sparse.csr_matrix:
        blocks = list(maker.cells([Wanted(context, target, numbers[target])]))
        return blocks[0] if len(blocks) == 1 else sparse.csr_matrix(sparse.vstack(blocks, format="csr"))

    return make


def wrong_targets(cells: GroupedCells, seed: int) -> GroupedCells:
    """The prediction with each target's cells under the name of another: what it scores without knowing which is which."""
    order = np.random.default_rng(seed).permutation(cells.targets).tolist()
    return cells.relabelled(dict(zip(order, [*order[1:], order[0]], strict=True)))
