"""python -m vcell.evaluate: scores a prediction with the official scorer, beside three baselines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue
from scipy import sparse

from vcell import __version__
from vcell.cli import launch
from vcell.errors import VcellError
from vcell.infer import make_source, open_run_store, split_of
from vcell.model.baselines import make_baselines
from vcell.model.checkpoint import find_checkpoint, read_checkpoint
from vcell.prediction import Source, Wanted, predicted_cells
from vcell.progress import progress_bar
from vcell.score.cells import Columns, match, read_cells, same_scale
from vcell.score.official import OfficialScorer
from vcell.score.report import table_text, write_report


def evaluate(config: DictConfig) -> None:
    """Scores `config.pred` against `config.real` and writes the report."""
    try:
        pred_path, real_path = Path(config.pred), Path(config.real)
    except MissingMandatoryValue as error:
        raise VcellError("say what was measured: python -m vcell.evaluate pred=PRED.h5ad real=MEASURED.h5ad") from error
    out = Path(config.out) if config.out else pred_path.with_name(f"{pred_path.stem}_scores")
    columns = Columns(config.columns.perturbation, config.columns.context, config.control)
    pred, real = read_cells(pred_path, columns), read_cells(real_path, columns)
    about = read_about(pred)
    pred, real, notes = match(pred, real, columns)
    target_sum = same_scale(pred, real, about, columns)
    baselines, baseline_notes = Baselines.find(config, about)
    notes += baseline_notes
    tables = []
    parameters: dict[str, Any] = {}
    for context, pred_cells, real_cells in by_context(pred, real, columns):
        scorer = OfficialScorer(real_cells, columns.perturbation, columns.control, config.threads or cores())
        candidates = {label_of(about): pred_cells, **baselines.predictions(pred_cells, context, target_sum, columns)}
        with progress_bar(len(candidates), f"scoring {context}" if context else "scoring", "predictors") as progress:
            for name, cells in candidates.items():
                scores = scorer.score(cells).per_perturbation.reset_index()
                tables.append(scores.assign(predictor=name, context=context or ""))
                progress.update()
        parameters = scorer.parameters
    notes += baselines.notes()
    per_perturbation = pd.concat(tables)[["predictor", "context", "perturbation", "DES", "PDS", "MAE"]]
    # contexts weigh the same, whatever their number of targets
    by = per_perturbation.groupby(["predictor", "context"], sort=False)[["DES", "PDS", "MAE"]].mean()
    scores = by.groupby("predictor", sort=False).mean()
    details = {
        "pred": str(pred_path), "real": str(real_path), "vcell": __version__, "scorer": parameters,
        "target_sum": target_sum, "prediction": about,
    }  # fmt: skip
    write_report(out, scores, per_perturbation, details, notes)
    n_targets = per_perturbation["perturbation"].nunique()
    print(f"{parameters['package']}, profile vcc, {n_targets:,} targets, log1p of counts per {target_sum:,.0f}\n")
    print(table_text(scores) + "\n")
    for note in notes:
        print(f"note         {note}")
    if about.get("ckpt"):
        print(f"run folder   {from_here(Path(about['ckpt']).parents[1])}")
    print(f"prediction   {pred_path}\nreport       {out / 'report.html'}\ntables       {out / 'scores.csv'}, "
          f"{out / 'per_perturbation.csv'}\nplot         {out / 'scores.png'}", flush=True)  # fmt: skip


class Baselines:
    """Baseline predictions for the same request as the one scored."""

    def __init__(self, identity: dict[str, Any] | None, store: Any, seed: int) -> None:
        self.seed, self.predictors, self.deltas, self.source = seed, {}, None, None
        if identity is None or store is None:
            return
        contexts = {c for c, p in store.groups if p == store.control}
        self.source = make_source(store, identity, contexts, 8, seed)
        self.predictors, self.deltas = make_baselines(self.source.gather, split_of(identity))

    @classmethod
    def find(cls, config: DictConfig, about: dict[str, Any]) -> tuple[Baselines, list[str]]:
        """From the run that made the prediction, or the one given; none of a run, only copied controls."""
        seed = int(about.get("seed", 0))
        ckpt = config.ckpt or about.get("ckpt")
        if ckpt is None:
            return cls(None, None, seed), [
                "context mean and perturbation mean need training cells: give ckpt=FILE.ckpt of a run on them"
            ]
        try:
            path = find_checkpoint(str(ckpt), config.runs)
            identity = read_checkpoint(path)["vcell"]
            return cls(identity, open_run_store(config.store or about.get("store"), identity, path), seed), []
        except VcellError as error:
            if config.ckpt is not None:
                raise
            return cls(None, None, seed), [f"context mean and perturbation mean are left out: {error}"]

    def predictions(
        self, pred: ad.AnnData, context: str | None, target_sum: float, columns: Columns
    ) -> dict[str, ad.AnnData]:
        """Each baseline's cells, with the prediction's own controls, by name."""
        labels = pred.obs[columns.perturbation].to_numpy(str)
        controls = pred[labels == columns.control]
        numbers = pd.Series(labels[labels != columns.control]).value_counts(sort=False)
        source = self.source
        context = context or self._only_context()
        if source is None or context is None or context not in source.pool.of_context or (
            source.gather.store.genes != list(pred.var_names)
        ):
            return {"copied_controls": copied(controls, numbers, columns, self.seed)}
        request = [Wanted(context, str(p), int(n)) for p, n in numbers.items()]
        return {
            name: assemble(source, predictor, request, target_sum, controls, columns)
            for name, predictor in self.predictors.items()
        }

    def _only_context(self) -> str | None:
        contexts = list(self.source.pool.of_context) if self.source else []
        return contexts[0] if len(contexts) == 1 else None

    def notes(self) -> list[str]:
        fallbacks = self.deltas.fallbacks if self.deltas else {}
        instead = {"context mean": "the mean of all contexts", "perturbation mean": "the context mean"}
        return [f"{name}: {len(groups):,} targets have none in training; {instead[name]} stands in"
                for name, groups in fallbacks.items()]  # fmt: skip


def assemble(
    source: Source, predictor: Any, request: list[Wanted], target_sum: float, controls: ad.AnnData, columns: Columns
) -> ad.AnnData:
    """A predictor's cells followed by `controls`."""
    blocks = [sparse.csr_matrix(b) for b in predicted_cells(predictor, source, request, target_sum, "cpu")]
    labels = np.repeat([w.perturbation for w in request], [w.n_cells for w in request])
    return stacked(blocks, labels, controls, columns)


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


