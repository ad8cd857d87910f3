"""Where control cells come from: the store of the run, or files of contexts that no run has seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcell.data.files.genes import align, appended
from vcell.data.files.h5ad import Columns, column_names, open_h5ad, read_column
from vcell.data.files.labels import LabelRules, as_labels, usual_controls
from vcell.data.files.paths import expand
from vcell.data.store.ensure import verified
from vcell.data.store.ingest import ingest
from vcell.data.store.panel import GeneChoice
from vcell.data.store.recipe import Recipe
from vcell.data.store.store import Cells, CellStore, is_store
from vcell.data.store.view import open_stores
from vcell.errors import VcellError, shortlist
from vcell.model.checkpoint import Identity
from vcell.predict.options import PredictOptions

LEAST_SHARED = 0.5  # of a model's genes, or of a challenge's, that control cells must have


def open_controls(options: PredictOptions, identity: Identity, ckpt: Path, genes: Sequence[str], place: Path) -> Cells:
    """The store that control cells come from: the run's, or one made of `options.controls` at `place`.

    `genes` are those of the file to be written, which the control cells' files may have in addition to the model's.
    """
    challenge = options.challenge
    if options.controls is None:
        store = open_run_store(options.store, identity, ckpt, ", or provide control cells with controls=FILE.h5ad")
    else:
        store = control_store(
            options,
            place,
            identity.columns,
            Columns(challenge.perturbation, None, challenge.context),
            identity.control if challenge.control is None else challenge.control,
            joined_genes(identity.genes, genes),
            [identity.embedding] if identity.embedding else [],
        )
    shared = len(set(store.genes) & set(identity.genes))
    if shared < LEAST_SHARED * len(identity.genes):
        raise VcellError(
            f"{store.name} has {shared:,} of the {len(identity.genes):,} genes that {ckpt} was trained on: too few to predict "
            "from. Use control cells with the same genes"
        )
    return store


def open_run_store(store: Any, identity: Identity, ckpt: Path, otherwise: str = "") -> Cells:
    """The cell store (or stores) a checkpoint was trained on.

    `store` says where it lies now; None where it lay in training. `otherwise` says what else can be done where it is not there.
    """
    paths = [Path(path) for path in store_of(store, identity)]
    absent = [path for path in paths if not path.exists()]
    if absent:
        raise VcellError(
            f"the cell store {absent[0]}, which {ckpt} was trained on, does not exist. Specify where it is with "
            f"store=FOLDER{otherwise}"
        )
    opened = open_stores(paths)
    if opened.fingerprint != identity.store["fingerprint"]:
        raise VcellError(
            f"the cell store {opened.name} is not the one {ckpt} was trained on (fingerprints differ). Specify the right one with "
            f"store=FOLDER{otherwise}"
        )
    return verified(opened)


def store_of(store: Any, identity: Identity) -> list[str]:
    """Folders of the run's store: those given, or those it lay in."""
    given = [store] if isinstance(store, str) else store or identity.store["paths"]
    return [str(path) for path in given]


def control_store(
    options: PredictOptions,
    place: Path,
    columns: Columns,
    other_columns: Columns,
    control: str,
    genes: Sequence[str] | None,
    obsm: Sequence[str] = (),
) -> CellStore:
    """The cells of `options.controls` (files, globs, or a cell store) as a store; at `place`, where that is not there yet.

    Parameters
    ----------
    columns, other_columns
        obs columns: each is looked for under the first name, then under the second. Without a batch column a file is one batch.
    control
        The label of control cells.
    genes
        Those the store has to hold; None: all of the files.
    obsm
        Embeddings to take along.

    Raises
    ------
    VcellError
        If the files cannot be read, or do not say which context their cells are of.
    """
    controls, contexts = options.controls, options.contexts  # one name of a context, where no column says it
    if is_store(controls):
        return CellStore.open(str(controls))
    if not controls:
        raise VcellError("controls names no file of control cells")
    if (place / "meta.json").is_file():
        return CellStore.open(place)
    files = expand(controls, "controls")
    found = _columns_in(files[0], columns, other_columns, control)
    context = None
    if found.context is None:
        if not contexts or len(contexts) != 1:
            asked = " or ".join(dict.fromkeys(repr(c.context) for c in (columns, other_columns) if c.context))
            raise VcellError(f"{files[0]} has no column {asked}: name the context of its cells with contexts=[NAME]")
        context = str(contexts[0])
    others = _called_otherwise(files, str(found.perturbation), control)
    if others:
        print(f"note         cells labelled {shortlist(others, 3)} are taken for control cells, {control}", flush=True)
    rules = LabelRules(rename=others)
    recipe = Recipe(found, control, rules, context, empty_cells="drop", obsm=tuple(obsm))
    store = ingest(files, place, recipe, GeneChoice("union" if genes is None else list(genes)))
    if dropped := store.meta["empty_cells_dropped"]:
        print(f"note         {dropped:,} cells without counts are left out of the control cells", flush=True)
    for source, number in store.meta["genes_missing"].items():
        print(
            f"note         {source} lacks {number:,} of {store.n_genes:,} genes: they are 0 in predictions from it",
            flush=True,
        )
    return store


def joined_genes(first: Sequence[str], others: Sequence[str]) -> list[str]:
    """`first`, followed by those of `others` that mean none of them."""
    return appended(list(first), list(others), align(list(others), list(first)).position)[0]


def _called_otherwise(files: Sequence[Path], column: str, control: str) -> dict[str, str]:
    """Usual names of control cells in files where none is called as in training, each with that name."""
    labels: dict[str, None] = {}  # that cells have: a table may list others
    for path in files:
        with open_h5ad(path) as file:
            if column in column_names(file, "obs", path):
                labels |= dict.fromkeys(as_labels(read_column(file, "obs", column, path)).astype(str).unique())
    found = usual_controls(labels, control)
    if found is None:
        raise VcellError(
            f"{shortlist(map(str, files), 3)}: no cell is labelled {control!r}, as controls are in training, or by another usual name of "
            f"them. Labels: {shortlist(map(repr, labels), 5)}. Write {control!r} for control cells: "
            f"adata.obs[{column!r}] = adata.obs[{column!r}].replace({{OLD: {control!r}}})"
        )
    return found


def _columns_in(path: Path, columns: Columns, other: Columns, control: str) -> Columns:
    with open_h5ad(path) as file:
        known = column_names(file, "obs", path)

    def first(*names: str | None) -> str | None:
        return next((name for name in names if name in known), None)

    perturbation = first(columns.perturbation, other.perturbation)
    if perturbation is None:
        raise VcellError(
            f"{path} has no obs column {columns.perturbation!r} that says which cells are controls; it has: {shortlist(known) or 'none'}. If all "
            f"are, write it again with adata.obs[{columns.perturbation!r}] = {control!r}"
        )
    return Columns(perturbation, first(columns.batch, other.batch), first(columns.context, other.context), columns.gene)
