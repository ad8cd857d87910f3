"""What a file or an AnnData holds, for notebooks: `vcell.describe`."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from vcell.config import flatten
from vcell.data.files.memory import Given, as_file
from vcell.data.files.paths import read_gene_list
from vcell.errors import check_choice, check_number
from vcell.inspection.columns import USUAL
from vcell.inspection.inspect import inspect
from vcell.inspection.report import as_text, rows_of
from vcell.process.given import as_mapping, as_name_or_none, as_names, as_names_or_file
from vcell.process.progress import spoken


@dataclass(frozen=True)
class Description:
    """What was found. In a notebook it shows as a table; printed, as the text of ``vcell inspect``.

    Attributes
    ----------
    found
        Everything as plain values, as ``vcell inspect json=true`` writes it.
    settings
        With which `vcell.build_store` reads the cells as described; empty where something has to be decided first.
    """

    found: dict[str, Any]
    settings: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """A row for each finding, with its label ("!" for a warning)."""
        return pd.DataFrame(rows_of(self.found), columns=["what", "found"])

    @property
    def warnings(self) -> list[str]:
        """What has to be decided or mended before the file is used."""
        return list(self.found["warnings"])

    def __str__(self) -> str:
        return as_text(self.found)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(what)}</th><td style='text-align:left'>{html.escape(text)}</td></tr>"
            for what, text in rows_of(self.found)
        )
        return f"<table>{rows}</table>"


def describe(
    cells: Given,
    *,
    columns: Mapping[str, str | None] | None = None,
    control: str | Sequence[str] | None = None,
    matrix: str | None = None,
    genes: str | Path | Sequence[str] | None = None,
    sample: int = 500,
) -> Description:
    """What a file or an AnnData holds: scale of its values, genes, labels, knockdown, and what to settle before it is used.

    Parameters
    ----------
    cells
        An h5ad file, or an AnnData.
    columns
        obs columns that are known: ``{"perturbation": "gene", "batch": "lane", "context": "cell_line"}``; the rest is guessed.
    control
        The label of control cells, or several, where it is known.
    matrix
        Look at this one only: ``X``, ``layers/NAME``, ``raw/X``.
    genes
        A gene list to align to, as a file or as names.
    sample
        Cells sampled for the scale of each matrix.

    Raises
    ------
    VcellError
        If the file cannot be read, or lacks what was named.

    Examples
    --------
    >>> vcell.describe("screen/simA.h5ad")  # doctest: +SKIP
    """
    known = {
        role: as_name_or_none(f"columns[{role!r}]", column) for role, column in as_mapping("columns", columns).items()
    }
    for role in known:
        check_choice("columns", role, (*USUAL, "gene"))
    check_number("sample", sample, 1)
    given = as_names_or_file("genes", genes)
    names = read_gene_list(given, "genes") if isinstance(given, str) else given
    with as_file(cells) as path, spoken(False):
        found = inspect(path, known, as_names("control", control), as_name_or_none("matrix", matrix), names, sample)
    settings = _settings(found["prepare"])
    if not isinstance(cells, str | Path):
        found["path"] = "AnnData"
        if found["prepare"]:
            found["prepare"] = f"store = vcell.build_store(adata, 'store', settings={settings})"
            found["train"] = "run = vcell.fit(store)"
    return Description(found, settings)


def _settings(command: str | None) -> dict[str, Any]:
    """The settings in the line that prepares a file, but for its name and place."""
    words = [word for word in shlex.split(command or "") if word.startswith("data.")]
    values = dict(flatten(OmegaConf.to_container(OmegaConf.from_dotlist(words))))
    return {key: value for key, value in values.items() if key not in ("data.path", "data.name")}
