"""What a checkpoint must hold for training to go on from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor

from vcell.errors import VcellError

# by Lightning's names
PARTS: dict[str, type] = {
    "global_step": int, "epoch": int, "pytorch-lightning_version": str, "state_dict": Mapping, "loops": Mapping, "callbacks": Mapping,
    "optimizer_states": list, "lr_schedulers": list, "vcell": Mapping,
}  # fmt: skip
INSTEAD = "overwrite=true restarts the run, and init_from=FILE.ckpt name=NEW_NAME starts another from weights alone"


def check_resumable(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuses a checkpoint without a part that training continues from, as one of weights alone.

    Raises
    ------
    VcellError
        If one is missing or of another type.
    """
    wrong = [name for name, kind in PARTS.items() if not isinstance(checkpoint.get(name), kind)]
    wrong += [name for name in ("state_dict", "loops", "optimizer_states", "lr_schedulers") if not checkpoint.get(name)]
    wrong += ["global_step"] if not wrong and checkpoint["global_step"] < 0 else []
    if wrong:
        raise VcellError(
            f"training cannot continue from {path}: its {wrong[0]} is missing or damaged, so that it is good for weights at most"
        )


def check_states(optimizer: torch.optim.Optimizer) -> None:
    """Refuses what Adam was given to continue from, where that is not of its weights' shapes: torch's kernels would write beyond it.

    Other optimizers may keep states of other shapes, such as sums of rows.

    Raises
    ------
    VcellError
        If a state has another shape than its weight.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != weight.shape:
                raise VcellError(
                    f"training cannot continue from this checkpoint: its optimizer has {name} of {list(value.shape)} for a weight of "
                    f"{list(weight.shape)}. {INSTEAD}"
                )


@contextmanager
def restoring(path: Path | None) -> Iterator[None]:
    """Around training that continues from a checkpoint: what cannot be restored from it is said in one line.

    Raises
    ------
    VcellError
        If Lightning fails while it restores. All other errors pass.
    """
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        if path is None or isinstance(error, VcellError) or not _restores(error):
            raise
        said = " ".join(str(error).split())[:300]
        raise VcellError(f"training cannot continue from {path} ({type(error).__name__}: {said}). {INSTEAD}") from error


def _restores(error: BaseException) -> bool:
    """Whether Lightning was reading a checkpoint's parts when it came to the error."""
    codes = [frame.f_code for frame, _ in walk_tb(error.__traceback__)]
    return any(
        code.co_filename.endswith("checkpoint_connector.py")
        and code.co_name.lstrip("_").startswith(("restore", "resume"))
        for code in codes
    )
