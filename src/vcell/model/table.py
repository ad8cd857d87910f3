"""The perturbation table: each perturbation's vector, from a file or one-hot."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vcell.atomic import check_zip
from vcell.errors import VcellError, nearest, shortlist

ONE_HOT = "one-hot"


@dataclass(frozen=True)
class PerturbationTable:
    """Vectors by name. A name it lacks is an error, never a zero vector.

    Parameters
    ----------
    names
        Perturbations, each once.
    vectors
        ``(names, width)``, float32.
    origin
        The file it came from, or `ONE_HOT`.
    """

    names: list[str]
    vectors: Tensor
    origin: str
    row: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "row", {name: i for i, name in enumerate(self.names)})
        if len(self.row) < len(self.names) or self.vectors.shape[:1] != (len(self.names),):
            raise VcellError(f"the perturbation table {self.origin} needs one vector for each of its distinct names")
        if not torch.isfinite(self.vectors).all():
            bad = [n for n, v in zip(self.names, self.vectors, strict=True) if not torch.isfinite(v).all()]
            raise VcellError(f"the perturbation table {self.origin} holds NaN or infinity for {shortlist(bad, 5)}")

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @property
    def fingerprint(self) -> str:
        """A checksum of names and vectors."""
        digest = hashlib.blake2b("\n".join(self.names).encode(), digest_size=16)
        digest.update(self.vectors.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def require(self, names: Sequence[str]) -> None:
        """Raises a `VcellError` that names the perturbations the table lacks."""
        missing = sorted({n for n in names if n not in self.row})
        if not missing:
            return
        if self.origin == ONE_HOT:
            reason = "a one-hot table covers only the perturbations it was made for. Train with an embedding table"
        else:
            reason = f"it has {len(self.names):,} others.{nearest(missing[0], self.names)} Use a table that has them"
        raise VcellError(
            f"the perturbation table {self.origin} lacks {len(missing):,} perturbations: {shortlist(missing)}; {reason} "
            "(perturbation.path=FILE.pt), name them as it does (perturbation.aliases={OLD: NEW}), or leave them out of training "
            "(data.exclude=[NAME])"
        )

    def rows(self, names: Sequence[str]) -> list[int]:
        """Numbers of the rows of `names`; a `VcellError` for a name the table lacks."""
        if any(n not in self.row for n in names):
            self.require(names)
        return [self.row[n] for n in names]

    def lookup(self, names: Sequence[str]) -> Tensor:
        """Vectors of `names`, ``(len(names), width)``."""
        return self.vectors[self.rows(names)]

    def standardised(self) -> PerturbationTable:
        """Every column shifted and scaled to mean 0 and variance 1 over the table's names.

        Tables come in scales from 0.01 (ESM2) to 10; networks start best from about 1. A constant column becomes 0.
        """
        mean, std = self.vectors.mean(0), self.vectors.std(0, correction=0)
        vectors = torch.where(std > 1e-8, (self.vectors - mean) / std.clamp(min=1e-8), 0.0)
        return PerturbationTable(self.names, vectors, self.origin)

    @classmethod
    def one_hot(cls, trained: Sequence[str], held_out: Sequence[str] = ()) -> PerturbationTable:
        """One column per trained perturbation. Held-out ones get the zero vector: a model can say nothing of them but
        the mean response, and `silent_on` tells which."""
        trained = sorted(set(trained))
        held_out = sorted(set(held_out) - set(trained))
        vectors = torch.cat([torch.eye(len(trained)), torch.zeros(len(held_out), len(trained))])
        return cls([*trained, *held_out], vectors, ONE_HOT)

    def with_aliases(self, aliases: Mapping[str, str]) -> PerturbationTable:
        """The same table with further names for some of its rows: alias to name. Both must be what they are said to be.

        Raises
        ------
        VcellError
            If an alias is a name of its own in the table, or its name is not in the table.
        """
        clashing = sorted(set(aliases) & set(self.names))
        if clashing:
            raise VcellError(f"perturbation.aliases renames {shortlist(clashing)}, which {self.origin} has already")
        self.require(list(aliases.values()))
        if not aliases:
            return self
        vectors = torch.cat([self.vectors, self.lookup(list(aliases.values()))])
        return PerturbationTable([*self.names, *aliases], vectors, self.origin)

    def silent_on(self, names: Sequence[str]) -> list[str]:
        """Those of `names` of which the table says nothing: held-out perturbations in a one-hot table."""
        if self.origin != ONE_HOT:
            return []
        return sorted({n for n in names if n in self.row and self.row[n] >= self.width})

    @classmethod
    def load(cls, path: str | Path) -> PerturbationTable:
        """Reads a table.

        ``.pt``: a dict from gene to vector, as the challenge's ``ESM2_pert_features.pt``, read without unpickling
        anything but tensors. ``.npz``: arrays `genes` (names) and `emb` (vectors).

        Raises
        ------
        VcellError
            If the file is absent, is not such a table, or its vectors differ in length.
        """
        path = Path(path)
        if not path.is_file():
            raise VcellError(f"no such perturbation table: {path} (looked from {Path.cwd()}). Set perturbation.path")
        names, vectors = _read_npz(path) if path.suffix == ".npz" else _read_pt(path)
        if not names:
            raise VcellError(f"the perturbation table {path} is empty")
        return cls(names, vectors, str(path))


def _read_pt(path: Path) -> tuple[list[str], Tensor]:
    try:
        check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise VcellError(f"no permission to read {path}. Ask its owner for it: chmod a+r {path}") from error
    except pickle.UnpicklingError as error:
        raise VcellError(
            f"{path} holds more than tensors, and loading it could run code. Save a plain dict from gene "
            "to tensor: torch.save({gene: tensor, ...}, path)"
        ) from error
    except Exception as error:
        raise VcellError(f"{path} cannot be read as a torch file ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise VcellError(f"{path} must contain a dict from gene to tensor; it contains {type(content).__name__}")
    lengths = sorted({v.numel() for v in content.values()})
    if len(lengths) > 1:
        raise VcellError(f"the vectors of {path} differ in length: {shortlist(map(str, lengths))}")
    vectors = [v.reshape(-1).float() for v in content.values()]
    return [str(k) for k in content], torch.stack(vectors) if vectors else torch.empty(0, 0)


def _read_npz(path: Path) -> tuple[list[str], Tensor]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return content["genes"].astype(str).tolist(), torch.from_numpy(content["emb"].astype(np.float32))
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise VcellError(
            f"{path} must contain the arrays 'genes' and 'emb' without pickled objects: {error}"
        ) from error
