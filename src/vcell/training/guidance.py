"""Which predictor suits which data: said by `vcell.train check=true`, on the evidence of `benchmarks/results/quality.md`."""

from __future__ import annotations

from vcell.data.datamodule import CellSetDataModule
from vcell.model.table import PerturbationTable

FEW_TARGETS = 20


def guidance(data: CellSetDataModule, table: PerturbationTable) -> list[str]:
    """Lines of advice for what a run holds out, or will be asked for."""
    trained = data.groups("train")
    contexts, targets = {c for c, _ in trained}, {p for _, p in trained}
    held = [g for g, split in data.assigned.items() if split == "test"]
    lines = []
    if held:
        new_context = [g for g in held if g[0] not in contexts]
        elsewhere = [
            g
            for g in held
            if any((c, g[1]) in data.assigned and data.assigned[c, g[1]] == "train" for c in contexts - {g[0]})
        ]
        unseen = [g for g in held if g[1] not in targets]
        if new_context:
            lines.append(
                f"{len({c for c, _ in new_context}):,} test contexts were never trained on: model=transfer, from the effects in others"
            )
        if elsewhere and not new_context:
            lines.append(
                f"{len(elsewhere):,} test groups have targets measured in other contexts: model=transfer uses these, and the context's own"
            )
        if unseen and table.is_one_hot:
            lines.append(
                f"{len({p for _, p in unseen}):,} test targets were measured nowhere, and there is no embedding table: no predictor can beat "
                "the context mean on them (model=context_mean). Give perturbation.path=TABLE.pt"
            )
        elif unseen:
            lines.append(
                f"{len({p for _, p in unseen}):,} test targets were measured nowhere: model=ridge or model=transfer, from their vectors"
            )
    elif len(contexts) > 1:
        lines.append(
            "nothing is held out for testing: hold out a context first (data.split.test.contexts=[NAME]) to see what to expect"
        )
    if len(targets) < FEW_TARGETS:
        lines.append(
            f"{len(targets):,} training targets are few: expect no more than the context mean, and compare with it before anything else"
        )
    return [f"advice       {line}" for line in lines]
