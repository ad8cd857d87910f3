"""python -m vcell.simulate: writes a simulated screen with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from vcell.errors import VcellError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from vcell.data.screen import Screen  # here, so that --help is answered at once
    from vcell.data.simulate import simulate

    try:
        out = Path(config.out)
    except MissingMandatoryValue as error:
        raise VcellError("say where to: python -m vcell.simulate out=FOLDER") from error
    arguments: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    arguments.pop("out")
    simulate(out, Screen(**arguments))
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        print(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")


if __name__ == "__main__":
    from vcell.stopping import listen

    listen("simulate")  # before anything is loaded that takes seconds
    from vcell.cli import launch

    launch("simulate", run)
