"""The cell store: counts of a whole data set as memory-mapped CSR arrays in one folder.

    counts.indptr.npy   int64   (cells + 1)
    counts.indices.npy  uint16 or uint32  (stored values), the gene of each value
    counts.values.npy   uint16 or uint32  (stored values), whole counts; float32 where they could not be recovered
    obs.parquet   per cell: context, batch, perturbation, source, cell_id, library_size, residual (expression left
                  of its own target, as a fraction of the controls'; NaN where that cannot be said)
    var.parquet   per gene: its name
    measured.npy  bool (sources, genes), only where a source lacks genes
    obsm.NAME.npy float32 (cells, width), embeddings taken along
    genes.csv     every gene name that was not matched literally
    labels.csv    every label that was not taken literally
    meta.json     format version, provenance, scales, what was left out, array lengths, fingerprint, a checksum of each file

Cells are ordered by context, batch and perturbation. Nothing is normalised on disk. A store opens in
milliseconds, in any number of processes, and is never written to again.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcell.data.files.csr import starts_of
from vcell.data.files.scale import Scale
from vcell.errors import VcellError, nearest, shortlist

FORMAT_VERSION = 2
WORTH_COMPILED = 500_000  # stored values: compiled code takes a quarter of a second to load
ARRAYS = ("indptr", "indices", "values")
LABELS = ("context", "batch", "perturbation", "source")


# what names a batch: a label within one source file and context, for labels of two files do not mean the same lane
BATCH_COLUMNS = ["context", "source", "batch"]


@dataclass(frozen=True)
class SparseCells:
    """Rows of a store: CSR without the matrix around it. `indptr` starts at 0."""

    indptr: np.ndarray  # int64 (cells + 1)
    indices: np.ndarray  # uint16 or uint32 (stored values)
    values: np.ndarray  # uint16, uint32 or float32 (stored values)
    library_size: np.ndarray  # float32 (cells), counts over all measured genes


@dataclass(frozen=True)
class Cells:
    """What all stores know of their cells.

    Parameters
    ----------
    obs
        One row per cell; `LABELS` are categories.
    genes
        Names, in the order of the counts.
    control
        The label of control cells in `obs.perturbation`.
    known
        bool ``(sources, genes)``, sources in the order of obs.source's categories; None where all measured all.
    fingerprint
        A checksum of the counts, the genes and the labels.
    scales
        Scale by file.
    """

    obs: pd.DataFrame
    genes: list[str]
    control: str
    known: np.ndarray | None
    fingerprint: str
    scales: dict[str, Scale]

    @property
    def n_cells(self) -> int:
        return len(self.obs)

    @property
    def n_genes(self) -> int:
        return len(self.genes)

    @property
    def stored_values(self) -> int:
        """Values above 0."""
        raise NotImplementedError

    @property
    def number_types(self) -> tuple[np.dtype, np.dtype]:
        """Types that hold the numbers of all genes, and all values."""
        raise NotImplementedError

    @cached_property
    def library_size(self) -> np.ndarray:
        return self.obs["library_size"].to_numpy(np.float32)

    @cached_property
    def contexts(self) -> list[str]:
        return sorted(self.obs["context"].astype(str).unique())

    @cached_property
    def groups(self) -> dict[tuple[str, str], np.ndarray]:
        """Cell indices of each (context, perturbation), ascending."""
        found = self.obs.groupby(["context", "perturbation"], observed=True, sort=True).indices
        return {(str(c), str(p)): np.asarray(cells) for (c, p), cells in found.items()}

    @cached_property
    def source_of_cell(self) -> np.ndarray:
        """The row of `known` that holds for each cell."""
        return self.obs["source"].cat.codes.to_numpy()

    @cached_property
    def control_contexts(self) -> list[str]:
        """Contexts that have control cells, sorted."""
        return sorted(context for context, perturbation in self.groups if perturbation == self.control)

    def controls_of(self, context: str) -> np.ndarray:
        """Indices of the control cells of `context`; a `VcellError` where it has none."""
        cells = self.groups.get((context, self.control))
        if cells is None:
            raise VcellError(
                f"context {context!r} has no control cells ({self.control!r}) in {self.name}; "
                f"contexts with controls: {shortlist(self.control_contexts)}. To prepare without batches that have none: "
                "data.filter.min_controls_per_batch=1"
            )
        return cells

    def known_in(self, *cells_SC: np.ndarray) -> np.ndarray | None:
        """bool ``(sets, genes)``: genes measured for all the cells of each set; None where that is every gene."""
        if self.known is None:
            return None
        sources = np.concatenate([self.source_of_cell[cells] for cells in cells_SC], axis=1)
        return np.stack([self.known[np.unique(row)].all(axis=0) for row in sources])

    def check_one_scale(self, reconcile: str | None) -> None:
        """Refuses to mix scales, and values of unknown scale.

        Parameters
        ----------
        reconcile
            ``proportions`` takes every source's values, log1p undone, for proportions of its cell's total, which makes
            counts and fractions comparable; None refuses.

        Raises
        ------
        VcellError
            Saying which files are on which scale, and what can be done.
        """
        if reconcile not in (None, "proportions"):
            raise VcellError(f"data.reconcile={reconcile} must be null or proportions")
        listed = "; ".join(f"{Path(file).name}: {scale.words}" for file, scale in self.scales.items())
        unknown = [Path(file).name for file, scale in self.scales.items() if scale is Scale.UNKNOWN]
        if unknown:
            raise VcellError(
                f"the scale of the values in {shortlist(unknown)} could not be determined, so they cannot be used for training ({listed}). If "
                f"you know: prepare again with 'data.scale={{{unknown[0]}: log1p_fractional}}' (or fractional)"
            )
        if len({scale.recoverable for scale in self.scales.values()}) > 1 and reconcile is None:
            raise VcellError(
                f"the files of {self.name} are on different scales: {listed}. Whole counts and fractions differ in noise and "
                "depth. Give raw counts for all of them (data.matrix=layers/counts); or, to take all values for proportions of "
                "their cell's total: data.reconcile=proportions"
            )

    @property
    def name(self) -> str:
        """Where the store lies, for messages."""
        raise NotImplementedError

    def rows(self, cells: np.ndarray) -> SparseCells:
        """The counts of `cells` (any order, repeats allowed)."""
        raise NotImplementedError

    def embedding(self, name: str, cells: np.ndarray) -> np.ndarray:
        """obsm `name` of `cells`, float32 ``(cells, width)``."""
        raise NotImplementedError


@dataclass(frozen=True)
class CellStore(Cells):
    """An opened cell store. Make one with `CellStore.open(path)`."""

    path: Path
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> CellStore:
        """Opens the store in folder `path`.

        Raises
        ------
        VcellError
            If there is no store, its format is another version's, or an array was cut short.
        """
        path = Path(path)
        again = f"Remove the folder and prepare it again: rm -r {path}"
        check_readable(path)
        if not (path / "meta.json").is_file():
            raise VcellError(
                f"{path} is not a cell store (it has no meta.json). Write one with: python -m vcell.prepare"
            )
        try:
            meta = json.loads((path / "meta.json").read_text())
            version = meta["format_version"]
            if version != FORMAT_VERSION:
                raise VcellError(
                    f"the store {path} has format version {version}; this vcell reads version {FORMAT_VERSION}. {again}"
                )
            # also those without which it could be opened: genes would count as measured that are not
            if missing := [name for name in meta.get("checksums", {}) if not (path / name).exists()]:
                raise VcellError(f"the store {path} is damaged: it lacks {shortlist(missing)}. {again}")
            arrays = {name: _mapped(path / f"counts.{name}.npy") for name in ARRAYS}
            obs = pd.read_parquet(path / "obs.parquet")
            obs = obs.assign(source=obs["source"].cat.set_categories(meta["sources"]))
            if obs["source"].isna().any() or not isinstance(meta["control"], str):
                raise VcellError(f"the store {path} is damaged: meta.json does not fit obs.parquet. {again}")
            genes = pd.read_parquet(path / "var.parquet")["gene"].astype(str).tolist()
            known = np.load(path / "measured.npy") if (path / "measured.npy").is_file() else None
            scales = {file: Scale(scale) for file, scale in meta["scales"].items()}
        except VcellError:
            raise
        except PermissionError as error:
            raise VcellError(
                f"no permission to read {error.filename or path}. Ask its owner for it: chmod -R a+rX {path}"
            ) from error
        except Exception as error:
            raise VcellError(f"the store {path} is damaged ({type(error).__name__}: {error}). {again}") from error
        stored = int(arrays["indptr"][-1])
        found = {"cells": len(obs), "genes": len(genes), "stored_values": len(arrays["values"])}
        if any(meta[k] != v for k, v in found.items()) or stored != len(arrays["indices"]):
            raise VcellError(f"the store {path} is damaged: it should hold {_sizes(meta)}, but holds {found}. {again}")
        if arrays["indptr"][0] != 0 or (np.diff(arrays["indptr"]) < 0).any():
            raise VcellError(f"the store {path} is damaged: counts.indptr.npy decreases. {again}")
        return cls(obs, genes, meta["control"], known, meta["fingerprint"], scales, path, **arrays, meta=meta)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def stored_values(self) -> int:
        return len(self.values)

    @property
    def number_types(self) -> tuple[np.dtype, np.dtype]:
        return self.indices.dtype, self.values.dtype

    def rows(self, cells: np.ndarray) -> SparseCells:
        """The counts of `cells` (any order, repeats allowed), copied out of the memory map."""
        cells = np.asarray(cells, dtype=np.int64).ravel()
        starts, stops = self.indptr[cells], self.indptr[cells + 1]
        indptr = starts_of(stops - starts)
        copied = _compiled_copy if indptr[-1] >= WORTH_COMPILED else _copy
        indices, values = copied(starts, indptr, np.asarray(self.indices), np.asarray(self.values))
        if (
            largest := int(indices.max(initial=0))
        ) >= self.n_genes:  # it would be written into another cell, or past the array
            raise VcellError(
                f"the store {self.path} is damaged: counts.indices.npy names gene {largest:,} of {self.n_genes:,}. Remove "
                f"the folder and prepare it again: rm -r {self.path}"
            )
        return SparseCells(indptr, indices, values, self.library_size[cells])

    @property
    def size_bytes(self) -> int:
        """Of the files that have checksums."""
        return sum((self.path / name).stat().st_size for name in self.meta.get("checksums", {}))

    def verify(self) -> bool:
        """Reads every file and compares its checksum; False if the store was written by an older vcell without checksums.

        Raises
        ------
        VcellError
            Naming the file that has changed.
        """
        noted = self.meta.get("checksums", {})
        with ThreadPoolExecutor(min(4, max(1, len(noted)))) as pool:
            for name, checksum in zip(noted, pool.map(lambda name: checksum_of(self.path / name), noted), strict=True):
                if checksum != noted[name]:
                    raise VcellError(
                        f"the store {self.path} is damaged: {name} is not what was written (its checksum differs). Remove the folder "
                        f"and prepare it again: rm -r {self.path}"
                    )
        return bool(noted)

    def embedding(self, name: str, cells: np.ndarray) -> np.ndarray:
        """obsm `name` of `cells`, float32 ``(cells, width)``; a `VcellError` where the store has none."""
        return self._embedding(name)[np.asarray(cells).ravel()]

    def _embedding(self, name: str) -> np.ndarray:
        known = self.meta["obsm"]
        if name not in known:
            raise VcellError(
                f"the store {self.path} holds no embedding {name!r}.{nearest(name, known)} Prepare it again with "
                f"data.obsm=[{name}] overwrite=true"
            )
        return np.load(self.path / f"obsm.{name}.npy", mmap_mode="r")


def checksum_of(path: Path) -> str:
    """A checksum of a file's content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise VcellError(f"{path} cannot be read: {error.strerror or error}") from error


