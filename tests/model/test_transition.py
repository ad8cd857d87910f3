from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from vcell.cli import CONFIG_DIR, compose
from vcell.model.transition import TransitionModel

MODELS = sorted(path.stem for path in (CONFIG_DIR / "model").glob("*.yaml"))


def tiny(**kwargs) -> TransitionModel:
    torch.manual_seed(0)
    shape = {"hidden": 16, "layers": 2, "heads": 2, "head_width": 8, "feed_forward": 32, "encoder_layers": 2, "decoder_layers": 2}  # fmt: skip
    model = TransitionModel(n_genes=30, perturbation_width=5, **{**shape, **kwargs}).eval()
    torch.nn.init.normal_(model.decoder[-1].weight, std=0.3)
    return model


CONTROL, VECTOR = torch.rand(3, 7, 30) * 3, torch.randn(3, 5)


def test_transition_is_permutation_equivariant():
    model, order = tiny(), torch.randperm(7)
    torch.testing.assert_close(model(CONTROL[:, order], VECTOR), model(CONTROL, VECTOR)[:, order], atol=1e-5, rtol=1e-5)


def test_sets_do_not_see_each_other():
    model = tiny()
    torch.testing.assert_close(model(CONTROL[1:2], VECTOR[1:2]), model(CONTROL, VECTOR)[1:2], atol=1e-5, rtol=1e-5)


def test_cells_of_a_set_see_each_other():
    changed = CONTROL.clone()
    changed[0, 0] += 1
    assert not torch.allclose(tiny()(changed, VECTOR)[0, 1], tiny()(CONTROL, VECTOR)[0, 1])


def test_an_untrained_model_predicts_no_change():
    model = TransitionModel(30, 5, hidden=16, layers=1, heads=2, head_width=8, feed_forward=16, encoder_layers=1, decoder_layers=1)  # fmt: skip
    torch.testing.assert_close(model(CONTROL, VECTOR), CONTROL)


def test_predictions_depend_on_the_perturbation_and_are_not_negative():
    predicted, other = tiny()(CONTROL, VECTOR), tiny()(CONTROL, VECTOR + 1)
    assert (predicted >= 0).all() and not torch.allclose(predicted, other)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_config_builds_and_learns(name: str):
    model = instantiate(compose("train", [f"model={name}"]).model, n_genes=20, perturbation_width=4)
    predicted = model(torch.rand(2, 3, 20), torch.randn(2, 4))
    predicted.sum().backward()
    assert predicted.shape == (2, 3, 20)
    assert all(p.grad is not None for p in model.parameters())


def test_state_sm_has_the_published_size():
    model = instantiate(compose("train", ["model=state_sm"]).model, n_genes=2000, perturbation_width=128)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(34e6, rel=0.06)
