"""Checkpoints: written whole or not at all, found by name, read without unpickling, enough to predict."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from vcell import __version__
from vcell.atomic import check_zip, written_file
from vcell.data.gather import Gather
from vcell.data.splits import Group
from vcell.data.store.view import store_paths
from vcell.errors import VcellError
from vcell.model.table import PerturbationTable
from vcell.model.transition import TransitionModel
from vcell.training.module import TransitionModule

# a larger table stays in its file, and the checkpoint carries its path and checksum
LARGEST_TABLE_INSIDE = 64 * 2**20


# what a checkpoint may ask to be built, by the name it is given in one
MODELS: dict[str, type[TransitionModel]] = {"vcell.model.transition.TransitionModel": TransitionModel}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so a killed run leaves the old checkpoint or the new one, whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with written_file(Path(path)) as scratch, scratch.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's own writer, which does not say why
                if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                    raise
                raise OSError(
                    errno.ENOSPC, "No space left on device, or the file could not be written", str(path)
                ) from error

    def load_checkpoint(
        self, path: Any, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def make_identity(
    config: dict[str, Any],
    gather: Gather,
    assigned: dict[Group, str],
    table: PerturbationTable,
    sizes: dict[str, Any],
) -> dict[str, Any]:
    """What a checkpoint says of itself: plain values, so that it loads with ``weights_only=True``.

    `sizes` is what the model is built with beside its configuration.
    """
    store, covariates = gather.store, gather.covariates
    inside = table.vectors.numel() * 4 <= LARGEST_TABLE_INSIDE
    return {
        "vcell": __version__,
        "config": config,
        "genes": list(store.genes),
        "control": store.control,
        "target_sum": float(gather.target_sum),
        "sizes": sizes,
        "covariates": None if covariates is None else asdict(covariates),
        "store": {"paths": [str(path) for path in store_paths(store)], "fingerprint": store.fingerprint},
        "split": [[context, perturbation, split] for (context, perturbation), split in assigned.items()],
        "table": {
            "origin": table.origin,
            "fingerprint": table.fingerprint,
            "width": table.width,
            "names": list(table.names),
            "vectors": table.vectors if inside else None,
        },
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as plain values and tensors.

    Raises
    ------
    VcellError
        If the file is absent, damaged, or not vcell's.
    """
    if not path.is_file():
        raise VcellError(f"no such checkpoint: {path} (looked from {Path.cwd()})")
    try:
        check_zip(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise VcellError(
            f"no permission to read the checkpoint {path}. Ask its owner for it: chmod a+r {path}"
        ) from error
    except Exception as error:
        raise VcellError(
            f"the checkpoint {path} is damaged or not vcell's ({type(error).__name__}). Another one of the same run may "
            "be sound: look beside it"
        ) from error
    if not isinstance(checkpoint, dict) or "vcell" not in checkpoint:
        raise VcellError(f"{path} is not a checkpoint of vcell; train one with: python -m vcell.train")
    return checkpoint


def load_module(path: Path, table: PerturbationTable | None = None) -> TransitionModule:
    """A trained module, ready to predict.

    Parameters
    ----------
    path
        A checkpoint.
    table
        Takes the place of the checkpoint's perturbation table; must have the same width. That its vectors mean the same
        is for the caller to know.

    Raises
    ------
    VcellError
        If the checkpoint is damaged, or its table is in a file that is gone or has changed.
    """
    checkpoint = read_checkpoint(path)
    identity = checkpoint["vcell"]
    try:
        table = _table_of(identity, table, path)
        model = make_model(identity["config"]["model"], identity["sizes"], path)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise VcellError(
            f"the checkpoint {path} does not describe its model as vcell does ({type(error).__name__}: {error})"
        ) from error
    weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise VcellError(f"the weights in {path} do not fit the model it names: {error}") from error
    return TransitionModule(model, table, identity).eval()


def _table_of(identity: dict[str, Any], given: PerturbationTable | None, path: Path) -> PerturbationTable:
    known = identity["table"]
    if given is not None:
        if given.width != known["width"]:
            raise VcellError(
                f"the table {given.origin} has vectors of {given.width}, {path} was trained with {known['width']}"
            )
        return given
    if known["vectors"] is not None:
        return PerturbationTable(known["names"], known["vectors"], known["origin"])
    names, width = known["names"], known["width"]
    table = load_table(identity["config"]["perturbation"], names[:width], names[width:])
    if table.fingerprint != known["fingerprint"]:
        raise VcellError(
            f"the perturbation table {known['origin']} has changed since {path} was trained; give the one of then: "
            "perturbation=FILE.pt"
        )
    return table


def load_table(perturbation: Any, trained: Sequence[str], held_out: Sequence[str]) -> PerturbationTable:
    """The table a configuration asks for: `path`, or one-hot over the trained perturbations where path is null."""
    if perturbation["path"] is None:
        return PerturbationTable.one_hot(trained, held_out)
    table = PerturbationTable.load(perturbation["path"])
    table = table.standardised() if perturbation["standardise"] else table
    return table.with_aliases(perturbation["aliases"] or {})


def make_model(config: Mapping[str, Any], sizes: Mapping[str, Any], path: Path) -> TransitionModel:
    """The model that a checkpoint describes: one of `MODELS`, made with plain values. Nothing of a checkpoint is ever called.

    Raises
    ------
    VcellError
        If it asks for another class, or for an argument that is no plain value.
    """
    target = str(config["_target_"])
    if target not in MODELS:
        raise VcellError(f"{path} asks to run {target!r}, which is no model of vcell; it is not loaded")
    made = MODELS[target]
    arguments = {**{key: value for key, value in config.items() if key != "_target_"}, **sizes}
    unknown = sorted(set(map(str, arguments)) - set(signature(made).parameters))
    if unknown:
        raise VcellError(f"{path} gives its model {unknown[0]!r}, which no model of vcell takes; it is not loaded")
    for name, value in arguments.items():
        if not _is_plain(value):
            raise VcellError(f"{path} gives its model a {name} that is no number or text; it is not loaded")
    return made(**arguments)


def _is_plain(value: Any) -> bool:
    if type(value) is list:
        return all(type(item) in (int, float, str, bool) for item in value)
    return value is None or type(value) in (int, float, str, bool)
