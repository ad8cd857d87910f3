"""h5ad files to a cell store: read once, streamed, verified, renamed into place when complete.

Each file is read into a part of its own (`parts.py`), side by side where there are several. Then the cells of all
parts are put in order of context, batch and perturbation, and copied into the store. Nothing holds the matrix in memory, and
a preparation that was killed resumes with the files it had finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from vcell import __version__
from vcell.atomic import remove, written_folder
from vcell.data.files.csr import starts_of
from vcell.data.files.h5ad import Columns, open_h5ad, read_genes, read_obs, stems
from vcell.data.files.labels import NO_GUIDE, LabelTable, read_labels
from vcell.data.files.matrix import Matrix
from vcell.data.files.paths import content_of
from vcell.data.files.scale import Scale
from vcell.data.store.filters import Filters
from vcell.data.store.panel import GeneChoice, Panel
from vcell.data.store.part import ROWS_AT_ONCE, PartJob, is_read
from vcell.data.store.recipe import Recipe
from vcell.data.store.rows import PartRows, begin_array, write_rows
from vcell.data.store.store import FORMAT_VERSION, LABELS, CellStore, checksum_of
from vcell.data.store.workers import read_parts
from vcell.errors import MOST_AT_ONCE, VcellError, check_number, shortlist
from vcell.process.lock import locked


def ingest(
    files: Sequence[Path],
    out: Path,
    recipe: Recipe | Columns | None = None,
    genes: GeneChoice | None = None,
    filters: Filters | None = None,
    provenance: dict[str, Any] | None = None,
    workers: int | None = None,
    cluster: str | None = None,
) -> CellStore:
    """Reads h5ad `files` into a new cell store at `out`; a store that lay there is replaced once this one is whole.

    Parameters
    ----------
    recipe, genes, filters
        How to read the files, which genes to hold, which cells to leave out.
    provenance
        Said of the store in its meta.json.
    workers, cluster
        See `workers.read_parts`.

    Raises
    ------
    VcellError
        If a file cannot be read, lacks a column, has no control cells, NaN, negative or infinite values,
        duplicated genes, or values whose counts cannot be recovered. Nothing is left behind.
    """
    if workers is not None:
        check_number("prepare.workers", workers, 1, MOST_AT_ONCE, other="null")
    if out.exists() and not (out / "meta.json").is_file():
        raise VcellError(
            f"{out} exists and is not a cell store; it was not changed. Choose another folder: data.store=FOLDER"
        )
    recipe = Recipe(columns=recipe) if isinstance(recipe, Columns) else recipe or Recipe()
    genes, filters = genes or GeneChoice(), filters or Filters()
    n_cells, labels = _check_files(files, recipe)  # labels and layouts of all files, before the first is read
    panel = genes.panel(files, recipe)
    place = out.with_name(out.name + ".parts")
    with locked(out, "the store"), _kept_if_killed(place):
        jobs = _jobs(files, n_cells, labels, panel, recipe, place)
        left = [job for job in jobs if not is_read(job)]
        if len(left) < len(jobs):
            print(
                f"resuming     with {len(jobs) - len(left)} of {len(jobs)} files read before the interruption",
                flush=True,
            )
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VcellError(f"the store {out} could not be written: {error}") from error
        read_parts(left, workers, cluster)
        with written_folder(out, "the store") as scratch:
            _write_store(scratch, jobs, labels, panel, recipe, genes, filters, provenance or {})
    return CellStore.open(out)


@contextmanager
def _kept_if_killed(place: Path) -> Iterator[None]:
    """After an interruption the parts are kept for next time, after an error they are removed."""
    try:
        yield
    except (VcellError, OSError):
        remove(place)
        raise
    remove(place)


def _check_files(files: Sequence[Path], recipe: Recipe) -> tuple[list[int], LabelTable]:
    """Checks what labels, genes and layouts alone can show; returns the number of cells of each file and the meaning of labels."""
    labels: dict[str, dict[str, int]] = {}
    known: set[str] = set()
    n_cells = []
    recipe.check_scales(files)
    for path in files:
        with open_h5ad(path) as file:
            obs = read_obs(file, path, recipe.columns, recipe.context)
            names = read_genes(file, path, recipe.matrix, recipe.columns.gene)
            Matrix.open(file, path, recipe.matrix, len(obs), len(names))
        n_cells.append(len(obs))
        known.update(names)
        labels[str(path)] = {str(label): int(n) for label, n in obs["perturbation"].value_counts().items()}
    return n_cells, read_labels(labels, recipe.control, recipe.labels, known)


def _jobs(
    files: Sequence[Path], n_cells: Sequence[int], labels: LabelTable, panel: Panel, recipe: Recipe, place: Path
) -> list[PartJob]:
    jobs = []
    for path, cells, source, position in zip(files, n_cells, stems(files), panel.position, strict=True):
        meaning = labels.meaning[str(path)]
        key = [
            str(recipe),
            str(path.resolve()),
            content_of(path),
            panel.genes,
            source,
            sorted(meaning.items()),
            __version__,
        ]
        name = hashlib.blake2b(json.dumps(key).encode() + position.tobytes(), digest_size=8).hexdigest()
        jobs.append(
            PartJob(path.resolve(), source, recipe, position, len(panel.genes), cells, place.resolve() / name, meaning)
        )
    return jobs


def _write_store(
    folder: Path,
    jobs: Sequence[PartJob],
    labels: LabelTable,
    panel: Panel,
    recipe: Recipe,
    genes: GeneChoice,
    filters: Filters,
    provenance: dict[str, Any],
) -> None:
    about = [json.loads((job.folder / "part.json").read_text()) for job in jobs]
    seen = np.stack([np.load(job.folder / "seen.npy") for job in jobs])
    cells = _cells(jobs)
    labelled = (cells["perturbation"] != NO_GUIDE).to_numpy()
    kept = np.zeros(len(cells), bool)
    twice = _counted_twice(cells)
    kept[labelled], notes = filters.apply(cells[labelled].reset_index(drop=True), recipe.control_label)
    filled = (cells["library_size"] > 0).to_numpy()
    order = _order(cells, kept & filled)
    if not (cells["perturbation"].iloc[order] == recipe.control_label).any():
        raise VcellError(
            f"no control cell is left: {int((~filled).sum()):,} of {len(cells):,} cells have no counts (data.empty_cells=drop)"
        )
    parts = [PartRows(job.folder / "rows", lengths) for job, lengths in zip(jobs, _split(cells, jobs), strict=True)]
    fractions = [not Scale(a["scale"]).recoverable for a in about]
    checksum = write_rows(folder, parts, fractions, order, len(panel.genes), max(a["largest"] for a in about))
    for name in recipe.obsm:
        _write_embedding(folder, name, jobs, order)
    known = panel.known
    if genes.zero_genes == "missing":
        known &= seen
    checksum.update(np.packbits(known).tobytes())
    if not known.all():
        np.save(folder / "measured.npy", known)
    panel.decisions.to_csv(folder / "genes.csv", index=False)
    labels.decisions.to_csv(folder / "labels.csv", index=False)
    meta = {
        "control": recipe.control_label,
        "sources": [job.source for job in jobs],
        "scales": {str(job.path): a["scale"] for job, a in zip(jobs, about, strict=True)},
        "empty_cells_dropped": int((cells["library_size"] <= 0).sum()),
        "filtered": notes,
        "counted_twice": twice,
        "labels": labels.notes(),
        "genes_missing": {job.source: int(n) for job, n in zip(jobs, (~known).sum(axis=1), strict=True) if n},
        "genes_zero": {job.source: int(n) for job, n in zip(jobs, (known & ~seen).sum(axis=1), strict=True)},
        "obsm": list(recipe.obsm),
        "provenance": provenance,
    }
    _write_tables(folder, cells.iloc[order].reset_index(drop=True), panel.genes, checksum, meta)


def _cells(jobs: Sequence[PartJob]) -> pd.DataFrame:
    """Labels of all files' cells."""
    tables = []
    for job in jobs:
        table = pd.read_parquet(job.folder / "cells.parquet")
        source = pd.Categorical.from_codes(np.zeros(len(table), np.int8), [job.source])
        tables.append(table.assign(source=source).astype(dict.fromkeys(LABELS, "category")))
    joined = {name: union_categoricals([t[name] for t in tables]) for name in LABELS}
    return pd.concat([t.drop(columns=[*LABELS]) for t in tables], ignore_index=True).assign(**joined)


