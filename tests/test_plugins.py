"""A network of one's own trains, is warm-started, sharded and loaded like vcell's; a checkpoint runs it only where it is trusted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import vcell
from tests.training.test_warmstart import GENES, TABLE, make, predict
from vcell.errors import VcellError
from vcell.model.checkpoint import read_checkpoint
from vcell.training.sharding import shard
from vcell.training.warmstart import carry_over

LAB = """
import torch
from torch import nn

torch.zeros(1)
open("imported", "w").close()


class Shift(nn.Module):
    def __init__(self, n_genes: int, perturbation_width: int, hidden: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(perturbation_width, hidden)])
        self.last = nn.Linear(hidden, n_genes)

    def forward(self, control_SCG, perturbation_SP, embedding_SCE=None, context_S=None, batch_SC=None):
        hidden_SD = self.blocks[0](perturbation_SP)
        return (control_SCG + self.last(hidden_SD).unsqueeze(1)).relu()


class NoNetwork:
    pass
"""
QUICK = {
    "max_steps": 2,
    "trainer": "cpu",
    "table": "data/demo/screen/embedding.pt",
    "settings": {"data.sets.set_size": 4},
}


@pytest.fixture()
def lab(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of one's own in the working folder."""
    (fresh / "my_lab").mkdir()
    (fresh / "my_lab" / "__init__.py").write_text("")
    (fresh / "my_lab" / "nets.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(fresh))
    for name in ("my_lab", "my_lab.nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return fresh


def test_a_network_of_ones_own_is_loaded_only_where_it_is_trusted(lab: Path, monkeypatch: pytest.MonkeyPatch):
    from my_lab.nets import Shift  # type: ignore[import-not-found]

    run = vcell.fit("data/demo/store", name="own", model=Shift, **QUICK)
    for name in ("my_lab", "my_lab.nets"):
        monkeypatch.delitem(sys.modules, name)
    (lab / "imported").unlink()
    for trust in ((), ("my_la",), ("other",), ("vcell",)):
        with pytest.raises(VcellError, match=r"trust=\[my_lab\]"):
            vcell.load(run.checkpoint, trust=trust)
        assert "my_lab" not in sys.modules and not (lab / "imported").exists()
    model = vcell.load(run.checkpoint, trust=["my_lab"])
    assert type(model.model).__name__ == "Shift"
    assert model.predict(n_cells=3).n_obs > 0
    checkpoint = read_checkpoint(run.checkpoint)
    for target in (
        "my_lab.nets.NoNetwork",
        "my_lab.nets.torch.load",
        "my_lab.nets.Absent",
        "my_lab.absent.Net",
        "my_lab",
    ):
        checkpoint["vcell"]["config"]["model"]["_target_"] = target
        torch.save(checkpoint, lab / "x.ckpt")
        with pytest.raises(VcellError, match=r"x\.ckpt"):
            vcell.load(lab / "x.ckpt", trust=["my_lab"])


def test_a_network_given_as_an_object_is_loaded_into_one(lab: Path):
    from my_lab.nets import Shift  # type: ignore[import-not-found]

    run = vcell.fit("data/demo/store", name="object", model=Shift(120, 12), **QUICK)
    one = vcell.load(run.checkpoint, model=Shift(120, 12)).predict(n_cells=3, seed=1)
    two = vcell.load(run.checkpoint, trust=["my_lab"]).predict(n_cells=3, seed=1)
    assert (one.X != two.X).nnz == 0
    with pytest.raises(VcellError, match="do not fit"):
        vcell.load(run.checkpoint, model=Shift(119, 12))


def test_a_warm_start_matches_entries_by_the_axes_a_network_names(tmp_path: Path):
    class Own(nn.Module):
        axes = {"out.weight": {0: "genes"}}  # noqa: RUF012

        def __init__(self, n_genes: int) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(5, 5), nn.Linear(5, n_genes, bias=False)

        def forward(self, control_SCG, perturbation_SP, *_):  # type: ignore[no-untyped-def]
            return (control_SCG + self.out(self.inner(perturbation_SP)).unsqueeze(1)).relu()

    old, new = make(GENES, TABLE), make(GENES[::-1], TABLE)
    for module, number in ((old, 12), (new, 12)):
        module.model = module.trained.model = Own(number)
    torch.save({"state_dict": old.state_dict(), "global_step": 7, "vcell": old.identity.plain()}, tmp_path / "a.ckpt")
    carry_over(new, tmp_path / "a.ckpt")
    before, after = predict(old, GENES, "Q"), predict(new, GENES[::-1], "Q")
    assert all(torch.allclose(before[g], after[g]) for g in GENES)


def test_a_network_of_ones_own_is_sharded_block_by_block(tmp_path: Path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.last = nn.ModuleList([nn.Linear(5, 4), nn.Linear(4, 4)]), nn.Linear(4, 12)

        def forward(self, control_SCG, perturbation_SP, *_):  # type: ignore[no-untyped-def]
            return control_SCG + self.last(self.blocks[1](self.blocks[0](perturbation_SP))).unsqueeze(1)

    whole = Own()
    expected = whole(torch.zeros(2, 3, 12), torch.ones(2, 5))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        shard(whole, init_device_mesh("cpu", (1,)))
        assert isinstance(whole, FSDPModule) and all(isinstance(block, FSDPModule) for block in whole.blocks)
        torch.testing.assert_close(whole(torch.zeros(2, 3, 12), torch.ones(2, 5)), expected)
    finally:
        torch.distributed.destroy_process_group()
