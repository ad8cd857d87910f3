"""Baseline predictions for the same request as the one scored: what it has to beat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from scipy import sparse

from vcell.controls import open_run_store
from vcell.errors import VcellError, shortlist
from vcell.inference import make_maker, make_source
from vcell.model.baselines import Predictor, TrainingDeltas, make_baselines
from vcell.model.checkpoint import find_checkpoint, read_checkpoint
from vcell.output.form import Form
from vcell.prediction import Source
from vcell.predictors import split_of
from vcell.request import Wanted
from vcell.score.cells import Columns


class References:
    """Baselines from the training cells of a run, or copied controls only where no run is at hand."""

    def __init__(self, seed: int, drawn: bool) -> None:
        self.seed, self.drawn = seed, drawn  # cells are made as those of the prediction were
        self.predictors: dict[str, Predictor] = {}
        self.deltas: TrainingDeltas | None = None
        self.source: Source | None = None
        self.run_folder: Path | None = None
        self.without: set[str] = set()  # contexts for which only copied controls could be made

    @classmethod
    def find(cls, config: DictConfig, about: dict[str, Any]) -> tuple[References, list[str]]:
        """From the run that made the prediction, or the one given; and a note where there is none."""
        references = cls(int(about.get("seed", 0)), bool(about.get("drawn", False)))
        ckpt = config.ckpt or about.get("ckpt")
        if ckpt is None:
            return references, [
                "context mean and perturbation mean need training cells: give ckpt=FILE.ckpt of a run on them"
            ]
        try:
            references._train(find_checkpoint(str(ckpt), config.runs), config.store or about.get("store"))
        except VcellError as error:
            if config.ckpt is not None:
                raise
            return references, [f"context mean and perturbation mean are left out: {error}"]
        return references, []

    def _train(self, ckpt: Path, store_path: str | None) -> None:
        identity = read_checkpoint(ckpt)["vcell"]
        store = open_run_store(store_path, identity, ckpt)
        self.source = make_source(store, identity, set(store.control_contexts), 8, self.seed)
        self.predictors, self.deltas = make_baselines(self.source.gather, split_of(identity))
        self.run_folder = ckpt.resolve().parents[1] if ckpt.resolve().parent.name == "checkpoints" else None

    def predictions(
        self, pred: ad.AnnData, context: str | None, target_sum: float, columns: Columns
    ) -> dict[str, ad.AnnData]:
        """Each baseline's cells, with the prediction's own controls, by name."""
        labels = pred.obs[columns.perturbation].to_numpy(str)
        controls = pred[labels == columns.control]
        numbers = pd.Series(labels[labels != columns.control]).value_counts(sort=False)
        source = self.source
        context = context or self._only_context()
        if source is None:
            return {"copied_controls": copied(controls, numbers, columns, self.seed)}
        if context not in source.pool.of_context or source.gather.store.genes != list(pred.var_names):
            self.without.add(str(context))
            return {"copied_controls": copied(controls, numbers, columns, self.seed)}
        request = [Wanted(context, str(p), int(n)) for p, n in numbers.items()]
        return {
            name: self._assemble(predictor, request, target_sum, controls, columns)
            for name, predictor in self.predictors.items()
        }

    def _assemble(
        self, predictor: Predictor, request: list[Wanted], target_sum: float, controls: ad.AnnData, columns: Columns
    ) -> ad.AnnData:
        """A predictor's cells followed by `controls`."""
        assert self.source is not None
        form = Form.of(controls.var_names.tolist(), self.source.store, "log1p", target_sum)
        blocks = list(make_maker(predictor, self.source, form, torch.device("cpu"), self.drawn).cells(request))
        labels = np.repeat([w.perturbation for w in request], [w.n_cells for w in request])
        return stacked(blocks, labels, controls, columns)

    def _only_context(self) -> str | None:
        contexts = list(self.source.pool.of_context) if self.source else []
        return contexts[0] if len(contexts) == 1 else None

    def notes(self) -> list[str]:
        fallbacks = self.deltas.fallbacks if self.deltas else {}
        instead = {"context mean": "the mean of all contexts", "perturbation mean": "the context mean"}
        notes = [
            f"{name}: {len(groups):,} targets have none in training; {instead[name]} stands in"
            for name, groups in fallbacks.items()
        ]
        if self.without:
            notes.append(
                f"context mean and perturbation mean are left out for {shortlist(sorted(self.without))}: the run's store "
                "has no control cells of that context, or other genes"
            )
        return notes


def copied(controls: ad.AnnData, numbers: pd.Series, columns: Columns, seed: int) -> ad.AnnData:
    """The prediction's own controls, drawn again under every target's label."""
    rng = np.random.default_rng(seed)
    blocks = [controls.X[rng.choice(controls.n_obs, n, replace=n > controls.n_obs)] for n in numbers]
    return stacked(blocks, np.repeat(numbers.index.astype(str), numbers), controls, columns)


def stacked(blocks: list[Any], labels: np.ndarray, controls: ad.AnnData, columns: Columns) -> ad.AnnData:
    labels = np.concatenate([np.asarray(labels, dtype=object), np.full(controls.n_obs, columns.control, dtype=object)])
    obs = pd.DataFrame({columns.perturbation: labels}, index=pd.Index([str(i) for i in range(len(labels))]))
    matrix = sparse.csr_matrix(sparse.vstack([*blocks, controls.X]))
    return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=controls.var_names))
