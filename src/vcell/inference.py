"""Inference: a checkpoint and a request to an h5ad of predicted cells."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from vcell import __version__
from vcell.data.covariates import Covariates
from vcell.data.gather import Gather
from vcell.data.h5ad import Columns, open_h5ad
from vcell.data.ingest import ingest
from vcell.data.panel import GeneChoice
from vcell.data.recipe import Recipe
from vcell.data.sampler import ControlPool
from vcell.data.splits import Group
from vcell.data.store import Cells
from vcell.data.view import open_stores, with_genes
from vcell.errors import VcellError, nearest, shortlist
from vcell.model.baselines import Predictor, make_baselines
from vcell.model.checkpoint import find_checkpoint, load_module, load_table, read_checkpoint
from vcell.model.module import TransitionModule
from vcell.perturbation.table import PerturbationTable
from vcell.prediction import Source, Wanted, read_request, write_prediction

PREDICTORS = ("model", "copied_controls", "context_mean", "perturbation_mean")


def infer(config: DictConfig) -> None:
    """Predicts what `config` asks for into `config.out`."""
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise VcellError(f"{out} exists already; give out=OTHER.h5ad, or overwrite=true to replace it")
    if config.predictor not in PREDICTORS:
        raise VcellError(f"predictor={config.predictor} is none of {', '.join(PREDICTORS)}."
                         f"{nearest(config.predictor, PREDICTORS)}")  # fmt: skip
    path = find_checkpoint(config.ckpt, config.runs)
    module = load_module(path, _other_table(config.perturbation, path))
    identity = module.identity
    device = choose_device(config.device)
    with control_store(config, identity, path) as store:
        check_genes(store, identity, config.challenge)
        request = make_request(config, identity, store, store.control_contexts)
        if config.predictor == "model":
            module.table.require([w.perturbation for w in request])
        source = make_source(store, identity, {w.context for w in request}, config.sets_per_step, config.seed)
        predictor = make_predictor(config, module.to(device), source.gather)
        controls = chosen_controls(config, store, request)
        target_sum = float(config.target_sum or identity["target_sum"])
        about = {
            "vcell": __version__, "ckpt": str(path.resolve()), "predictor": config.predictor, "seed": config.seed,
            "store": [str(Path(path).resolve()) for path in store_of(config.store, identity)], "challenge": config.challenge.name,
        }  # fmt: skip
        write_prediction(out, predictor, source, request, target_sum, controls, about, device)
        unknown = unknown_covariates(module, source) if config.predictor == "model" else None
    print(report(out, path, identity, request, controls, target_sum), flush=True)
    if unknown:
        print(f"note         {unknown}", flush=True)
    silent = module.table.silent_on([w.perturbation for w in request]) if config.predictor == "model" else []
    if silent:
        print(f"note         {len(silent):,} targets were never trained on, and a one-hot table says nothing of them: they "
              f"all get a mean response ({shortlist(silent)})", flush=True)  # fmt: skip


@contextmanager
def control_store(config: DictConfig, identity: dict[str, Any], ckpt: Path) -> Iterator[Cells]:
    """The store that control cells come from: the run's, or one made of `config.controls` for the while."""
    if config.controls is None:
        yield open_run_store(config.store, identity, ckpt)
        return
    columns = dict(identity["config"]["data"]["columns"])
    path = Path(config.controls)
    context = None
    with open_h5ad(path) as file:
        names = list(file["obs"]) if "obs" in file else []
        if columns["batch"] not in names:
            columns["batch"] = None
        if columns["context"] not in names:
            if not config.contexts or len(config.contexts) != 1:
                raise VcellError(f"{path} has no column {columns['context']!r}: name its context with contexts=[NAME]")
            context = config.contexts[0]
    with tempfile.TemporaryDirectory(prefix="vcell-controls-") as folder:
        seen = embedding_of(identity)
        recipe = Recipe(Columns(**columns), identity["control"], context, obsm=(seen,) if seen else ())
        store = ingest([path], Path(folder) / "store", recipe, GeneChoice(identity["genes"]))
        for source, number in store.meta["genes_missing"].items():
            print(f"note         {source} lacks {number:,} of the model's {store.n_genes:,} genes: they are 0 in what it predicts "
                  "from", flush=True)  # fmt: skip
        yield store


