"""Downloads against a server that breaks connections, lies about sizes, and answers with web pages."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vcell.downloads import fetch
from vcell.downloads.catalogue import OURS, as_text, read_catalogue
from vcell.downloads.fetch import download
from vcell.errors import VcellError

pytest.importorskip("pooch")
BODY = bytes(range(256)) * 4_000  # a megabyte
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


@dataclass
class Served:
    """What the server does; `asked` are the ranges asked for."""

    body: bytes = BODY
    cut: list[int] = field(default_factory=list)  # of each answer: bytes after which the connection breaks
    codes: list[int] = field(default_factory=list)  # of each answer, before 200
    announced: int | None = None
    kind: str = "application/octet-stream"
    mark: str | None = '"1"'
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name http.server looks for
            wanted = self.headers.get("Range")
            served.asked.append(wanted)
            if served.codes:
                self.send_error(served.codes.pop(0))
                return
            begin = 0
            if wanted and served.ranges and self.headers.get("If-Range") == served.mark:
                begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            rest = served.body[begin:]
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(served.body) - 1}/{len(served.body)}")
            self.send_header("Content-Length", str(len(rest) if served.announced is None else served.announced))
            self.send_header("Content-Type", served.kind)
            if served.mark:
                self.send_header("ETag", served.mark)
            self.end_headers()
            self.wfile.write(rest[: served.cut.pop(0)] if served.cut else rest)

        def log_message(self, *args: object) -> None:
            """Silent."""

    host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.address = f"http://127.0.0.1:{host.server_port}"
    threading.Thread(target=host.serve_forever, daemon=True).start()
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    yield served
    host.shutdown()


def listed(server: Served, folder: Path, name: str = "cells.h5ad", **more: object) -> dict:
    """A catalogue with one entry, `mine`."""
    path = folder / "mine.yaml"
    file = {"url": f"{server.address}/{name}", **more}
    path.write_text(
        json.dumps({"mine": {"title": "cells", "licence": "CC0", "files": [file], "next": "see downloads/mine/x"}})
    )
    return read_catalogue(path)


def test_a_file_comes_whole_with_its_licence_said_first(server: Served, tmp_path: Path, capsys: pytest.CaptureFixture):
    [folder] = download(listed(server, tmp_path, bytes=len(BODY), checksum=MD5), ["mine"], tmp_path / "out")
    assert (folder / "cells.h5ad").read_bytes() == BODY
    said = capsys.readouterr().out
    assert said.index("CC0") < said.index("fetched") and "1.0 MB" in said and f"see {folder}/x" in said
    assert sorted(p.name for p in folder.iterdir()) == ["cells.h5ad", "download.json"]


def test_broken_connections_are_continued_not_begun_again(server: Served, tmp_path: Path):
    server.cut = [300_000, 200_000]
    [folder] = download(listed(server, tmp_path, checksum=MD5), ["mine"], tmp_path)
    assert (folder / "cells.h5ad").read_bytes() == BODY
    begun = [int(asked.strip("bytes=-")) for asked in server.asked[1:] if asked]
    assert server.asked[0] is None and len(begun) == 2 and 300_000 - fetch.BLOCK < begun[0] < begun[1] <= 500_000


def test_what_came_is_kept_for_the_same_command(server: Served, tmp_path: Path):
    server.cut = [400_000, 0, 0]
    with pytest.raises(VcellError, match=r"kB\) is kept; the same command continues"):
        download(listed(server, tmp_path, checksum=MD5), ["mine"], tmp_path, retries=1)
    assert not (tmp_path / "mine" / "cells.h5ad").exists()
    server.asked, server.cut = [], []
    download(listed(server, tmp_path, checksum=MD5), ["mine"], tmp_path)
    assert (
        len(server.asked) == 1
        and str(server.asked[0]).startswith("bytes=")
        and (tmp_path / "mine" / "cells.h5ad").read_bytes() == BODY
    )


def test_a_file_replaced_meanwhile_is_begun_anew(server: Served, tmp_path: Path):
    server.cut = [400_000, 0]
    with pytest.raises(VcellError):
        download(listed(server, tmp_path), ["mine"], tmp_path, retries=0)
    server.cut, server.mark, server.body = [], '"2"', BODY[::-1]
    [folder] = download(listed(server, tmp_path), ["mine"], tmp_path)
    assert (folder / "cells.h5ad").read_bytes() == BODY[::-1]


@pytest.mark.parametrize("mark", [None, 'W/"1"'])
def test_without_a_mark_of_the_version_nothing_is_joined(server: Served, tmp_path: Path, mark: str | None):
    server.cut, server.mark = [300_000], mark
    [folder] = download(listed(server, tmp_path, checksum=MD5), ["mine"], tmp_path)
    assert (folder / "cells.h5ad").read_bytes() == BODY and server.asked == [None, None]


def test_a_size_that_is_not_the_promised_one_is_refused(server: Served, tmp_path: Path):
    with pytest.raises(VcellError, match=r"announces 1,024,000 bytes, and cells\.h5ad has 5"):
        download(listed(server, tmp_path, bytes=5), ["mine"], tmp_path)
    assert not (tmp_path / "mine" / "cells.h5ad").exists()


def test_a_server_that_announces_more_than_it_sends_is_given_up(server: Served, tmp_path: Path):
    server.announced = len(BODY) + 10
    with pytest.raises(VcellError, match="could not be fetched"):
        download(listed(server, tmp_path), ["mine"], tmp_path, retries=2)
    assert not (tmp_path / "mine" / "cells.h5ad").exists()


def test_a_file_with_another_checksum_is_removed(server: Served, tmp_path: Path):
    with pytest.raises(VcellError, match="checksum is not md5:0000"):
        download(listed(server, tmp_path, checksum="md5:" + "0" * 32), ["mine"], tmp_path)
    assert not list((tmp_path / "mine").glob("cells*"))


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_taken_for_the_file(server: Served, tmp_path: Path, kind: str):
    server.kind, server.body = kind, b"\n<!DOCTYPE html><html>Please sign in</html>"
    with pytest.raises(VcellError, match="web page"):
        download(listed(server, tmp_path), ["mine"], tmp_path)
    assert len(server.asked) == 1 and not (tmp_path / "mine" / "cells.h5ad").exists()


def test_an_overloaded_server_is_asked_again_and_a_missing_file_is_not(server: Served, tmp_path: Path):
    server.codes = [503, 429]
    download(listed(server, tmp_path), ["mine"], tmp_path)
    server.codes, server.asked = [404, 404], []
    with pytest.raises(VcellError, match=r"404 Not Found\. Look for its new address"):
        download(listed(server, tmp_path, "other.h5ad"), ["mine"], tmp_path)
    assert len(server.asked) == 1


def test_what_is_there_is_not_fetched_again(server: Served, tmp_path: Path):
    catalogue = listed(server, tmp_path, checksum=MD5)
    download(catalogue, ["mine"], tmp_path)
    download(catalogue, ["mine"], tmp_path)
    assert len(server.asked) == 1
    (tmp_path / "mine" / "cells.h5ad").write_bytes(b"cut")
    download(catalogue, ["mine"], tmp_path)
    assert (tmp_path / "mine" / "cells.h5ad").read_bytes() == BODY


def test_a_dry_run_asks_nothing_and_writes_nothing(server: Served, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert download(listed(server, tmp_path), ["mine"], tmp_path / "out", dry_run=True) == []
    assert not server.asked and not (tmp_path / "out").exists() and "licence   CC0" in capsys.readouterr().out


def test_members_of_a_zip_are_unpacked(server: Served, tmp_path: Path):
    server.body = zipped({"set/a.csv": b"1", "set/b.csv": b"2"})
    download(listed(server, tmp_path, "set.zip", unpack=True), ["mine"], tmp_path / "all")
    assert (tmp_path / "all" / "mine" / "set" / "b.csv").read_bytes() == b"2"
    download(listed(server, tmp_path, "set.zip", unpack=["a.csv"]), ["mine"], tmp_path / "one")
    assert sorted(p.name for p in (tmp_path / "one" / "mine").iterdir()) == ["a.csv", "download.json", "set.zip"]
    with pytest.raises(VcellError, match=r"no member c\.csv; it has set/a\.csv"):
        download(listed(server, tmp_path, "set.zip", unpack=["c.csv"]), ["mine"], tmp_path / "one")


def test_a_zip_cannot_write_outside_its_folder(server: Served, tmp_path: Path):
    server.body = zipped({"../../outside.csv": b"1"})
    with pytest.raises(VcellError, match="not safe to unpack"):
        download(listed(server, tmp_path, "set.zip", unpack=True), ["mine"], tmp_path / "out")
    assert not (tmp_path / "outside.csv").exists()


def test_a_full_disk_is_said_before_anything_is_fetched(server: Served, tmp_path: Path):
    with pytest.raises(VcellError, match=r"1000000000.0 GB are needed"):
        download(listed(server, tmp_path, bytes=10**18), ["mine"], tmp_path)
    assert not server.asked


def test_our_list_can_be_read_and_every_entry_says_its_licence():
    catalogue = read_catalogue()
    assert {"vcc2025_support", "h1_train", "replogle_rpe1", "nadig_jurkat", "esm2_2025", "vcc2025_genes"} <= set(
        catalogue
    )
    assert all(entry.licence and entry.page.startswith("https://") for entry in catalogue.values())
    assert all(file.url.startswith("https://") for entry in catalogue.values() for file in entry.files)
    assert all(name in as_text(catalogue) for name in catalogue) and OURS.is_file()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"licence": "x", "files": [{"url": "https://a/b"}]}, "title is missing"),
        ({"title": "t", "licence": "x", "files": []}, "files must be a list"),
        ({"title": "t", "licence": "x", "files": [{"url": "ftp://a/b"}]}, "must begin with http"),
        ({"title": "t", "licence": "x", "files": [{"url": "https://a/.."}]}, "no name of a file"),
        ({"title": "t", "licence": "x", "files": [{"url": "https://a/b", "checksum": "abc"}]}, "must be md5"),
        ({"title": "t", "licence": "x", "files": [{"url": "https://a/b", "byte": 3}]}, "Did you mean 'bytes'"),
        ("text", "must be a set of keys"),
    ],
)
def test_a_mistake_in_a_list_of_ones_own_is_named(tmp_path: Path, entry: object, said: str):
    (tmp_path / "mine.yaml").write_text(json.dumps({"mine": entry}))
    with pytest.raises(VcellError, match=said):
        read_catalogue(tmp_path / "mine.yaml")


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()
