"""What kind of value a setting takes, where that is neither a word nor a number: a list, names with their values, one file, or a name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from vcell.config import CONFIG_DIR, SEVERAL, check_group, check_is_group, compose, flatten, read_yaml
from vcell.errors import VcellError, typed

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
    "of", "catalogue", "challenge.perturbation", "challenge.context", "challenge.control", "data.toml",
    "data.store", "data.simulate.out", "data.root", "data.context", "data.matrix", "data.genes", "prepare.cluster", "callbacks.last.folder",
    "callbacks.best.folder", "callbacks.curves.folder", "runs", "folder",
}  # fmt: skip

# last parts of keys that take names of files, columns or cells
NAMES = SINGLE | LISTS | {
    "control", "context", "matrix", "real_matrix", "targets", "genes", "controls", "store", "perturbation", "against", "baselines", "toml", "bank", "of",
    "names", "catalogue", "cluster",
}  # fmt: skip
COLUMNS = ("columns.", "data.columns.", "real_columns.")
NUMBERS = {"genes", "targets"}  # of a simulation: how many
# true or false by default, but other values mean something too
MORE_THAN_BOOL = {"compile", "data.sets.resident", "draw"}
MORE_THAN_NUMBER = {"trainer.devices", "seed_everything"}
WORDS = {"auto", "median", "max", "null"}  # that stand for numbers


def key_of(override: str) -> str:
    """The key of KEY=VALUE, +KEY=VALUE and ~KEY."""
    return override.split("=")[0].lstrip("+~")


def is_group(key: str) -> bool:
    """Whether a key names a group of settings, each in a file of its own: model, and screen@simulate."""
    return (CONFIG_DIR / key.split("@")[0]).is_dir()


def without(overrides: Iterable[str], key: str) -> list[str]:
    """The overrides of other keys."""
    return [override for override in overrides if key_of(override) != key]


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


def check_kinds(verb: str, config: DictConfig, keys: Iterable[str]) -> None:
    """Refuses values of the given keys that are of another kind than the setting takes."""
    for key in keys:
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if takes_names(verb, key):
            _check_names(key, value)
        if key in TABLES and value is not None and not isinstance(value, DictConfig):
            raise VcellError(f"{key}={value} needs names with their values: '{key}={{NAME: VALUE}}'")
        if (key in SINGLE or key.startswith(COLUMNS)) and isinstance(value, ListConfig | DictConfig):
            raise VcellError(f"{key}={value} must be one name, without brackets: {key}=NAME")


def _check_names(key: str, value: Any) -> None:
    if value == "" and key not in TABLES:
        raise VcellError(f"{key}= is empty: a name is missing (in a script, is the variable set?)")
    if isinstance(value, bool):
        raise VcellError(
            f"{key}={typed(value)} must be a name. If that is the name, quote it twice: '{key}=\"{typed(value)}\"'"
        )
    if isinstance(value, ListConfig) and not all(map(_may_be_name, value)):
        raise VcellError(f"{key}={value} must be a list of names: '{key}=[A,B]'")


def _may_be_name(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def check_groups(overrides: Iterable[str]) -> None:
    """Refuses what names no file of a group of settings: ``model=null``, and several where one is taken."""
    for override in OverridesParser.create().parse_overrides([o for o in overrides if is_group(key_of(o))]):
        group, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            continue
        names = value if isinstance(value, list) and value and group in SEVERAL else [value]
        for name in names:
            if not isinstance(name, str) or not name:
                check_group(group, name)


def check_types(verb: str, overrides: list[str], config: DictConfig) -> None:
    """Refuses text, and lists, where a number, or true or false, is expected, and all but settings where there is a group of them."""
    given = [key for key in map(key_of, overrides) if not is_group(key)]
    own = _own_settings(verb)
    _check_needed(verb, {key: own[key] for key in given if key in own}, config)
    given = [key for key in given if not _is_text(own.get(key, 0), config)]  # most are: files, names
    values = {key: OmegaConf.select(config, key, throw_on_missing=False) for key in given}
    values = {
        k: v
        for k, v in values.items()
        if isinstance(v, str) or (OmegaConf.is_config(v) and not takes_names(verb, k)) or _may_be_other(k, v)
    }
    if not values:
        return
    usual = compose(verb, [o for o in overrides if key_of(o) not in values])
    for key, value in values.items():
        default: Any = OmegaConf.select(usual, key, throw_on_missing=False)
        check_is_group(key, value, default)
        if isinstance(default, bool) and not isinstance(value, bool) and key not in MORE_THAN_BOOL:
            raise VcellError(f"{key}={typed(value)} must be true or false")
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if number and key not in MORE_THAN_NUMBER and not isinstance(value, int | float | None) and value not in WORDS:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise VcellError(f"{key}={typed(value)} must be {kind}, such as {default}")


def _may_be_other(key: str, value: Any) -> bool:
    """Whether a number, a list, null or a switch is given for what some configuration file has a switch, or settings, under that name."""
    if isinstance(value, str | DictConfig):
        return False
    switch = "" if isinstance(value, bool) else r"true\b|false\b|"
    usual = re.compile(rf"^ *{re.escape(key.rsplit('.', 1)[-1])}: *({switch}#|$)", re.M)
    return any(map(usual.search, _files_of_settings()))


@cache
def _files_of_settings() -> list[str]:
    return [path.read_text("utf-8") for path in CONFIG_DIR.rglob("*.yaml")]


def _check_needed(verb: str, defaults: Mapping[str, Any], config: DictConfig) -> None:
    """Refuses null for what has to be given, or names one thing in any case."""
    for key, default in defaults.items():
        needed = isinstance(default, str) and (default == "???" or key in SINGLE)
        if needed and not OmegaConf.is_missing(config, key) and OmegaConf.select(config, key) is None:
            raise VcellError(f"vcell.{verb} needs {key}=VALUE, not null")


@cache
def _own_settings(verb: str) -> dict[str, Any]:
    """Settings of a command, without those of groups: of its own file, and of the files beside it that it begins with."""
    own = read_yaml(CONFIG_DIR / f"{verb}.yaml")
    beside = [name for name in own.get("defaults", ()) if isinstance(name, str) and name != "_self_"]
    return {key: value for name in beside for key, value in read_yaml(CONFIG_DIR / f"{name}.yaml").items()} | own


def _is_text(default: Any, config: DictConfig) -> bool:
    """Whether a default is text, or nothing; one that refers to another key is what that key is."""
    if not isinstance(default, str):
        return default is None
    whole = re.fullmatch(r"\$\{(.+)\}", default)
    return whole is None or (":" not in whole[1] and isinstance(OmegaConf.select(config, whole[1]), str))


def with_names(verb: str, config: DictConfig) -> DictConfig:
    """A configuration with numbers as text where names are taken: perturbations, batches and files may be called 3368. A list that is null is empty."""
    for key, default in _own_settings(verb).items():
        if isinstance(default, list) and key in config and config[key] is None:
            config[key] = []
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
