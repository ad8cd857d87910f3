from __future__ import annotations

import pytest
import torch

from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError
from vcell.model.losses import (
    TERMS,
    SetLoss,
    change_size,
    delta_error,
    discrimination_loss,
    energy_distance,
    sorted_error,
)

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(4, 9, 50, generator=GENERATOR)
Y = torch.rand(4, 6, 50, generator=GENERATOR) + 0.1


def batch(measured: torch.Tensor, control: torch.Tensor, known: torch.Tensor | None = None) -> CellSetBatch:
    """Sets of four perturbations in two contexts."""
    return CellSetBatch(["a", "a", "a", "b"], ["P", "Q", "R", "P"], control, measured, known)


def reference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Energy distance pair by pair, in float64."""

    def mean_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.double()[:, None] - b.double()[None]).norm(dim=-1).mean()

    pairs = [mean_distance(a, b) - mean_distance(a, a) / 2 - mean_distance(b, b) / 2 for a, b in zip(x, y, strict=True)]
    return torch.stack(pairs)


def test_energy_distance_equals_its_definition():
    torch.testing.assert_close(energy_distance(X, Y).double(), reference(X, Y), atol=1e-5, rtol=1e-5)


def test_energy_distance_is_exact_for_close_cells_far_from_zero():
    x, y = X * 0.01 + 8, Y * 0.01 + 8
    torch.testing.assert_close(energy_distance(x, y).double(), reference(x, y), atol=1e-5, rtol=1e-3)


def test_energy_distance_is_0_for_equal_sets_and_symmetric_and_not_negative():
    order = torch.randperm(9)
    torch.testing.assert_close(energy_distance(X, X[:, order]), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(energy_distance(X, Y), energy_distance(Y, X))
    assert (energy_distance(X, Y) > 0).all()


def test_energy_distance_is_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(energy_distance(X, Y), energy_distance(X, Y).float())
        assert energy_distance(X.bfloat16(), Y).dtype == torch.float32
        torch.testing.assert_close(energy_distance(X, Y).double(), reference(X, Y), atol=1e-5, rtol=1e-5)


def test_gradients_are_finite_even_where_cells_coincide():
    x = X.clone().requires_grad_()
    energy_distance(x, x.detach().clone()).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_delta_error_is_the_error_of_means():
    assert delta_error(X, X[:, :1] * 0 + X.mean(1, keepdim=True)).max() < 1e-6
    torch.testing.assert_close(delta_error(X, X + 0.5), torch.full((4,), 0.5))


def test_a_prediction_that_is_not_finite_shows():
    x = X.clone()
    x[1, 2, 3] = torch.nan
    assert torch.isnan(energy_distance(x, Y)).tolist() == [False, True, False, False]


@pytest.mark.parametrize("block", [1, 4, 100])
def test_blocks_change_neither_the_distance_nor_its_gradient(block: int):
    whole, parts = X.clone().requires_grad_(), X.clone().requires_grad_()
    energy_distance(whole, Y).sum().backward()
    distance = energy_distance(parts, Y, block)
    distance.sum().backward()
    torch.testing.assert_close(distance, energy_distance(X, Y), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(parts.grad, whole.grad, atol=1e-6, rtol=1e-4)


def test_energy_distance_equals_geomloss():
    geomloss = pytest.importorskip("geomloss")
    theirs = geomloss.SamplesLoss("energy", backend="tensorized")
    torch.testing.assert_close(energy_distance(X, Y).double(), theirs(X.double(), Y.double()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sinkhorn", "mmd"])
def test_terms_of_geomloss_are_0_for_equal_sets_and_learn(name: str):
    pytest.importorskip("geomloss")
    x, loss = X.clone().requires_grad_(), SetLoss({name: 1.0})
    far, near = (loss(x, batch(measured, X))["loss"] for measured in (Y, X[:, torch.randperm(9)]))
    assert (near < 1e-3).all() and (far > near).all() and far.shape == (4,)
    far.sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


def test_l1_matches_cells_by_rank():
    assert sorted_error(X, X[:, torch.randperm(9)]).max() == 0
    torch.testing.assert_close(sorted_error(X, X[:, torch.randperm(9)] + 0.25), torch.full((4,), 0.25))


def test_sparsity_is_the_size_of_the_change():
    torch.testing.assert_close(change_size(X - 0.5, X), torch.full((4,), 0.5))


def test_the_contrastive_term_is_low_for_the_right_delta_and_high_for_another():
    deltas = torch.randn(5, 40, generator=GENERATOR)
    own, rivals = torch.arange(5), ~torch.eye(5, dtype=torch.bool)
    right, wrong = (
        discrimination_loss(deltas, deltas, own, rivals),
        discrimination_loss(deltas.roll(1, 0), deltas, own, rivals),
    )
    assert (right < 0.01).all() and (wrong > 1).all()
    same = discrimination_loss(torch.zeros(5, 40), torch.ones(5, 40), own, rivals)
    torch.testing.assert_close(same, torch.full((5,), 5.0).log())  # one profile for all: chance
    assert (discrimination_loss(deltas, deltas, own, torch.zeros_like(rivals)) == 0).all()


def test_the_contrastive_term_compares_within_contexts_only():
    control = torch.rand(4, 9, 50, generator=GENERATOR)
    term = SetLoss({"contrastive": 1.0})(X, batch(X + 0.1, control))["contrastive"]
    assert (term[:3] > 0).all() and term[3] == 0  # the only one of its context


def test_every_term_gives_one_number_a_set_and_the_loss_is_their_weighted_sum():
    names = [name for name in TERMS if name not in ("sinkhorn", "mmd")]
    weights = {name: 0.5 + i for i, name in enumerate(names)}
    y = torch.rand(4, 9, 50, generator=GENERATOR)
    terms = SetLoss(weights)(X, batch(y, X))
    assert {name: tuple(value.shape) for name, value in terms.items()} == dict.fromkeys(["loss", *names], (4,))
    torch.testing.assert_close(terms["loss"], sum(w * terms[name] for name, w in weights.items()))
    assert set(SetLoss({"energy": 1.0, "delta": 0.0})(X, batch(Y, X))) == {"loss", "energy"}


def test_genes_that_were_not_measured_count_in_no_term():
    names = [name for name in TERMS if name not in ("sinkhorn", "mmd")]
    loss = SetLoss(dict.fromkeys(names, 1.0))
    y = torch.rand(4, 9, 50, generator=GENERATOR)
    known = torch.ones(4, 50, dtype=torch.bool)
    known[:, 30:] = False
    only = loss(X[..., :30], batch(y[..., :30], X[..., :30]))
    x, junk = X.clone(), y.clone()
    x[..., 30:], junk[..., 30:] = 7.0, 3.0
    x.requires_grad_()
    masked = loss(x, batch(junk, X, known))
    masked["loss"].sum().backward()
    assert (x.grad[..., 30:] == 0).all()
    for name in names:
        torch.testing.assert_close(masked[name], only[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("weights", "words"),
    [({"enery": 1.0}, "Did you mean 'energy'"), ({"energy": 0.0}, "no term"), ({"energy": -1.0}, "negative")],
)
def test_unknown_terms_are_refused(weights: dict, words: str):
    with pytest.raises(VcellError, match=words):
        SetLoss(weights)
