"""Configurations: composed, flattened, compared, and made into objects. Hydra is used only here and in `cli`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vcell.errors import VcellError, check_choice, nearest, typed
from vcell.process.given import as_plain
from vcell.system import slurm_tasks_per_node

# configs/ lies in the package of an installed wheel, and at the top of a checkout
_INSIDE, _CHECKOUT = Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs"
CONFIG_DIR = _INSIDE if _INSIDE.is_dir() else _CHECKOUT
# the file with the default values of each group
DEFAULTS = {"": "training.yaml", "data": "data/base.yaml", "model": "model/base.yaml", "loss": "loss/energy.yaml", "trainer": "trainer/auto.yaml"}  # fmt: skip

SEVERAL = ("callbacks", "logger")  # groups of which several files are taken together
LEFT_OUT = ("callbacks.", "logger.", "data.simulate.")  # what lies here may be null: it is left out
HOME = re.compile(r"(?<![^=\[{,:\s\"'])~[\w.-]*(?=/)")  # where a value begins, or one in a list
RECORD = "config.yaml"  # in a run's folder: the configuration it was begun with
# How a command does its work, not what comes of it: these keys may differ when a run or a prediction is resumed. FIXED ones may not.
# A key belongs to the longest of these names that it begins with; `tests/test_config.py` fails for a key that has none.
FREE = {
    "train": (
        "resume", "overwrite", "check", "run_dir", "bank", "callbacks", "logger", "cuda_graph", "data.path", "data.toml", "data.root", "data.store", "data.where",
        "data.sets.threads", "data.sets.resident", "trainer.default_root_dir", "trainer.max_steps", "trainer.max_time",
        "trainer.log_every_n_steps",
    ),
    "infer": ("out", "overwrite", "device", "devices", "runs"),
    "package": ("out", "overwrite", "check", "by", "threads"),
}  # fmt: skip
FIXED = {
    "train": (
        "name", "seed", "effects", "init_from", "finetune", "lora", "compile", "matmul_precision", "perturbation", "optimizer", "schedule", "validation", "model", "loss",
        *(f"data.{key}" for key in (
            "name", "stores", "columns", "control", "labels", "context", "matrix", "scale", "normalised_to", "reconcile", "empty_cells",
            "genes", "rename", "zero_genes", "min_overlap", "obsm", "filter", "input", "hvg", "target_sum", "simulate", "required", "exclude",
            "split", "request", "sets.set_size", "sets.sets_per_step", "sets.weights", "sets.sampler",
        )),
        *(f"trainer.{key}" for key in (
            "_target_", "accelerator", "devices", "num_nodes", "strategy", "precision", "accumulate_grad_batches", "gradient_clip_val",
            "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps",
            "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "use_distributed_sampler", "max_epochs",
        )),
    ),
    "infer": (
        "challenge", "ckpt", "targets", "contexts", "n_cells", "batches", "genes", "controls", "store", "perturbation", "predictor", "draw", "counts", "pool", "knockdown", "amplitude", "addition",
        "target_sum", "max_controls", "compression", "sets_per_step", "seed", "precision", "trust",
    ),
    "package": (
        "challenge", "pred", "genes", "targets", "contexts", "controls", "convert", "pred_kind", "pred_target_sum", "n_cells", "draw",
        "target_sum", "max_controls", "seed",
    ),
}  # fmt: skip


def may_change(verb: str, key: str) -> bool:
    """Whether a key of a command may differ when its work is resumed; keys in neither table may not."""
    names = [name for name in (*FREE[verb], *FIXED[verb]) if key == name or key.startswith(f"{name}.")]
    return max(names, key=len, default="") in FREE[verb]


def build(config: Any, **arguments: Any) -> Any:
    """The object that a configuration's `_target_` names, made with its keys and `arguments`.

    Only for configurations that the user gave; the contents of a checkpoint or another file are never passed to it.

    Raises
    ------
    VcellError
        With the class's own message, if a value is invalid.
    """
    try:
        if not arguments:
            return instantiate(config)
        make = instantiate(config, _partial_=True)
    except InstantiationException as error:
        if isinstance(error.__cause__, VcellError):
            raise error.__cause__ from None
        key = re.search(r"full_key: (\S+)", str(error))
        raise _invalid(key[1] if key else "", error.__cause__ or error) from error
    try:
        return make(
            **arguments
        )  # as they are: Hydra would copy each gene's name into a configuration, which takes seconds
    except VcellError:
        raise
    except Exception as error:
        raise _invalid(str(config._get_full_key(None)) if OmegaConf.is_config(config) else "", error) from error


def _invalid(key: str, error: BaseException) -> VcellError:
    return VcellError(f"invalid value{f' in {key}' if key else ''}: {' '.join(str(error).split())}")


def plain(value: Any) -> Any:
    """A value of a configuration as lists and dicts."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def compose(verb: str, overrides: list[str]) -> DictConfig:
    """The configuration a command would run with; also from within another command."""
    overrides = with_trainer(overrides)
    if GlobalHydra.instance().is_initialized():
        return hydra.compose(verb, overrides)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        return hydra.compose(verb, overrides)


