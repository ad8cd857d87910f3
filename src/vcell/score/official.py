"""The official scorer of the 2025 challenge, `cell-eval` (profile `vcc`), called in process.

Every parameter that the package would default is stated here and recorded beside the scores.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from vcell.errors import VcellError

# official column -> what the field calls it; for the first two higher is better, for the last lower
METRICS = {"overlap_at_N": "DES", "discrimination_score_l1": "PDS", "mae": "MAE"}


@dataclass(frozen=True)
class Official:
    """Scores of one prediction: `per_perturbation` has one row a target, columns DES, PDS, MAE."""

    per_perturbation: pd.DataFrame
    parameters: dict[str, Any]

    @property
    def mean(self) -> pd.Series:
        return self.per_perturbation.mean()


class OfficialScorer:
    """Scores predictions against one measured data set; its differential expression is computed once.

    Parameters
    ----------
    real
        Measured cells with controls, log1p, genes in order.
    perturbation, control
        The obs column of targets, and the label of controls.
    threads
        For the rank tests.

    Raises
    ------
    VcellError
        If cell-eval is not installed.
    """

    def __init__(self, real: ad.AnnData, perturbation: str, control: str, threads: int) -> None:
        try:
            import cell_eval
        except ImportError as error:
            raise VcellError("scoring needs cell-eval: pip install 'vcell[score]'") from error
        import importlib.metadata

        self.evaluator = cell_eval.MetricsEvaluator
        self.real, self.perturbation, self.control, self.threads = real, perturbation, control, threads
        self.real_de: Any = None
        self.parameters = {
            "package": f"cell-eval {importlib.metadata.version('cell-eval')}",
            "profile": "vcc",
            "pert_col": perturbation,
            "control_pert": control,
            "allow_discrete": False,
            "differential_expression": "pdex, Wilcoxon against controls, Benjamini-Hochberg per target, 5 %",
            "targets": int(real.obs[perturbation].nunique() - 1),
        }

    def score(self, predicted: ad.AnnData) -> Official:
        """Official scores of `predicted`: same targets and genes as the measured cells, log1p on the same scale.

        Raises
        ------
        VcellError
            With the scorer's reason, if it refuses.
        """
        said = io.StringIO()
        with tempfile.TemporaryDirectory(prefix="vcell-score-") as folder, quiet(said):
            try:
                evaluator = self.evaluator(
                    adata_pred=predicted,
                    adata_real=self.real,
                    de_real=self.real_de,
                    control_pert=self.control,
                    pert_col=self.perturbation,
                    num_threads=self.threads,
                    outdir=str(Path(folder) / "out"),
                    allow_discrete=False,
                    pdex_kwargs={"cpm_filter": None, "epsilon": 0.0} if self.real_de is None else None,
                )
                results, _ = evaluator.compute(profile="vcc", write_csv=False, break_on_error=True)
            except Exception as error:
                raise VcellError(f"the official scorer cell-eval refused the input: {error}") from error
            if self.real_de is None:
                import polars

                self.real_de = polars.read_csv(
                    Path(folder) / "out" / "real_de.csv",
                    schema_overrides={"target": polars.Utf8, "feature": polars.Utf8},
                )
        table = results.to_pandas().set_index("perturbation")[list(METRICS)].rename(columns=METRICS)
        return Official(table.astype(float).sort_index(), self.parameters)


@contextlib.contextmanager
def quiet(said: io.StringIO) -> Any:
    """Keeps the scorer's bars and log lines off the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            yield
    finally:
        logging.disable(disabled)
