"""The negative binomial head: its likelihood is scipy's, its draws have its moments, and a run with it predicts whole counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import stats

from tests.conftest import infer_here, train_here
from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError
from vcell.model.negative_binomial import CountLaw, draw, likelihood_loss, log_likelihood

TARGET_SUM = 2000.0


def batch_of(cells: int, genes: int, counts: torch.Tensor | None = None) -> CellSetBatch:
    library = torch.full((1, cells), 1000.0)
    perturbed = None if counts is None else torch.log1p(counts * TARGET_SUM / library.unsqueeze(-1))
    return CellSetBatch(
        ["A"], ["P"], torch.zeros(1, cells, genes), perturbed, control_library_SC=library, perturbed_library_SC=library, target_sum=TARGET_SUM,
    )  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize("shape", [0.05, 1.0, 40.0])
def test_the_likelihood_is_that_of_scipy(shape: float):
    counts = torch.arange(60.0).view(1, 60, 1)
    mean = torch.full((1, 60, 1), 3.5)
    found = log_likelihood(counts, mean, torch.full((1, 1), shape).log())
    expected = stats.nbinom.logpmf(np.arange(60), shape, shape / (shape + 3.5))
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.numeric
def test_draws_have_the_laws_mean_and_variance_and_can_be_repeated():
    rate, shape = torch.tensor([[0.5, 8.0, 60.0]]), torch.tensor([[0.5, 2.0, 10.0]])
    batch = batch_of(20_000, 3)
    law = CountLaw(rate, shape.log())
    cells = draw(law, batch)
    counts = (torch.expm1(cells[0]) / 2).double()
    assert torch.allclose(counts, counts.round(), atol=1e-3)
    mean = rate[0].double() / 2  # at half the target sum
    variance = mean + mean**2 / shape[0]
    error = (variance / 20_000).sqrt()
    assert ((counts.mean(0) - mean).abs() < 5 * error).all()
    assert (counts.var(0) / variance - 1).abs().max() < 0.2
    assert torch.equal(cells, draw(law, batch)) and not torch.equal(
        cells, draw(law, replace(batch, perturbations=["Q"]))
    )


def test_the_loss_is_lowest_at_the_truth_and_leaves_unmeasured_genes_out():
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(rng.negative_binomial(2, 2 / (2 + 6.0), (1, 400, 5)).astype(np.float32))
    batch = batch_of(400, 5, counts)
    losses = {
        (rate, shape): float(likelihood_loss(CountLaw(torch.full((1, 5), rate), torch.full((1, 5), shape).log()), batch)["loss"])
        for rate in (6.0, 12.0, 24.0)
        for shape in (0.5, 2.0, 8.0)
    }  # fmt: skip
    assert min(losses, key=losses.__getitem__) == (12.0, 2.0)  # 6 counts of 1,000 are 12 of 2,000
    wild = CountLaw(torch.tensor([[12.0, 12.0, 12.0, 12.0, 1e6]]), torch.full((1, 5), 2.0).log())
    known = torch.tensor([[True, True, True, True, False]])
    without = likelihood_loss(wild, replace(batch, known_SG=known))["loss"]
    assert float(without) == pytest.approx(losses[12.0, 2.0], rel=0.1)


def test_without_library_sizes_it_says_so():
    with pytest.raises(VcellError, match="library sizes"):
        draw(CountLaw(torch.ones(1, 2), torch.zeros(1, 2)), CellSetBatch(["A"], ["P"], torch.zeros(1, 3, 2), None))


def test_a_run_predicts_whole_counts(fresh: Path):
    options = [
        "model=tiny",
        "model.head=nb",
        "trainer.max_steps=30",
        "trainer.val_check_interval=15",
        "optimizer.lr=0.003",
    ]
    train_here(*options, "trainer.log_every_n_steps=1")
    rows = [line.split(",") for line in Path("runs/demo/metrics.csv").read_text().splitlines()]
    column = rows[0].index("train/nb")
    losses = [float(row[column]) for row in rows[1:] if row[column]]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    for name in ("a", "b"):
        infer_here("ckpt=last.ckpt", f"out={name}.h5ad", "challenge.values=counts", "knockdown=off")
    a, b = (ad.read_h5ad(f"{name}.h5ad").X for name in ("a", "b"))
    assert a.nnz and (a.data == a.data.round()).all()
    assert (a != b).nnz == 0, "a prediction can be repeated"
