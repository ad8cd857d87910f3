"""Which files become a store, and how they are read: the options under `data` of every command that trains or prepares."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vcell.config import build, plain
from vcell.data.files.h5ad import Columns
from vcell.data.files.labels import LabelRules
from vcell.data.store.filters import Filters
from vcell.errors import VcellError

RECIPE_KEYS = ("control", "context", "matrix", "scale", "normalised_to", "empty_cells")
GENE_KEYS = ("rename", "zero_genes", "min_overlap")
# what the content of a store depends on; anything else in the data configuration may change freely
STORE_KEYS = ("path", "toml", "columns", "labels", "obsm", "genes", "filter", *RECIPE_KEYS, *GENE_KEYS)


@dataclass(frozen=True)
class StoreOptions:
    """The files of a store, and how they are read.

    Parameters
    ----------
    name
        Of the data, for messages.
    store, stores
        The folder of the store; or stores prepared before, taken together.
    path, toml
        Files, globs, or a list of these; or a STATE-style TOML that names them.
    columns, labels, filter
        How labels are read, and which cells are kept.
    settings
        All that the store's content depends on, as plain values: written into it, and compared later.
    simulate
        A screen to simulate where its folder is not there yet.
    root, required, where
        Of data that are distributed as one: folder, files, and where they are to be had.
    """

    name: str
    store: Path
    path: str | Sequence[str] | None = None
    toml: str | None = None
    stores: Sequence[str] = ()
    columns: Columns = field(default_factory=Columns)
    labels: LabelRules = field(default_factory=LabelRules)
    filter: Filters | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    simulate: Mapping[str, Any] | None = None
    root: str | None = None
    required: Mapping[str, str] = field(default_factory=dict)
    where: str | None = None

    @classmethod
    def of(cls, data: Any) -> StoreOptions:
        """From the configuration's part `data`."""
        missing = OmegaConf.is_missing(data, "path")  # an error only where the files are needed
        values: dict[str, Any] = plain(data)
        values["matrix"], values["obsm"] = values["matrix"] or "X", values["obsm"] or []
        for key in ("name", "store"):
            if values[key] is None:
                raise VcellError(
                    f"data.{key}=null names no store: it lies in data/NAME/store, or where data.store=FOLDER says"
                )
        if missing:
            values["path"] = None
        if values["simulate"] and not values["simulate"].get("out"):
            raise VcellError(
                "data.simulate has no out: the folder of the screen to simulate. Set data.simulate.out=FOLDER"
            )
        if values["simulate"] and (values["toml"] or not _within(values["path"] or (), values["simulate"]["out"])):
            values["simulate"] = None  # other files are given
        if isinstance(values["input"], str):
            values["obsm"] = sorted({*values["obsm"], values["input"]})
        settings = {key: "???" if key == "path" and missing else values[key] for key in STORE_KEYS}
        named = {key: values[key] for key in ("name", "path", "toml", "simulate", "root", "required", "where")}
        return cls(
            store=Path(str(values["store"])),
            stores=[str(path) for path in values["stores"] or ()],
            columns=Columns(**values["columns"]),
            labels=build(data.labels),
            filter=build(data.filter),
            settings=json.loads(json.dumps(settings)),
            **named,
        )


def _within(path: str | Sequence[str], folder: str) -> bool:
    """Whether some of these files lie in a folder."""
    return any(Path(one).is_relative_to(folder) for one in ([path] if isinstance(path, str) else path))
