"""A data configuration to an opened cell store: found, or made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vcell.data.files import expand, toml_patterns
from vcell.data.h5ad import Columns
from vcell.data.ingest import ingest
from vcell.data.screen import Screen
from vcell.data.simulate import ensure_screen
from vcell.data.store import CellStore
from vcell.errors import VcellError

# what the content of a store depends on; anything else in the data configuration may change freely
STORE_KEYS = ("path", "toml", "columns", "control", "context", "matrix", "scale", "genes")


def ensure_store(data: DictConfig, overwrite: bool = False) -> CellStore:
    """The store of a data configuration; simulated, read and written first where it is not there yet.

    Raises
    ------
    VcellError
        If files are missing, or the store there was made from other files or settings.
    """
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
    return ingest(
        files,
        path,
        Columns(**data.columns),
        control=data.control,
        context=data.context,
        matrix=data.matrix,
        scale=data.scale,
        genes=read_gene_list(data.genes) if data.genes else None,
        provenance={"settings": settings, "files": _fingerprints(files)},
    )


def read_gene_list(path: str) -> list[str]:
    """Gene names, one a line, no header, as the challenge's `gene_names.csv`."""
    if not Path(path).is_file():
        raise VcellError(f"no such file: {path} (looked from {Path.cwd()}). Set data.genes=gene_names.csv")
    genes = [line.split(",")[0].strip() for line in Path(path).read_text().splitlines() if line.strip()]
    twice = sorted({g for g in genes if genes.count(g) > 1}) if len(set(genes)) < len(genes) else []
    if twice:
        raise VcellError(f"{path} names {len(twice)} genes more than once: {', '.join(twice[:5])}")
    return genes


def describe_store(store: CellStore) -> str:
    """What a store holds, context by context."""
    obs = store.obs
    lines = [
        f"store        {store.path}",
        f"cells        {store.n_cells:,}, {store.n_genes:,} genes, {store.meta['stored_values']:,} counts above 0",
        f"library size {obs['library_size'].median():,.0f} counts a cell (median)",
    ]
    if store.meta["empty_cells_dropped"]:
        lines.append(f"dropped      {store.meta['empty_cells_dropped']:,} cells without any count")
    lines += [f"scale        {file}: {scale}" for file, scale in store.meta["scales"].items()]
    for context in store.contexts:
        cells = obs[obs["context"] == context]
        control = cells["perturbation"] == store.control
        lines.append(
            f"context      {context}: {len(cells):,} cells, {int(control.sum()):,} of them controls, "
            f"{cells.loc[~control, 'perturbation'].nunique():,} perturbations, {cells['batch'].nunique():,} batches"
        )
    return "\n".join(lines)


def _files(data: DictConfig) -> list[Path]:
    if data.toml:
        return expand(toml_patterns(data.toml))
    path = OmegaConf.to_container(data, resolve=True)["path"]  # type: ignore[index, call-overload]
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
    elif settings["genes"] and "data.genes" not in differing and read_gene_list(settings["genes"]) != store.genes:
        differing.append("the gene list")
    if differing:
        raise VcellError(
            f"the store {store.path} was made from other input: {', '.join(differing)} differ. Write it anew with "
            "python -m vcell.prepare ... overwrite=true, or name another folder with data.store=FOLDER"
        )
