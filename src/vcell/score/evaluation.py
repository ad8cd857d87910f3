"""Scoring: a prediction and measured cells to a table, beside three baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue

from vcell import __version__
from vcell.errors import VcellError
from vcell.machine import cores
from vcell.progress import progress_bar
from vcell.score.cells import Columns, match, read_cells, same_scale
from vcell.score.official import METRICS, OfficialScorer
from vcell.score.references import References
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
    references, reference_notes = References.find(config, about)
    notes += reference_notes
    per_perturbation, parameters = score_contexts(pred, real, label_of(about), references, target_sum, columns, config)
    notes += references.notes()
    # contexts weigh the same, whatever their number of targets
    by = per_perturbation.groupby(["predictor", "context"], sort=False)[list(METRICS.values())].mean()
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
    if references.run_folder is not None:
        print(f"run folder   {from_here(references.run_folder)}")
    print(f"prediction   {pred_path}\nreport       {out / 'report.html'}\ntables       {out / 'scores.csv'}, "
          f"{out / 'per_perturbation.csv'}\nplot         {out / 'scores.png'}", flush=True)  # fmt: skip


def score_contexts(
    pred: ad.AnnData,
    real: ad.AnnData,
    name: str,
    references: References,
    target_sum: float,
    columns: Columns,
    config: DictConfig,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Official scores of the prediction `name` and the baselines, a row a (predictor, context, target); and how made."""
    tables = []
    parameters: dict[str, Any] = {}
    for context, pred_cells, real_cells in by_context(pred, real, columns):
        scorer = OfficialScorer(real_cells, columns.perturbation, columns.control, config.threads or cores())
        candidates = {name: pred_cells, **references.predictions(pred_cells, context, target_sum, columns)}
        with progress_bar(len(candidates), f"scoring {context or ''}".strip(), "predictors") as progress:
            for predictor, cells in candidates.items():
                scores = scorer.score(cells).per_perturbation.reset_index()
                tables.append(scores.assign(predictor=predictor, context=context or ""))
                progress.update()
        parameters = scorer.parameters
    return pd.concat(tables)[["predictor", "context", "perturbation", *METRICS.values()]], parameters


def by_context(pred: ad.AnnData, real: ad.AnnData, columns: Columns) -> list[tuple[str | None, ad.AnnData, ad.AnnData]]:
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
