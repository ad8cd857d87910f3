"""Files fetched whole: resumed where a connection broke, refused where they are not what was promised."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vcell.atomic import sha256, write_text
from vcell.downloads.catalogue import Dataset, RemoteFile, chosen, size_text
from vcell.downloads.unpack import unpack
from vcell.errors import VcellError, install
from vcell.process.lock import locked
from vcell.process.progress import progress_bar

RECORD = "download.json"  # in a data set's folder: the files that came whole
BLOCK = 1 << 16  # what a broken connection can lose
PATIENCE = (15, 60)  # seconds to connect, and between bytes
LONGEST_PAUSE = 60.0
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class TryAgainError(Exception):
    """Something that may go away: worth another try."""


def download(
    catalogue: Mapping[str, Dataset], names: Sequence[str], out: Path, dry_run: bool = False, retries: int = 5
) -> list[Path]:
    """Fetches data sets, each into a folder of its own in `out`, and gives these folders.

    Parameters
    ----------
    dry_run
        Says what would be fetched, and fetches nothing.
    retries
        How often to try again after a connection broke.

    Raises
    ------
    VcellError
        For an unknown name, a full disk, a file that is not what was promised, or a server that gives none.
    """
    entries = chosen(catalogue, list(names))
    for entry in entries:
        _say(entry, out)
    _check_room(entries, out)
    if dry_run:
        print("nothing was fetched (dry_run)", flush=True)
        return []
    return [_fetch(entry, out / entry.name, retries) for entry in entries]


def _say(entry: Dataset, out: Path) -> None:
    folder = out / entry.name
    lines = [f"{entry.name}: {entry.title}", f"  licence   {entry.licence}", f"  page      {entry.page or '–'}"]
    for file in entry.files:
        if _is_there(folder, file):
            state = "there already"
        else:
            begun = _part(folder / file.name)
            state = f"{size_text(begun.stat().st_size)} of it are there" if begun.is_file() else "to fetch"
        checksum = file.checksum or "no checksum published: its SHA-256 will be recorded"
        lines.append(f"  {file.name}  {size_text(file.bytes)}, {state}\n            {file.url}\n            {checksum}")
    print("\n".join([*lines, f"  to        {folder}"]), flush=True)


def _check_room(entries: Sequence[Dataset], out: Path) -> None:
    """Raises a `VcellError` if the disk has less room than is needed: what unpacking takes is known only then."""
    needed = 0
    for entry in entries:
        for file in entry.files:
            if file.bytes and not _is_there(out / entry.name, file):
                part = _part(out / entry.name / file.name)
                needed += file.bytes - (part.stat().st_size if part.is_file() else 0)
    place = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise VcellError(
            f"{size_text(needed)} are needed and {size_text(free)} are free in {place}. Free some, or choose another folder: out=FOLDER"
        )


def _fetch(entry: Dataset, folder: Path, retries: int) -> Path:
    with locked(folder, "the data set"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VcellError(f"{folder} could not be written: {error.strerror}. Choose another: out=FOLDER") from error
        for file in entry.files:
            if not _is_there(folder, file):
                _fetch_file(file, folder, retries)
            if file.unpack:
                unpack(folder / file.name, folder, file.unpack)
    following = (entry.next or "").replace(f"downloads/{entry.name}", str(folder))
    print(f"there        {folder}" + (f"\nnext         {following}" if following else ""), flush=True)
    return folder


def _fetch_file(file: RemoteFile, folder: Path, retries: int) -> None:
    """Brings one file, checks it, and records that it is whole."""
    try:
        import pooch
    except ImportError:
        raise VcellError(f"vcell download needs pooch: {install('download')}") from None
    pooch.get_logger().setLevel("WARNING")
    path = folder / file.name
    try:
        # pooch verifies the checksum before the file gets its name
        pooch.retrieve(
            file.url, known_hash=file.checksum, fname=file.name, path=folder, downloader=Resumed(file, path, retries)
        )
    except ValueError as error:
        if "hash" not in str(error):
            raise
        for leftover in (_part(path), _about_part(path)):
            leftover.unlink(missing_ok=True)
        raise VcellError(
            f"{file.url} gave a file whose checksum is not {file.checksum}: it was damaged on the way, or replaced by its owner. It was "
            "removed; try again, and if it fails again correct the checksum by the owner's page in a catalogue of your own"
        ) from error
    finally:
        for leftover in (_part(path), _about_part(path)):
            if path.is_file():
                leftover.unlink(missing_ok=True)
    digest = file.checksum or f"sha256:{sha256(path)}"
    known = _recorded(folder)
    known[file.name] = {"url": file.url, "bytes": path.stat().st_size, "checksum": digest}
    write_text(folder / RECORD, json.dumps(known, indent=1))
    print(f"fetched      {path} ({size_text(path.stat().st_size)}, {digest})", flush=True)


class Resumed:
    """A downloader for pooch that goes on where a connection broke, in this process or an earlier one."""

    def __init__(self, file: RemoteFile, path: Path, retries: int) -> None:
        self.file, self.path, self.retries = file, path, retries
        self.part = _part(path)

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        failed = 0
        while True:
            before = self._have()
            try:
                if url.startswith("file://"):
                    self._copy(url)
                else:
                    self._receive(url)
                break
            except TryAgainError as error:
                failed = 1 if self._have() > before else failed + 1  # what brings bytes is not hopeless
                if failed > self.retries:
                    raise VcellError(
                        f"{url} could not be fetched: {error}. What came ({size_text(self._have())}) is kept; the same command continues"
                    ) from error
                pause = min(LONGEST_PAUSE, 0.5 * 2 ** (failed - 1))
                print(f"again        in {pause:.0f} s: {error}", flush=True)
                time.sleep(pause)
        self.part.replace(output_file)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _copy(self, url: str) -> None:
        from urllib.parse import urlparse
        from urllib.request import url2pathname

        source = Path(url2pathname(urlparse(url).path))
        if not source.is_file():
            raise VcellError(f"there is no file {source}, which {url} names")
        shutil.copyfile(source, self.part)
        self._check_size(self.part.stat().st_size)

    def _receive(self, url: str) -> None:
        """One connection: what is missing of the file, appended to its part."""
        import requests

        have, mark = self._have(), _read_json(_about_part(self.path)).get("mark")
        headers = {"Accept-Encoding": "identity"}
        if have and mark:  # without a mark of the version, pieces of two versions could be joined
            headers |= {"Range": f"bytes={have}-", "If-Range": mark}
        try:
            with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as answer:
                total = self._accepted(answer, have)
                begin = have if answer.status_code == 206 else 0
                self._append(answer, begin, total)
        except requests.exceptions.InvalidURL as error:
            raise VcellError(f"{url} is no address: {error}") from error
        except requests.exceptions.SSLError as error:
            raise VcellError(
                f"{url}: the connection is not trusted ({' '.join(str(error).split())[:100]}). A proxy? Set REQUESTS_CA_BUNDLE"
            ) from error
        except (requests.exceptions.RequestException, ConnectionError, TimeoutError) as error:
            raise TryAgainError(_brief(error)) from error

    def _accepted(self, answer: Any, have: int) -> int | None:
        """The size of the whole file, by an answer that holds it; other answers are errors."""
        code, kind = answer.status_code, answer.headers.get("Content-Type", "")
        if code in TRANSIENT:
            raise TryAgainError(f"the server answered {code} {answer.reason}")
        if code == 416:  # nothing is left to send, or the file has changed
            if self.file.bytes not in (None, have):
                self.part.unlink(missing_ok=True)
                raise TryAgainError("the server has a shorter file than what is here; starting anew")
            return have
        if code not in (200, 206):
            hint = (
                "Look for its new address on the page of the data set"
                if code in (404, 410)
                else "It may need an account: see the page of the data set"
            )
            raise VcellError(f"{answer.url} answered {code} {answer.reason}. {hint}, and set it in catalogue=FILE.yaml")
        if "text/html" in kind and not self.file.name.endswith((".html", ".htm")):
            raise VcellError(
                f"{answer.url} answered with a web page, not with {self.file.name}: it asks for a login, or the file has moved. Look at the "
                "page of the data set, and set its address in catalogue=FILE.yaml"
            )
        length = answer.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        if code == 206:
            sent = answer.headers.get("Content-Range", "")
            first, _, whole = sent.removeprefix("bytes ").partition("/")
            if first.split("-")[0] != str(have):
                self.part.unlink(missing_ok=True)
                raise TryAgainError(f"the server sent another piece than asked for ({sent}); starting anew")
            total = int(whole) if whole.isdigit() else None if total is None else have + total
        if total is not None:
            self._check_size(total)
        mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        usable = (
            mark
            if mark and not mark.startswith("W/") and answer.headers.get("Accept-Ranges", "bytes") != "none"
            else None
        )
        write_text(_about_part(self.path), json.dumps({"mark": usable}))
        return total

    def _append(self, answer: Any, begin: int, total: int | None) -> None:
        if answer.status_code == 416:
            return
        expected = total if total is not None else self.file.bytes
        with (
            self.part.open("r+b" if begin else "wb") as out,
            progress_bar(expected, self.file.name, "B", initial=begin) as bar,
        ):
            out.seek(begin)
            out.truncate()
            for block in answer.iter_content(BLOCK):
                if begin == 0 and out.tell() == 0:
                    self._check_start(block, answer.url)
                out.write(block)
                bar.update(len(block))
                if expected is not None and out.tell() > expected:
                    raise VcellError(
                        f"{answer.url} sends more than the {expected:,} bytes it announced; nothing of it can be trusted"
                    )
        have = self._have()
        if expected is not None and have < expected:
            raise TryAgainError(f"{have:,} of {expected:,} bytes came")

    def _check_start(self, block: bytes, url: str) -> None:
        start = block[:256].lstrip().lower()
        if start.startswith((b"<!doctype html", b"<html")) and not self.file.name.endswith((".html", ".htm")):
            raise VcellError(
                f"{url} gave a web page instead of {self.file.name}: the file has moved, or asks for a login"
            )

    def _check_size(self, total: int) -> None:
        if self.file.bytes is not None and total != self.file.bytes:
            self.part.unlink(missing_ok=True)
            raise VcellError(
                f"{self.file.url} announces {total:,} bytes, and {self.file.name} has {self.file.bytes:,}: its owner has replaced it, or the "
                "address leads elsewhere. See the page of the data set, and correct bytes and checksum in catalogue=FILE.yaml"
            )


def _is_there(folder: Path, file: RemoteFile) -> bool:
    """Whether a file was fetched whole, by the record, and has its size still."""
    path, known = folder / file.name, _recorded(folder).get(file.name)
    return (
        isinstance(known, dict)
        and path.is_file()
        and path.stat().st_size == known.get("bytes")
        and file.checksum in (None, known.get("checksum"))
    )


def _recorded(folder: Path) -> dict[str, Any]:
    return _read_json(folder / RECORD)


def _read_json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _about_part(path: Path) -> Path:
    """The server's mark of the version that the part is of."""
    return path.with_name(f"{path.name}.part.json")


def _brief(error: BaseException) -> str:
    """What a connection's error means, without the library's own account of it."""
    text = " ".join(str(error).split())
    if "Max retries exceeded" in text or "NewConnectionError" in text:
        return "no connection to the server (is this machine online? behind a proxy, set HTTPS_PROXY)"
    if "timed out" in text.lower():
        return "the server has gone silent"
    return f"the connection broke ({text[:100]})"
