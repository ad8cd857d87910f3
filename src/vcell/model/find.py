"""Finding a checkpoint by its name; without torch, so that an absent one is answered at once."""

from __future__ import annotations

from pathlib import Path

from vcell.errors import VcellError


def find_checkpoint(ckpt: str, runs: str | Path = "runs") -> Path:
    """The file `ckpt` names; a bare name that is no file here means the newest run's ``checkpoints/NAME``.

    Raises
    ------
    VcellError
        If neither is there.
    """
    path = Path(ckpt).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise VcellError(f"ckpt={ckpt} is a folder; name the file: ckpt={path / 'checkpoints' / 'last.ckpt'}")
    if path.name == str(ckpt):
        found = sorted(Path(runs).glob(f"*/checkpoints/{ckpt}"), key=lambda p: p.stat().st_mtime)
        if found:
            return found[-1]
    raise VcellError(
        f"no checkpoint {ckpt} here ({Path.cwd()}) or in {runs}/*/checkpoints/. Train first (python -m vcell.train), or "
        "give its path: ckpt=runs/NAME/checkpoints/last.ckpt"
    )