def check_group(group: str, name: Any) -> None:
    """Refuses a name for a group of settings that has no file in configs/GROUP: ``model=tny``."""
    check_choice(group, name, sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml") if path.stem != "base"))


def check_is_group(key: str, value: Any, usual: Any) -> None:
    """Refuses anything but settings where there is usually a group of them: ``optimizer=null``."""
    left_out = value is None and key.startswith(LEFT_OUT)
    if isinstance(usual, DictConfig) and usual and not isinstance(value, Mapping | DictConfig) and not left_out:
        one = next((str(name) for name in usual if not str(name).startswith("_")), "KEY")
        raise VcellError(f"{key}={typed(value)} is a group of settings: set one of them, such as {key}.{one}=VALUE")


def with_settings(config: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """A configuration with further values, by dotted key.

    Raises
    ------
    VcellError
        For a key that it does not have, with the nearest one, and for a group of settings that would be none any more.
    """
    known = [key for key, _ in flatten(OmegaConf.to_container(config))]
    for key, value in settings.items():
        if not any(key == name or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in known):
            raise VcellError(f"there is no setting {key!r}.{nearest(key, known)}")
        check_is_group(key, value, OmegaConf.select(config, key, throw_on_missing=False))
        try:
            OmegaConf.update(config, key, as_plain(value), merge=False, force_add=True)
        except OmegaConfBaseException as error:
            raise VcellError(f"{key} cannot be a {type(value).__name__}") from error
    return config


def at_home(value: Any) -> Any:
    """A value of the configuration, or a typed one, with ``~/`` where a name begins as the home folder: shells do that only where a word begins,
    so ``out=~/pred.h5ad`` would make a folder called ~."""
    if isinstance(value, str):
        return HOME.sub(lambda found: os.path.expanduser(found[0]), value)  # noqa: PTH111
    if isinstance(value, list):
        return [at_home(one) for one in value]
    return {key: at_home(one) for key, one in value.items()} if isinstance(value, dict) else value


def with_home(config: DictConfig) -> DictConfig:
    """A configuration with all its values `at_home`."""
    for key, value in flatten(OmegaConf.to_container(config)):
        if (there := at_home(value)) != value:
            OmegaConf.update(config, key, there, merge=False)
    return config


def class_path(thing: Any) -> str:
    """Where a class, or the class of an object, lies: how a configuration names it."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def with_trainer(overrides: list[str]) -> list[str]:
    """Overrides extended by the settings of a trainer among them (``trainer=debug``), which an experiment would otherwise reset."""
    names = [o.split("=", 1)[1] for o in overrides if o.startswith("trainer=")]
    path = CONFIG_DIR / "trainer" / f"{names[-1]}.yaml" if names else None
    if (
        path is None or names[-1] == "auto" or not path.is_file()
    ):  # auto says what a trainer is, not how this one differs
        return overrides
    given = {o.split("=", 1)[0].lstrip("+") for o in overrides}
    own = [(f"trainer.{k}", v) for k, v in flatten(read_yaml(path)) if not k.startswith(("defaults", "strategy"))]
    # beside it: options of Hydra (-m, --cfg job) before or after the settings must not come between them
    place = overrides.index(f"trainer={names[-1]}") + 1
    added = [f"{k}={v}" for k, v in own if k not in given and "$" not in str(v)]
    return [*overrides[:place], *added, *overrides[place:]]


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dicts."""
    if isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from flatten(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), config


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys that differ between two configurations, with both values.

    A class counts by its name, wherever it lies. A key that one side does not know has its default there: a newer vcell has more keys.
    """
    old, new = _comparable(then), _comparable(now)
    found = {}
    for key in sorted(old.keys() | new.keys()):
        before, after = (side[key] if key in side else default_of(key) for side in (old, new))
        if before != after:
            found[key] = (old.get(key, "absent"), new.get(key, "absent"))
    return found


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    out = {}
    for key, value in flatten(config):
        if key.endswith("_target_"):
            value = str(value).rsplit(".", 1)[-1]
        if value not in ({}, []):
            out[key] = value
    return out


def default_of(key: str) -> Any:
    """The default value of a key; None if it has none."""
    group, _, rest = key.partition(".")
    known = _defaults(group) if group in DEFAULTS and rest else _defaults("")
    value = known.get(rest if group in DEFAULTS and rest else key)
    if key.endswith("_target_") and value is not None:
        return str(value).rsplit(".", 1)[-1]
    return None if value in ({}, []) else value


def wandb_id(name: str) -> str:
    """A run's name as an id for Weights & Biases, without characters that are invalid in file names and URLs: folds are named NAME/fold_0."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:128]


OmegaConf.register_new_resolver("slurm_tasks_per_node", slurm_tasks_per_node, replace=True)


@cache
def _defaults(group: str) -> dict[str, Any]:
    return dict(flatten(read_yaml(CONFIG_DIR / DEFAULTS[group])))


def read_yaml(path: Path) -> Any:
    """A file of settings as it is written: lists and dicts, nothing resolved."""
    return OmegaConf.to_container(OmegaConf.load(path))


if __name__ == "__main__":  # `vcell config`; imported by name, since the command line is built on this file
    from importlib import import_module

    import_module("vcell.cli.main").main("config")
