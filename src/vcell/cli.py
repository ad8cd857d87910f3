"""What the commands share: Hydra, and errors as one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vcell.errors import VcellError, nearest

# configs/ lies in the package of an installed wheel, and at the top of a checkout
_INSIDE, _CHECKOUT = Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs"
CONFIG_DIR = _INSIDE if _INSIDE.is_dir() else _CHECKOUT

_CONTINUE = (
    "A run continues by its name: give the command that began it again (runs/NAME goes on from its last.ckpt). To begin a new run "
    "with another's weights: init_from=FILE.ckpt name=NEW"
)
# keys that users of STATE's trainer are used to
FORMER_KEYS = dict.fromkeys(
    [
        "resume_from_checkpoint",
        "ckpt_path",
        "ckpt",
        "checkpoint",
        "trainer.resume_from_checkpoint",
        "training.resume_from_checkpoint",
    ],
    _CONTINUE,
) | {
    key: f"Here it is {ours}"
    for key, ours in {
        "data.kwargs.toml_config_path": "data.toml=FILE.toml",
        "data.kwargs.perturbation_features_file": "perturbation.path=TABLE.pt",
        "data.kwargs.pert_col": "data.columns.perturbation=COLUMN",
        "data.kwargs.batch_col": "data.columns.batch=COLUMN",
        "data.kwargs.cell_type_key": "data.columns.context=COLUMN",
        "data.kwargs.control_pert": "data.control=LABEL",
        "data.kwargs.embed_key": "data.input=KEY; without it the model sees expression",
        "data.kwargs.output_space": "data.hvg=2000 for the most variable genes; all genes otherwise",
        "data.kwargs.num_workers": "data.sets.threads=N",
        "training.max_steps": "trainer.max_steps=N",
        "training.batch_size": "data.sets.sets_per_step=N",
        "training.lr": "optimizer.lr=X",
        "training.weight_decay": "optimizer.weight_decay=X",
        "training.val_freq": "trainer.val_check_interval=N",
        "training.ckpt_every_n_steps": "callbacks.last.every_n_steps=N",
        "training.gradient_clip_val": "trainer.gradient_clip_val=X",
        "training.devices": "trainer.devices=N trainer=ddp",
        "training.strategy": "trainer=ddp or trainer=fsdp",
        "training.train_seed": "seed=N",
        "model.kwargs.cell_set_len": "data.sets.set_size=N",
        "model.kwargs.hidden_dim": "model.hidden=N",
        "model.kwargs.batch_encoder": "model.covariates=[batch]",
        "model.kwargs.loss": "loss=energy, loss.weights.sinkhorn=1 ...",
        "model.kwargs.blur": "loss.blur=X",
        "model.kwargs.init_from": "init_from=FILE.ckpt",
        "output_dir": "run_dir=FOLDER (runs/NAME by default)",
        "use_wandb": "logger=wandb, or logger=csv",
        "wandb.project": "logger=wandb logger.wandb.project=NAME",
    }.items()
}


def launch(verb: str, run: Callable[[DictConfig], None]) -> None:
    """Runs `run` with the configuration of `verb` and the command line's overrides.

    A `VcellError` is printed as one message; the exit code is then 2.
    """

    def guarded(config: DictConfig) -> None:
        try:
            run(config)
        except VcellError as error:
            fail(error)
        except MissingMandatoryValue as error:
            fail(VcellError(f"vcell.{verb} needs {error.full_key}=VALUE. Explained by: python -m vcell.{verb} --help"))
        except KeyboardInterrupt:
            print(f"interrupted; the same command goes on: python -m vcell.{verb} ...", file=sys.stderr, flush=True)
            sys.exit(130)

    try:
        check_overrides(verb, sys.argv[1:])
    except VcellError as error:
        fail(error)
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=verb)(guarded)()


def build(config: Any, **arguments: Any) -> Any:
    """The object that a configuration's `_target_` names, made with its keys and `arguments`.

    Raises
    ------
    VcellError
        With the class's own words, if it refuses a value.
    """
    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, VcellError):
            raise error.__cause__ from None
        raise VcellError(f"a value of the configuration is refused: {' '.join(str(error).split())}") from error


def plain(value: Any) -> Any:
    """A value of a configuration as lists and dicts."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def fail(error: VcellError) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def compose(verb: str, overrides: list[str]) -> DictConfig:
    """The configuration a command would run with; also from within another command."""
    if GlobalHydra.instance().is_initialized():
        return hydra.compose(verb, overrides)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        return hydra.compose(verb, overrides)


def check_overrides(verb: str, arguments: list[str]) -> None:
    """Raises a `VcellError`, with a suggestion, for an override that means nothing.

    Hydra says so too, but not which key was meant. Sweeps and other folders of configuration are left to it.
    """
    flags = [a for a in arguments if a.startswith("-")]
    if {"-m", "--multirun"} & set(flags) and verb == "train":
        _check_sweep(arguments)
    if any(f not in ("--cfg", "--resolve", "-c") for f in flags):
        return
    overrides = [a for a in arguments if "=" in a and not a.startswith("-") and not a.startswith("hydra")]
    try:
        known = compose(verb, [o for o in overrides if not o.startswith("+")])
        for key in (o.lstrip("+").split("=")[0] for o in overrides if o.startswith("+")):
            first = key.split(".")[0].split("@")[0]
            if first not in known and not (CONFIG_DIR / first).is_dir():  # it would be taken, and read by nothing
                raise VcellError(_unknown_key(verb, key, overrides))
        compose(verb, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise VcellError(_explain(verb, overrides, str(error))) from error
    finally:
        GlobalHydra.instance().clear()


def _check_sweep(arguments: list[str]) -> None:
    """Runs of a sweep that share a name would be refused one after the other, hours apart."""
    names = [a for a in arguments if a.startswith(("name=", "run_dir="))]
    swept = [a.split("=")[0] for a in arguments if re.search(r"=[^\[{(]*,", a)]
    if swept and not any("${" in name or "," in name for name in names):
        raise VcellError(
            f"each run of a sweep over {swept[0]} needs a name of its own: 'name=sweep_${{hydra:job.num}}' (in single quotes)"
        )


def _explain(verb: str, overrides: list[str], message: str) -> str:
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown is None:
        return " ".join(line.strip() for line in message.splitlines() if line.strip())
    return _unknown_key(verb, unknown[1], overrides)


def _unknown_key(verb: str, key: str, overrides: list[str]) -> str:
    if verb == "train" and key in FORMER_KEYS:
        return f"vcell.train has no configuration key {key!r}. {FORMER_KEYS[key]}"
    kept = [o for o in overrides if o.split("=")[0].lstrip("+~") != key]
    try:
        known = [k for k, _ in flatten(OmegaConf.to_container(compose(verb, kept)))]
    except (HydraException, OmegaConfBaseException):
        known = []
    groups = sorted({k.rsplit(".", 1)[0] for k in known if "." in k})
    return (
        f"vcell.{verb} has no configuration key {key!r}.{nearest(key, [*known, *groups])} "
        f"All keys: python -m vcell.{verb} --cfg job"
    )


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dicts."""
    if isinstance(config, dict) and config:
        for key, value in config.items():
            yield from flatten(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), config
