"""Which of several processes this one is, as torchrun and SLURM say."""

from __future__ import annotations

import os
from dataclasses import dataclass

VARIABLES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class Rank:
    """Process `number` of `world`; `local` counts those of this machine."""

    number: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Rank:
        for names in VARIABLES:
            values = [os.environ.get(name, "") for name in names]
            if all(value.isdigit() for value in values):
                return cls(*map(int, values))
        return cls()
