"""Nothing that comes from a file is believed or called: checkpoints, stores, parts, tables, links."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import torch

from tests.conftest import SMALL, Command, assert_refused, infer_here, train_here
from tests.data.store.test_ingest import make_cells, write
from vcell.config import compose
from vcell.data.files.h5ad import Columns, open_h5ad, read_obs
from vcell.data.store.ensure import ensure_store, verified
from vcell.data.store.ingest import ingest
from vcell.data.store.options import StoreOptions
from vcell.data.store.store import CellStore
from vcell.errors import VcellError
from vcell.model.checkpoint import read_checkpoint
from vcell.model.table import PerturbationTable
from vcell.model.trained import TrainedModel
from vcell.predict.parts import Parts
from vcell.training.run_folder import RunFolder
from vcell.training.train import train

LAST = Path("runs/demo/checkpoints/last.ckpt")
CALL = {"_target_": "os.system", "command": "touch owned"}


def _deep(value: Any) -> Any:
    return {"_target_": "builtins.list", "_args_": [[value]]}


def train_files(*overrides: str) -> None:
    """Trains on files, as a user's own are, in the run `demo`."""
    shape = [option for option in SMALL if not option.startswith("data.simulate")]
    train(compose("train", ["experiment=perturb_seq", "trainer=cpu", "name=demo", "data.store=s", *shape, *overrides]))


