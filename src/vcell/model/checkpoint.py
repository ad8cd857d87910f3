"""Checkpoints: what one says of itself, read without unpickling anything, enough to predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib import import_module
from inspect import signature
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vcell import __version__
from vcell.atomic import check_zip
from vcell.data.covariates import Covariates
from vcell.data.files.h5ad import Columns
from vcell.data.gather import Gather
from vcell.data.splits import Group
from vcell.data.store.view import store_paths
from vcell.effects.make import FITTED
from vcell.effects.own_gene import measure_own_genes
from vcell.errors import VcellError, no_such_file
from vcell.model.run_table import table_for
from vcell.model.table import PerturbationTable
from vcell.model.transition import TransitionModel

# a larger table stays in its file, and the checkpoint carries its path and checksum
LARGEST_TABLE_INSIDE = 64 * 2**20
# what a model is told of the data and the table
SIZES = ("n_genes", "perturbation_width", "perturbation_parts", "input_width", "seen_genes", "n_contexts", "n_batches")
# what a checkpoint may ask to be built, by the name it is given in one
MODELS: dict[str, type[nn.Module]] = {
    "vcell.model.transition.TransitionModel": TransitionModel,
    **{f"{made.__module__}.{made.__qualname__}": made for made in FITTED},
}


@dataclass(frozen=True)
class Identity:
    """What a checkpoint says of itself beyond weights: plain values and tensors, so that it loads with ``weights_only=True``.

    Attributes
    ----------
    vcell
        The version that trained.
    config
        The run's resolved configuration.
    genes, control, target_sum
        Genes predicted, in order; the label of control cells; counts per cell of the log1p scale.
    sizes
        Arguments of the model that its configuration does not have.
    covariates
        Contexts and batches that the model has embeddings of; None for a model without.
    store
        ``paths`` and ``fingerprint`` of the cell store trained on.
    split
        ``[context, perturbation, split]`` of every group.
    table
        The perturbation table: ``origin``, ``fingerprint``, ``width``, ``names``, and ``vectors`` unless it is large.
    chosen_for
        ``score``, ``value`` and ``step`` of a best checkpoint; None for the others.
    own_gene
        By training context, the expression that targets keep of their own gene (`effects.own_gene`); None in checkpoints from before.
    prior
        What the predictor that the network starts from was fitted to, and has found; None for a network that starts from control cells.
    addition
        How much of what the network adds to its prior is kept, 0 to 1, as the last validation has found; None where it never was.
    """

    vcell: str
    config: Mapping[str, Any]
    genes: list[str]
    control: str
    target_sum: float
    sizes: Mapping[str, Any]
    covariates: Mapping[str, Any] | None
    store: Mapping[str, Any]
    split: list[list[str]]
    table: Mapping[str, Any]
    chosen_for: Mapping[str, Any] | None = None
    own_gene: Mapping[str, Any] | None = None
    prior: Mapping[str, Any] | None = None
    addition: float | None = None

    @classmethod
    def of(cls, plain: Any, path: Path) -> Identity:
        """From the contents of the checkpoint `path`.

        Raises
        ------
        VcellError
            If something is missing or is not what it should be.
        """
        try:
            found = cls(**{field.name: plain[field.name] for field in fields(cls) if field.name in plain})
            found.set_size, found.columns, found.embedding, found.request, found.covariate_names  # noqa: B018  # they are there
            wrong = [name for name, fits in FITS.items() if not fits(getattr(found, name))]
            wrong += ["sizes"] if found.sizes["n_genes"] != len(found.genes) else []
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise VcellError(
                f"the checkpoint {path} has a damaged description of its run ({type(error).__name__}: {error})"
            ) from error
        if wrong:
            raise VcellError(
                f"the checkpoint {path} has a damaged description of its run ({wrong[0]} is not what it should be)"
            )
        return found

    def plain(self) -> dict[str, Any]:
        """As it is written into a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def set_size(self) -> int:
        """Cells of a set in training."""
        return int(self.config["data"]["sets"]["set_size"])

    @cached_property
    def columns(self) -> Columns:
        """The obs columns trained with."""
        return Columns(**self.config["data"]["columns"])

    @property
    def embedding(self) -> str | None:
        """The embedding that the model sees in place of control expression."""
        seen = self.config["data"]["input"]
        return seen if isinstance(seen, str) else None

    @property
    def request(self) -> Mapping[str, Any]:
        """``targets`` and ``contexts`` that are predicted when nothing is asked for, and nothing was held out."""
        found: Mapping[str, Any] = self.config["data"]["request"]
        return found

    @cached_property
    def covariate_names(self) -> Covariates | None:
        """Contexts and batches as the model numbers them."""
        return Covariates(**self.covariates) if self.covariates else None

    @cached_property
    def assigned(self) -> dict[Group, str]:
        """The split of every (context, perturbation)."""
        return {(context, perturbation): split for context, perturbation, split in self.split}

    @cached_property
    def trained(self) -> list[Group]:
        """Groups that were trained on."""
        return [group for group, split in self.assigned.items() if split == "train"]

    @cached_property
    def held_out(self) -> list[Group]:
        """Groups of the test split."""
        return [group for group, split in self.assigned.items() if split == "test"]


