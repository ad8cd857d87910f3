"""vcell predicts how single cells respond to genetic perturbations.

From a notebook:

    import vcell

    vcell.describe("screen.h5ad")                                what a file holds, as a table
    store = vcell.build_store("screen.h5ad", "store")            read once
    run = vcell.fit(store, name="mine", table="esm2.pt")         train, or continue
    model = vcell.load(run.checkpoint)
    pred = model.predict(targets=["STAT1", "MYC"], n_cells=200)  AnnData, control cells included
    scores = vcell.score_prediction(pred, "measured.h5ad")       .table .per_target .plot() .report(folder)
    vcell.pack_submission(pred, "vcc2025", genes="gene_names.csv", out="pred.vcc")

Errors are `VcellError`: one message that says what was wrong, where, and what to do. Nothing is printed unless ``verbose=True``; the
logger ``vcell`` has what would have been. On the command line: ``vcell --help``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vcell.cli import former

if TYPE_CHECKING:
    from vcell.challenge import Challenge
    from vcell.data.store.build import build_store
    from vcell.data.store.store import CellStore
    from vcell.errors import VcellError
    from vcell.inspection.describe import Description, describe
    from vcell.model.trained import TrainedModel
    from vcell.predict.loaded import LoadedModel, load
    from vcell.score.scores import Scores, score_prediction
    from vcell.submission.pack import pack_submission
    from vcell.training.fit import Run, fit

__version__ = "0.1.0"
__all__ = [
    "CellStore",
    "Challenge",
    "Description",
    "LoadedModel",
    "Run",
    "Scores",
    "TrainedModel",
    "VcellError",
    "build_store",
    "describe",
    "fit",
    "load",
    "pack_submission",
    "score_prediction",
]

# loaded when first asked for, so that `import vcell` costs next to nothing
_WHERE = {
    "CellStore": "data.store.store",
    "Challenge": "challenge",
    "Description": "inspection.describe",
    "LoadedModel": "predict.loaded",
    "Run": "training.fit",
    "Scores": "score.scores",
    "TrainedModel": "model.trained",
    "VcellError": "errors",
    "build_store": "data.store.build",
    "describe": "inspection.describe",
    "fit": "training.fit",
    "load": "predict.loaded",
    "pack_submission": "submission.pack",
    "score_prediction": "score.scores",
}

former.install()


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vcell' has no attribute {name!r}")
    import warnings
    from importlib import import_module

    with (
        warnings.catch_warnings()
    ):  # of a notebook without ipywidgets, from libraries that have progress bars of their own
        warnings.filterwarnings("ignore", message="IProgress not found")
        found = getattr(import_module(f"vcell.{_WHERE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
