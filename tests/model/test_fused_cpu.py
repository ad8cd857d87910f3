"""Steps of a network in bf16 on processors: what float64 gives, rounded once; the same numbers whatever the number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vcell.model import fused_cpu
from vcell.model.fused import gated
from vcell.model.layers import Attention, Block, Dropout, RMSNorm

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(not fused_cpu.fuses(torch.ones(1, dtype=torch.bfloat16)), reason="needs OpenMP as GNU has it"),
]
ULP = 2**-8  # of bf16: between neighbours, relative to the smaller
SETS, CELLS, HEADS, WIDTH = 3, 37, 2, 21  # no multiples of anything


def halves(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def with_gradient(function, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The function's value and its gradient by `x`."""
    x = x.detach().clone().requires_grad_()
    value = function(x)
    value.backward(gradient.to(value.dtype))
    return value.detach(), x.grad


def plain_attention(qkv: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(len(qkv), qkv.shape[1], -1)


def plain_gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def test_exp_is_that_of_float64_to_float32s_digits():
    from vcell.model.cpu_kernels import exp

    x = np.linspace(-87, 88, 20_001, dtype=np.float32)
    found = np.array([exp(value) for value in x], np.float64)
    assert np.abs(found / np.exp(x.astype(np.float64)) - 1).max() < 2**-22
    # operation by operation, as numpy does it: no processor may join a product and a sum
    assert [exp(value) for value in x[::50]] == [exp.py_func(value) for value in x[::50]]


def test_numbers_are_rounded_as_torch_rounds_them():
    from vcell.model.cpu_kernels import rounded, wide

    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    bits[:8] = [0x3F808000, 0x3F818000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00000001, 0x80000000, 0x7FC00000]
    values = bits.view(np.float32)
    found = np.array([wide(rounded(value)) for value in values])
    wanted = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(found, wanted)  # NaN equals NaN here


def test_swiglu_and_its_gradient():
    gate_up, gradient = halves(5, 7, 2 * 45, scale=4), halves(5, 7, 45, seed=1)
    value, slope = with_gradient(gated, gate_up, gradient)
    wanted, wanted_slope = with_gradient(plain_gated, gate_up.double(), gradient)
    torch.testing.assert_close(value.double(), wanted, rtol=ULP, atol=1e-30)
    # where a slope passes through 0 its digits are those of the terms that cancel, in float32
    torch.testing.assert_close(slope.double(), wanted_slope, rtol=ULP, atol=1e-5)


def test_the_norm_and_its_gradients():
    norm = RMSNorm(45)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    x, gradient = halves(5, 7, 45, scale=3), halves(5, 7, 45, seed=1)
    value, slope = with_gradient(norm, x, gradient)
    by_weight, norm.weight.grad = norm.weight.grad, None
    wanted, wanted_slope = with_gradient(norm.double(), x.double(), gradient)
    torch.testing.assert_close(value.double(), wanted, rtol=ULP, atol=1e-30)
    torch.testing.assert_close(slope.double(), wanted_slope, rtol=ULP, atol=1e-5)
    torch.testing.assert_close(by_weight.double(), norm.weight.grad, rtol=1e-5, atol=1e-5)


def test_attention_and_its_gradient():
    qkv, gradient = halves(SETS, CELLS, 3, HEADS, WIDTH, scale=2), halves(SETS, CELLS, HEADS * WIDTH, seed=1)
    value, slope = with_gradient(fused_cpu.Attended.apply, qkv, gradient)
    wanted, wanted_slope = with_gradient(plain_attention, qkv.double(), gradient)
    # shares are rounded before products, and products before differences: a few roundings of numbers as large as the largest
    assert (value - wanted).norm() < ULP * wanted.norm()
    assert (slope - wanted_slope).norm() < 2 * ULP * wanted_slope.norm()


def test_attention_predicts_what_it_was_trained_to():  # its own way is the slower one where no gradient is asked for
    attention = Attention(16, 2, 8)
    x = halves(2, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        trained = attention(x)
        with torch.no_grad():
            predicted = attention(x)
    torch.testing.assert_close(trained.float(), predicted.float(), rtol=0, atol=4 * ULP * float(predicted.abs().max()))


def test_dropout_drops_its_share_and_the_same_for_the_gradient():
    x, gradient = halves(100, 1000).abs() + 1, halves(100, 1000, seed=1).abs() + 1
    torch.manual_seed(5)
    value, slope = with_gradient(Dropout(0.1), x, gradient)
    dropped = value == 0
    n = dropped.numel()
    assert abs(dropped.float().mean() - 0.1) < 5 * (0.1 * 0.9 / n) ** 0.5
    assert torch.equal(dropped, slope == 0)
    torch.testing.assert_close(value[~dropped].double(), x[~dropped].double() / 0.9, rtol=ULP, atol=0)
    # neighbours, in a row and in a column, fall out independently
    for one, other in ((dropped[:, 1:], dropped[:, :-1]), (dropped[1:], dropped[:-1])):
        assert abs((one & other).float().mean() - 0.01) < 5 * (0.01 / one.numel()) ** 0.5


def test_dropout_depends_on_torchs_seed_alone():
    x, drop = halves(50, 50) + 10, Dropout(0.5)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first) and not torch.equal(first, second)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(
    "function, shape",
    [
        (gated, (9, 4, 60)),
        (RMSNorm(30), (9, 4, 30)),
        (fused_cpu.Attended.apply, (2, 9, 3, 2, 5)),
        (Dropout(0.5), (9, 4, 30)),
    ],
    ids=["gated", "norm", "attention", "dropout"],
)
def test_the_number_of_threads_changes_nothing_and_nan_shows(function, shape):
    x, before = halves(*shape), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            value, slope = with_gradient(function, x, torch.ones(1).expand(function(x).shape))
            found.append((value, slope))
    finally:
        torch.set_num_threads(before)
    for value, slope in found[1:]:
        assert torch.equal(value, found[0][0]) and torch.equal(slope, found[0][1])
    assert function(torch.full_like(x, torch.nan)).isnan().any()


def test_all_rows_are_done_once():
    from vcell.model import torch_threads
    from vcell.model.cpu_kernels import gated as loop

    for rows in (1, 2, torch_threads.BLOCKS - 1, torch_threads.BLOCKS, torch_threads.BLOCKS + 1, 1000):
        gate_up, out = halves(rows, 8), torch.zeros(rows, 4, dtype=torch.bfloat16)
        torch_threads.run(loop, rows, 4, gate_up, out)
        torch.testing.assert_close(out, plain_gated(gate_up.float()).bfloat16(), rtol=ULP, atol=0)


def test_a_block_is_what_plain_torch_makes_of_it(monkeypatch):
    torch.manual_seed(0)
    block, x = Block(48, 4, 12, 96), halves(SETS, CELLS, 48)

    def step() -> tuple[Tensor, ...]:
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value, slope = with_gradient(block, x, halves(SETS, CELLS, 48, seed=1))
        return value.float(), slope.float(), *(p.grad.clone() for p in block.parameters())

    own = step()
    monkeypatch.setattr(fused_cpu, "fuses", lambda *given: False)
    for found, wanted in zip(own, step(), strict=True):
        assert (found - wanted).norm() < 4 * ULP * wanted.norm()


def test_what_is_not_bf16_or_is_compiled_stays_with_torch():
    assert not fused_cpu.fuses(torch.ones(1))
    assert not fused_cpu.fuses(torch.ones(0, dtype=torch.bfloat16))
    with torch._subclasses.FakeTensorMode():
        assert not fused_cpu.fuses(torch.ones(1, dtype=torch.bfloat16))