def _counted_twice(cells: pd.DataFrame) -> list[str]:
    """Sources that hold cells of another one: of the same name, label and total."""
    same = ["cell_id", "context", "perturbation", "library_size", "stored"]
    again = cells.duplicated(same, keep=False) & ~cells.duplicated([*same, "source"], keep=False)
    found = cells.loc[again, "source"].value_counts()
    sources = [str(source) for source, number in found.items() if number]
    return (
        [f"{int(again.sum()) // max(1, len(sources)):,} cells lie in each of {shortlist(sources)}"] if sources else []
    )


def _split(cells: pd.DataFrame, jobs: Sequence[PartJob]) -> list[np.ndarray]:
    """Stored values per cell, file by file."""
    bounds = np.cumsum([job.n_cells for job in jobs])[:-1]
    return np.split(cells["stored"].to_numpy(), bounds)


def _order(cells: pd.DataFrame, kept: np.ndarray) -> np.ndarray:
    """The cells to keep, ordered by context, batch (of its file) and perturbation."""
    codes = []
    for name in ("perturbation", "batch", "source", "context"):
        rank = np.argsort(np.argsort(cells[name].cat.categories.to_numpy().astype(str)))
        codes.append(rank[cells[name].cat.codes.to_numpy()])
    order = np.lexsort(codes)
    return order[kept[order]]


