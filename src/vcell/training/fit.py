"""Training from Python: `vcell.fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from vcell.config import check_group, class_path, compose, with_settings
from vcell.data.files.memory import Given, given_list
from vcell.data.files.paths import is_zarr
from vcell.data.store.build import build_store
from vcell.data.store.store import Cells, CellStore
from vcell.errors import VcellError, check_number
from vcell.model.losses import Loss
from vcell.process.given import as_mapping, as_name, as_name_or_none, as_names, as_part, check_switches
from vcell.process.progress import spoken
from vcell.process.stopping import Stopped
from vcell.training.build import MOST_STEPS, Own
from vcell.training.train import train


@dataclass(frozen=True)
class Run:
    """A run that was trained, in its folder."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint: the argument of `vcell.load`."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation; the last one where nothing was held out for it."""
        path = self.folder / "checkpoints" / "best.ckpt"
        return path if path.is_file() else self.checkpoint

    @property
    def metrics(self) -> pd.DataFrame:
        """Losses and validation scores, a row for each logged step."""
        return pd.read_csv(self.folder / "metrics.csv")


def fit(
    data: Given | Cells | Sequence[Given | Cells],
    *,
    name: str = "run",
    model: str | nn.Module | Callable[..., nn.Module] = "tiny",
    loss: str | Loss = "energy",
    sampler: Callable[..., Any] | None = None,
    table: str | Path | None = None,
    max_steps: int = 4000,
    validate_every: int | None = None,
    val: float | Sequence[str] = 0.1,
    test: float | Sequence[str] = 0.1,
    trainer: str = "auto",
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    verbose: bool = False,
) -> Run:
    """Trains a transition model on a cell store, or continues the run of the same name: ``vcell train experiment=perturb_seq``.

    Parameters
    ----------
    data
        A store (`vcell.build_store`), its folder, or several; or h5ad files or AnnData, which are first read into ``data/NAME/store``, as
        `settings` say (``data.columns.perturbation`` ...).
    name
        The run lies in ``runs/NAME``.
    model
        ``tiny``, ``state_sm``, ``state``, ``state_lg``; or a network of your own (`model.predictor.TrainableModel`): an object, or what
        makes one from sizes.
    loss
        ``energy``, ``energy_delta``, ``energy_contrastive``; or an object: called with predicted cells and the batch, it gives a dict of
        terms ``(sets)`` with ``loss``.
    sampler
        A sampler of your own: called as `data.sampler.CellSetSampler` is.
    table
        Embedding table of the perturbations (.pt or .npz); None: one-hot, which says nothing of perturbations never trained on.
    max_steps, validate_every
        Steps, and steps between validations (None: a tenth of them).
    val, test
        Perturbations to hold out: a fraction, or names.
    trainer
        ``auto``, ``cpu``, ``gpu``.
    seed
        Of all draws.
    settings
        Any other setting of ``vcell train`` by its key: ``{"optimizer.lr": 1e-3, "data.sets.set_size": 64}``.
    overwrite
        Remove a run of this name and begin again.
    verbose
        Print what the command would print.

    Returns
    -------
    The run: `checkpoint`, `best`, `metrics`, `folder`.

    Raises
    ------
    VcellError
        If something of it cannot be used, or the run there has other settings.
    """
    check_number("max_steps", max_steps, 1, MOST_STEPS)
    if validate_every is not None:
        check_number("validate_every", validate_every, 1, MOST_STEPS)
    check_switches(overwrite=overwrite, verbose=verbose)
    name, more = as_name("name", name), as_mapping("settings", settings)
    groups, own = _parts(trainer, model, loss, sampler)
    every = validate_every or max(1, max_steps // 10)
    values: dict[str, Any] = {
        "name": name, "seed": seed, "overwrite": overwrite, "data.path": None,
        "data.split.val.perturbations": _held_out("val", val), "data.split.test.perturbations": _held_out("test", test),
        "perturbation.path": as_name_or_none("table", table), "trainer.max_steps": max_steps, "trainer.val_check_interval": every,
        "trainer.log_every_n_steps": min(20, every),
    }  # fmt: skip
    given = [data] if isinstance(data, Cells) else given_list(data)
    if not all(_is_store(one) for one in given):
        read = {key: value for key, value in more.items() if key.startswith("data.")}
        given = [build_store(given, Path("data", name, "store"), settings=read, verbose=verbose)]
    stores = [_folder_of(one) for one in given]
    config = with_settings(
        compose("train", ["experiment=perturb_seq", *groups]), {**values, "data.stores": stores, **more}
    )
    # what is recorded of objects is their class, so that a run with another one is recognised
    for key, thing in (("model", own.model), ("loss", own.loss), ("data.sets.sampler", own.sampler)):
        if thing is not None:
            with_settings(config, {key: {"_target_": class_path(thing)}})
    try:
        with spoken(verbose):
            return Run(train(config, own).path)
    except Stopped:  # saved; a notebook keeps running
        raise KeyboardInterrupt from None


def _parts(trainer: Any, model: Any, loss: Any, sampler: Any) -> tuple[list[str], Own]:
    """Overrides that choose groups of settings by their names, and the objects that take the place of what these name."""
    chosen = {
        "trainer": trainer,
        "model": model if isinstance(model, str) else "tiny",
        "loss": loss if isinstance(loss, str) else "energy",
    }
    for group, name in chosen.items():
        check_group(group, name)
    own = Own(
        model=None if isinstance(model, str) else as_part("model", model),
        loss=None if isinstance(loss, str) else as_part("loss", loss),
        sampler=None if sampler is None else as_part("sampler", sampler),
    )
    return [f"{group}={name}" for group, name in chosen.items()], own


def _is_store(given: Any) -> bool:
    return isinstance(given, Cells) or (
        isinstance(given, str | Path) and Path(given).is_dir() and not is_zarr(Path(given))
    )


def _folder_of(store: Any) -> str:
    if isinstance(store, Cells) and not isinstance(store, CellStore):
        raise VcellError("give the stores themselves, as a list, not a view of them")
    return str(store.path if isinstance(store, CellStore) else store)


def _held_out(key: str, asked: float | Sequence[str]) -> Any:
    return asked if isinstance(asked, Real) else as_names(key, asked)
