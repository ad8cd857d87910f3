"""From options to an opened cell store: an existing one, or one made now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vcell.config import differences
from vcell.data.files.paths import check_required, content_of, expand, read_gene_list, toml_patterns
from vcell.data.store.ingest import ingest
from vcell.data.store.options import GENE_KEYS, RECIPE_KEYS, StoreOptions
from vcell.data.store.panel import PANELS, GeneChoice
from vcell.data.store.recipe import Recipe
from vcell.data.store.store import Cells, CellStore
from vcell.data.store.view import open_stores
from vcell.errors import VcellError, shortlist
from vcell.process.lock import locked

VERIFIED_BYTES = 2 * 10**9  # of a store, whose checksums take a second or two: compared before each training


def ensure_store(
    options: StoreOptions,
    overwrite: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
    verify: bool | None = None,
) -> Cells:
    """The store that the options describe; simulated, read and written first if it does not exist.

    Parameters
    ----------
    verify
        Whether to read the store whole and compare its checksums; None: where that takes a second or two.

    Raises
    ------
    VcellError
        If files are missing, the store there was made from other files or settings, or has changed since.
    """
    if options.stores:
        return verified(open_stores(list(options.stores)), verify)
    path, simulate = options.store, options.simulate
    if path.exists() and not overwrite and (simulate is None or Path(simulate["out"]).exists()):
        return verified(_found(options, path), verify)
    with locked(path, "the store", wait=True):
        if path.exists() and not overwrite:  # written by another process meanwhile
            return verified(_found(options, path), verify)
        return _made(options, path, workers, cluster)


def _found(options: StoreOptions, path: Path) -> CellStore:
    """The store that is there, if it is what the options would make."""
    _simulated(options)
    store = CellStore.open(path)
    then = store.meta["provenance"].get("settings")
    if then is not None and not differences({"data": then}, {"data": options.settings}) and not _files_there(options):
        return store  # a store travels without its files
    check_required(options)
    _check_same(store, options.settings, _fingerprints(_files(options)))
    return store


def _made(options: StoreOptions, path: Path, workers: int | None, cluster: str | None) -> CellStore:
    check_required(options)
    _simulated(options)
    files, settings = _files(options), options.settings
    listed = settings["genes"] is not None and settings["genes"] not in PANELS
    genes = read_gene_list(settings["genes"]) if listed else settings["genes"] or "union"
    store = ingest(
        files,
        path,
        Recipe(
            columns=options.columns,
            labels=options.labels,
            obsm=tuple(settings["obsm"]),
            **{key: settings[key] for key in RECIPE_KEYS},
        ),
        GeneChoice(genes, **{key: settings[key] for key in GENE_KEYS}),
        options.filter,
        provenance={"settings": dict(settings), "files": _fingerprints(files)},
        workers=workers,
        cluster=cluster,
    )
    for note in store.meta["labels"]:
        print(f"labels       {note}", flush=True)
    for note in store.meta["counted_twice"]:
        print(f"warning      {note}: they are counted twice. Leave out one of the files", flush=True)
    return store


def _simulated(options: StoreOptions) -> None:
    if options.simulate is not None:
        from vcell.data.simulation.screen import Screen  # here: a store that is there opens without anndata
        from vcell.data.simulation.write import ensure_screen

        arguments = dict(options.simulate)
        ensure_screen(Path(arguments.pop("out")), Screen(**arguments))


def verified(store: Cells, verify: bool | None = None) -> Cells:
    """The same store, with its checksums verified if that is requested or takes only a second or two."""
    parts = [part for part in getattr(store, "parts", (store,)) if isinstance(part, CellStore)]
    for part in parts:
        if verify or (verify is None and part.size_bytes <= VERIFIED_BYTES):
            if not part.verify() and verify:
                print(
                    f"note         {part.path} was written by an older vcell and has no checksums to compare",
                    flush=True,
                )
        elif verify is None:
            print(
                f"note         the checksums of {part.path} ({part.size_bytes / 1e9:,.0f} GB) were not compared; to do that once: "
                "python -m vcell.prepare ... verify=true",
                flush=True,
            )
    return store


def describe_store(store: Cells) -> str:
    """What a store holds, source by source and context by context."""
    obs = store.obs
    lines = [
        f"store        {store.name}",
        f"cells        {store.n_cells:,}, {store.n_genes:,} genes",
        f"library size {obs['library_size'].median():,.0f} counts per cell (median)",
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
        lines.append(f"left out     {meta['empty_cells_dropped']:,} cells without counts")
    lines += [f"left out     {note}" for note in meta["filtered"]]
    for source, number in meta["genes_missing"].items():
        lines.append(f"missing      {number:,} genes were not measured in {source}: masked there, not 0")
    for source, number in meta["genes_zero"].items():
        if number:
            lines.append(
                f"all zero     {number:,} genes are 0 in every cell of {source}; if they were never measured there, set "
                "data.zero_genes=missing"
            )
    lines += [
        f"warning      {note}: they are counted twice. Leave out one of the files"
        for note in meta.get("counted_twice", [])
    ]
    lines += [f"labels       {note}" for note in meta.get("labels", [])]
    if meta.get("labels"):
        lines.append(f"             all of them: {store.path / 'labels.csv'}")
    genes = pd.read_csv(store.path / "genes.csv", keep_default_na=False, dtype=str)
    for decision, rows in genes.groupby("decision", sort=False):
        changed = [f"{g} → {b}" if b else f"{g} ({c})" for g, b, c in rows[["gene", "became", "candidates"]].to_numpy()]
        lines.append(f"genes        {len(rows):,} {decision}: {shortlist(dict.fromkeys(changed), 4)}")
    if len(genes):
        lines.append(f"             all of them: {store.path / 'genes.csv'}")
    if (genes["decision"] == "ambiguous").any():
        lines.append("             ambiguous names are not used: specify what they mean, 'data.rename={OLD: NEW}'")
    return lines


def _files(options: StoreOptions) -> list[Path]:
    if options.toml:
        return expand(toml_patterns(options.toml))
    files = expand(options.path or ())
    if not files:
        raise VcellError("specify which files to read: data.path=FILE.h5ad")
    return files


def _files_there(options: StoreOptions) -> bool:
    try:
        return bool(_files(options))
    except VcellError:
        return False


def _fingerprints(files: list[Path]) -> list[list[Any]]:
    """The fingerprint of each file: name, size, and a checksum of its content (`paths.content_of`)."""
    return sorted([file.name, file.stat().st_size, content_of(file)] for file in files)


def _same_files(then: list[list[Any]], now: list[list[Any]]) -> bool:
    """Whether the files are the same as before; stores of earlier versions recorded a modification time instead of a checksum."""
    whole = all(len(row) == 3 and isinstance(row[2], str) for row in then)
    return then == now if whole else [row[:2] for row in then] == [row[:2] for row in now]


def _check_same(store: CellStore, settings: Mapping[str, Any], files: list[list[Any]]) -> None:
    then = store.meta["provenance"]
    # where the files lie may change, if they are the same
    kept = {key: value for key, value in settings.items() if key not in ("path", "toml")}
    before = {key: value for key, value in then.get("settings", {}).items() if key in kept}
    differing = sorted(differences({"data": before}, {"data": kept}))
    if not _same_files(then.get("files", []), files):
        differing.append("the files")
    elif (
        settings["genes"] not in (None, *PANELS)
        and "data.genes" not in differing
        and read_gene_list(settings["genes"]) != store.genes
    ):
        differing.append("the gene list")
    if differing:
        raise VcellError(
            f"the store {store.path} was made from other input: {', '.join(differing)} differ. Rebuild it with "
            "python -m vcell.prepare ... overwrite=true, or choose another folder with data.store=FOLDER"
        )