def open_run_store(store: Any, identity: dict[str, Any], ckpt: Path) -> Cells:
    """The cell store (or stores) a checkpoint was trained on, in the genes it was trained on.

    `store` says where it lies now; None where it lay in training.
    """
    paths = [Path(path) for path in store_of(store, identity)]
    absent = [path for path in paths if not path.exists()]
    if absent:
        raise VcellError(
            f"the cell store {absent[0]}, which {ckpt} was trained on, is not there. Say where it is with store=FOLDER, or "
            "give control cells with controls=FILE.h5ad"
        )
    opened = open_stores(paths)
    if opened.fingerprint != identity["store"]["fingerprint"]:
        raise VcellError(
            f"the cell store {opened.name} is not the one {ckpt} was trained on (fingerprints differ). Give that one with "
            "store=FOLDER, or control cells with controls=FILE.h5ad"
        )
    return opened if opened.genes == identity["genes"] else with_genes(opened, identity["genes"])


def store_of(store: Any, identity: dict[str, Any]) -> list[str]:
    """Folders of the run's store: those given, or those it lay in."""
    given = [store] if isinstance(store, str) else store or identity["store"]["paths"]
    return [str(path) for path in given]


def check_genes(store: Cells, identity: dict[str, Any], challenge: DictConfig) -> None:
    if store.genes != identity["genes"]:
        raise VcellError(f"the genes of {store.name} are not those of the checkpoint")
    if challenge.n_genes and store.n_genes != challenge.n_genes:
        raise VcellError(
            f"challenge={challenge.name} wants {challenge.n_genes:,} genes; the model predicts {store.n_genes:,}. Train on "
            "the challenge's gene list (data.genes=gene_names.csv), or use challenge=none"
        )


def make_request(config: DictConfig, identity: dict[str, Any], store: Cells, contexts: list[str]) -> list[Wanted]:
    """What `targets` names; else the held-out test groups with as many cells as were measured; else the data's request."""
    columns = Columns(**identity["config"]["data"]["columns"])
    if config.targets is not None:
        targets = config.targets if isinstance(config.targets, str) else OmegaConf.to_container(config.targets)
        return read_request(targets, config.contexts, config.n_cells, contexts, store.control, columns)  # type: ignore[arg-type]
    groups = [(c, p) for c, p, split in identity["split"] if split == "test"]
    groups = [g for g in groups if g in store.groups and (not config.contexts or g[0] in config.contexts)]
    usual = identity["config"]["data"]["request"]
    if not groups and usual["targets"]:
        contexts_of_it = config.contexts or usual["contexts"]
        return read_request(usual["targets"], contexts_of_it, config.n_cells, contexts, store.control, columns)
    if not groups:
        raise VcellError(
            "the run held out no test perturbations: say what to predict, targets=FILE.csv or targets=[A,B]"
        )
    return [Wanted(c, p, int(config.n_cells or len(store.groups[c, p]))) for c, p in groups]


def make_source(store: Cells, identity: dict[str, Any], contexts: set[str], sets_per_step: int, seed: int) -> Source:
    """Control cells of `contexts`, in sets of the size trained with."""
    covariates = Covariates(**identity["covariates"]) if identity["covariates"] else None
    gather = Gather(store, identity["target_sum"], embedding_of(identity), covariates=covariates)
    set_size = identity["config"]["data"]["sets"]["set_size"]
    return Source(gather, ControlPool(store, contexts), set_size, sets_per_step, seed)


