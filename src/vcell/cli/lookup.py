"""Checks that the files given to a command exist before anything heavy is loaded, so that mistakes are reported at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vcell.config import plain
from vcell.data.files.paths import check_required, expand, is_zarr
from vcell.errors import VcellError, check_ending, nearest, no_such_file
from vcell.model.find import find_checkpoint

# of each command: keys that name files to be read, and the key of the file it is mainly about
FILES = {
    "inspect": ("path", "genes"),
    "infer": ("genes", "targets", "controls", "perturbation"),
    "evaluate": ("pred", "real", "against"),
    "package": ("pred", "genes", "targets", "controls"),
    "train": ("perturbation.path",),
    "crossval": ("perturbation.path",),
    "prepare": (),
    "simulate": (),
    "genes": ("path",),
    "embed": ("fasta", "genes"),
    "table": ("path", "of"),
    "download": ("catalogue",),
    "runs": (),
    "config": (),
    "doctor": (),
}

# how the file may end that a command writes; an empty ending is none
WRITES = {"infer": (".h5ad", ".h5", ""), "genes": (".csv", ".txt", ""), "runs": (".html", ".htm")}
PACKED_FROM = ". A submission is packed from it: python -m vcell.package pred=pred.h5ad out=NAME.vcc"
OF_CELLS = "cells"  # `vcell.model.table.CELLS`, which is not loaded here: a table of the run's own cells


def look_up(verb: str, config: Any) -> None:
    """Raises a `VcellError` for the first file that does not exist, or is to be written under a name of another kind.

    Parameters
    ----------
    config
        Of the command, not resolved yet.
    """
    if verb in WRITES and config.out:
        is_submission = verb == "infer" and str(config.out).lower().endswith(".vcc")
        check_ending("out", config.out, WRITES[verb], PACKED_FROM if is_submission else "")
    simulated = "data" in config and config.data.simulate is not None  # its files are made by the command
    if "data" in config and not (Path(str(config.data.store)) / "meta.json").is_file():
        check_required(config.data)
    for key in () if simulated else FILES[verb]:
        for name in _names(config, key):
            if (key, name) != ("perturbation.path", OF_CELLS):
                _must_be_there(key, name)
    if verb in ("train", "crossval", "prepare"):
        _look_up_data(config, verb)
    if verb == "infer":
        if (config.get("out") or None) is not None and Path(str(config.out)).is_dir():
            raise VcellError(
                f"out={config.out} is a folder; name the file to write: out={Path(str(config.out)) / 'pred.h5ad'}"
            )
        find_checkpoint(str(config.ckpt), config.runs)
    if verb == "evaluate" and config.ckpt is not None:
        find_checkpoint(str(config.ckpt), config.runs)
    if verb == "train" and config.init_from is not None:
        find_checkpoint(str(config.init_from))


def _look_up_data(config: Any, verb: str) -> None:
    """Checks the data files if they have to be read: neither simulated nor already in a store."""
    data = config.data
    if data.stores or data.simulate is not None or data.required:
        return
    from omegaconf import OmegaConf

    if OmegaConf.is_missing(data, "path") and not data.toml and not Path(str(data.store)).exists():
        raise VcellError("specify which files to read: data.path=FILE.h5ad")
    if (
        data.toml
        or OmegaConf.is_missing(data, "path")
        or data.path is None
        or Path(str(data.store), "meta.json").is_file()
    ):
        return
    expand(plain(data.path))


def _names(config: Any, key: str) -> list[str]:
    """Values of a key that name files; a list of targets does not."""
    from omegaconf import OmegaConf

    if OmegaConf.is_missing(config, key):
        return []
    value = plain(OmegaConf.select(config, key))
    if key == "targets" and isinstance(value, list):
        return []
    return [str(name) for name in ([value] if isinstance(value, str) else value or [])]


def _must_be_there(key: str, name: str) -> None:
    path = Path(name).expanduser()
    if key in ("controls", "real") and (path / "meta.json").is_file():
        return  # a cell store
    if key in ("controls", "data.path") and not path.exists():
        expand(name, key)  # a pattern
        return
    if path.is_dir() and not is_zarr(path):
        inside = sorted(path.glob("*.h5*"))
        hint = f" Name a file in it: {key}={inside[0]}" if inside else ""
        raise VcellError(f"{key}={name} is a folder, not a file.{hint}")
    if not path.exists():
        there = [p.name for p in path.parent.iterdir() if p.exists()] if path.parent.is_dir() else []
        hint = nearest(path.name, there)
        what = f" Give {key}=FILE.csv, or names: {key}=[{path.name}]" if key == "targets" and not path.suffix else ""
        raise no_such_file(name, f"{hint}{what} Set {key}=FILE")
