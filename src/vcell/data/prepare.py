"""A data configuration to an opened cell store: found, or made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from vcell.cli import build
from vcell.data.files import expand, read_gene_list, toml_patterns
from vcell.data.h5ad import Columns
from vcell.data.ingest import ingest
from vcell.data.panel import PANELS, GeneChoice
from vcell.data.recipe import Recipe
from vcell.data.screen import Screen
from vcell.data.simulate import ensure_screen
from vcell.data.store import Cells, CellStore
from vcell.data.view import open_stores
from vcell.errors import VcellError, shortlist

RECIPE_KEYS = ("control", "context", "matrix", "scale", "normalised_to", "empty_cells")
GENE_KEYS = ("rename", "zero_genes", "min_overlap")
# what the content of a store depends on; anything else in the data configuration may change freely
STORE_KEYS = ("path", "toml", "columns", "obsm", "genes", "filter", *RECIPE_KEYS, *GENE_KEYS)


def ensure_store(
    data: DictConfig, overwrite: bool = False, workers: int | None = None, cluster: str | None = None
) -> Cells:
    """The store of a data configuration; simulated, read and written first where it is not there yet.

    Raises
    ------
    VcellError
        If files are missing, or the store there was made from other files or settings.
    """
    if data.stores:
        return open_stores([str(path) for path in data.stores])
    path = Path(data.store)
    if data.simulate is not None and (Path(data.simulate.out).exists() or not path.exists()):
        arguments = dict(OmegaConf.to_container(data.simulate, resolve=True))  # type: ignore[arg-type]
        ensure_screen(Path(arguments.pop("out")), Screen(**arguments))
    settings = _settings(data)
    if path.exists() and not overwrite:
        store = CellStore.open(path)
        if store.meta["provenance"].get("settings") == settings and not _files_there(data):
            return store  # a store travels without its files
        check_required(data)
        _check_same(store, settings, _fingerprints(_files(data)))
        return store
    check_required(data)
    files = _files(data)
    listed = data.genes is not None and data.genes not in PANELS
    genes = read_gene_list(data.genes) if listed else data.genes or "union"
    columns = Columns(**data.columns)
    return ingest(
        files,
        path,
        Recipe(columns=columns, obsm=tuple(settings["obsm"]), **{key: settings[key] for key in RECIPE_KEYS}),
        GeneChoice(genes, **{key: settings[key] for key in GENE_KEYS}),
        build(data.filter),
        provenance={"settings": settings, "files": _fingerprints(files)},
        workers=workers,
        cluster=cluster,
    )


def describe_store(store: Cells) -> str:
    """What a store holds, source by source and context by context."""
    obs = store.obs
    lines = [
        f"store        {store.name}",
        f"cells        {store.n_cells:,}, {store.n_genes:,} genes",
        f"library size {obs['library_size'].median():,.0f} counts a cell (median)",
    ]
    lines += [f"scale        {Path(file).name}: {scale.words}" for file, scale in store.scales.items()]
    for part in [store] if isinstance(store, CellStore) else getattr(store, "parts", ()):
        lines += _decisions(part)
    for context in store.contexts:
        cells = obs[obs["context"] == context]
        control = cells["perturbation"] == store.control
        lines.append(
            f"context      {context}: {len(cells):,} cells, {int(control.sum()):,} of them controls, "
            f"{cells.loc[~control, 'perturbation'].nunique():,} perturbations, {cells['batch'].nunique():,} batches"
        )
    return "\n".join(lines)


def _decisions(store: CellStore) -> list[str]:
    """What was left out, filled in or renamed when the store was made."""
    meta, lines = store.meta, []
    if meta["empty_cells_dropped"]:
        lines.append(f"left out     {meta['empty_cells_dropped']:,} cells without any count")
    lines += [f"left out     {note}" for note in meta["filtered"]]
    for source, number in meta["genes_missing"].items():
        lines.append(f"missing      {number:,} genes were not measured in {source}: masked there, not 0")
    for source, number in meta["genes_zero"].items():
        if number:
            lines.append(
                f"all zero     {number:,} genes are 0 in every cell of {source}; if they were never measured there, say so: "
                "data.zero_genes=missing"
            )
    genes = pd.read_csv(store.path / "genes.csv", keep_default_na=False, dtype=str)
    for decision, rows in genes.groupby("decision", sort=False):
        changed = [f"{g} → {b}" if b else f"{g} ({c})" for g, b, c in rows[["gene", "became", "candidates"]].to_numpy()]
        lines.append(f"genes        {len(rows):,} {decision}: {shortlist(dict.fromkeys(changed), 4)}")
    if len(genes):
        lines.append(f"             all of them: {store.path / 'genes.csv'}")
    if (genes["decision"] == "ambiguous").any():
        lines.append("             an ambiguous name is taken for none: say what it means, 'data.rename={OLD: NEW}'")
    return lines


def _files(data: DictConfig) -> list[Path]:
    if data.toml:
        return expand(toml_patterns(data.toml))
    path = None if OmegaConf.is_missing(data, "path") else OmegaConf.to_container(data, resolve=True)["path"]  # type: ignore[index, call-overload]
    if path is None:
        raise VcellError("say which files to read: data.path=FILE.h5ad")
    return expand(path)


def check_required(data: DictConfig) -> None:
    """A `VcellError` that lists the files a distributed data set lacks, and where it is to be had."""
    missing = {name: what for name, what in data.required.items() if not (Path(data.root) / str(name)).is_file()}
    if missing:
        width = max(len(str(name)) for name in missing)
        listed = "\n".join(f"  {name!s:<{width}}  {what}" for name, what in missing.items())
        raise VcellError(
            f"{len(missing)} of the {len(data.required)} files of data={data.name} are not in {data.root}/ "
            f"(looked from {Path.cwd()}):\n{listed}\n{data.where}"
        )


def _files_there(data: DictConfig) -> bool:
    try:
        return bool(_files(data))
    except VcellError:
        return False


def _settings(data: DictConfig) -> dict[str, Any]:
    """The settings a store is made with."""
    resolved: dict[str, Any] = OmegaConf.to_container(data, resolve=True)  # type: ignore[assignment]
    if isinstance(resolved["input"], str):
        resolved["obsm"] = sorted({*resolved["obsm"], resolved["input"]})
    return json.loads(json.dumps({key: resolved[key] for key in STORE_KEYS}))


def _fingerprints(files: list[Path]) -> list[list[Any]]:
    """What tells that files are the same without reading them: name, size, time of change."""
    return sorted([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)


def _check_same(store: CellStore, settings: dict[str, Any], files: list[list[Any]]) -> None:
    then = store.meta["provenance"]
    # where the files lie may change, if they are the same
    keys = [key for key in STORE_KEYS if key not in ("path", "toml")]
    differing = [f"data.{key}" for key in keys if then.get("settings", {}).get(key) != settings[key]]
    if then.get("files") != files:
        differing.append("the files")
    elif (
        settings["genes"] not in (None, *PANELS)
        and "data.genes" not in differing
        and read_gene_list(settings["genes"]) != store.genes
    ):
        differing.append("the gene list")
    if differing:
        raise VcellError(
            f"the store {store.path} was made from other input: {', '.join(differing)} differ. Write it anew with "
            "python -m vcell.prepare ... overwrite=true, or name another folder with data.store=FOLDER"
        )
