"""Modules under their names in vcell 0.1: scripts, notebooks and configuration files that use them still work."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# then: now
MOVED = {
    "whole": "atomic",
    "lookup": "cli.lookup",
    "usage": "cli.usage",
    "data.csr": "data.files.csr",
    "data.genes": "data.files.genes",
    "data.h5ad": "data.files.h5ad",
    "data.labels": "data.files.labels",
    "data.lists": "data.files.lists",
    "data.matrix": "data.files.matrix",
    "data.normalize": "data.files.normalize",
    "data.sampling": "data.files.sample",
    "data.scale": "data.files.scale",
    "output.writer": "data.files.writer",
    "data.zarrstore": "data.files.zarrstore",
    "data.screen": "data.simulation.screen",
    "data.simulate": "data.simulation.write",
    "data.prepare": "data.store.ensure",
    "data.filters": "data.store.filters",
    "data.ingest": "data.store.ingest",
    "data.panel": "data.store.panel",
    "data.parts": "data.store.part",
    "data.recipe": "data.store.recipe",
    "data.rows": "data.store.rows",
    "data.view": "data.store.view",
    "data.workers": "data.store.workers",
    "score.fast": "model.scores",
    "perturbation.table": "model.table",
    "prediction": "predict.cells",
    "controls": "predict.controls",
    "output.counts": "predict.counts",
    "from_table": "predict.from_table",
    "inference": "predict.infer",
    "run_key": "predict.key",
    "output.form": "predict.layout",
    "output.parts": "predict.parts",
    "predictors": "predict.predictors",
    "output.profile": "predict.profile",
    "request": "predict.request",
    "output.tables": "predict.table",
    "output.kinds": "predict.table_kind",
    "production": "predict.work",
    "score.traps": "score.caveats",
    "folds": "score.crossval",
    "score.device": "score.gpu",
    "score.extra": "score.own",
    "output.container": "submission.container",
    "output.convert": "submission.convert",
    "output.labels": "submission.labels",
    "packaging": "submission.package",
    "output.rules": "submission.rules",
    "output.values": "submission.values",
    "machine": "system",
    "ranks": "system",
    "threads": "system",
    "assemble": "training.build",
    "model.callbacks": "training.callbacks",
    "model.cost": "training.cost",
    "model.metrics": "training.curves",
    "trial": "training.estimate",
    "model.guard": "training.guard",
    "model.module": "training.module",
    "run": "training.run_folder",
    "model.saving": "training.saving",
    "model.sharding": "training.sharding",
    "model.throughput": "training.throughput",
    "model.validation": "training.validation",
    "model.warmstart": "training.warmstart",
}
FOLDERS = ("output", "perturbation")  # that held some of them, and are gone


class _Former:
    """Finds a former name, and gives the module it is now: the same object, not a copy."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        known = name.removeprefix("vcell.")
        if name == known or known not in (*MOVED, *FOLDERS):
            return None
        return ModuleSpec(name, _Loader(MOVED.get(known)), is_package=known in FOLDERS)  # type: ignore[arg-type]


class _Loader:
    def __init__(self, now: str | None) -> None:
        self.now = now

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if self.now is None:
            return None
        module = importlib.import_module(f"vcell.{self.now}")
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if self.now is not None:
            module.__spec__ = self.own  # which the import has replaced by that of the former name


def install() -> None:
    """Has Python look here for modules that it does not find."""
    if _Former not in sys.meta_path:
        sys.meta_path.append(_Former)
