"""What `vcell.infer` leaves in its files beside the cells: how these were made, and profiles of the control cells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import h5py
import numpy as np

from vcell.data.files.elements import NUMBERS, array, element, has, members
from vcell.errors import VcellError

ABOUT, PROFILES = "vcell", "vcell_control_profiles"  # keys in uns


def as_uns(about: Mapping[str, Any], profiles: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Both as they stand in a file: to HDF5 a slash in a name begins a group, and a dot alone is the group itself."""
    found: dict[str, Any] = {ABOUT: json.dumps(about)} if about else {}
    return found | ({PROFILES: {_key(context): profile for context, profile in profiles.items()}} if profiles else {})


def about_in(file: h5py.File, path: Path) -> dict[str, Any]:
    """What a file says of how it was made; nothing for files of other programs."""
    if not has(file, f"uns/{ABOUT}"):
        return {}
    try:
        about = json.loads(element(file, f"uns/{ABOUT}", path).asstr()[()])
    except Exception:  # another program's entry of that name, however it was written
        return {}
    return about if isinstance(about, dict) else {}


def profiles_in(file: h5py.File, path: Path, n_genes: int) -> dict[str, np.ndarray]:
    """Profiles of control cells in a file of `n_genes`, by context; none in files of other programs.

    Raises
    ------
    VcellError
        If they are damaged, or of other genes than the file's.
    """
    return {
        unquote(name): _profile(file, f"uns/{PROFILES}/{name}", path, n_genes)
        for name in members(file, f"uns/{PROFILES}", path)
    }


def _profile(file: h5py.File, name: str, path: Path, n_genes: int) -> np.ndarray:
    found_G = array(file, name, path, NUMBERS)[:].astype(np.float32)
    if len(found_G) != n_genes or not np.isfinite(found_G).all():
        raise VcellError(
            f"{path}: {name}, the control cells that it was predicted from, is not {n_genes:,} finite numbers, one for each gene of the "
            f"file. Predict again, or delete uns[{PROFILES!r}]: then swapped contexts cannot be detected"
        )
    return found_G


def _key(context: str) -> str:
    escaped = context.replace("%", "%25").replace("/", "%2F")
    return escaped if escaped.strip(".") else escaped.replace(".", "%2E")
