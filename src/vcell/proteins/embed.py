"""`vcell embed`: a table of vectors of genes from their proteins, in the layout of the challenge's ``ESM2_pert_features.pt``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcell import __version__
from vcell.atomic import remove, write_text, written_file
from vcell.errors import VcellError, check_ending, shortlist
from vcell.process.lock import locked
from vcell.process.progress import progress_bar
from vcell.proteins.esm import ProteinModel
from vcell.proteins.fasta import Proteins, named, read_fasta
from vcell.system import choose_device


@dataclass(frozen=True)
class EmbedOptions:
    """What to embed, and how.

    Parameters
    ----------
    fasta, out
        Proteins, and the table to write.
    model
        A checkpoint of ESM2: its name or a local folder.
    genes
        Those wanted, by any name; None: all of the file.
    batch_residues
        Residues, padding included, that are embedded at once.
    window, overlap
        `ProteinModel`.
    device, precision
        ``auto``: a GPU if there is one, bf16 there and float32 on a CPU.
    shard, shards
        Which share of the batches this process does, of how many. The process that finds all done writes the table.
    """

    fasta: str
    out: Path
    model: str
    genes: Sequence[str] | None = None
    batch_residues: int = 8192
    window: int = 1022
    overlap: int = 256
    device: str = "auto"
    precision: str = "auto"
    shard: int = 0
    shards: int = 1
    overwrite: bool = False


def embed(options: EmbedOptions) -> Path | None:
    """Writes the table, and beside it what it was made from; continues where it was interrupted.

    A gene's vector is the mean over its transcripts of the mean over residues.

    Returns
    -------
    The table; None where other processes have not done their share yet.

    Raises
    ------
    VcellError
        If the file or the model cannot be read, the table exists, or parts of another one lie beside it.
    """
    _check(options)
    proteins = read_fasta(options.fasta)
    wanted, missing = (
        ({g: g for g in proteins.of_gene}, []) if options.genes is None else named(proteins, options.genes)
    )
    if not wanted:
        raise VcellError(
            f"{options.fasta} has a protein of none of the {len(options.genes or ()):,} genes: {shortlist(options.genes or ())}"
        )
    device = choose_device(options.device, options.shard)
    model = ProteinModel.load(options.model, device, _dtype(options.precision, device), options.window, options.overlap)
    kept = Proteins({g: proteins.of_gene[g] for g in dict.fromkeys(wanted.values())}, proteins.kind, proteins.replaced)
    batches = batches_of(kept.sequences, model, options.batch_residues)
    about = _about(options, kept, missing, model)
    print(
        f"proteins     {options.fasta}: {len(kept.of_gene):,} genes, {sum(map(len, kept.of_gene.values())):,} transcripts ({kept.kind} headers)"
    )
    if missing:
        print(f"missing      {len(missing):,} genes have no protein there: {shortlist(missing)}")
    print(
        f"model        {options.model}, {model.width} wide, {str(_dtype(options.precision, device)).removeprefix('torch.')} on {device.type}",
        flush=True,
    )
    folder = _parts(options.out, about)
    _embed_share(model, batches, folder, options)
    with locked(options.out, "the table", wait=True):
        if options.out.exists() and not folder.exists():  # another process was last, too
            return options.out
        if any(not _part(folder, number).is_file() for number in range(len(batches))):
            print(
                f"share        {options.shard + 1} of {options.shards} is done; the process that is done last writes {options.out}"
            )
            return None
        _write(options.out, kept, wanted, batches, folder, about)
        remove(folder)
    print(f"written      {options.out}: {len(wanted):,} genes × {model.width}, and {sidecar(options.out).name}")
    return options.out


def batches_of(sequences: Sequence[str], model: ProteinModel, residues: int) -> list[list[str]]:
    """Sequences in batches of at most so many residues, padding included; a longer one is alone. The same whatever was done before."""
    found: list[list[str]] = []
    for sequence in sequences:  # the short ones first
        last = found[-1] if found else []
        windows = sum(len(model.pieces(one)) for one in [*last, sequence])
        if last and windows * min(len(sequence), model.window) <= residues:
            last.append(sequence)
        else:
            found.append([sequence])
    return found


def _embed_share(model: ProteinModel, batches: Sequence[Sequence[str]], folder: Path, options: EmbedOptions) -> None:
    mine = [n for n in range(len(batches)) if n % options.shards == options.shard]
    done = [n for n in mine if _part(folder, n).is_file()]
    left = sum(len(s) for n in mine for s in batches[n])
    with progress_bar(left, "embedding", "residues", initial=sum(len(s) for n in done for s in batches[n])) as progress:
        for number in mine:
            if number in done:
                continue
            vectors = model.of_sequences(batches[number]).numpy()
            if not np.isfinite(vectors).all():
                raise VcellError(
                    f"{options.model} gives vectors that are not finite in {options.precision}: use precision=float32"
                )
            with written_file(_part(folder, number)) as scratch:
                np.save(scratch, vectors, allow_pickle=False)
            progress.update(sum(map(len, batches[number])))


def _write(
    out: Path,
    proteins: Proteins,
    wanted: dict[str, str],
    batches: Sequence[Sequence[str]],
    folder: Path,
    about: dict[str, Any],
) -> None:
    vector: dict[str, np.ndarray] = {}
    for number, batch in enumerate(batches):
        vector.update(zip(batch, np.load(_part(folder, number), allow_pickle=False), strict=True))
    table: dict[str, Tensor] = {}
    for gene, theirs in wanted.items():
        mean = np.mean([vector[sequence] for sequence in proteins.of_gene[theirs]], axis=0, dtype=np.float64)
        table[gene] = torch.from_numpy(mean.astype(np.float32))
    write_text(sidecar(out), json.dumps(about, indent=1) + "\n")
    with written_file(out) as scratch, scratch.open("wb") as file:  # torch would write a path's name into the file
        torch.save(table, file)


def sidecar(out: Path) -> Path:
    """Beside a table: what it was made from."""
    return out.with_suffix(".json")


def _about(options: EmbedOptions, proteins: Proteins, missing: Collection[str], model: ProteinModel) -> dict[str, Any]:
    genes = {gene: len(some) for gene, some in proteins.of_gene.items()}
    return {
        "vcell": __version__, "model": options.model, "revision": model.revision, "width": model.width, "fasta": Path(options.fasta).name,
        "fasta_sha256": hashlib.sha256(Path(options.fasta).expanduser().read_bytes()).hexdigest(), "genes": len(genes),
        "transcripts": sum(genes.values()), "without_protein": list(missing), "letters_read_as_X": proteins.replaced, "window": options.window,
        "overlap": options.overlap, "batch_residues": options.batch_residues, "precision": options.precision,
        "pooling": "mean over residues of the last layer, then over transcripts",
    }  # fmt: skip


def _parts(out: Path, about: dict[str, Any]) -> Path:
    """The folder of finished batches, of this table and no other."""
    folder = out.with_name(out.name + ".parts")
    record, text = folder / "about.json", json.dumps(about, indent=1)
    if record.is_file() and record.read_text(encoding="utf-8") != text:
        raise VcellError(
            f"{folder} holds parts of another table: repeat the command that made them, or remove the folder"
        )
    if not record.is_file():
        write_text(record, text)
    return folder


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npy"


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    kinds = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return kinds["bf16" if device.type == "cuda" else "float32"] if precision == "auto" else kinds[precision]


def _check(options: EmbedOptions) -> None:
    check_ending("out", options.out, [".pt"])
    if options.out.exists() and not options.overwrite:
        raise VcellError(f"{options.out} exists: name another file, or overwrite=true")
    if options.precision not in ("auto", "float32", "bf16", "fp16"):
        raise VcellError(f"precision={options.precision} must be auto, float32, bf16 or fp16")
    if options.shards < 1 or not 0 <= options.shard < options.shards:
        raise VcellError(f"shard={options.shard} must be one of 0 to shards - 1 (shards={options.shards})")
    if options.batch_residues < 1 or options.window < 2:
        raise VcellError(f"batch_residues={options.batch_residues} and window={options.window} must be positive")


def share_of_job() -> tuple[int, int]:
    """Number of this process and of all, as torchrun or srun tells them."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ:
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1
