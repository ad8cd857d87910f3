from __future__ import annotations

import itertools

import pytest
import torch

from vcell.data.batch import CellSetBatch
from vcell.errors import VcellError
from vcell.model.energy import EPS, energy_distance, rounding
from vcell.model.losses import (
    TERMS,
    SetLoss,
    change_size,
    delta_error,
    discrimination_loss,
    sorted_error,
)

pytestmark = pytest.mark.numeric

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


def tolerance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What float32 may add to the distance of each set.

    A squared distance is off by `rounding` times the squared norms from the measured mean, so a distance d by half of that over d;
    where d is as small as that itself, by its root at most. The mean over pairs of each of three terms carries this on.
    """
    x, y = x.double(), y.double()
    centre = y.mean(1, keepdim=True)
    x, y = x - centre, y - centre
    # centring rounds too: half a unit in the last place of the values, over all genes
    shift = EPS * (x.abs().amax((1, 2)) + centre.abs().amax((1, 2))) * x.shape[2] ** 0.5

    def mean_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        error = rounding(x.shape[2]) * (a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None])
        distance = torch.cdist(a, b)
        return torch.minimum(error / (2 * distance.clamp(min=1e-300)), error.sqrt()).mean((1, 2))

    return mean_error(x, y) + mean_error(x, x) / 2 + mean_error(y, y) / 2 + shift


def assert_within(found: torch.Tensor, wanted: torch.Tensor, tolerance: torch.Tensor) -> None:
    error = (found.double() - wanted.double()).abs()
    assert (error <= tolerance).all(), f"off by {error.tolist()}, allowed {tolerance.tolist()}"


def counts_like(seed: int, genes: int, cells: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sparse sets of log1p values, ``(2, cells, genes)``."""
    rng = torch.Generator().manual_seed(seed)
    rate = torch.rand(genes, generator=rng) ** 4 * 3
    x, y = (
        torch.poisson((rate * s).expand(2, n, genes), generator=rng).log1p()
        for s, n in ((1.0, cells), (1.2, cells + 2))
    )
    return x, y


@pytest.mark.parametrize("genes", [1, 3, 50, 777, 18_080])
@pytest.mark.parametrize("seed", range(3))
def test_energy_distance_equals_its_definition_in_any_order_of_the_genes(genes: int, seed: int):
    x, y = counts_like(seed, genes)
    for order in (torch.arange(genes), torch.randperm(genes), torch.arange(genes).flip(0)):
        for scale, offset in ((1.0, 0.0), (0.01, 8.0)):
            a, b = x[..., order] * scale + offset, y[..., order] * scale + offset
            assert_within(energy_distance(a, b), reference(a, b), tolerance(a, b))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("genes", [50, 5_000])
def test_the_gradient_is_that_of_the_definition(genes: int, seed: int):
    x, y = counts_like(seed, genes)
    y[:, 0] = x[:, 0]  # a cell in both sets
    ours = [part.clone().requires_grad_() for part in (x, y)]
    energy_distance(*ours).sum().backward()
    exact = [part.double().clone().requires_grad_() for part in (x, y)]
    # the derivative of the definition, a distance of 0 having none
    pairs = [
        torch.where(same, 0.0, torch.where(same[..., None], 1.0, a[:, :, None] - b[:, None]).norm(dim=-1)).mean((1, 2))
        * share
        for a, b, share in ((exact[0], exact[1], 1), (exact[0], exact[0], -0.5), (exact[1], exact[1], -0.5))
        for same in [(a[:, :, None] == b[:, None]).all(-1)]
    ]
    torch.stack(pairs).sum().backward()
    for found, wanted in zip(ours, exact, strict=True):
        # sums of some units of cells' differences from each other, each divided by their distance
        limit = 2 * rounding(genes) * (x.abs().amax() + y.abs().amax()) / min(x.shape[1], y.shape[1])
        assert (found.grad.double() - wanted.grad).abs().max() <= limit


@pytest.mark.parametrize("genes", [50, 5_000])
def test_cells_rounded_to_bf16_give_nearly_the_same_distance_and_gradient(genes: int):
    """bf16 keeps a number to one part in 512."""
    x, y = counts_like(0, genes, 16)
    unit = 2**-9
    exact, rounded = (x.clone().requires_grad_() for _ in range(2))
    wanted, found = energy_distance(exact, y), energy_distance(rounded, y, precision="bf16")
    centre = y.mean(1, keepdim=True)
    # a cell moves by a unit of its distance from the centre at most, and a distance between two by what both move
    moved = unit * ((x - centre).norm(dim=2).mean(1) + (y - centre).norm(dim=2).mean(1))
    assert ((found - wanted).abs() <= 2 * moved).all()
    wanted.sum().backward()
    found.sum().backward()
    # cells, weights and the result are rounded
    assert (rounded.grad - exact.grad).norm() <= 4 * unit * exact.grad.norm()
    same = energy_distance(x, x, precision="bf16")
    assert (same.abs() <= 2 * moved).all()
    with torch.no_grad():
        torch.testing.assert_close(energy_distance(x, y, block=5, precision="bf16"), found, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(energy_distance(x, y, precision="tf32"), wanted, rtol=2e-3, atol=1e-3)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_cell_is_at_distance_0_from_itself_on_any_machine():
    for seed, genes in itertools.product(range(5), (50, 2_001, 18_080)):
        x, _ = counts_like(seed, genes, 16)
        assert (energy_distance(x[:, :1], x[:, :1]) == 0).all()
        a = x.clone().requires_grad_()
        energy_distance(a[:, :1], x[:, :1]).sum().backward()
        assert (a.grad == 0).all()


def test_energy_distance_is_0_for_equal_sets_and_symmetric_and_not_negative():
    order = torch.randperm(9)
    assert_within(energy_distance(X, X[:, order]), torch.zeros(4), tolerance(X, X))
    assert_within(energy_distance(X, Y), energy_distance(Y, X), tolerance(X, Y) + tolerance(Y, X))
    assert (energy_distance(X, Y) > 0).all()


def test_energy_distance_is_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(energy_distance(X, Y), energy_distance(X, Y).float())
        assert energy_distance(X.bfloat16(), Y).dtype == torch.float32
        assert_within(energy_distance(X, Y), reference(X, Y), tolerance(X, Y))


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
    assert_within(distance, energy_distance(X, Y), 2 * tolerance(X, Y))
    assert (parts.grad - whole.grad).abs().max() <= 4 * rounding(50) * 2 / 6  # as in the test of the gradient, twice


def test_energy_distance_equals_geomloss():
    geomloss = pytest.importorskip("geomloss")
    theirs = geomloss.SamplesLoss("energy", backend="tensorized")
    # geomloss takes a distance of 0 for 1e-4: each cell's to itself
    own = 1e-4 * (1 / X.shape[1] + 1 / Y.shape[1]) / 2
    assert_within(energy_distance(X, Y), theirs(X.double(), Y.double()), tolerance(X, Y) + own)


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
    known_tolerance = tolerance(X[..., :30], y[..., :30]) * 2
    for name in names:
        # the others are means and sums over genes of values up to 7: some units in the last place of them
        allowed = known_tolerance if name == "energy" else 64 * EPS * 7 * (1 + only[name].abs())
        assert_within(masked[name], only[name], allowed)


@pytest.mark.parametrize(
    ("weights", "words"),
    [({"enery": 1.0}, "Did you mean 'energy'"), ({"energy": 0.0}, "no term"), ({"energy": -1.0}, "at least 0")],
)
def test_unknown_terms_are_refused(weights: dict, words: str):
    with pytest.raises(VcellError, match=words):
        SetLoss(weights)
