from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from vcell.config import CONFIG_DIR, compose
from vcell.errors import VcellError
from vcell.model import layers
from vcell.model.layers import Attention, Linear
from vcell.model.transition import TransitionModel

pytestmark = pytest.mark.numeric

MODELS = sorted(
    path.stem
    for path in (CONFIG_DIR / "model").glob("*.yaml")
    if path.stem != "base" and "vcell.effects" not in path.read_text()  # those are fitted in one go: tests/effects
)


def tiny(**kwargs) -> TransitionModel:
    torch.manual_seed(0)
    shape = {"hidden": 16, "layers": 2, "heads": 2, "head_width": 8, "feed_forward": 32, "encoder_layers": 2, "decoder_layers": 2}  # fmt: skip
    model = TransitionModel(n_genes=30, perturbation_width=5, **{**shape, **kwargs}).eval()
    torch.nn.init.normal_(model.decoder[-1].weight, std=0.3)
    model.decoder[-1].bias.data.fill_(0.2)
    return model


CONTROL, VECTOR = torch.rand(3, 7, 30) * 3, torch.randn(3, 5)


VARIANTS = [
    {},
    {"head": "state_hidden"},
    {"head": "state_bottleneck"},
    {"covariates": ["context", "batch"], "n_contexts": 2, "n_batches": 4},
    {"seen_genes": [3, 4, 9]},
    {"checkpoint_activations": True},
]
CONTEXT, BATCH = torch.tensor([0, 1, 2]), torch.randint(0, 5, (3, 7))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_transition_is_permutation_equivariant(variant: dict):
    model, order = tiny(**variant), torch.randperm(7)
    permuted = model(CONTROL[:, order], VECTOR, context_S=CONTEXT, batch_SC=BATCH[:, order])
    expected = model(CONTROL, VECTOR, context_S=CONTEXT, batch_SC=BATCH)[:, order]
    torch.testing.assert_close(permuted, expected, atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize(("name", "millions"), [("state_sm", 34), ("state", 83), ("state_lg", 237)])
def test_the_family_has_the_published_sizes(name: str, millions: int):
    with torch.device("meta"):
        model = instantiate(compose("train", [f"model={name}"]).model, n_genes=2000, perturbation_width=128)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.06)


def test_the_bottleneck_of_states_head_has_the_published_size():
    with torch.device("meta"):
        config = compose("train", ["model=state_sm", "model.head=state_bottleneck"]).model
        model = instantiate(config, n_genes=18080, perturbation_width=5120)
    assert sum(p.numel() for p in model.bottleneck.parameters()) / 1e6 == pytest.approx(82, rel=0.02)


def test_activations_computed_again_give_the_same_gradient():
    gradients = []
    for again in (False, True):
        model = tiny(checkpoint_activations=again)
        model(CONTROL, VECTOR).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_model_that_sees_some_genes_predicts_all():
    model, changed = tiny(seen_genes=[3, 4, 9]), CONTROL.clone()
    changed[..., 5] += 1
    difference = model(changed, VECTOR) - model(CONTROL, VECTOR)
    assert difference.shape == CONTROL.shape
    assert (difference[..., [i for i in range(30) if i != 5]] == 0).all()  # it was not seen, only added to


def test_a_covariate_never_trained_on_gets_the_mean_of_those_that_were():
    model = tiny(covariates=["context"], n_contexts=2)
    with torch.no_grad():
        model.context.weight[1] = model.context.weight[0]
    known, unknown = (model(CONTROL, VECTOR, context_S=torch.full((3,), i)) for i in (0, 2))
    torch.testing.assert_close(known, unknown)


@pytest.mark.parametrize(
    ("option", "words"), [({"head": "state_hiden"}, "Did you mean 'state_hidden'"), ({"covariates": ["lane"]}, "lane")]
)
def test_unknown_options_are_refused(option: dict, words: str):
    with pytest.raises(VcellError, match=words):
        tiny(**option)


def test_each_table_may_have_an_encoder_of_its_own():
    shape = {
        "hidden": 8,
        "layers": 1,
        "heads": 2,
        "head_width": 4,
        "feed_forward": 8,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "dropout": 0.0,
    }
    model = TransitionModel(6, 5, **shape, perturbation_parts=[2, 3], table_encoders="each").eval()
    vectors = torch.randn(4, 5)
    one, other = (model.perturbation_encoder(torch.cat(parts, 1)) for parts in (
        [vectors[:, :2], torch.zeros(4, 3)], [torch.zeros(4, 2), vectors[:, 2:]]
    ))  # fmt: skip
    nothing = model.perturbation_encoder(torch.zeros(4, 5))
    torch.testing.assert_close(model.perturbation_encoder(vectors), one + other - nothing)
    assert "perturbation_encoder.0.weight" not in model.axes
    single = TransitionModel(6, 5, **shape, perturbation_parts=[5], table_encoders="each")
    assert "perturbation_encoder.0.weight" in single.axes
    with pytest.raises(VcellError, match="table_encoders=both must be joint or each"):
        TransitionModel(6, 5, **shape, table_encoders="both")


def test_padded_rows_change_nothing(monkeypatch: pytest.MonkeyPatch):
    """As on a GPU, in half precision: an odd number of genes."""
    plain, padded = Linear(1_201, 24), Linear(24, 1_201)
    x = torch.rand(2, 3, 1_201)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = padded(plain(x))
        monkeypatch.setattr(layers, "in_half_precision", lambda x: True)
        found = padded(plain(x))
    assert found.shape == wanted.shape and found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=2**-9)  # bf16, in another order of summation
    found.float().square().sum().backward()
    assert plain.weight.grad.shape == (24, 1_201) and plain.weight.grad.abs().sum() > 0
    assert plain.weight.grad.is_contiguous() and padded.bias.grad.shape == (1_201,)
    assert [*dict(plain.named_parameters())] == ["weight", "bias"]


def test_gradients_of_weights_are_not_rounded_to_half_precision(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    layer, x, given = Linear(40, 17), torch.randn(2, 100, 40, requires_grad=True), torch.randn(2, 100, 17).bfloat16()
    monkeypatch.setattr(layers, "in_half_precision", lambda x: True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).backward(given)
    rows, gradient = x.detach().bfloat16().double().view(-1, 40), given.double().view(-1, 17)
    exact = {"rtol": 200 * torch.finfo(torch.float32).eps, "atol": 1e-5}  # sums of 200 products
    torch.testing.assert_close(layer.weight.grad.double(), gradient.t() @ rows, **exact)
    torch.testing.assert_close(layer.bias.grad.double(), gradient.sum(0), **exact)
    by_x = gradient @ layer.weight.detach().bfloat16().double()
    torch.testing.assert_close(x.grad.double().view(-1, 40), by_x, rtol=2**-8, atol=2**-8)


def test_padded_heads_change_nothing(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    attention, x = Attention(24, 3, 12), torch.rand(2, 5, 24)
    wanted = attention(x)
    monkeypatch.setattr(layers, "in_half_precision", lambda x: True)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=2**-5, atol=2**-6)  # four roundings to bf16
    found.float().square().sum().backward()
    assert attention.out.weight.grad.shape == (24, 36) and (attention.query_key_value.weight.grad != 0).all()
