"""Genes of a store: missing ones are missing, not 0, wherever they would count."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from tests.data.store.test_ingest import make_cells, write
from vcell.data.batch import CellSetBatch
from vcell.data.files.h5ad import Columns
from vcell.data.files.paths import read_gene_list
from vcell.data.gather import Gather
from vcell.data.sampler import CellSetSampler
from vcell.data.store.ingest import ingest
from vcell.data.store.panel import GeneChoice
from vcell.data.store.recipe import Recipe
from vcell.data.store.store import CellStore
from vcell.data.store.view import open_stores, with_genes
from vcell.effects.bank import EffectBank
from vcell.effects.make import make_baselines
from vcell.errors import VcellError
from vcell.model.losses import SetLoss, delta_error
from vcell.training.validation import ValidationScores


def two_panels(folder: Path) -> list[Path]:
    """Two files of two contexts: the second lacks G30 to G39 and has ten genes of its own."""
    first, second = make_cells(seed=1), make_cells(seed=2)
    second.obs_names = [f"second{i}" for i in range(second.n_obs)]
    first.obs["cell_type"], second.obs["cell_type"] = "A", "B"
    second.var_names = [*(f"G{i}" for i in range(30)), *(f"NEW{i}" for i in range(10))]
    return [write(first, folder / "first.h5ad"), write(second, folder / "second.h5ad")]


@pytest.fixture()
def store(tmp_path: Path) -> CellStore:
    return ingest(two_panels(tmp_path), tmp_path / "store")


def test_panels_unite_meet_or_follow_a_list(tmp_path: Path):
    files = two_panels(tmp_path)
    union = ingest(files, tmp_path / "union")
    assert union.genes == [*(f"G{i}" for i in range(40)), *(f"NEW{i}" for i in range(10))]
    assert union.known is not None and union.known.sum(axis=1).tolist() == [40, 40]
    common = ingest(files, tmp_path / "common", genes=GeneChoice("common"))
    assert common.genes == [f"G{i}" for i in range(30)] and common.known is None
    listed = ingest(files, tmp_path / "listed", genes=GeneChoice(["G35", "NEW2", "G0"]))
    assert listed.known is not None and listed.known.tolist() == [[True, False, True], [False, True, True]]


def test_barely_overlapping_gene_sets_are_refused(tmp_path: Path):
    first, second = make_cells(seed=1), make_cells(seed=2)
    second.var_names = [f"OTHER{i}" for i in range(37)] + ["G1", "G2", "G3"]
    files = [write(first, tmp_path / "a.h5ad"), write(second, tmp_path / "b.h5ad")]
    with pytest.raises(VcellError, match=r"barely overlap: 3 genes in common.*data\.min_overlap=0"):
        ingest(files, tmp_path / "store")
    assert ingest(files, tmp_path / "store", genes=GeneChoice(min_overlap=0.05)).n_genes == 77


def test_genes_filled_in_with_0_are_missing_when_said_so(tmp_path: Path):
    cells = make_cells()
    cells.X = cells.X.toarray() + 1
    cells.X[:, 5:8] = 0
    path = write(cells, tmp_path / "a.h5ad")
    assert ingest([path], tmp_path / "as_measured").known is None
    missing = ingest([path], tmp_path / "missing", genes=GeneChoice(zero_genes="missing"))
    assert missing.known is not None and np.flatnonzero(~missing.known[0]).tolist() == [5, 6, 7]
    assert missing.meta["genes_missing"] == {"a": 3}


def batch_of(store: CellStore) -> CellSetBatch:
    groups = [("A", "G1"), ("B", "G1")]
    gather = Gather(store, 1e4)
    batch = gather.to_device(gather.fetch(CellSetSampler(store, groups, 8, 2).batch(0)))
    assert batch.known_SG is not None and batch.perturbed_SCG is not None
    return batch


def test_missing_genes_get_no_loss_no_gradient_and_no_say(store: CellStore):
    batch = batch_of(store)
    missing_SG = ~batch.known_SG
    assert missing_SG.sum(1).tolist() == [10, 10]
    loss = SetLoss({"energy": 1.0, "delta": 1.0})
    predicted = (batch.control_SCG + 0.3).requires_grad_()
    terms = loss(predicted, batch)
    terms["loss"].sum().backward()
    assert (predicted.grad.abs().sum(1)[missing_SG] == 0).all() and (predicted.grad.abs().sum(1)[~missing_SG] > 0).all()
    wild = predicted.detach() + 50.0 * missing_SG.unsqueeze(1)
    for name, value in loss(wild, batch).items():
        torch.testing.assert_close(value, terms[name])
    scores = [validated(batch, cells, loss) for cells in (predicted.detach(), wild)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    # a mean over genes is over those measured, not over those and zeros
    only = [m.nonzero().ravel() for m in batch.known_SG]
    alone = [delta_error(predicted[[s]][..., g], batch.perturbed_SCG[[s]][..., g]) for s, g in enumerate(only)]
    torch.testing.assert_close(terms["delta"], torch.cat(alone))


def validated(batch: CellSetBatch, predicted: torch.Tensor, loss: SetLoss) -> dict[str, float]:
    scores = ValidationScores([])
    scores.add(batch, predicted, loss)
    return scores.compute(loss)


def test_baselines_take_a_genes_effect_from_where_it_was_measured(store: CellStore):
    gather = Gather(store, 1e4)
    bank = EffectBank.measure(gather, [g for g in store.groups if g[1] != store.control])
    models = make_baselines(
        gather, {g: "train" for g in store.groups if g[1] != store.control}, None, ["context_mean", "perturbation_mean"]
    )
    new = store.genes.index("NEW3")
    row = {(c, p): i for i, (c, p) in enumerate(zip(bank.contexts, bank.perturbations, strict=True))}
    effects = bank.effects("cell")
    assert np.isnan(effects[row["A", "G1"], new]) and not np.isnan(effects[row["B", "G1"], new])
    assert models["perturbation_mean"].effect("cell", "A", ["G1"])[0, new] == pytest.approx(
        effects[row["B", "G1"], new], abs=1e-6
    )
    assert np.isfinite(models["context_mean"].effect("cell", "A", ["G1"])).all()


def test_stores_prepared_apart_are_the_store_prepared_together(tmp_path: Path, store: CellStore):
    files = two_panels(tmp_path)
    for name, file in zip("ab", files, strict=True):
        ingest([file], tmp_path / name)
    joined = open_stores([tmp_path / "a", tmp_path / "b"])
    assert joined.genes == store.genes and joined.control_contexts == store.control_contexts
    np.testing.assert_array_equal(joined.known, store.known)
    place = pd.Series(range(store.n_cells), index=store.obs["cell_id"])
    cells = np.random.default_rng(0).integers(0, joined.n_cells, 50)
    same = place[joined.obs["cell_id"].iloc[cells].tolist()].to_numpy()
    torch.testing.assert_close(Gather(joined, 1e4).log1p(cells), Gather(store, 1e4).log1p(same))
    torch.testing.assert_close(batch_of(joined).known_SG.sum(1), batch_of(store).known_SG.sum(1))


def test_a_choice_of_genes_keeps_library_sizes_and_values(store: CellStore):
    genes = ["NEW3", "G0", "G35"]
    some = with_genes(store, genes)
    where = [store.genes.index(g) for g in genes]
    torch.testing.assert_close(
        Gather(some, 1e4).log1p(np.arange(40)), Gather(store, 1e4).log1p(np.arange(40))[:, where]
    )
    np.testing.assert_array_equal(some.known, store.known[:, where])
    np.testing.assert_array_equal(with_genes(some, ["G35"]).known, store.known[:, where[2:]])


def test_stores_with_other_control_labels_are_refused(tmp_path: Path):
    for name, label in (("a", "non-targeting"), ("b", "NT")):
        cells = make_cells()
        cells.obs = cells.obs.replace("non-targeting", label)
        ingest([write(cells, tmp_path / f"{name}.h5ad")], tmp_path / name, Recipe(control=label))
    with pytest.raises(VcellError, match="labels for control cells: NT, non-targeting"):
        open_stores([tmp_path / "a", tmp_path / "b"])


def test_renaming_is_the_users_to_decide(tmp_path: Path):
    cells = make_cells()
    cells.var_names = ["TAZ", *cells.var_names[1:]]
    path = write(cells, tmp_path / "a.h5ad")
    genes = ["TAFAZZIN", *(f"G{i}" for i in range(1, 20))]
    store = ingest([path], tmp_path / "store", genes=GeneChoice(genes))
    assert store.meta["genes_missing"] == {"a": 1}
    decisions = pd.read_csv(store.path / "genes.csv", keep_default_na=False)
    assert decisions.to_dict("records") == [
        {"file": "a", "gene": "TAZ", "decision": "ambiguous", "became": "", "candidates": "TAFAZZIN|WWTR1"}
    ]
    renamed = ingest([path], tmp_path / "renamed", genes=GeneChoice(genes, rename={"TAZ": "TAFAZZIN"}))
    assert renamed.known is None


def test_gene_names_may_stand_in_a_column_of_var(tmp_path: Path):
    cells = make_cells()
    cells.var["symbol"] = cells.var_names.to_numpy()
    cells.var_names = [f"ENSG{i:011d}.1" for i in range(40)]
    path = write(cells, tmp_path / "a.h5ad")
    assert ingest([path], tmp_path / "store", Columns(gene="symbol")).genes == [f"G{i}" for i in range(40)]
    with pytest.raises(VcellError, match=r"no var column 'symbols'.*Did you mean 'symbol'"):
        ingest([path], tmp_path / "other", Columns(gene="symbols"))


def test_duplicated_genes_in_a_list_are_refused(tmp_path: Path):
    (tmp_path / "genes.csv").write_text("A\nB\nA\n")
    with pytest.raises(VcellError, match="duplicated"):
        read_gene_list(str(tmp_path / "genes.csv"))


def test_unreadable_gene_sets_do_not_reach_the_store(tmp_path: Path):
    files = [write(make_cells(), tmp_path / "a.h5ad"), write(ad.AnnData(obs=make_cells().obs), tmp_path / "b.h5ad")]
    with pytest.raises(VcellError, match=r"b\.h5ad has no matrix 'X'|b\.h5ad: X"):
        ingest(files, tmp_path / "store")