def make_identity(
    config: dict[str, Any],
    gather: Gather,
    assigned: dict[Group, str],
    table: PerturbationTable,
    sizes: dict[str, Any],
) -> Identity:
    """That of a run: its resolved configuration, cells, split and table, and the sizes its model is built with."""
    store, covariates = gather.store, gather.covariates
    inside = table.vectors.numel() * 4 <= LARGEST_TABLE_INSIDE
    return Identity(
        vcell=__version__,
        config=config,
        genes=list(store.genes),
        control=store.control,
        target_sum=float(gather.target_sum),
        sizes=sizes,
        covariates=None if covariates is None else asdict(covariates),
        store={"paths": [str(path) for path in store_paths(store)], "fingerprint": store.fingerprint},
        split=[[context, perturbation, split] for (context, perturbation), split in assigned.items()],
        table={
            "origin": table.origin,
            "fingerprint": table.fingerprint,
            "width": table.width,
            "names": list(table.names),
            "vectors": table.vectors if inside else None,
        },
        own_gene=measure_own_genes(gather, [group for group, split in assigned.items() if split == "train"]),
    )


def _are_ratios(own_gene: Any) -> bool:
    return own_gene is None or all(
        isinstance(context, str) and all(isinstance(value, float) for value in found.values()) and "ratio" in found
        for context, found in own_gene.items()
    )


def _are_names(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(name, str) for name in found)


def _has(*keys: str) -> Callable[[Any], bool]:
    return lambda found: isinstance(found, dict) and set(keys) <= set(found)


