"""h5ad files, or AnnData, to a cell store from Python: `vcell.build_store`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vcell.config import compose, with_settings
from vcell.data.files.labels import CONTROL
from vcell.data.files.memory import Given, as_file, given_list
from vcell.data.store.ensure import ensure_store
from vcell.data.store.options import StoreOptions
from vcell.data.store.store import Cells
from vcell.errors import MOST_AT_ONCE, check_number
from vcell.process.given import as_mapping, as_name, as_name_or_none, as_names, check_switches
from vcell.process.progress import spoken


def build_store(
    cells: Given | Sequence[Given],
    out: str | Path = "store",
    *,
    perturbation: str | None = "target_gene",
    batch: str | None = "batch",
    context: str | None = "cell_type",
    context_name: str | None = None,
    control: str | Sequence[str] = CONTROL,
    genes: str | Path = "union",
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    verbose: bool = False,
) -> Cells:
    """Reads h5ad files or AnnData into a cell store, or opens the one that was made of them before.

    Parameters
    ----------
    cells
        Files, globs, AnnData, or a list of these.
    out
        The folder of the store.
    perturbation, batch, context
        obs columns; ``batch=None``: each file is one batch; ``context=None``: give `context_name`.
    context_name
        The context of all cells.
    control
        The label of control cells, or several.
    genes
        ``union`` or ``common``, or a gene list: a file with one name per line.
    settings
        Any other setting of ``vcell prepare`` by its key: ``{"data.filter.min_cells": 30}``.
    overwrite
        Replace a store made from other cells or settings.
    workers
        Files read side by side.
    verbose
        Print what the command would print.

    Returns
    -------
    The opened store: ``obs``, ``genes``, ``groups``, ``rows(cells)``.

    Raises
    ------
    VcellError
        If cells cannot be read, or the store there was made from others.
    """
    given = given_list(cells)
    if workers is not None:
        check_number("workers", workers, 1, MOST_AT_ONCE)
    labels = as_names("control", control)
    columns = {
        f"data.columns.{role}": as_name_or_none(role, column)
        for role, column in (("perturbation", perturbation), ("batch", batch), ("context", context))
    }
    values = {
        "data.store": as_name("out", out),
        "data.context": as_name_or_none("context_name", context_name),
        "data.control": labels[0] if labels and isinstance(control, str) else labels,
        "data.genes": as_name_or_none("genes", genes),
        **columns,
        **as_mapping("settings", settings),
    }
    check_switches(overwrite=overwrite, verbose=verbose)
    config = compose("prepare", ["data=perturb_seq"])
    with ExitStack() as stack, spoken(verbose):
        paths = [
            str(one) if isinstance(one, str | Path) else str(stack.enter_context(as_file(one, f"adata{i}.h5ad")))
            for i, one in enumerate(given)
        ]
        data = with_settings(config, {"data.path": paths, **values}).data
        return ensure_store(StoreOptions.of(data), overwrite, workers)