def embedding_of(identity: dict[str, Any]) -> str | None:
    """The embedding that the model sees in place of control expression."""
    seen = identity["config"]["data"]["input"]
    return seen if isinstance(seen, str) else None


def make_predictor(config: DictConfig, module: TransitionModule, gather: Gather) -> Predictor:
    if config.predictor == "model":
        return module
    if config.controls is not None and config.predictor != "copied_controls":
        raise VcellError(f"predictor={config.predictor} needs the run's training cells; leave out controls=")
    return make_baselines(gather, split_of(module.identity))[0][config.predictor]


def split_of(identity: dict[str, Any]) -> dict[Group, str]:
    return {(context, perturbation): split for context, perturbation, split in identity["split"]}


def chosen_controls(config: DictConfig, store: Cells, request: list[Wanted]) -> dict[str, np.ndarray]:
    """Control cells that go into the file, by context."""
    if not config.challenge.controls:
        return {}
    rng = np.random.default_rng(config.seed)
    controls = {}
    for context in dict.fromkeys(w.context for w in request):
        cells = store.controls_of(context)
        if config.max_controls is not None and config.max_controls < len(cells):
            cells = np.sort(rng.choice(cells, config.max_controls, replace=False))
        controls[context] = cells
    total = sum(w.n_cells for w in request) + sum(map(len, controls.values()))
    limit = config.challenge.max_cells
    if limit and total > limit:
        raise VcellError(
            f"{total:,} cells are more than challenge={config.challenge.name} takes ({limit:,}): "
            f"{total - limit:,} too many. Write fewer controls with max_controls=N, or ask for fewer cells"
        )
    return controls


def unknown_covariates(module: TransitionModule, source: Source) -> str | None:
    """What of the control cells the model has no embedding of, and so predicts with a mean one."""
    covariates, pool = source.gather.covariates, source.pool
    if covariates is None:
        return None
    parts = []
    if "context" in module.model.covariates and (new := sorted(set(pool.of_context) - set(covariates.contexts))):
        parts.append(f"the contexts {shortlist(new)}")
    if "batch" in module.model.covariates:
        cells = np.concatenate(list(pool.of_context.values()))
        unknown = int((source.gather.batch_number_of_cell[cells] == len(covariates.batches)).sum())
        if unknown:
            parts.append(f"the batches of {unknown:,} of {len(cells):,} control cells")
    if not parts:
        return None
    return f"{' and '.join(parts)} were not trained on: their embedding is the mean of those that were"


def choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise VcellError(f"device={device} is not here: use auto, cpu or (with a GPU) cuda")
    return torch.device(device)


def report(
    out: Path,
    ckpt: Path,
    identity: dict[str, Any],
    request: list[Wanted],
    controls: dict[str, np.ndarray],
    scale: float,
) -> str:
    trained = {p for _, p, split in identity["split"] if split == "train"}
    unseen = {w.perturbation for w in request} - trained
    return (
        f"checkpoint   {ckpt}{chosen_for(identity)}\n"
        f"predicted    {sum(w.n_cells for w in request):,} cells of {len({w.perturbation for w in request}):,} "
        f"perturbations ({len(unseen):,} never trained on) in {', '.join(dict.fromkeys(w.context for w in request))}\n"
        f"controls     {sum(map(len, controls.values())):,} cells\n"
        f"scale        log1p of counts per {scale:,.0f}\n"
        f"written      {out} ({out.stat().st_size / 1e6:,.1f} MB)"
    )


def chosen_for(identity: dict[str, Any]) -> str:
    """The score that a best checkpoint was kept for."""
    chosen = identity["chosen_for"]
    return "" if chosen is None else f" (step {chosen['step']:,}, kept for {chosen['score']} {chosen['value']:.4f})"


def _other_table(path: str | None, ckpt: Path) -> PerturbationTable | None:
    if path is None:
        return None
    as_trained = read_checkpoint(ckpt)["vcell"]["config"]["perturbation"]
    return load_table({**as_trained, "path": path}, [], [])
