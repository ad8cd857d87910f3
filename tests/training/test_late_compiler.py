"""Training starts without torch's compiler, which is whole as soon as anything asks for it."""

import subprocess
import sys

import pytest

STARTED = """
import sys
import torch
import vcell.training.train
from lightning.fabric.wrappers import OptimizedModule
from torch.utils.flop_counter import FlopCounterMode

def loaded():
    return "torch._dynamo.eval_frame" in sys.modules

net = torch.nn.Linear(2, 1)
optimizer = torch.optim.AdamW(net.parameters())

def step(net):
    optimizer.zero_grad()
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
"""

COMPILES = """
with FlopCounterMode(display=False):
    step(net)
print(loaded(), isinstance(net, OptimizedModule))
compiled = torch.compile(net, backend="eager")
step(compiled)
print(loaded(), isinstance(net, OptimizedModule), isinstance(compiled, OptimizedModule))
"""

IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool:
    print(len(list(pool.map(lambda _: torch._dynamo.reset(), range(4)))), loaded())
"""

BY_ITS_MODULES = """
import torch._dynamo.config, torch._dynamo.eval_frame
from torch._dynamo import graph_break
modules = [torch._dynamo.config, torch._dynamo.eval_frame, torch._dynamo]
print(loaded(), graph_break.__module__, torch._dynamo.OptimizedModule is torch._dynamo.eval_frame.OptimizedModule)
print([module is sys.modules[module.__name__] and module.__spec__.loader.name == module.__name__ for module in modules])
step(torch.compile(net, backend="eager"))
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (COMPILES, ["False False", "True False True"]),
        (BY_ITS_MODULES, ["True torch._dynamo.decorators True", "[True, True, True]"]),
        (IN_THREADS, ["4 True"]),
    ],
    ids=["when something is compiled", "by one of its modules", "by several threads"],
)
def test_the_compiler_is_loaded(script: str, said: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", STARTED + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == said
