"""The official scorers, called in process: `cell-eval` (2025, profile vcc) and `cell-eval2` (2026, preset vcc2026).

Every parameter that a package would default is set explicitly here and recorded with the scores.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from vcell.errors import VcellError, install
from vcell.score.grouped import GroupedCells
from vcell.score.metrics import METRICS_2025, METRICS_2026

PERTURBATION = "target_gene"


class Official2025:
    """`cell-eval`; the measured cells' differential expression is computed once.

    Parameters
    ----------
    real
        Measured cells with controls, log1p.
    threads
        For the rank tests.

    Raises
    ------
    VcellError
        If cell-eval is not installed.
    """

    def __init__(self, real: GroupedCells, threads: int) -> None:
        self.evaluator = installed("cell_eval", 2025).MetricsEvaluator
        self.real, self.control, self.threads = real.anndata(PERTURBATION), real.control, threads
        self.real_de: Any = None
        self.parameters: dict[str, Any] = {
            "package": f"cell-eval {importlib.metadata.version('cell-eval')}",
            "profile": "vcc",
            "pert_col": PERTURBATION,
            "control_pert": real.control,
            "allow_discrete": False,
            "pdex": {"mode": "ref", "is_log1p": True, "epsilon": 0.0, "cpm_filter": None, "geometric_mean": True},
            "differential_expression": "Wilcoxon against controls, Benjamini-Hochberg per target, 5 %",
            "targets": len(real.targets),
        }

    def score(self, pred: GroupedCells) -> pd.DataFrame:
        """DES, PDS and MAE, one row per target: same targets and genes as the measured cells, log1p on the same scale.

        Raises
        ------
        VcellError
            With the scorer's reason, if it refuses.
        """
        with tempfile.TemporaryDirectory(prefix="vcell-score-") as folder, quiet("cell-eval"):
            evaluator = self.evaluator(
                adata_pred=pred.anndata(PERTURBATION),
                adata_real=self.real,
                de_real=self.real_de,
                control_pert=self.control,
                pert_col=PERTURBATION,
                num_threads=self.threads,
                outdir=str(Path(folder) / "out"),
                allow_discrete=False,
                pdex_kwargs={k: v for k, v in self.parameters["pdex"].items() if k != "mode"},
            )
            results, _ = evaluator.compute(profile="vcc", write_csv=False, break_on_error=True)
            if self.real_de is None:
                import polars

                self.real_de = polars.read_csv(
                    Path(folder) / "out" / "real_de.csv",
                    schema_overrides={"target": polars.Utf8, "feature": polars.Utf8},
                )
        names = {m.official: m.key for m in METRICS_2025}
        return (
            results.to_pandas().set_index("perturbation")[list(names)].rename(columns=names).astype(float).sort_index()
        )


class Official2026:
    """`cell-eval2`.

    Parameters
    ----------
    real
        Measured whole counts with controls, which the predictions are held against too.
    threads
        For the rank tests.

    Raises
    ------
    VcellError
        If cell-eval2 is not installed.
    """

    def __init__(self, real: GroupedCells, threads: int) -> None:
        self.package, self.real = installed("cell_eval2", 2026), real
        preset = self.package.EvalConfig.from_preset("vcc2026").to_dict()
        settings = {
            **preset,
            "pert_col": PERTURBATION,
            "control": real.control,
            "num_threads": threads,
            "device": "cpu",
        }
        settings["de"] = {**settings["de"], "backend": "pdex"}
        self.preset = self.package.EvalConfig.from_dict(settings)
        self.parameters: dict[str, Any] = {
            "package": f"cell-eval2 {importlib.metadata.version('cell-eval2')}",
            "preset": "vcc2026",
            **self.preset.to_dict(),
            "targets": len(real.targets),
        }

    def score(self, pred: GroupedCells) -> pd.DataFrame:
        """The six members, one row per target; of the ratio of sums its two parts.

        Raises
        ------
        VcellError
            With the scorer's reason, if it refuses.
        """
        measured = self.real.anndata(PERTURBATION)
        # the scorer wants controls in the prediction and takes the measured ones all the same
        made = pred.with_controls(self.real.controls).anndata(PERTURBATION)
        with quiet("cell-eval2"):
            rows = self.package.compute_metrics(made, measured, config=self.preset).to_pandas()
        table = rows.pivot(index="perturbation", columns="metric", values="value")
        names = {m.official: m.key for m in METRICS_2026 if m.over is None}
        names |= {"expr_mse_unbiased_capped": "MSE_part", "expr_distance_unbiased": "MSE_whole"}
        # a member that has no value for any target is absent
        return table.reindex(index=sorted(pred.targets), columns=list(names)).rename(columns=names).astype(float)


def require(package: str, year: int) -> None:
    """Refuses to go on without the package, before anything is read.

    Raises
    ------
    VcellError
        With how to get it.
    """
    if importlib.util.find_spec(package) is None:
        raise _missing(package, year)


def installed(package: str, year: int) -> Any:
    """The package, imported.

    Raises
    ------
    VcellError
        With how to get it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise _missing(package, year) from error


def _missing(package: str, year: int) -> VcellError:
    name = package.replace("_", "-")
    return VcellError(f"the official scores of {year} need {name}: {install('score')}, or engine=fast")


@contextlib.contextmanager
def quiet(package: str) -> Iterator[None]:
    """Keeps a scorer's bars and log lines off the screen, and turns its exceptions into one line.

    Raises
    ------
    VcellError
        With the scorer's reason.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            yield
    except Exception as error:
        raise VcellError(
            f"the official scorer {package} refused the input: {error} (engine=fast scores without it)"
        ) from error
    finally:
        logging.disable(disabled)
