"""A trained model as one uses it from Python: `vcell.load`, and its `predict` on AnnData, files and stores."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd
from scipy import sparse
from torch import Tensor, nn

from vcell.challenge import Challenge, challenge_of
from vcell.data.batch import CellSetBatch
from vcell.data.files.memory import Given, as_file, is_anndata
from vcell.data.store.store import Cells, CellStore
from vcell.errors import VcellError
from vcell.model.find import find_checkpoint
from vcell.model.predictor import Predictor
from vcell.model.table import PerturbationTable
from vcell.model.trained import TrainedModel
from vcell.predict.infer import plan_model
from vcell.predict.options import PredictOptions
from vcell.predict.plan import PredictionPlan
from vcell.predict.predictors import check_predictors
from vcell.process.given import as_name, as_names, as_names_or_file, as_plain, as_switch
from vcell.process.progress import progress_bar, spoken

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass
class LoadedModel(TrainedModel):
    """A trained model that also predicts from AnnData, files and stores; it remembers the checkpoint it comes from."""

    path: Path = field(default_factory=Path)

    @overload
    def predict(self, cells: CellSetBatch) -> Tensor: ...

    @overload
    def predict(
        self,
        cells: Given | Sequence[str] | Cells | None = None,
        targets: str | Path | Sequence[str] | None = None,
        *,
        n_cells: int | None = None,
        contexts: Sequence[str] | str | None = None,
        genes: str | Path | Sequence[str] | None = None,
        challenge: str | Challenge = "none",
        predictor: str | Mapping[str, Any] | Predictor = "model",
        draw: bool | None = None,
        target_sum: float | None = None,
        max_controls: int | None = None,
        store: str | Sequence[str] | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        verbose: bool = False,
    ) -> AnnData: ...

    def predict(
        self, cells: Any = None, targets: str | Path | Sequence[str] | None = None, **options: Any
    ) -> Tensor | AnnData:
        """Predicted cells, with control cells if the challenge allows them: what ``vcell infer`` writes.

        Parameters
        ----------
        cells
            Control cells to predict from: an AnnData, h5ad files, or a cell store; None: those of the run's store. A `CellSetBatch` gives
            a tensor ``(sets, cells, genes)`` instead, as of any predictor.
        targets
            Perturbations by name, a CSV, or a template h5ad; None: the run's held-out targets.
        n_cells
            Cells per target (100, or as the challenge says).
        contexts
            Where to predict them.
        genes
            A gene list, as a file or as names; None: those of training.
        challenge
            ``vcc2025``, ``vcc2026`` or ``none``, or the rules themselves.
        predictor
            ``model``, a baseline, a checkpoint, several with weights, or an object (`model.predictor.Predictor`).
        draw
            Whether cells are drawn as whole counts around the prediction.
        target_sum
            Counts per cell of log1p values; None: as in training, or as the challenge says.
        max_controls
            Control cells per context that are kept.
        store
            Where the run's cell store lies now.
        seed, device, precision
            How to predict.
        verbose
            Print what the command would print.

        Returns
        -------
        X: log1p of counts per `target_sum`, or whole counts, CSR float32 ``(cells, genes)``; obs: target, context and batch; uns: what the
        prediction says of itself.

        Raises
        ------
        VcellError
            If cells, targets or genes cannot be used.
        """
        if isinstance(cells, CellSetBatch):
            return super().predict(cells)
        verbose = as_switch("verbose", options.pop("verbose", False))
        with spoken(verbose), tempfile.TemporaryDirectory(prefix="vcell-predict-") as folder:
            return self._predicted(cells, targets, Path(folder), options)

    def _predicted(self, cells: Any, targets: Any, folder: Path, options: dict[str, Any]) -> AnnData:
        contexts = options.pop("contexts", None)
        if is_anndata(cells):
            with as_file(cells) as path:
                return self._predicted(str(path), targets, folder, {**options, "contexts": contexts})
        controls = str(cells.path) if isinstance(cells, CellStore) else as_names_or_file("cells", cells)
        asked = PredictOptions(
            challenge=challenge_of(options.pop("challenge", "none")),
            targets=as_names_or_file("targets", targets),
            contexts=as_names("contexts", contexts),
            controls=controls,
            genes=as_names_or_file("genes", options.pop("genes", None)),
            store=as_names_or_file("store", options.pop("store", None)),
            **as_plain(options),
        )
        check_predictors(asked.predictor)
        plan = plan_model(asked, self, self.path, folder / "controls")
        assert plan is not None
        return in_memory(plan)


def in_memory(plan: PredictionPlan) -> AnnData:
    """A prediction carried out at once: the cells that the file of this plan would hold."""
    blocks: list[sparse.csr_matrix] = []
    with progress_bar(sum(job.n_cells for job in plan.jobs), "predicting", "cells") as progress:
        for job in plan.jobs:
            blocks += plan.cells(job)
            progress.update(job.n_cells)
    from anndata import AnnData  # here: it takes half a second to load

    matrix = sparse.csr_matrix(sparse.vstack(blocks, format="csr"), dtype="float32")
    return AnnData(matrix, obs=plan.obs(), var=pd.DataFrame(index=pd.Index(plan.layout.genes)), uns=plan.uns())


def load(
    ckpt: str | Path,
    *,
    table: PerturbationTable | str | Path | None = None,
    trust: Sequence[str] = (),
    model: nn.Module | None = None,
    runs: str | Path = "runs",
) -> LoadedModel:
    """A trained model from its checkpoint, ready to predict; Lightning is not needed.

    Parameters
    ----------
    ckpt
        A checkpoint; a bare name such as ``last.ckpt``, where no such file lies here, means the newest run's.
    table
        An embedding table in place of the checkpoint's, for perturbations that one lacks.
    trust
        Packages of your own whose network the checkpoint may name: ``["my_lab"]``.
    model
        A network to load the weights into, in place of the one the checkpoint describes.
    runs
        Where runs lie.

    Raises
    ------
    VcellError
        If the checkpoint is absent or damaged, or names a network that is not trusted.
    """
    from vcell.predict.predictors import table_in_place_of_its_own

    path = find_checkpoint(as_name("ckpt", ckpt), as_name("runs", runs))
    if table is not None and not isinstance(table, PerturbationTable):
        table = table_in_place_of_its_own(as_name("table", table), path)
    found = LoadedModel.load(path, table, as_names("trust", trust) or (), model)
    if not isinstance(found, LoadedModel):
        raise VcellError(f"{path} could not be loaded")
    found.path = path
    return found