def check_readable(folder: Path) -> None:
    """A `VcellError` if permission is missing, as opposed to damage."""
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise VcellError(f"no permission to read the folder {folder}. Ask its owner for it: chmod -R a+rX {folder}")


def _mapped(path: Path) -> np.ndarray:
    """An array in place, as a plain array over the memory map: slicing those is several times cheaper."""
    if path.stat().st_size <= 128:  # nothing behind the header, which cannot be mapped
        return np.load(path)
    return np.asarray(np.load(path, mmap_mode="r"))


def _sizes(meta: dict[str, Any]) -> dict[str, int]:
    return {k: meta[k] for k in ("cells", "genes", "stored_values")}


def _copy(
    starts: np.ndarray, indptr: np.ndarray, indices: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that begin at `starts` and end where `indptr` says, one after the other."""
    # rows are contiguous: copying them slice by slice beats gathering their values by position
    lengths = np.diff(indptr).tolist()
    slices = [slice(start, start + n) for start, n in zip(starts.tolist(), lengths, strict=True)]
    found, counts = (np.concatenate([array[s] for s in slices]) if slices else array[:0] for array in (indices, values))
    return found, counts


def _compiled_copy(
    starts: np.ndarray, indptr: np.ndarray, indices: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same, while other threads go on."""
    from vcell.data.store.copy import copy_rows

    found, counts = (np.empty(indptr[-1], array.dtype) for array in (indices, values))
    copy_rows(starts, indptr, indices, values, found, counts)
    return found, counts


def is_store(given: object) -> bool:
    """Whether this names a cell store, not files."""
    return isinstance(given, str) and (Path(given) / "meta.json").is_file()
