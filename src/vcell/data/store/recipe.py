"""How h5ad files are read: which columns, which matrix, on which scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vcell.data.files.csr import LARGEST
from vcell.data.files.h5ad import Columns
from vcell.data.files.labels import CONTROL, LabelRules, listed_names
from vcell.data.files.matrix import Matrix, Sample
from vcell.data.files.sample import sample_cells
from vcell.data.files.scale import Scale, detect_scale
from vcell.errors import VcellError, check_choice, check_number, nearest, shortlist

SAMPLE_CELLS = 500


@dataclass(frozen=True)
class Recipe:
    """How files are read.

    Parameters
    ----------
    columns, control, context
        Which obs columns say what; the labels of control cells, of which the first is given to all; the context of all cells,
        where no column says it.
    labels
        How labels are read.
    matrix
        ``X``, ``layers/NAME`` or ``raw/X``.
    scale
        ``auto``, a `Scale`, or one for each file name.
    normalised_to
        The total per cell that scaled files were scaled to, where genes were dropped afterwards: gives library sizes.
    empty_cells
        ``refuse`` or ``drop`` cells without counts.
    obsm
        Embeddings of the cells to take along, by their names in obsm.
    """

    columns: Columns = field(default_factory=Columns)
    control: str | Sequence[str] = CONTROL
    labels: LabelRules = field(default_factory=LabelRules)
    context: str | None = None
    matrix: str = "X"
    scale: str | Mapping[str, str] = "auto"
    normalised_to: float | None = None
    empty_cells: str = "refuse"
    obsm: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("data.empty_cells", self.empty_cells, ("refuse", "drop"))
        if self.normalised_to is not None:
            check_number("data.normalised_to", self.normalised_to, 0, whole=False, above=True, other="null")

    @property
    def control_label(self) -> str:
        """The label that control cells have in a store."""
        return listed_names(self.control)[0]

    def check_scales(self, files: Sequence[Path]) -> None:
        """A `VcellError` where `scale` names a scale that is none, or a file that is not read."""
        if not isinstance(self.scale, str | Mapping):
            raise VcellError(
                f"data.scale={self.scale} must be auto, {', '.join(Scale)}, or files with theirs: 'data.scale={{FILE: counts}}'"
            )
        known = {name for path in files for name in (path.name, path.stem)}
        unknown = [] if isinstance(self.scale, str) else [name for name in self.scale if name not in known]
        if unknown:
            raise VcellError(
                f"data.scale names {shortlist(unknown)}, which is not one of the files.{nearest(unknown[0], known)} Files: "
                f"{shortlist([path.name for path in files])}"
            )
        for path in files:
            self.scale_of(path)

    def scale_of(self, path: Path) -> str:
        """``auto`` or the scale said for a file."""
        said = (
            self.scale if isinstance(self.scale, str) else self.scale.get(path.name, self.scale.get(path.stem, "auto"))
        )
        if said != "auto" and said not in list(Scale):
            raise VcellError(f"data.scale={said!r} is none of: auto, {', '.join(Scale)}.{nearest(str(said), Scale)}")
        return said


def file_scale(matrix: Matrix, recipe: Recipe, path: Path) -> Scale:
    """The scale said for the file, or the one found on cells spread over it."""
    said = recipe.scale_of(path)
    if said != "auto":
        return Scale(said)
    sample = sample_cells(matrix, SAMPLE_CELLS)
    try:
        return sample_scale(sample)
    except VcellError as error:
        raise VcellError(f"{matrix.what}: {error}") from error


def sample_scale(sample: Sample) -> Scale:
    """The scale of a sample; counts where it holds impossible values, so that the full reading names the cell."""
    if not ((sample.values >= 0) & (sample.values <= LARGEST)).all():
        return Scale.COUNTS
    return detect_scale(sample.values, sample.indptr)
