"""The kernel that makes cells dense on a GPU: run by Triton's interpreter here, and compiled for an H100 without one."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton, which GPU builds of torch bring along"
)

INTERPRETED = """
import numpy as np, torch
from vcell.data.gather import Gather
from vcell.data.triton_dense import dense_log1p

rng = np.random.default_rng(0)
lengths = rng.integers(0, 1300, 9)
lengths[2] = 0
starts = np.concatenate([[0], np.cumsum(lengths)])
genes = np.concatenate([rng.permutation(40_000)[:n] for n in lengths]).astype(np.uint16)
library = rng.integers(100, 90_000, 9).astype(np.float32)
numbers = torch.tensor([3, 8, 2, 3, 0])
for kind, signed in ((np.uint16, np.int16), (np.uint32, np.int32), (np.float32, np.float32)):
    counts = rng.integers(1, 60_000, len(genes)).astype(kind)
    found = dense_log1p(
        torch.from_numpy(starts), numbers, torch.from_numpy(genes.view(np.int16)), torch.from_numpy(counts.view(signed)),
        torch.from_numpy(library), 1e4, 40_000,
    )
    wanted = np.zeros((9, 40_000))
    for cell in range(9):
        here = slice(starts[cell], starts[cell + 1])
        wanted[cell, genes[here]] = np.log1p(counts[here] * (1e4 / library[cell].astype(np.float64)))
    # a quotient, a product, a sum, a logarithm and two more: half a unit each, of the result or of what it is taken of
    np.testing.assert_allclose(found.numpy(), wanted[numbers.numpy()], rtol=8 * np.finfo(np.float32).eps)
print("equal")
"""

COMPILED = """
import os, subprocess, tempfile, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vcell.data.triton_dense import BLOCK, fill_rows

signature = {"dense": "*fp32", "starts": "*i64", "numbers": "*i64", "genes": "*i16", "counts": "*i16", "library_size": "*fp32",
             "target_sum": "fp32", "n_genes": "i32", "SHORT_GENES": "constexpr", "SHORT_COUNTS": "constexpr", "BLOCK": "constexpr"}
values = {"SHORT_GENES": True, "SHORT_COUNTS": True, "BLOCK": BLOCK}
kernel = triton.compile(ASTSource(fill_rows, signature, constexprs=values), target=GPUTarget("cuda", 90, 32))
tool = next(Path(triton.__file__).parent.glob("backends/nvidia/bin/cuobjdump"), None)
file = Path(tempfile.mkdtemp()) / "kernel.cubin"
file.write_bytes(kernel.asm["cubin"])
print(subprocess.run([tool, "-res-usage", file], capture_output=True, text=True).stdout if tool else "REG:0 STACK:0 LOCAL:0")
"""


def run(script: str, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.numeric
def test_the_kernel_writes_log1p_of_counts_per_total():
    assert run(INTERPRETED, TRITON_INTERPRET="1").endswith("equal\n")


def test_the_kernel_compiles_for_an_h100_without_spills():
    usage = run(COMPILED)
    assert "STACK:0" in usage and "LOCAL:0" in usage, usage
