"""A table of the run's own control cells: nothing held out is in it, and runs train and predict with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import infer_here, train_here
from vcell.cli import lookup
from vcell.data.gather import Gather
from vcell.data.store.store import CellStore
from vcell.errors import VcellError
from vcell.model.checkpoint import read_identity
from vcell.model.coexpression import coexpression_table
from vcell.model.run_table import joined
from vcell.model.table import CELLS, PerturbationTable, decision_lines


class Disturbed(Gather):
    """A gather that has every cell but some changed."""

    unchanged: np.ndarray

    def log1p(self, cells: np.ndarray) -> torch.Tensor:
        found = super().log1p(cells)
        changed = torch.from_numpy(~np.isin(cells, self.unchanged))
        return torch.where(changed[:, None], found.flip(1), found)


def test_only_control_cells_of_training_contexts_are_read(store: CellStore):
    plain, disturbed = Gather(store, 1000.0), Disturbed(store, 1000.0)
    disturbed.unchanged = np.concatenate([store.controls_of(context) for context in ("simA", "simB")])
    ours, theirs = (coexpression_table(gather, ["simA", "simB"]) for gather in (plain, disturbed))
    assert torch.equal(ours.vectors, theirs.vectors) and ours.names == store.genes
    assert not torch.equal(ours.vectors, coexpression_table(disturbed, ["simA", "simC"]).vectors)


@pytest.mark.numeric
def test_vectors_of_genes_have_the_products_of_their_covariance(store: CellStore):
    gather = Gather(store, 1000.0)
    cells = store.controls_of("simA")
    x = gather.log1p(cells).numpy().astype(np.float64)
    batch = store.obs["batch"].astype(str).to_numpy()[cells]
    for one in np.unique(batch):
        x[batch == one] -= x[batch == one].mean(0)
    spread = x.std(0)
    x /= np.maximum(spread, np.median(spread[spread > 0]))
    vectors = coexpression_table(gather, ["simA"], components=len(cells)).vectors.double().numpy()
    np.testing.assert_allclose(vectors @ vectors.T, x.T @ x / len(cells), atol=1e-3)


def test_a_run_trains_and_predicts_new_targets_with_it(fresh: Path):
    train_here("perturbation.path=cells", "trainer.max_steps=2", "trainer.val_check_interval=2")
    identity = read_identity(Path("runs/demo/checkpoints/last.ckpt"))
    assert identity.table["origin"] == CELLS and len(identity.table["names"]) == 120
    infer_here("targets=[GENE0100]", "contexts=[simC]", "n_cells=5", "out=p.h5ad")
    assert Path("p.h5ad").is_file()


def test_tables_are_joined_and_what_one_lacks_is_its_mean():
    one = PerturbationTable(["A", "B"], torch.tensor([[1.0, 0.0], [3.0, 2.0]]), "one.pt")
    two = PerturbationTable(["B", "C"], torch.tensor([[5.0], [7.0]]), "two.pt")
    both = joined([one, two], ["A", "C", "D"])
    assert both.names == ["A", "B", "C"] and both.width == 3 and both.origin == "one.pt + two.pt"
    assert both.lookup(["A", "B", "C"]).tolist() == [[1, 0, 6], [3, 2, 5], [2, 1, 7]]
    assert decision_lines(both.decisions) == [
        "2 perturbations are missing in one of several tables, and get its mean there: C = one.pt, A = two.pt"
    ]
    with pytest.raises(VcellError, match="lacks 1 perturbations: D"):
        both.require(["A", "D"])


def test_a_run_trains_with_a_file_and_its_own_cells(fresh: Path, capsys: pytest.CaptureFixture[str]):
    train_here(
        "perturbation.path=[data/demo/screen/embedding.pt,cells]", "trainer.max_steps=1", "trainer.val_check_interval=1"
    )
    assert "embedding.pt + cells: 120 perturbations × 76" in capsys.readouterr().out


def test_its_name_is_the_same_everywhere():
    assert lookup.OF_CELLS == CELLS
