"""The container of a submission, ``.vcc``, laid out as the official tools lay it out.

2025, as ``cell-eval prep``: a tar of ``pred.h5ad.zst`` and ``watermark.txt``. 2026, as ``vcc prep``: a tar of ``meta.json`` and
``pred.h5ad.zst``. The h5ad inside has the labels that are scored and nothing else. All of it is streamed: neither the matrix nor
the packed file is ever held in memory.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
import pandas as pd
import zstandard

from vcell import __version__
from vcell.atomic import sha256, written_file
from vcell.challenge import Challenge
from vcell.data.files.csr import ranges
from vcell.data.files.h5ad import open_h5ad, read_index
from vcell.data.files.matrix import BLOCK_VALUES
from vcell.data.files.normalize import scaled_log1p
from vcell.data.files.writer import H5adWriter, one_index_type, write_frame, written_h5
from vcell.errors import VcellError
from vcell.process.progress import progress_bar
from vcell.submission.labels import Findings, Labels, read_labels

LEVEL = 3  # of zstd, as both official tools have it
BYTES_AT_ONCE = 16 * 2**20
BLOCK = tarfile.BLOCKSIZE
FOLLOWED = "0.3.0"  # the vcc-cli whose container is followed where none is installed


@dataclass(frozen=True)
class Packed:
    """A container that was written."""

    path: Path
    sha256: str
    size: int
    unpacked: int  # bytes of the h5ad inside


def pack(pred: Path, out: Path, challenge: Challenge, findings: Findings, targets: Path | None, threads: int) -> Packed:
    """Packs the checked submission `pred` into the new file `out`.

    Raises
    ------
    VcellError
        If it cannot be written. Nothing is left then.
    """
    inside = out.with_name(out.name + ".h5ad.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write_inside(pred, inside, challenge, findings)
        unpacked = inside.stat().st_size
        with written_file(out) as scratch, scratch.open("wb") as file:
            if challenge.container == "vcc-cli":
                _add(file, "meta.json", json.dumps(_meta(findings, inside, targets), sort_keys=True).encode())
                _add_compressed(file, "pred.h5ad.zst", inside, threads)
            else:
                _add_compressed(file, "pred.h5ad.zst", inside, threads)
                _add(file, "watermark.txt", b"vcc-prep")
            file.write(bytes(2 * BLOCK))
            file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
    except OSError as error:
        raise VcellError(f"{out} could not be written: {error}") from error
    finally:
        inside.unlink(missing_ok=True)
    return Packed(out, sha256(out), out.stat().st_size, unpacked)


def perturbation_fingerprint(targets: Path) -> str | None:
    """What ``vcc prep`` notes of the list of targets, so that ``vcc submit`` can tell one phase's from another's. None for a list that it
    cannot read."""
    try:
        with targets.open(newline="", encoding="utf-8-sig") as file:
            names = {(row.get("target_gene") or "").strip() for row in csv.DictReader(file)} - {""}
    except (UnicodeError, csv.Error):
        return None
    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    return f"sha256:{digest}" if names else None


def _meta(findings: Findings, inside: Path, targets: Path | None) -> dict[str, object]:
    try:
        cli = version("vcc-cli")
    except PackageNotFoundError:
        cli = f"{FOLLOWED}+vcell.{__version__}"
    with h5py.File(inside) as file:
        n_cells, n_genes = (int(n) for n in file["X"].attrs["shape"])
    about: dict[str, object] = {
        "schema": 1, "nnz": findings.stored, "n_obs": n_cells, "n_vars": n_genes, "cli_version": cli,
        "contexts": list(findings.contexts),
    }  # fmt: skip
    fingerprint = perturbation_fingerprint(targets) if targets else None
    return {**about, "perts_fingerprint": fingerprint} if fingerprint else about


def _write_inside(pred: Path, inside: Path, challenge: Challenge, findings: Findings) -> None:
    """The h5ad that is packed: X, the labels that are scored, the names of the genes."""
    with open_h5ad(pred) as file:
        labels = read_labels(file, pred, challenge)
        obs = _obs(labels, challenge)
        genes = read_index(file, "var", pred).astype(str).tolist()
        if challenge.values == "log1p" and findings.whole:
            _write_scaled(file, inside, obs, genes, findings)
            return
        with written_h5(inside) as copy:
            write_frame(copy, obs, genes)
            file.copy("X", copy)
            one_index_type(copy["X"])


def _obs(labels: Labels, challenge: Challenge) -> pd.DataFrame:
    columns = {challenge.perturbation: labels.target}
    if challenge.contexts and challenge.context is not None:
        columns[challenge.context] = labels.context
    return pd.DataFrame(columns, index=pd.RangeIndex(len(labels.target)).astype(str))


def _write_scaled(file: h5py.File, inside: Path, obs: pd.DataFrame, genes: list[str], findings: Findings) -> None:
    """Whole counts as log1p of counts scaled to the cells' median total, which is what ``cell-eval prep`` makes of them."""
    node, indptr = file["X"], file["X/indptr"][:].astype(np.int64)
    totals = np.where(findings.totals > 0, findings.totals, 1.0)
    scale = np.median(findings.totals[findings.totals > 0]) / totals
    with (
        H5adWriter(inside, obs, genes, stored=findings.stored) as writer,
        progress_bar(len(obs), "log1p of scaled counts", "cells") as progress,
    ):
        for start, stop in ranges(indptr, BLOCK_VALUES):
            lengths = np.diff(indptr[start : stop + 1])
            factor = np.repeat(scale[start:stop], lengths).astype(np.float32)
            values = scaled_log1p(node["data"][indptr[start] : indptr[stop]], factor)
            writer.append(node["indices"][indptr[start] : indptr[stop]], values)
            writer.end_rows(lengths)
            progress.update(stop - start)


def _add(file: BinaryIO, name: str, content: bytes) -> None:
    file.write(_header(name, len(content)) + content + bytes(-len(content) % BLOCK))


def _add_compressed(file: BinaryIO, name: str, source: Path, threads: int) -> None:
    """Compresses `source` into the tar; its length is known, and written into the header, when that is done."""
    begin = file.tell()
    file.write(bytes(BLOCK))
    compressor = zstandard.ZstdCompressor(level=LEVEL, threads=threads)
    with (
        source.open("rb") as plain,
        compressor.stream_writer(file, size=source.stat().st_size, closefd=False) as packed,
        progress_bar(source.stat().st_size, "packing", "B") as progress,
    ):
        for chunk in _chunks(plain):
            packed.write(chunk)
            progress.update(len(chunk))
    length = file.tell() - begin - BLOCK
    file.write(bytes(-length % BLOCK))
    end = file.tell()
    file.seek(begin)
    file.write(_header(name, length))
    file.seek(end)


def _header(name: str, size: int) -> bytes:
    """A tar header without owner or time: the same prediction gives the same container anywhere."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(BYTES_AT_ONCE):
        yield chunk


def memory_of_official(findings: Findings) -> int:
    """Bytes that ``vcc prep`` needs, about: it holds the matrix, with 64-bit indices beyond 2^31 values, and some of it twice."""
    return int(findings.stored * (8 if findings.stored < 2**31 else 12) * 1.25) + 2**30
