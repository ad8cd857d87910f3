"""AnnData zarr stores, read as the HDF5 files that they mirror: both have the same elements under the same names."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vcell.data.files.paths import content_of
from vcell.errors import VcellError

ROWS_AT_ONCE = 2**22  # values copied at a time


def as_h5(path: Path) -> Path:
    """A temporary HDF5 copy of a zarr store, made once by this process and removed at its end.

    Raises
    ------
    VcellError
        If the store cannot be read, or there is no room for the copy.
    """
    return _copy(path, content_of(path))


@cache
def _copy(path: Path, content: str) -> Path:
    try:
        import zarr
    except ImportError as error:
        raise VcellError(f"{path} is a zarr store; to read it: pip install zarr. Or write it as h5ad") from error
    folder = Path(tempfile.mkdtemp(prefix="vcell-zarr-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    out = folder / "store.h5ad"
    try:
        source = zarr.open_group(str(path), mode="r")
        with h5py.File(out, "w") as file:
            _copy_group(source, file)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise VcellError(f"{path} cannot be read as an AnnData zarr store ({type(error).__name__}: {error})") from error
    return out


def _copy_group(source: Any, target: h5py.Group) -> None:
    target.attrs.update({key: value for key, value in source.attrs.items() if value is not None})
    for name, member in source.members():
        if hasattr(member, "members"):
            _copy_group(member, target.create_group(name))
        else:
            _copy_array(member, target, name)


def _copy_array(source: Any, target: h5py.Group, name: str) -> None:
    text = source.dtype.kind in "OTUS"
    dtype = h5py.string_dtype() if text else source.dtype
    if source.ndim == 0:
        value = source[()]
        made = target.create_dataset(name, data=str(value) if text else value, dtype=dtype)
    else:
        made = target.create_dataset(name, shape=source.shape, dtype=dtype, chunks=True if source.size else None)
        step = max(1, ROWS_AT_ONCE // max(1, int(np.prod(source.shape[1:]))))
        for start in range(0, source.shape[0], step):
            block = source[start : start + step]
            made[start : start + step] = np.asarray(block).astype(object) if text else block
    made.attrs.update({key: value for key, value in source.attrs.items() if value is not None})
