"""What is to be packed, and how: the options of `vcell.package`, and of packing from Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vcell.config import plain
from vcell.errors import MOST_AT_ONCE, VcellError, check_number
from vcell.predict.key import key_of
from vcell.predict.options import PredictOptions


@dataclass(frozen=True)
class PackageOptions:
    """What is to be packed, and how.

    Parameters
    ----------
    pred
        An h5ad of predicted cells, or a table with one row for each perturbation.
    cells
        The challenge, its gene list and targets; real control cells; and how cells are drawn around a table.
    out
        The file to write; None: next to `pred`.
    check, convert, overwrite
        Only check; put right what changes no value; replace files that are there.
    by, threads
        Who packs (``vcell``, ``official``, ``auto``), and threads that compress.
    key
        Tells cells drawn from a table from others, so that they can be resumed.
    """

    pred: Path
    cells: PredictOptions = field(default_factory=PredictOptions)
    out: Path | None = None
    check: bool = False
    convert: bool = False
    overwrite: bool = False
    by: str = "auto"
    threads: int | None = None
    key: str = ""

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_number("threads", self.threads, 1, MOST_AT_ONCE)

    @classmethod
    def of(cls, config: Any) -> PackageOptions:
        """From the configuration of ``vcell.package``."""
        if OmegaConf.is_missing(config, "pred"):
            raise VcellError("specify what to package: python -m vcell.package pred=PRED.h5ad challenge=vcc2026")
        named = {name: config[name] for name in ("check", "convert", "overwrite", "by", "threads")}
        key = key_of("package", plain(config), ("pred", "controls", "targets", "genes"))
        out = Path(config.out) if config.out else None
        return cls(Path(config.pred), PredictOptions.of(config), out, key=key, **named)
