"""Passes fused into kernels give what plain torch gives: in Triton's interpreter, and on a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from tests.data.test_triton_dense import run
from vcell.model.fused import centred, changed, fuses, gated

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton, which GPU builds of torch bring along"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

INTERPRETED = """
import torch
from torch.nn.functional import silu
from vcell.model import triton_kernels as kernels

torch.manual_seed(0)
n, genes = 5, kernels.BLOCK + 37
base, change, gradient = torch.rand(n, genes), torch.randn(n, genes + 3)[:, :genes], torch.randn(n, genes)
base[1, 2], change[2, genes - 1], gradient[3, 0] = torch.nan, torch.nan, torch.nan
out, into = torch.empty(n, genes), torch.empty(n, genes)
kernels.add_relu(base, change, out)
kernels.relu_gradient(gradient, out, into)
plain = change.clone().requires_grad_()
wanted = (base + plain).relu()
wanted.backward(gradient)
torch.testing.assert_close(out, wanted.detach(), rtol=0, atol=0, equal_nan=True)
torch.testing.assert_close(into, plain.grad, rtol=0, atol=0, equal_nan=True)

x, y = torch.rand(2, 3, genes), torch.rand(2, 4, genes)
centre, z = y.mean(1, keepdim=True), torch.empty(2, 7, genes)
kernels.centred(x, y, centre, z)
torch.testing.assert_close(z, torch.cat([x - centre, y - centre], 1), rtol=0, atol=0)

gate_up = (4 * torch.randn(n, 2 * genes)).requires_grad_()
gate, up = gate_up.chunk(2, -1)
wanted = silu(gate) * up
wanted.backward(gradient.nan_to_num())
kernels.gated(gate_up.detach(), out)
kernels.gated_gradient(gradient.nan_to_num(), gate_up.detach(), found := torch.empty(n, 2 * genes))
torch.testing.assert_close(out, wanted.detach())
torch.testing.assert_close(found, gate_up.grad)
print("equal")
"""


@needs_triton
@pytest.mark.numeric
def test_the_kernels_give_what_plain_torch_gives():
    assert run(INTERPRETED, TRITON_INTERPRET="1").endswith("equal\n")


def test_without_a_gpu_all_is_plain_torch():
    assert not fuses(torch.ones(1))
    base, change = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[0.5, -2.0]]], requires_grad=True)
    cells = changed(base, change)
    cells.sum().backward()
    assert cells.tolist() == [[[1.5, 0.0]]] and change.grad is not None and change.grad.tolist() == [[[1.0, 0.0]]]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("genes", [64, 18_533])
@pytest.mark.parametrize("padded", [False, True])
def test_cells_changed_on_a_gpu_are_those_of_plain_torch(genes: int, padded: bool):
    torch.manual_seed(0)
    base = torch.rand(3, 5, genes, device="cuda")
    whole = torch.randn(3, 5, genes + 7 * padded, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(3, 5, genes, device="cuda")
    assert fuses(base, whole)
    found = []
    for way in (changed, lambda b, c: (b + c).relu()):
        whole.grad = None
        out = way(base, whole[..., :genes])
        out.backward(gradient)
        found.append((out.detach(), whole.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.gpu
@needs_gpu
def test_gates_on_a_gpu_are_those_of_plain_torch_but_for_the_last_digit():
    torch.manual_seed(0)
    rows = (4 * torch.randn(70, 2 * 2688, device="cuda")).bfloat16().requires_grad_()
    gradient = torch.randn(70, 2688, device="cuda", dtype=torch.bfloat16)
    ours = gated(rows)
    (ours_gradient,) = torch.autograd.grad(ours, rows, gradient)
    gate, up = rows.chunk(2, -1)
    plain = torch.nn.functional.silu(gate) * up
    (plain_gradient,) = torch.autograd.grad(plain, rows, gradient)
    # two roundings to 8 bits, each of which may fall to the other side
    exact = {"rtol": 2 * torch.finfo(torch.bfloat16).eps, "atol": 1e-5}
    torch.testing.assert_close(ours, plain, **exact)
    torch.testing.assert_close(ours_gradient, plain_gradient, rtol=exact["rtol"], atol=0.02)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cells_centred_on_a_gpu_are_those_of_plain_torch(dtype: torch.dtype):
    x, y = torch.rand(2, 7, 18_533, device="cuda"), torch.rand(2, 9, 18_533, device="cuda")
    centre = y.mean(1, keepdim=True)
    assert torch.equal(centred(x, y, dtype), torch.cat([x - centre, y - centre], 1).to(dtype))
