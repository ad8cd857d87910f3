"""Runs side by side: what differs in their configurations, what their validations and evaluations say, their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcell.config import compose, differences, plain
from vcell.errors import VcellError
from vcell.records.journal import read_starts
from vcell.records.listing import aligned, find_run, last_validation, read_config, scores_of
from vcell.records.metrics import read_metrics

# of a configuration: names and places, which differ between any two runs and change no number
NAMES = ("name", "run_dir", "overwrite", "resume", "logger", "callbacks", "trainer.default_root_dir", "data.where")
LONGEST = 48


@dataclass(frozen=True)
class Comparison:
    """Two runs or more.

    Attributes
    ----------
    settings
        Configuration keys that differ: the value in each run.
    versions
        Packages and commits that differ, likewise.
    numbers
        The last validation and the evaluations: each run's value, None where it has none.
    curves
        Rows of each run's metrics.csv, by its name.
    """

    names: tuple[str, ...]
    settings: Mapping[str, tuple[Any, ...]]
    versions: Mapping[str, tuple[Any, ...]]
    numbers: Mapping[str, tuple[float | None, ...]]
    curves: Mapping[str, Sequence[dict[str, Any]]]

    def plain(self) -> dict[str, Any]:
        return {"runs": self.names, "settings": self.settings, "versions": self.versions, "numbers": self.numbers}


def compare(names: Sequence[str], runs: Path) -> Comparison:
    """The runs called `names`.

    Raises
    ------
    VcellError
        For fewer than two, or one that is not there.
    """
    if len(names) < 2:
        raise VcellError("name the runs to compare: vcell runs compare A B")
    folders = [find_run(name, runs) for name in names]
    curves = {name: read_metrics(folder / "metrics.csv") for name, folder in zip(names, folders, strict=True)}
    measured = [
        {**last_validation(curves[name]), **{f"SCORE ({k})": v for k, v in scores_of(folder).items()}}
        for name, folder in zip(names, folders, strict=True)
    ]
    keys = list(dict.fromkeys(key for one in measured for key in one))
    return Comparison(
        tuple(names),
        side_by_side([read_config(folder) for folder in folders]),
        _versions(folders),
        {key: tuple(one.get(key) for one in measured) for key in keys},
        curves,
    )


def side_by_side(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Keys in which any of the configurations differs from the first: their values in all; but for what changes no number."""
    found: dict[str, list[Any]] = {}
    for number, config in enumerate(configs[1:], 1):
        for key, (first, other) in differences(configs[0], config).items():
            if not any(key == name or key.startswith(f"{name}.") for name in NAMES):
                found.setdefault(key, [first] * len(configs))[number] = other
    return {key: tuple(values) for key, values in sorted(found.items())}


def against_defaults(recorded: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What a run has other than ``vcell.train`` without settings would have: (default, its own)."""
    name = recorded.get("name", "run")
    defaults = plain(compose("train", [f"name={name}"]))
    return side_by_side([defaults, recorded])


def _versions(folders: Sequence[Path]) -> dict[str, tuple[Any, ...]]:
    flat = []
    for folder in folders:
        last = (read_starts(folder) or [{}])[-1]
        flat.append({**last.get("versions", {}), "commit of vcell": last.get("commit", {}).get("vcell")})
    keys = dict.fromkeys(key for one in flat for key in one)
    found = {key: tuple(one.get(key) for one in flat) for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def as_text(found: Comparison) -> str:
    """Tables for the terminal."""
    parts = [table("configuration", found.names, found.settings) or "configuration  the same"]
    if found.versions:
        parts.append(table("versions", found.names, found.versions))
    if found.numbers:
        parts.append(table("scores", found.names, found.numbers))
    return "\n\n".join(parts)


def table(title: str, names: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> str:
    """Rows of values under the names they belong to; an empty text for none."""
    if not rows:
        return ""
    return "\n".join(aligned([[title, *names], *([key, *map(_shown, values)] for key, values in rows.items())]))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    text = f"{value:.4f}" if isinstance(value, float) and abs(value) >= 1e-3 else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
