"""One process at a time writes a folder or a file: a lock next to it names the process and shows that it is alive.

The lock is a file, so that it holds between the machines of a cluster. Its holder touches it every few seconds. One whose process
is gone (on this machine), or that was not touched for a minute (on another), is stale and is taken over.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vcell.errors import VcellError

BEAT_S = 5.0
STALE_S = 60.0
LOOK_S = 0.2
REMIND_S = 60.0


_held: set[Path] = set()  # by this process


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    processes: str  # which processes its number counts among: a container has its own
    pid: int
    command: str
    token: str

    @classmethod
    def here(cls) -> Holder:
        command = " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]])[:200] if sys.argv else ""
        return cls(socket.gethostname(), _processes(), os.getpid(), command, uuid.uuid4().hex)

    @property
    def words(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" ({self.command})" if self.command else "")


@contextmanager
def locked(place: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Holds the lock of `place` (``PLACE.lock``) while the block runs; a process that holds it already may take it again.

    Parameters
    ----------
    what
        What is written there, for messages.
    wait
        Whether to wait for another holder. Otherwise it is an error.

    Raises
    ------
    VcellError
        Naming the holder; or if the lock cannot be written.
    """
    path, me = place.with_name(place.name + ".lock"), Holder.here()
    if path.resolve() in _held:
        yield
        return
    made = _missing_parents(path)
    said = -math.inf
    while (holder := _take(path, me, what)) is not None:
        if not wait:
            raise VcellError(
                f"{what} {place} is being written by {holder.words}. Wait for it to finish, or stop it. If no such process "
                f"is running, remove {path}"
            )
        if time.monotonic() >= said + REMIND_S:
            print(f"waiting      for {holder.words}, which is writing {what} {place}", file=sys.stderr, flush=True)
            said = time.monotonic()
        time.sleep(LOOK_S)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, ended), daemon=True, name="lock")
    beat.start()
    _held.add(path.resolve())
    try:
        yield
    finally:
        _held.discard(path.resolve())
        ended.set()
        beat.join()
        if (now := _read(path)) is None or now.token == me.token:
            path.unlink(missing_ok=True)
        for folder in made:  # made for the lock alone, if nothing came of it
            with suppress(OSError):
                folder.rmdir()


def _take(path: Path, me: Holder, what: str) -> Holder | None:
    """Takes the lock; or says who holds it."""
    scratch = path.with_name(f"{path.name}.{me.token}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(asdict(me)))
        try:
            os.link(scratch, path)  # fails where there is one; the content is there with the name
            return None
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with suppress(FileExistsError), path.open("x") as file:
                file.write(json.dumps(asdict(me)))
                return None
        holder = _read(path)
        if holder is None:  # given back just now, or half-written on a file system without hard links
            return Holder("this machine", "", 0, "", "") if path.exists() else _take(path, me, what)
        # both times are the file system's own: clocks of machines differ
        if _alive(path, holder, lambda: scratch.stat().st_mtime):
            return holder
        _remove_stale(path, holder)
        return _take(path, me, what)
    except OSError as error:
        raise VcellError(f"{what} {path.with_suffix('')} could not be written: {error}") from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return Holder(**content)
    except (OSError, ValueError, TypeError):
        return None


def _alive(path: Path, holder: Holder, now: Callable[[], float]) -> bool:
    if holder.processes == _processes() and os.name == "posix":  # elsewhere asking for a process may end it
        return _runs(holder.pid)
    with suppress(OSError):
        return now() - path.stat().st_mtime < STALE_S
    return True


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):  # a process that has ended, but whose parent has not asked yet, holds nothing
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return True


def _remove_stale(path: Path, stale: Holder) -> None:
    """Removes a stale lock, unless another process has taken it over first."""
    aside = path.with_name(f"{path.name}.{stale.token}.stale")
    with suppress(OSError):
        path.rename(aside)
        found = _read(aside)
        if (
            found is not None and found.token != stale.token
        ):  # taken over between the look and the renaming: give it back
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _processes() -> str:
    """The boot and the process namespace that process numbers here belong to."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with suppress(OSError):
            os.utime(path)


def _missing_parents(path: Path) -> list[Path]:
    """Folders around `path` that are not there yet, the innermost first."""
    return [folder for folder in path.parents if not folder.exists()]


def is_held(place: Path) -> bool:
    """Whether a living process holds the lock of `place`; changes nothing there."""
    path = place.with_name(place.name + ".lock")
    holder = _read(path)
    return holder is not None and _alive(path, holder, time.time) and path.exists()
