"""The cell store: raw counts of a whole data set as memory-mapped CSR arrays in one folder.

    counts.indptr.npy   int64   (cells + 1)
    counts.indices.npy  uint16 or uint32  (stored values), the gene of each value
    counts.values.npy   uint16 or uint32  (stored values), whole counts
    obs.parquet   per cell: context, batch, perturbation, library_size, source, cell_id
    var.parquet   per gene: its name
    meta.json     format version, provenance, array lengths, fingerprint

Cells are ordered by context, batch and perturbation. Nothing is normalised on disk. A store opens in
milliseconds, in any number of processes, and is never written to again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcell.errors import VcellError

FORMAT_VERSION = 1
ARRAYS = ("indptr", "indices", "values")


@dataclass(frozen=True)
class SparseCells:
    """Rows of the store: CSR without the matrix around it. `indptr` starts at 0."""

    indptr: np.ndarray  # int64 (cells + 1)
    indices: np.ndarray  # uint16 or uint32 (stored values)
    values: np.ndarray  # uint16 or uint32 (stored values)
    library_size: np.ndarray  # float32 (cells), counts over all measured genes


@dataclass(frozen=True)
class CellStore:
    """An opened cell store. Make one with `CellStore.open(path)`."""

    path: Path
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    obs: pd.DataFrame
    genes: list[str]
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
        if not (path / "meta.json").is_file():
            raise VcellError(f"{path} is no cell store (it has no meta.json). Write one with: python -m vcell.prepare")
        try:
            meta = json.loads((path / "meta.json").read_text())
            version = meta["format_version"]
            if version != FORMAT_VERSION:
                raise VcellError(
                    f"the store {path} has format version {version}; this vcell reads version {FORMAT_VERSION}. {again}"
                )
            # as plain arrays over the memory map: slicing those is several times cheaper
            arrays = {name: np.asarray(np.load(path / f"counts.{name}.npy", mmap_mode="r")) for name in ARRAYS}
            obs = pd.read_parquet(path / "obs.parquet")
            genes = pd.read_parquet(path / "var.parquet")["gene"].astype(str).tolist()
        except VcellError:
            raise
        except Exception as error:
            raise VcellError(f"the store {path} is damaged ({type(error).__name__}: {error}). {again}") from error
        stored = int(arrays["indptr"][-1])
        found = {"cells": len(obs), "genes": len(genes), "stored_values": len(arrays["values"])}
        if any(meta[k] != v for k, v in found.items()) or stored != len(arrays["indices"]):
            raise VcellError(f"the store {path} is damaged: it should hold {_sizes(meta)}, but holds {found}. {again}")
        return cls(path, obs=obs, genes=genes, meta=meta, **arrays)

    @property
    def n_cells(self) -> int:
        return len(self.obs)

    @property
    def n_genes(self) -> int:
        return len(self.genes)

    @property
    def control(self) -> str:
        """The label of control cells in `obs.perturbation`."""
        return self.meta["control"]

    @property
    def fingerprint(self) -> str:
        """A checksum of the counts, the genes and the labels."""
        return self.meta["fingerprint"]

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
    def control_contexts(self) -> list[str]:
        """Contexts that have control cells, sorted."""
        return sorted(context for context, perturbation in self.groups if perturbation == self.control)

    def controls_of(self, context: str) -> np.ndarray:
        """Indices of the control cells of `context`; a `VcellError` where it has none."""
        cells = self.groups.get((context, self.control))
        if cells is None:
            raise VcellError(
                f"context {context!r} has no control cells ({self.control!r}) in {self.path}; "
                f"contexts with controls: {', '.join(self.control_contexts)}"
            )
        return cells

    def rows(self, cells: np.ndarray) -> SparseCells:
        """The counts of `cells` (any order, repeats allowed), copied out of the memory map."""
        cells = np.asarray(cells, dtype=np.int64).ravel()
        starts, stops = self.indptr[cells], self.indptr[cells + 1]
        indptr = np.concatenate([[0], np.cumsum(stops - starts)])
        # rows are contiguous: copying them slice by slice beats gathering their values by position
        slices = [slice(start, stop) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        indices, values = (
            np.concatenate([array[s] for s in slices]) if slices else array[:0] for array in (self.indices, self.values)
        )
        return SparseCells(indptr, indices, values, self.library_size[cells])


def _sizes(meta: dict[str, Any]) -> dict[str, int]:
    return {k: meta[k] for k in ("cells", "genes", "stored_values")}
