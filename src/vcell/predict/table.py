"""Predictions from other tools with one row per perturbation: a linear model predicts a mean profile, not cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from vcell.data.files.h5ad import column_names, open_h5ad, read_column, read_index
from vcell.data.files.lists import numbers, read_matrix
from vcell.data.files.matrix import read_dense
from vcell.errors import VcellError, no_such_file, shortlist

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
NAMES = ("target_gene", "perturbation", "target", "gene", "condition")


@dataclass(frozen=True)
class Table:
    """Predicted profiles as they stand.

    Parameters
    ----------
    values
        float64 ``(rows, genes)``, in the order of `genes`.
    targets, contexts
        Of each row; `contexts` None where rows hold for every context.
    """

    path: Path
    genes: list[str]
    values: np.ndarray
    targets: list[str]
    contexts: list[str] | None

    def row(self, context: str, target: str) -> int | None:
        """The number of a target's row; None where there is none."""
        return self._rows.get((context, target), self._rows.get(("", target)))

    @cached_property
    def _rows(self) -> dict[tuple[str, str], int]:
        contexts = self.contexts or [""] * len(self.targets)
        return {(c, t): i for i, (c, t) in enumerate(zip(contexts, self.targets, strict=True))}


def is_table(path: Path, perturbation: str, context: str | None) -> bool:
    """Whether `path` holds one row per perturbation (and context), not cells."""
    if path.suffix.lower() in SUFFIXES:
        return True
    with open_h5ad(path) as file:
        known = column_names(file, "obs", path)
        keys = [name for name in (perturbation, context) if name in known]
        if perturbation not in known:
            return False
        rows = pd.DataFrame({name: read_column(file, "obs", name, path).astype(str) for name in keys})
    return len(rows) > 0 and not rows.duplicated().any()


def read_table(path: Path, perturbation: str, context: str | None) -> Table:
    """A CSV, TSV, Parquet or h5ad with one row per perturbation; genes are its other columns.

    Raises
    ------
    VcellError
        If it cannot be read, does not say which row is which perturbation, or holds values that are not finite numbers.
    """
    if path.suffix.lower() not in SUFFIXES:
        return _read_h5ad(path, perturbation, context)
    try:
        frame = pd.read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else read_matrix(path, "pred")
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except VcellError:
        raise
    except Exception as error:
        raise VcellError(f"{path} cannot be read as a table: {error}") from error
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    label = next((name for name in (perturbation, *NAMES) if name in frame.columns), None)
    if label is None and not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index(names=perturbation)
        label = perturbation
    if label is None and not pd.api.types.is_numeric_dtype(frame.iloc[:, 0]):
        label = str(frame.columns[0])  # what pandas writes for an index
    if label is None:
        raise VcellError(
            f"{path} does not say which row is which perturbation: it needs a column {perturbation!r}. Columns: "
            f"{shortlist(map(str, frame.columns), 5)}"
        )
    targets = frame.pop(label).astype(str).str.strip().tolist()
    contexts = frame.pop(context).astype(str).tolist() if context in frame.columns else None
    words = [
        f"{name} ({_no_number(frame.iloc[:, place])!r})"  # by its place: names may be there twice
        for place, (name, kind) in enumerate(frame.dtypes.items())
        if not pd.api.types.is_numeric_dtype(kind)
    ]
    if words:
        raise VcellError(
            f"{path}: columns with values that are no numbers: {shortlist(words, 5)}. Correct them, or leave the columns out"
        )
    return _checked(Table(path, [str(c) for c in frame.columns], frame.to_numpy(np.float64), targets, contexts))


def _no_number(column: pd.Series) -> str:
    """The first value that is none; of a column that holds numbers as text, the first."""
    return str(next(iter([*column[numbers(column).isna()], *column]), ""))


def _read_h5ad(path: Path, perturbation: str, context: str | None) -> Table:
    with open_h5ad(path) as file:
        known = column_names(file, "obs", path)
        targets = read_column(file, "obs", perturbation, path).astype(str).tolist()
        contexts = read_column(file, "obs", context, path).astype(str).tolist() if context in known else None
        genes = read_index(file, "var", path).astype(str).tolist()
        values = read_dense(file, path, "X", (len(targets), len(genes)))
    return _checked(Table(path, genes, values, targets, contexts))


def check_orientation(table: Table, genes: Sequence[str]) -> None:
    """Refuses a table of genes x targets: targets are genes too, so its rows could be mistaken for targets.

    Parameters
    ----------
    genes
        Those that are wanted, or that the control cells have.

    Raises
    ------
    VcellError
        Where the rows are more of these genes than the columns are.
    """
    known = set(genes)
    as_rows, as_columns = len(known & set(table.targets)), len(known & set(table.genes))
    if as_rows > as_columns and as_rows > 0.5 * len(table.targets):
        raise VcellError(
            f"{table.path} appears to be transposed: its rows ({shortlist(table.targets, 3)}) are {as_rows:,} of the genes, its columns "
            f"({shortlist(table.genes, 3)}) {as_columns:,}. Rows must be perturbations and columns genes: write frame.T"
        )


def _checked(table: Table) -> Table:
    if not np.isfinite(table.values).all():
        row, gene = (int(i[0]) for i in np.nonzero(~np.isfinite(table.values)))
        raise VcellError(
            f"{table.path}: the row of {table.targets[row]} holds no finite number for {table.genes[gene]}"
        )
    contexts = table.contexts or [""] * len(table.targets)
    twice = pd.Series([f"{t} in {c}" if c else t for c, t in zip(contexts, table.targets, strict=True)])
    if twice.duplicated().any():
        raise VcellError(f"{table.path} has several rows of {shortlist(twice[twice.duplicated()].unique(), 5)}")
    if len(set(table.genes)) < len(table.genes):
        index = pd.Index(table.genes)
        raise VcellError(f"{table.path}: genes are duplicated: {shortlist(index[index.duplicated()].unique(), 5)}")
    return table
