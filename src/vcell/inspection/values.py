"""What the matrices of a file hold, from a sample of cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vcell.data.files.csr import LARGEST, row_sums
from vcell.data.files.h5ad import n_rows, var_key
from vcell.data.files.matrix import Matrix, Sample
from vcell.data.files.sample import sample_cells
from vcell.data.files.scale import Scale, cell_totals, detect_scale, one_total, recover_counts
from vcell.errors import VcellError


@dataclass(frozen=True)
class Values:
    """One matrix: how it is stored, and what its values are."""

    name: str
    matrix: Matrix | None  # None where it cannot be read at all
    scale: Scale | None  # None where the values cannot be used
    about: dict[str, Any]  # plain values, for the report

    @property
    def usable(self) -> bool:
        return self.scale is not None and self.scale is not Scale.UNKNOWN

    @property
    def rank(self) -> int:
        """How good it is to start from: raw counts first."""
        return list(Scale).index(self.scale) if self.scale is not None else len(Scale)


def look_at(file: h5py.File, path: Path, name: str, cells: int) -> Values:
    """Opens a matrix, samples `cells` cells of it, and decides what its values are."""
    key = var_key(file, name)
    try:
        matrix = Matrix.open(file, path, name, n_rows(file, "obs", path), n_rows(file, key, path))
        sample = sample_cells(matrix, cells)
    except (VcellError, OSError, KeyError) as error:
        return Values(name, None, None, {"name": name, "problem": str(error)})
    about = {
        "name": name,
        **_storage(matrix),
        "sampled_cells": len(sample.cells),
        "all_genes_sampled": sample.all_genes,
    }
    values = sample.values
    bad = {
        "nan": np.isnan(values), "infinite": np.isinf(values), "negative": values < 0,
        "too_large": np.isfinite(values) & (values > LARGEST),
    }  # fmt: skip
    about |= {kind: int(flags.sum()) for kind, flags in bad.items()}
    if any(about[kind] for kind in bad):
        return Values(name, matrix, None, {**about, "problem": _problem(sample, about, matrix.shape[1])})
    about |= {"min": float(values.min(initial=0)), "max": float(values.max(initial=0))}
    if not values.size:
        return Values(name, matrix, None, {**about, "problem": "every sampled cell is all zeros"})
    try:
        scale = detect_scale(values, sample.indptr)
    except VcellError as error:
        return Values(name, matrix, None, {**about, "problem": str(error)})
    return Values(name, matrix, scale, {**about, **_meaning(sample, scale)})


def _storage(matrix: Matrix) -> dict[str, Any]:
    node = matrix.values_node
    size = matrix.shape[0] * matrix.shape[1]
    return {
        "layout": matrix.layout,
        "dtype": str(node.dtype),
        "compression": _compression(node),
        "cells": matrix.shape[0],
        "genes": matrix.shape[1],
        "stored_values": matrix.stored,
        "filled": matrix.stored / size if size else 0.0,
    }


def _compression(node: h5py.Dataset) -> str | None:
    names = {32015: "zstd", 32001: "blosc", 32004: "lz4", 32026: "blosc2"}
    codes = [node.id.get_create_plist().get_filter(i)[0] for i in range(node.id.get_create_plist().get_nfilters())]
    return node.compression or next((names.get(code, f"filter {code}") for code in codes if code > 255), None)


def _meaning(sample: Sample, scale: Scale) -> dict[str, Any]:
    """What the values come to: totals per cell, the total they were scaled to, and whether counts can be recovered."""
    about: dict[str, Any] = {"scale": str(scale), "words": scale.words, "counts_recoverable": scale.recoverable}
    totals = cell_totals(sample.values, sample.indptr, scale)
    if scale.recoverable:
        found = recover_counts(sample.values, sample.indptr, scale)
        counts = row_sums(found.counts, sample.indptr)
        about |= {"verified_cells": int(found.fine.sum()), "failed_cells": int((~found.fine).sum())}
    else:
        counts = totals
    if sample.all_genes:
        about["empty_cells"] = int((totals == 0).sum())
        about["library_size"] = _spread(counts)
        if scale not in (Scale.COUNTS, Scale.LOG1P_COUNTS):
            total = one_total(sample.values, sample.indptr, scale)
            about["normalised_to"] = None if total is None else float(f"{total:.5g}")
            about["totals"] = _spread(totals)
    return about


def _spread(totals: np.ndarray) -> dict[str, float]:
    return dict(zip(("min", "median", "max"), np.quantile(totals, [0, 0.5, 1]).tolist(), strict=True))


def _problem(sample: Sample, about: dict[str, Any], n_genes: int) -> str:
    if about["nan"] or about["infinite"]:
        return "holds NaN or infinite values"
    if about["too_large"]:
        return f"holds {sample.values.max():.4g}, more than any count can be ({LARGEST:,})"
    mean = np.bincount(sample.indices, sample.values, n_genes) / max(1, len(sample.cells))
    square = np.bincount(sample.indices, sample.values**2, n_genes) / max(1, len(sample.cells))
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    varying = spread > 0
    if varying.any() and np.median(np.abs(mean[varying])) < 0.3 and 0.5 < np.median(spread[varying]) < 1.5:
        return "z-scored: genes have mean 0 and variance 1; counts cannot be recovered"
    return "contains negative values: centred or batch-corrected; counts cannot be recovered"