# what the parts of a description have to be
FITS: dict[str, Callable[[Any], bool]] = {
    "genes": lambda found: _are_names(found) and len(set(found)) == len(found) > 0,
    "control": lambda found: isinstance(found, str),
    "target_sum": lambda found: isinstance(found, float) and 0 < found < inf,
    "config": _has("data"),
    "store": _has("paths", "fingerprint"),
    "split": lambda found: all(len(row) == 3 and _are_names(row) for row in found),
    "table": lambda found: (
        _has("origin", "fingerprint", "width", "names", "vectors")(found) and _are_names(found["names"])
    ),
    "sizes": lambda found: all(
        n >= (name not in ("n_contexts", "n_batches"))
        for name, n in found.items()
        if n is not None and not isinstance(n, list)
    ),
    "chosen_for": lambda found: found is None or _has("score", "value", "step")(found),
    "own_gene": _are_ratios,
    "addition": lambda found: found is None or 0 <= found <= 1,
}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as plain values and tensors.

    Raises
    ------
    VcellError
        If the file is absent, damaged, or not vcell's.
    """
    if not path.is_file():
        raise no_such_file(path, what="checkpoint")
    try:
        check_zip(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise VcellError(
            f"no permission to read the checkpoint {path}. Ask its owner for it: chmod a+r {path}"
        ) from error
    except Exception as error:
        raise VcellError(
            f"the checkpoint {path} is damaged or not vcell's ({type(error).__name__}). Another checkpoint of the same run may "
            "be intact: look in the same folder"
        ) from error
    if not isinstance(checkpoint, dict) or "vcell" not in checkpoint:
        raise VcellError(f"{path} is not a checkpoint of vcell; train one with: python -m vcell.train")
    return checkpoint


def read_identity(path: Path) -> Identity:
    """What a checkpoint says of itself; errors as of `read_checkpoint`."""
    return Identity.of(read_checkpoint(path)["vcell"], path)


def table_of(identity: Identity, given: PerturbationTable | None, path: Path) -> PerturbationTable:
    """The perturbation table of a checkpoint, or the one given in its place.

    Raises
    ------
    VcellError
        If the one given has another width, or the one of the checkpoint lies in a file that is gone or has changed.
    """
    known = identity.table
    if given is not None:
        if given.width != known["width"]:
            raise VcellError(
                f"the table {given.origin} has vectors of {given.width}, {path} was trained with {known['width']}"
            )
        return given
    if known["vectors"] is not None:
        return PerturbationTable(known["names"], known["vectors"], known["origin"])
    trained = sorted({perturbation for _, perturbation in identity.trained})
    held_out = sorted({perturbation for _, perturbation in identity.assigned} - set(trained))
    table = table_for(identity.config["perturbation"], trained, held_out)
    if table.fingerprint != known["fingerprint"]:
        raise VcellError(
            f"the perturbation table {known['origin']} has changed since {path} was trained; pass the table used in training: "
            "perturbation=FILE.pt"
        )
    return table


def make_model(
    described: Mapping[str, Any], sizes: Mapping[str, Any], path: Path, trust: Sequence[str] = ()
) -> nn.Module:
    """The model that a checkpoint describes: one of `MODELS`, or a network of a package that the user trusts, made with plain values.

    Nothing of a checkpoint is ever called, but the constructor of that class.

    Parameters
    ----------
    trust
        Packages whose networks may be made too: ``["my_lab"]``.

    Raises
    ------
    VcellError
        If it asks for another class, or for an argument that is no plain value.
    """
    target = str(described["_target_"])
    made = MODELS[target] if target in MODELS else trusted_class(target, trust, path)
    own = {key: value for key, value in described.items() if key != "_target_"}
    arguments = {**own, **sizes_for(made, sizes)}
    unknown = sorted(set(map(str, own)) - set(signature(made).parameters)) + sorted(set(map(str, sizes)) - set(SIZES))
    if unknown:
        raise VcellError(
            f"{path} gives its model {unknown[0]!r}, which {target.rsplit('.', 1)[-1]} does not take; it is not loaded"
        )
    for name, value in arguments.items():
        if not _is_plain(value):
            raise VcellError(f"{path} gives its model a {name} that is not a number or text; it is not loaded")
    return made(**arguments)


def sizes_for(made: Callable[..., Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `sizes` that a network's constructor has parameters for."""
    known = signature(made).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return {name: value for name, value in sizes.items() if anything or name in known}


def trusted_class(target: str, trust: Sequence[str], path: Path) -> type[nn.Module]:
    """The network that a checkpoint names, where it lies in a package that the user named.

    Raises
    ------
    VcellError
        If it lies elsewhere, is not there, or is no network.
    """
    package = target.split(".", 1)[0]
    inside = any(target.startswith(f"{name}.") for name in trust) and package != "vcell"
    if not inside:
        hint = (
            f" If you trust the package {package}: trust=[{package}]"
            if "." in target and package not in ("vcell", "torch", "os")
            else ""
        )
        raise VcellError(f"{path} asks to run {target!r}, which is not a model of vcell; it is not loaded.{hint}")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise VcellError(
            f"{path} was trained with {target}, which cannot be imported here: {error}. Install it, or set PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.split(".", 1)[0] == package):
        raise VcellError(
            f"{path} asks to run {target!r}, which is not a torch.nn.Module of {package}; it is not loaded"
        )
    return found


def _is_plain(value: Any) -> bool:
    if type(value) is list:
        return all(type(item) in (int, float, str, bool) for item in value)
    return value is None or type(value) in (int, float, str, bool)


def __getattr__(name: str) -> Any:
    """Lightning's reader and writer, which only training needs."""
    if name == "AtomicCheckpointIO":
        from vcell.model.checkpoint_io import AtomicCheckpointIO

        return AtomicCheckpointIO
    raise AttributeError(name)
