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


def fail(error: VcellError) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def compose(verb: str, overrides: list[str]) -> DictConfig:
    """The configuration a command would run with."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        return hydra.compose(verb, overrides)


def check_overrides(verb: str, arguments: list[str]) -> None:
    """Raises a `VcellError`, with a suggestion, for an override that means nothing.

    Hydra says so too, but not which key was meant. Sweeps and other folders of configuration are left to it.
    """
    flags = [a for a in arguments if a.startswith("-")]
    if any(f not in ("--cfg", "--resolve", "-c") for f in flags):
        return
    overrides = [a for a in arguments if "=" in a and not a.startswith("-") and not a.startswith("hydra")]
    try:
        compose(verb, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise VcellError(_explain(verb, overrides, str(error))) from error
    finally:
        GlobalHydra.instance().clear()


def _explain(verb: str, overrides: list[str], message: str) -> str:
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown is None:
        return " ".join(line.strip() for line in message.splitlines() if line.strip())
    key = unknown[1]
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
