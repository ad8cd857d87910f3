"""Work on all cores of the job, and memory that is kept for it."""

import platform
import subprocess
import sys
import threading

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from vcell.errors import VcellError
from vcell.system import choose_device, choose_gpu, in_threads


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_matrix_products_take_one_core_within_threads(monkeypatch: pytest.MonkeyPatch):
    """Those of each thread on all cores would wait for each other. Blocks may overlap; after the last all is as before."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("vcell.system.cores", lambda: 2)
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        one, other = (in_threads(lambda _: blas_threads(), range(6)) for _ in range(2))
        assert [next(one), next(other)] == [{1}, {1}]
        assert list(one) == [{1}] * 5 and next(other) == {1}
        other.close()
        assert blas_threads() == before


def test_torch_takes_its_threads_share_of_the_cores(monkeypatch: pytest.MonkeyPatch):
    """Else each thread has it start as many again as there are cores."""
    monkeypatch.setattr("vcell.system.cores", lambda: 4)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert list(in_threads(lambda _: torch.get_num_threads(), range(9))) == [1] * 9
        assert list(in_threads(lambda _: torch.get_num_threads(), range(2))) == [2] * 2
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_results_come_in_order_and_errors_come_through(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("vcell.system.cores", lambda: 2)
    assert list(in_threads(lambda x: x * x, range(50))) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // (3 - x), range(9)))


def test_work_within_work_shares_the_cores(monkeypatch: pytest.MonkeyPatch):
    """Two items on eight cores leave four to each; eight leave one, and no thread is begun for that."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("vcell.system.cores", lambda: 8)

    def threads_of(_: int) -> set[int]:
        meeting = threading.Barrier(4)
        return set(in_threads(lambda _: (threading.get_ident(), meeting.wait(60))[0], range(4)))

    assert [len(threads) for threads in in_threads(threads_of, range(2))] == [4, 4]
    own = in_threads(
        lambda _: {threading.get_ident()} == set(in_threads(lambda _: threading.get_ident(), range(9))), range(8)
    )
    assert all(own)
    nested = in_threads(lambda x: sum(in_threads(lambda y: x * y, range(10))), range(5))
    assert list(nested) == [45 * x for x in range(5)]


KEPT = """
import numpy as np
from pathlib import Path
from vcell.system import freed_memory_kept

def megabytes():
    return int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))) / 1024

before = megabytes()
with freed_memory_kept():
    some = [np.ones(25_000_000) for _ in range(2)]  # 400 MB
    del some
    within = megabytes()
print(within - before, megabytes() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc")
def test_freed_memory_stays_and_goes_back_afterwards():
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    within, afterwards = map(float, done.stdout.split())
    assert within > 300 and afterwards < 100


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("gpu", "device=gpu must be one of auto, cpu, cuda"),
        ("cuda:1", "choose the GPU with CUDA_VISIBLE_DEVICES=1"),
        (None, "device=None must be one of auto, cpu, cuda"),
        pytest.param("cuda", "needs a GPU that torch can use", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused(device, words: str):
    with pytest.raises(VcellError, match=words):
        choose_device(device, 0)


def test_the_processor_is_chosen_by_name_or_as_torch_names_it():
    assert choose_gpu("cpu") is None and choose_gpu(torch.device("cpu")) is None
    assert choose_device(torch.device("cpu"), 0) == torch.device("cpu")
