"""What kind of value a setting takes, where that is neither a word nor a number: a list, names with their values, one file, or a name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vcell.config import flatten
from vcell.errors import VcellError

# last parts of keys that take a list, in which one name alone is a list of one
LISTS = {
    "contexts", "within", "show", "trust", "exclude", "obsm", "stores", "drop_batches", "covariates", "perturbations",
}  # fmt: skip
LISTS_OF = {"table": {"genes"}}  # of one command only
# {NAME: VALUE}
TABLES = {
    "effects", "perturbation.aliases", "data.rename", "data.labels.rename", "data.sets.weights.contexts", "data.sets.weights.perturbations",
    "loss.weights", "data.simulate", "data.required",
}  # fmt: skip
# one file, folder or name
SINGLE = {
    "pred", "real", "path", "out", "fasta", "ckpt", "init_from", "name", "run_dir", "bank", "plot", "real_matrix", "use", "challenge.name",
    "challenge.perturbation", "challenge.context", "challenge.control", "data.toml",
    "data.context", "data.matrix", "data.genes", "prepare.cluster", "runs", "folder",
}  # fmt: skip

# last parts of keys that take names of files, columns or cells
NAMES = SINGLE | LISTS | {
    "control", "context", "matrix", "real_matrix", "targets", "genes", "controls", "store", "perturbation", "against", "baselines", "toml", "bank", "of",
    "names", "catalogue", "cluster",
}  # fmt: skip
COLUMNS = ("columns.", "data.columns.", "real_columns.")
NUMBERS = {"genes", "targets"}  # of a simulation: how many


def as_list(verb: str, argument: str) -> str:
    """KEY=A and KEY=A,B of a setting that takes a list as KEY=[A] and KEY=[A,B]; targets of several names too. All else as it is."""
    key, equals, value = argument.partition("=")
    last = key.rsplit(".", 1)[-1]
    takes = key not in TABLES and (last in LISTS or last in LISTS_OF.get(verb, ()))
    takes |= key == "targets" and "," in value and not os.path.exists(value)  # noqa: PTH110
    if not (takes and equals and value) or value[0] in "[{'\"" or value == "null" or "${" in value or _is_number(value):
        return argument
    names = [name.strip() for name in value.split(",")]
    return f"{key}=[{','.join(_quoted(name) for name in names if name)}]"


def takes_names(verb: str, key: str) -> bool:
    """Whether a setting of a command takes names of files, columns or cells, one or several, or names with their values."""
    last = key.rsplit(".", 1)[-1]
    if last in NUMBERS and (verb == "simulate" or key.startswith("data.simulate.")):
        return False
    return key in TABLES or last in NAMES or key.startswith(COLUMNS)


def check_kinds(config: DictConfig, keys: Iterable[str]) -> None:
    """Refuses values of the given keys that are of another kind than the setting takes."""
    for key in keys:
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if key in TABLES and value is not None and not isinstance(value, DictConfig):
            raise VcellError(f"{key}={value} needs names with their values: '{key}={{NAME: VALUE}}'")
        if (key in SINGLE or key.startswith(COLUMNS)) and isinstance(value, ListConfig | DictConfig):
            raise VcellError(f"{key}={value} must be one name, without brackets: {key}=NAME")


def with_names(verb: str, config: DictConfig) -> DictConfig:
    """A configuration with numbers as text where names are taken: perturbations, batches and files may be called 3368."""
    for key, value in flatten(OmegaConf.to_container(config)):
        is_fraction = key.endswith("perturbations") and not isinstance(value, list)
        if takes_names(verb, key) and not is_fraction and (names := _as_name(value)) != value:
            OmegaConf.update(config, key, names, merge=False)
    return config


def _as_name(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_name(one) for one in value]
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _quoted(name: str) -> str:
    """A name as an element of a list."""
    return (
        name
        if name.replace("_", "").replace("-", "").replace(".", "").isalnum()
        else '"' + name.replace('"', '\\"') + '"'
    )
