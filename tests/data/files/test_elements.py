"""Files whose parts are not what AnnData has there: each is read, or refused with a message that names the part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.data.store.test_ingest import make_cells, write
from vcell.data.files.h5ad import Columns, open_h5ad, read_genes, read_obs
from vcell.data.files.matrix import Matrix, matrix_names
from vcell.errors import VcellError
from vcell.inspection.inspect import inspect
from vcell.score.cells import CellFile
from vcell.score.options import Columns as ScoreColumns

TEXT = h5py.string_dtype()
SCORED = ScoreColumns("target_gene", "cell_type", "non-targeting")


def replaced(file: h5py.File, name: str, values: object, **how: object) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=values, **how).attrs.update(attributes)


def linked(file: h5py.File, name: str, link: h5py.SoftLink | h5py.ExternalLink) -> None:
    del file[name]
    file[name] = link


def with_attributes(value: object) -> Callable[[h5py.File, str], None]:
    return lambda file, name: file[name].attrs.update({key: value for key in file[name].attrs})


# what may become of any part of a file
ANY: dict[str, Callable[[h5py.File, str], object]] = {
    "deleted": lambda file, name: file.__delitem__(name),
    "a link in a circle": lambda file, name: linked(file, name, h5py.SoftLink(f"/{name}")),
    "a link to a lost file": lambda file, name: linked(file, name, h5py.ExternalLink("lost.h5", "/x")),
    "a link out of the folder": lambda file, name: linked(file, name, h5py.ExternalLink("/other.h5", "/x")),
    "one number": lambda file, name: replaced(file, name, 1.0),
    "a word": lambda file, name: replaced(file, name, "abc", dtype=TEXT),
    "nothing": lambda file, name: replaced(file, name, h5py.Empty("f4")),
    "an empty list": lambda file, name: replaced(file, name, np.zeros(0, np.float32)),
    "a cube": lambda file, name: replaced(file, name, np.zeros((4, 5, 2), np.float32)),
    "an empty group": lambda file, name: (file.__delitem__(name), file.create_group(name)),
    "attributes of no text": with_attributes(np.bytes_(b"\xff\xfe")),
    "attributes of numbers": with_attributes(3),
    "attributes of lists": with_attributes(np.array([-1, 5])),
    "attributes of nothing": with_attributes(h5py.Empty("f4")),
}
# and of a list of values
LIST: dict[str, Callable[[h5py.File, str], object]] = {
    "a column": lambda file, name: replaced(file, name, file[name][:][:, None]),
    "one short": lambda file, name: replaced(file, name, file[name][:-1]),
    "fractions": lambda file, name: replaced(file, name, np.arange(len(file[name])) / 2),
    "no numbers": lambda file, name: replaced(file, name, np.full(len(file[name]), np.nan)),
    "large": lambda file, name: replaced(file, name, np.full(len(file[name]), 2**64 - 1, np.uint64)),
    "bytes": lambda file, name: replaced(file, name, np.array([b"\xff%d" % i for i in range(len(file[name]))])),
    "text": lambda file, name: replaced(file, name, [f"x{i}" for i in range(len(file[name]))], dtype=TEXT),
    "pairs": lambda file, name: replaced(file, name, np.zeros(len(file[name]), [("a", "f4"), ("b", "i4")])),
    "lists": lambda file, name: replaced(
        file, name, np.array([*([np.arange(2)] * len(file[name])), None], object)[:-1], dtype=h5py.vlen_dtype("i4")
    ),
}
PARTS = [
    "X", "X/data", "X/indices", "X/indptr", "obs", "obs/_index", "obs/batch", "obs/batch/codes", "obs/batch/categories", "var", "var/_index",
    "layers", "layers/scaled", "obsm", "uns", "uns/vcell",
]  # fmt: skip
LISTS = ("data", "indices", "indptr", "_index", "codes", "categories")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cells = make_cells()
    cells.layers["scaled"] = cells.X.toarray()
    cells.uns["vcell"] = "{}"
    return write(cells, tmp_path_factory.mktemp("whole") / "whole.h5ad")


def read(path: Path) -> None:
    """All of it, as preparing does."""
    with open_h5ad(path) as file:
        obs = read_obs(file, path, Columns(), None)
        for name in matrix_names(file, path):
            genes = read_genes(file, path, name)
            for _ in Matrix.open(file, path, name, len(obs), len(genes)).blocks(path.parent):
                pass


def score(path: Path) -> None:
    """As scoring does."""
    CellFile(path, SCORED, needs_controls=True).cells_of("K562")


@pytest.mark.parametrize("part", PARTS)
def test_any_damage_is_read_or_refused(part: str, whole: Path, tmp_path: Path):
    damages = ANY | (LIST if part.rpartition("/")[2] in LISTS else {})
    for name, damage in damages.items():
        path = Path(shutil.copy(whole, tmp_path / "cells.h5ad"))
        with h5py.File(path, "r+") as file:
            damage(file, part)
        for use in (inspect, read, score):
            try:
                use(path)
            except VcellError as error:
                assert str(path) in str(error), f"{part} as {name}: {error}"
            except Exception as error:
                raise AssertionError(f"{part} as {name}, {use.__name__}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize(
    ("part", "damage", "words"),
    [
        ("X/indices", LIST["fractions"], "X is damaged: an index is 0.5, no whole number"),
        ("X/indices", LIST["a column"], r"X/indices is an array of shape \(\d+, 1\), not a list of values"),
        ("X/indices", LIST["bytes"], r"X/indices holds values of type .S\d, not numbers"),
        ("X/indptr", LIST["no numbers"], "X is damaged: an index is nan, no whole number"),
        ("X/data", ANY["an empty group"], "X/data is a group, not a list of values"),
        ("obs/_index", ANY["one number"], r"obs/_index is an array of shape \(\), not a list of values"),
        ("obs/batch/codes", LIST["a column"], r"obs/batch/codes is an array of shape \(90, 1\)"),
        ("obs/batch/codes", ANY["a link out of the folder"], "obs/batch/codes lies in another file, /other.h5"),
        ("obs/_index", ANY["deleted"], "obs/_index is not there"),
        ("obs", ANY["attributes of no text"], "obs: its attribute .* cannot be read"),
        ("layers", ANY["a link in a circle"], "layers is a link to /layers that leads nowhere"),
    ],
)
def test_the_message_names_the_part(part: str, damage: Callable, words: str, whole: Path, tmp_path: Path):
    path = Path(shutil.copy(whole, tmp_path / "cells.h5ad"))
    with h5py.File(path, "r+") as file:
        damage(file, part)
    with pytest.raises(VcellError, match=words):
        read(path)


def test_whole_numbers_written_as_doubles_are_read(whole: Path, tmp_path: Path):
    """As R writes them."""
    path = Path(shutil.copy(whole, tmp_path / "cells.h5ad"))
    with h5py.File(path, "r+") as file:
        for part in ("X/indices", "X/indptr"):
            replaced(file, part, file[part][:].astype(np.float64))
    found, expected = (CellFile(p, SCORED, needs_controls=True).cells_of("K562") for p in (path, whole))
    for a, b in zip(found.blocks(), expected.blocks(), strict=True):
        assert (a != b).nnz == 0
