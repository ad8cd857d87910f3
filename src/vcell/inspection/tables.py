"""A table of gene vectors looked at: its names, the nearest neighbours of genes, what it covers of a list; as text and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vcell.atomic import written_file
from vcell.data.files.genes import gene_names
from vcell.effects.linear import likeness
from vcell.errors import VcellError, check_ending, check_number, nearest, shortlist
from vcell.inspection.names import names_of
from vcell.model.table import PerturbationTable
from vcell.pages.pictures import as_they_are

PICTURED = 3000  # points, at most


@dataclass(frozen=True)
class Coverage:
    """Which names of a list a table has: ``by_name`` as they are, ``otherwise`` under another name or as several genes, ``missing`` not."""

    source: str
    by_name: list[str]
    otherwise: dict[str, str]
    missing: list[str]


@dataclass(frozen=True)
class Look:
    """What a table holds.

    Attributes
    ----------
    neighbours
        Gene to its nearest names and their cosine, the nearest first.
    """

    path: str
    table: PerturbationTable
    kinds: dict[str, int]
    neighbours: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    coverage: Coverage | None = None

    def text(self) -> str:
        """As lines."""
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.kinds.items())
        lines = [f"{self.path}: {len(self.table.names):,} vectors × {self.table.width}", f"names        {kinds} (HGNC)"]
        for gene, found in self.neighbours.items():
            lines.append(f"{gene:<12} {', '.join(f'{name} {value:.2f}' for name, value in found)}")
        if (c := self.coverage) is not None:
            total = len(c.by_name) + len(c.otherwise) + len(c.missing)
            lines.append(f"covers       {len(c.by_name) + len(c.otherwise):,} of the {total:,} names in {c.source}")
            if c.otherwise:
                lines.append(
                    f"  otherwise  {len(c.otherwise):,}: {shortlist([f'{n} is {of}' for n, of in c.otherwise.items()], 6)}"
                )
            if c.missing:
                lines.append(
                    f"  missing    {len(c.missing):,}: {shortlist(c.missing)}.{nearest(c.missing[0], self.table.names)}"
                )
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """For machines."""
        return {
            "path": self.path, "vectors": len(self.table.names), "width": self.table.width, "names": self.kinds, "neighbours": self.neighbours,
            "coverage": None if self.coverage is None else vars(self.coverage),
        }  # fmt: skip


def look_at(path: str, genes: Sequence[str] = (), number: int = 10, of: str | None = None) -> Look:
    """What a table holds, with the nearest neighbours of some genes, and what it covers of a list.

    Raises
    ------
    VcellError
        If the table or list cannot be read, or lacks one of the genes.
    """
    check_number("neighbours", number, 1)
    table = PerturbationTable.load(path)
    standard = table.standardised().covering(genes)
    standard.require(genes)
    found = {gene: _neighbours(standard, gene, len(table.names), number) for gene in genes}
    kinds = Counter(gene_names().meaning(name).how for name in table.names)
    return Look(path, table, dict(kinds.most_common()), found, None if of is None else _coverage(table, of))


def _neighbours(table: PerturbationTable, gene: str, names: int, number: int) -> list[tuple[str, float]]:
    vectors = table.vectors[:names].numpy()
    own = table.vectors[table.row[gene]].numpy()[None]
    similar = likeness(own, vectors)[0]
    same = (vectors == own).all(1)
    order = [i for i in np.argsort(-similar, kind="stable") if not same[i]][:number]
    return [(table.names[i], round(float(similar[i]), 4)) for i in order]


def _coverage(table: PerturbationTable, of: str) -> Coverage:
    wanted = list(dict.fromkeys(names_of(of)))
    if not wanted:
        raise VcellError(f"{of} names nothing")
    covered = table.covering(wanted, "sum")
    otherwise = {d.name: d.of for d in covered.decisions}
    return Coverage(
        of,
        [name for name in wanted if name in table.row],
        otherwise,
        [name for name in wanted if name not in covered.row],
    )


def plot(found: Look, out: Path) -> None:
    """The vectors on their first two components, with the genes asked for and their neighbours named; and what is covered, as a bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6.2), layout="constrained")
    check_ending("plot", out, (f".{kind}" for kind in sorted(figure.canvas.get_supported_filetypes())))
    vectors = found.table.standardised().vectors.numpy().astype(np.float64)
    centred = vectors - vectors.mean(0)
    _, axes_KD = np.linalg.eigh(centred.T @ centred)
    place = centred @ axes_KD[:, ::-1][:, :2]
    panels = figure.subplots(2, 1, height_ratios=[12, 1]) if found.coverage else [figure.subplots()]
    some = np.random.default_rng(0).permutation(len(place))[:PICTURED]
    panels[0].scatter(place[some, 0], place[some, 1], s=4, color="0.75", linewidths=0)
    row = found.table.covering(list(found.neighbours)).row
    for gene, neighbours in found.neighbours.items():
        rows = [r for name in [gene, *(n for n, _ in neighbours)] if (r := row[name]) < len(place)]
        shown = panels[0].scatter(place[rows, 0], place[rows, 1], s=18, label=f"{gene} and its neighbours")
        for r in rows:
            panels[0].annotate(found.table.names[r], place[r], fontsize=7, color=shown.get_facecolor()[0])
    panels[0].set(title=f"{Path(found.path).name}: {len(place):,} vectors", xlabel="component 1", ylabel="component 2")
    if found.neighbours:
        panels[0].legend(frameon=False, fontsize=8)
    if (c := found.coverage) is not None:
        parts = {"by name": len(c.by_name), "otherwise": len(c.otherwise), "missing": len(c.missing)}
        start = 0
        for (label, number), color in zip(parts.items(), ("tab:blue", "tab:cyan", "tab:red"), strict=True):
            panels[1].barh(0, number, left=start, color=color, label=f"{label} {number:,}")
            start += number
        panels[1].set(yticks=[], xlim=(0, start), title=f"names in {Path(c.source).name}")
        panels[1].legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.6))
    with written_file(out) as scratch:
        as_they_are(figure).savefig(scratch, dpi=120, format=out.suffix.removeprefix(".") or "png")