def by_context(
    pred: ad.AnnData, real: ad.AnnData, columns: Columns
) -> list[tuple[str | None, ad.AnnData, ad.AnnData]]:
    """Prediction and measured cells of each context; as they are where neither file tells contexts apart."""
    column = columns.context
    if column is None or column not in pred.obs:
        return [(None, pred, real)]
    contexts = pred.obs.loc[pred.obs[columns.perturbation] != columns.control, column].astype(str).unique()
    if column not in real.obs:
        if len(contexts) > 1:
            raise VcellError(f"the prediction has {len(contexts)} contexts, the measured cells no column {column!r}")
        return [(contexts[0], pred, real)]
    pairs = []
    for context in contexts:
        pred_cells = pred[(pred.obs[column].astype(str) == context).to_numpy()]
        real_cells = real[(real.obs[column].astype(str) == context).to_numpy()]
        if real_cells.n_obs == 0:
            known = real.obs[column].astype(str).unique()
            raise VcellError(f"the measured cells have no context {context!r}; they have {', '.join(known)}")
        pred_cells, real_cells, _ = match(pred_cells, real_cells, columns)
        pairs.append((context, pred_cells, real_cells))
    return pairs


def read_about(pred: ad.AnnData) -> dict[str, Any]:
    """What a file written by vcell says of itself; nothing for other files."""
    try:
        about = json.loads(str(pred.uns.get("vcell", "{}")))
    except json.JSONDecodeError:
        return {}
    return about if isinstance(about, dict) else {}


def label_of(about: dict[str, Any]) -> str:
    """The scored prediction's name in the table; a baseline's own file must not pass for the baseline beside it."""
    name = about.get("predictor", "prediction")
    return name if name == "model" else f"prediction ({name})" if name != "prediction" else name


def from_here(path: Path) -> Path:
    """`path` as one would type it from the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    launch("evaluate", evaluate)