def _write_embedding(folder: Path, name: str, jobs: Sequence[PartJob], order: np.ndarray) -> None:
    paths = [job.folder / f"obsm.{name}.npy" for job in jobs]
    shapes = [np.load(path, mmap_mode="r").shape for path in paths]
    widths = sorted({shape[1] for shape in shapes})
    if len(widths) > 1:
        raise VcellError(f"obsm/{name} has another width in other files: {shortlist(map(str, widths))}")
    starts = starts_of([shape[0] for shape in shapes])
    with begin_array(folder / f"obsm.{name}.npy", np.dtype(np.float32), (len(order), widths[0])) as out:
        for first in range(0, len(order), ROWS_AT_ONCE):
            cells = order[first : first + ROWS_AT_ONCE]
            part = np.searchsorted(starts, cells, side="right") - 1
            block = np.empty((len(cells), widths[0]), np.float32)
            for p in np.unique(part):  # mapped again for each block, so that pages already read are released
                block[part == p] = np.load(paths[p], mmap_mode="r")[cells[part == p] - starts[p]]
            out.write(block.tobytes())


def _write_tables(folder: Path, cells: pd.DataFrame, genes: list[str], checksum: Any, meta: dict[str, Any]) -> None:
    """obs.parquet, var.parquet and meta.json; labels and genes go into the checksum of the counts."""
    for name in LABELS:
        cells[name] = cells[name].cat.remove_unused_categories()
        checksum.update("\n".join(cells[name].cat.categories).encode())
        checksum.update(cells[name].cat.codes.to_numpy(np.int32).tobytes())
    checksum.update("\n".join(genes).encode())
    cells[[*LABELS, "cell_id", "library_size", "residual"]].to_parquet(folder / "obs.parquet", write_page_checksum=True)
    pd.DataFrame({"gene": genes}).to_parquet(folder / "var.parquet", write_page_checksum=True)
    sizes = {
        "format_version": FORMAT_VERSION,
        "vcell": __version__,
        "cells": len(cells),
        "genes": len(genes),
        "stored_values": int(np.load(folder / "counts.indptr.npy", mmap_mode="r")[-1]),
        "fingerprint": checksum.hexdigest(),
    }
    files = sorted(path.name for path in folder.iterdir())
    checksums = {name: checksum_of(folder / name) for name in files}
    (folder / "meta.json").write_text(json.dumps({**sizes, **meta, "checksums": checksums}, indent=1))
