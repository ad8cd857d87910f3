"""The precision that `auto` stands for, and what it is told apart by."""

import pytest
import torch
from torch import nn

from vcell.config import compose
from vcell.errors import VcellError
from vcell.system import LARGE_NETWORK, auto_precision, matrix_products
from vcell.training.build import precision


@pytest.fixture(params=["_is_amx_tile_supported", "_is_avx512_bf16_supported", None])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU with one of the units that are fast in bf16, or with none."""
    for unit in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, unit, lambda unit=unit: unit == request.param, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    return request.param is not None


def test_large_networks_run_in_bf16_on_cpus_that_are_fast_in_it(fast: bool):
    cpu = torch.device("cpu")
    assert auto_precision(cpu, LARGE_NETWORK) == ("bf16-mixed" if fast else "32-true")
    assert auto_precision(cpu, LARGE_NETWORK - 1) == "32-true"
    assert auto_precision(torch.device("mps"), LARGE_NETWORK) == "32-true"


@pytest.mark.parametrize(("bf16", "wanted"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_gpus_run_in_half_precision_whatever_the_size(monkeypatch: pytest.MonkeyPatch, bf16: bool, wanted: str):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    assert auto_precision(torch.device("cuda"), 1) == wanted


def test_a_precision_that_is_asked_for_is_kept(fast: bool):
    with torch.device("meta"):
        large = nn.Linear(LARGE_NETWORK // 1000, 1000)
    options = compose("train", ["trainer=cpu"]).trainer
    assert precision(options, large) == ("bf16-mixed" if fast else "32-true")
    options.precision = "32-true"
    assert precision(options, large) == "32-true"


def test_products_of_float32_matrices_are_set_for_a_run_only():
    before = torch.get_float32_matmul_precision()
    with matrix_products("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
    with (
        pytest.raises(VcellError, match=r"matmul_precision=low must be one of highest, high, medium"),
        matrix_products("low"),
    ):
        pass