WAYS_IN: dict[str, Callable[[dict[str, Any]], None]] = {
    "another class": lambda v: v["config"]["model"].update(_target_="os.system"),
    "a path through imports": lambda v: v["config"]["model"].update(_target_="vcell.model.checkpoint.Path.rmdir"),
    "another class of the package": lambda v: v["config"]["model"].update(_target_="vcell.model.transition.torch.load"),
    "sizes": lambda v: v["sizes"].update(CALL),
    "sizes beside": lambda v: v["sizes"].update(n_genes=CALL),
    "a nested value": lambda v: v["config"]["model"].update(hidden=CALL),
    "a tuple": lambda v: v["config"]["model"].update(hidden=(CALL,)),
    "a list": lambda v: v["config"]["model"].update(covariates=[CALL]),
    "deeper": lambda v: v["config"]["model"].update(covariates=[[_deep(CALL)]]),
    "partial": lambda v: v["config"]["model"].update(_partial_=True, _args_=[CALL]),
    "no model": lambda v: v["config"].update(model=None),
    "no sizes": lambda v: v.pop("sizes"),
    "no genes": lambda v: v.update(config=[]),
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_a_checkpoint_runs_nothing(way: str, in_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = copy.deepcopy(read_checkpoint(LAST))
    WAYS_IN[way](checkpoint["vcell"])
    torch.save(checkpoint, tmp_path / "x.ckpt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VcellError, match=r"x\.ckpt"):
        TrainedModel.load(tmp_path / "x.ckpt")
    assert not (tmp_path / "owned").exists()


def flipped(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)


def test_flipped_bits_in_checkpoints_are_noticed(in_trained: Path, tmp_path: Path):
    rng, whole = random.Random(0), read_checkpoint(LAST)
    for _ in range(40):
        shutil.copy(LAST, tmp_path / "x.ckpt")
        flipped(tmp_path / "x.ckpt", rng.randrange(LAST.stat().st_size), rng.randrange(8))
        try:
            found = read_checkpoint(tmp_path / "x.ckpt")
        except VcellError:
            continue
        for key, weight in whole["state_dict"].items():  # a flip in the padding between parts changes nothing
            assert torch.equal(found["state_dict"][key], weight)


def test_flipped_bits_in_tables_are_noticed(tmp_path: Path):
    rng, table = random.Random(1), {f"G{i}": torch.full((7,), float(i)) for i in range(20)}
    for _ in range(40):
        torch.save(table, tmp_path / "t.pt")
        flipped(tmp_path / "t.pt", rng.randrange((tmp_path / "t.pt").stat().st_size), rng.randrange(8))
        try:
            found = PerturbationTable.load(tmp_path / "t.pt")
        except VcellError:
            continue
        assert all(torch.equal(found.lookup([name])[0], vector) for name, vector in table.items())


@pytest.fixture()
def store(tmp_path: Path) -> CellStore:
    return ingest([write(make_cells(), tmp_path / "a.h5ad")], tmp_path / "store", Columns())


@pytest.mark.parametrize(
    "name", ["counts.indptr.npy", "counts.indices.npy", "counts.values.npy", "obs.parquet", "var.parquet", "labels.csv"]
)
def test_flipped_bits_in_a_store_are_noticed(name: str, store: CellStore):
    rng, whole = random.Random(2), (store.path / name).read_bytes()
    for _ in range(12):
        flipped(store.path / name, rng.randrange(len(whole)), rng.randrange(8))
        with pytest.raises(VcellError, match="is damaged"):
            verified(CellStore.open(store.path))
        (store.path / name).write_bytes(whole)
    assert CellStore.open(store.path).verify()


def test_a_gene_beyond_the_last_is_noticed_where_it_is_read(store: CellStore):
    array = np.load(store.path / "counts.indices.npy")
    array[50] = 40
    np.save(store.path / "counts.indices.npy", array)
    with pytest.raises(VcellError, match=r"names gene 40 of 40"):
        CellStore.open(store.path).rows(np.arange(store.n_cells))


def test_pointers_that_run_backwards_are_noticed_at_opening(store: CellStore):
    array = np.load(store.path / "counts.indptr.npy")
    array[3], array[4] = array[4], array[3] - 1
    np.save(store.path / "counts.indptr.npy", array)
    with pytest.raises(VcellError, match="decreases"):
        CellStore.open(store.path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_is_no_damage(store: CellStore):
    store.path.chmod(0)
    try:
        with pytest.raises(VcellError, match="no permission"):
            CellStore.open(store.path)
    finally:
        store.path.chmod(0o755)


def test_a_count_above_65535_trains_like_any_other(fresh: Path):
    with h5py.File("data/demo/screen/simA.h5ad", "r+") as file:
        values = file["X/data"][:]
        values[1] = 70_000
        file["X/data"][:] = values
    shutil.rmtree("data/demo/store")
    path = "data.path=data/demo/screen/sim*.h5ad"
    assert (
        ensure_store(StoreOptions.of(compose("prepare", [path, "data=perturb_seq", "data.store=s"]).data)).values.dtype
        == np.uint32
    )  # type: ignore[attr-defined]
    train_files(path, "trainer.max_steps=2")


@pytest.mark.parametrize("what", ["cut short", "flipped", "gone"])
def test_a_damaged_part_never_goes_into_the_file(
    what: str, in_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    wanted = ["targets=data/demo/screen/pert_counts_Test.csv", "contexts=[simC]"]
    infer_here(f"out={tmp_path / 'good.h5ad'}", *wanted)
    with monkeypatch.context() as killed:
        killed.setattr(Parts, "join", lambda *a, **k: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            infer_here(f"out={tmp_path / 'x.h5ad'}", *wanted)
    values = tmp_path / "x.h5ad.parts/000000/values"
    if what == "flipped":
        flipped(values, 403, 6)
    elif what == "cut short":
        values.write_bytes(values.read_bytes()[:100])
    else:
        values.unlink()
    infer_here(f"out={tmp_path / 'x.h5ad'}", *wanted)
    assert "1 damaged parts" in capsys.readouterr().out
    assert (tmp_path / "x.h5ad").read_bytes() == (tmp_path / "good.h5ad").read_bytes()


def test_a_kill_after_the_file_has_its_name_is_no_obstacle(
    in_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    wanted = [f"out={tmp_path / 'x.h5ad'}", "targets=[GENE0001]", "contexts=[simC]", "n_cells=4"]
    with monkeypatch.context() as killed:
        killed.setattr("vcell.predict.parts.remove", lambda folder: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            infer_here(*wanted)
    assert (tmp_path / "x.h5ad").is_file() and (tmp_path / "x.h5ad.parts").is_dir()
    infer_here(*wanted)
    assert "by the command that was interrupted" in capsys.readouterr().out and [
        p.name for p in tmp_path.iterdir()
    ] == ["x.h5ad"]
    with pytest.raises(VcellError, match="exists already"):
        infer_here(*wanted)


LINKS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "X to nowhere": (lambda f: f.__setitem__("X", h5py.SoftLink("/nowhere")), "X is a link to /nowhere"),
    "X to itself": (lambda f: f.__setitem__("X", h5py.SoftLink("/X")), "X is a link to /X"),
    "X in another folder": (
        lambda f: f.__setitem__("X", h5py.ExternalLink("/etc/other.h5", "/X")),
        "outside its folder.*VCELL_EXTERNAL_LINKS",
    ),
    "X in a file that is gone": (lambda f: f.__setitem__("X", h5py.ExternalLink("gone.h5", "/X")), "leads nowhere"),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_that_lead_nowhere_are_said_so(case: str, tmp_path: Path):
    link, words = LINKS[case]
    path = write(make_cells(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["X"]
        link(file)
    with pytest.raises(VcellError, match=words):
        ingest([path], tmp_path / "store", Columns())
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]


def test_a_column_behind_a_dead_link_is_said_so(tmp_path: Path):
    path = write(make_cells(), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs/batch"]
        file["obs/batch"] = h5py.SoftLink("/obs/none")
    with open_h5ad(path) as file, pytest.raises(VcellError, match="batch is a link to /obs/none"):
        read_obs(file, path, Columns(), None)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "split.json"])
@pytest.mark.parametrize("content", [b"\x80\x81: [\n", b"", b"a,b\n1\n", b"[1]"])
def test_garbage_in_a_runs_files_is_named(
    name: str, content: bytes, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(trained, tmp_path / "t")
    monkeypatch.chdir(tmp_path / "t")
    Path("runs/demo", name).write_bytes(content * 3)
    options = ["trainer.max_steps=41", "trainer.val_check_interval=20", "trainer.log_every_n_steps=5"]
    if name == "metrics.csv" and not content:
        train_here(*options)  # an empty file is one that was never written
        return
    with pytest.raises(VcellError, match=name.replace(".", r"\.")):
        train_here(*options)


@pytest.mark.slow
def test_a_full_disk_ends_training_in_one_line_and_the_same_command_continues(fresh: Path, vcell: Command):
    run = ["experiment=demo", "trainer=cpu", *SMALL, "trainer.max_steps=4", "trainer.val_check_interval=2"]
    assert_refused(vcell("train", *run, cwd=fresh, largest_file=20_000), "could not be written")
    assert not [p for p in (fresh / "runs").rglob("*") if ".tmp" in p.name]
    train_here("trainer.max_steps=4", "trainer.val_check_interval=2")
    assert read_checkpoint(fresh / LAST)["global_step"] == 4


@pytest.mark.slow
def test_a_full_disk_ends_prediction_and_scoring_in_one_line(in_trained: Path, vcell: Command, tmp_path: Path):
    infer_here(f"out={tmp_path / 'p.h5ad'}", "targets=data/demo/screen/pert_counts_Test.csv", "contexts=[simC]")
    wanted = [f"ckpt={in_trained / LAST}", "targets=data/demo/screen/pert_counts_Test.csv", "contexts=[simC]"]
    done = vcell("infer", *wanted, f"out={tmp_path / 'q.h5ad'}", cwd=in_trained, largest_file=60_000)
    assert_refused(done, "could not be written")
    assert not (tmp_path / "q.h5ad").exists() and not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]
    real = in_trained / "data/demo/screen/truth/simC_test.h5ad"
    score = [f"pred={tmp_path / 'p.h5ad'}", f"real={real}", f"out={tmp_path / 's'}", "engine=fast"]
    done = vcell("evaluate", *score, cwd=in_trained, largest_file=5_000)
    assert_refused(done, "could not be written")
    assert not [p for p in (tmp_path / "s").rglob("*") if p.suffix in (".html", ".json")]


def test_last_is_restored_from_a_best_checkpoint_that_finished(fresh: Path, capsys: pytest.CaptureFixture[str]):
    options = ["trainer.val_check_interval=3", "trainer.max_steps=3"]
    train_here(*options)
    assert (LAST.parent / "best.ckpt").is_file()
    LAST.unlink()
    train_here(*options)
    assert "restored" in capsys.readouterr().out and read_checkpoint(LAST)["global_step"] == 3


def test_a_run_may_move_its_data_and_a_newer_vcell_may_have_more_keys(fresh: Path):
    path = "data.path=data/demo/screen/sim*.h5ad"
    train_files(path, "trainer.max_steps=1")
    Path("elsewhere").mkdir()
    for file in Path("data/demo/screen").glob("sim*.h5ad"):
        shutil.copyfile(file, Path("elsewhere") / file.name)  # with another time
    config = (Path("runs/demo/config.yaml")).read_text()
    older = "\n".join(line for line in config.splitlines() if "no_guide" not in line and "spelling" not in line)
    Path("runs/demo/config.yaml").write_text(older.replace("vcell.data.splits.HoldOut", "vcell.somewhere.HoldOut"))
    meta = json.loads(Path("s/meta.json").read_text())
    del meta["provenance"]["settings"]["labels"]  # as a store of before has it
    Path("s/meta.json").write_text(json.dumps(meta))
    train_files("data.path=elsewhere/sim*.h5ad", "trainer.max_steps=2")
    assert read_checkpoint(LAST)["global_step"] == 2


def test_a_second_process_of_one_run_is_refused_by_name(fresh: Path):
    from vcell.process.lock import Holder

    Path("runs").mkdir()
    holder = Holder(Holder.here().host, "another boot", 4711, "vcell.train experiment=demo", "x")
    Path("runs/demo.lock").write_text(json.dumps(holder.__dict__))
    with pytest.raises(VcellError, match=r"the run runs/demo is being written by process 4711 on .*experiment=demo"):
        train_here("trainer.max_steps=1")
    assert RunFolder(Path("runs/demo")).path.exists() is False


def test_what_is_written_is_what_the_field_reads(in_trained: Path, tmp_path: Path):
    sc = pytest.importorskip("scanpy")
    infer_here(f"out={tmp_path / 'p.h5ad'}", "targets=data/demo/screen/pert_counts_Test.csv", "contexts=[simC]")
    infer_here(
        f"out={tmp_path / 'c.h5ad'}",
        "targets=data/demo/screen/pert_counts_Test.csv",
        "contexts=[simC]",
        "challenge.values=counts",
    )
    for path in (
        tmp_path / "p.h5ad",
        tmp_path / "c.h5ad",
        Path("data/demo/screen/simA.h5ad"),
        Path("data/demo/screen/truth/simC_test.h5ad"),
    ):
        cells = ad.read_h5ad(path)
        assert cells.X.indptr.dtype == cells.X.indices.dtype == np.int32
        sc.pp.calculate_qc_metrics(cells, inplace=True, percent_top=None)
        if path.name != "p.h5ad":
            sc.pp.normalize_total(cells)
            sc.pp.log1p(cells)
        sc.pp.highly_variable_genes(cells, n_top_genes=20)
        sc.pp.pca(cells, n_comps=5)
        sc.tl.rank_genes_groups(cells, "target_gene", reference="non-targeting", method="wilcoxon")
        assert ad.concat([cells, cells], index_unique="-").n_obs == 2 * cells.n_obs
