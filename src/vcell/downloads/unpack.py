"""Members of an archive taken out, each whole, and none outside its folder."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from vcell.downloads.catalogue import size_text
from vcell.errors import VcellError
from vcell.process.progress import progress_bar

BLOCK = 1 << 20


def unpack(path: Path, folder: Path, members: bool | tuple[str, ...]) -> None:
    """Takes a zip's members out, each whole; members that would land outside are refused. What is there already is not written again."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            if isinstance(members, tuple):
                infos = [_member(archive, name, path) for name in members]
            parts = [PurePosixPath(i.filename.replace("\\", "/")) for i in infos]
            if bad := [str(p) for p in parts if p.is_absolute() or ".." in p.parts]:
                raise VcellError(f"{path} is not safe to unpack: {bad[0]} would be written outside of {folder}")
            targets = [folder / (p.name if isinstance(members, tuple) else p) for p in parts]
            todo = [
                (i, t)
                for i, t in zip(infos, targets, strict=True)
                if not (t.is_file() and t.stat().st_size == i.file_size)
            ]
            _check_unpacked(sum(info.file_size for info, _ in todo), folder)
            with progress_bar(sum(info.file_size for info, _ in todo), f"unpacking {path.name}", "B") as bar:
                for info, target in todo:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    scratch = target.with_name(f"{target.name}.tmp")
                    with archive.open(info) as source, scratch.open("wb") as out:
                        while block := source.read(BLOCK):
                            out.write(block)
                            bar.update(len(block))
                    scratch.replace(target)
    except zipfile.BadZipFile as error:
        raise VcellError(f"{path} is no whole zip ({error}): remove it, and fetch it again") from error
    except OSError as error:
        raise VcellError(
            f"{path} could not be unpacked: {error.strerror or error}. The same command continues"
        ) from error


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if PurePosixPath(info.filename).name == name or info.filename == name]
    if not found:
        raise VcellError(f"{path} has no member {name}; it has {', '.join(i.filename for i in archive.infolist()[:8])}")
    return found[0]


def _check_unpacked(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise VcellError(
            f"unpacking takes {size_text(needed)}, and {size_text(free)} are free in {folder}. Free some; the same command continues"
        )
