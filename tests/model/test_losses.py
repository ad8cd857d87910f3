from __future__ import annotations

import pytest
import torch

from vcell.errors import VcellError
from vcell.model.losses import SetLoss, delta_error, energy_distance

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(4, 9, 50, generator=GENERATOR)
Y = torch.rand(4, 6, 50, generator=GENERATOR) + 0.1


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


def test_the_loss_is_the_weighted_sum_of_its_terms():
    terms = SetLoss({"energy": 2.0, "delta": 0.5})(X, Y)
    torch.testing.assert_close(terms["loss"], 2 * terms["energy"] + 0.5 * terms["delta"])
    assert set(SetLoss({"energy": 1.0, "delta": 0.0})(X, Y)) == {"loss", "energy"}


@pytest.mark.parametrize(
    ("weights", "words"), [({"enery": 1.0}, "Did you mean 'energy'"), ({"energy": 0.0}, "no term")]
)
def test_unknown_terms_are_refused(weights: dict, words: str):
    with pytest.raises(VcellError, match=words):
        SetLoss(weights)
