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
        raise VcellError(
            f"ckpt={ckpt} is a folder; name the file: ckpt={_in_folder(path) or path / '...' / 'last.ckpt'}"
        )
    if path.name == str(ckpt):
        if (inside := _in_folder(Path(runs) / ckpt)) is not None:
            raise VcellError(f"ckpt={ckpt} is a run; name the file: ckpt={inside}")
        found = sorted(Path(runs).glob(f"*/checkpoints/{ckpt}"), key=lambda p: p.stat().st_mtime)
        if found:
            return found[-1]
    raise VcellError(
        f"no checkpoint {ckpt} here ({Path.cwd()}) or in {runs}/*/checkpoints/. Train first (python -m vcell.train), or "
        "give its path: ckpt=runs/NAME/checkpoints/last.ckpt"
    )


def _in_folder(folder: Path) -> Path | None:
    """The checkpoint that is most likely meant by a folder: a run's, or that of checkpoints; None where there is none."""
    places = [folder / inner / name for name in ("last.ckpt", "best.ckpt") for inner in ("", "checkpoints")]
    return next((place for place in places if place.is_file()), None)
