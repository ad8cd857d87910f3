"""Inference for a challenge: its genes, contexts and whole counts; interrupted, shared, and still the same file."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from tests.conftest import infer_here
from tests.forked import Forked
from vcell.config import compose
from vcell.data.store.store import CellStore
from vcell.errors import VcellError
from vcell.model.trained import TrainedModel
from vcell.package import run as package
from vcell.predict import plan
from vcell.predict.parts import Parts

GENES = "data/demo/screen/gene_names.csv"
TARGETS = "data/demo/screen/pert_counts_Test.csv"
LAST = "runs/demo/checkpoints/last.ckpt"


def predict(out: Path, *overrides: str) -> ad.AnnData:
    infer_here(f"out={out}", *overrides)
    return ad.read_h5ad(out)


@pytest.fixture()
def lines(in_trained: Path, tmp_path: Path) -> Path:
    """Control cells of three lines that no run has seen, in one file, as the challenge of 2026 gives them."""
    parts = []
    for old, new in zip(("simA", "simB", "simC"), "ABC", strict=True):
        cells = ad.read_h5ad(f"data/demo/screen/{old}.h5ad")
        cells = cells[cells.obs["target_gene"] == "non-targeting"].copy()
        cells.obs = cells.obs[["target_gene"]].assign(context=new, ntc_id="g1")
        parts.append(cells)
    ad.concat(parts, index_unique="_").write_h5ad(tmp_path / "controls.h5ad")
    return tmp_path / "controls.h5ad"


SMALL_2026 = ["challenge=vcc2026", "challenge.n_genes=120", "challenge.n_targets=4", "challenge.cells=12", f"genes={GENES}", f"targets={TARGETS}"]  # fmt: skip


def targets_without_numbers(tmp_path: Path) -> str:
    path = tmp_path / "targets.csv"
    pd.read_csv(TARGETS)[["target_gene"]].to_csv(path, index=False)
    return f"targets={path}"


def test_2026_from_controls_alone_to_container(lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    targets = targets_without_numbers(tmp_path)
    out = tmp_path / "p.h5ad"
    found = predict(out, *SMALL_2026, targets, f"controls={lines}")
    assert (
        found.obs.groupby(["context", "target_gene"], observed=True).size().eq(12).all() and found.n_obs == 3 * 4 * 12
    )
    assert set(found.obs["context"]) == set("ABC") and "non-targeting" not in set(found.obs["target_gene"])
    assert (found.X.data == np.rint(found.X.data)).all() and found.X.data.min() >= 1
    assert "whole counts" in capsys.readouterr().out
    package(compose("package", [*SMALL_2026, targets, f"pred={out}", "by=vcell"]))
    # the file knows the lines it was predicted from, so that labels swapped later are found without any other file
    found.obs["context"] = found.obs["context"].map({"A": "A", "B": "C", "C": "B"})
    found.write_h5ad(tmp_path / "swapped.h5ad")
    with pytest.raises(VcellError, match="labelled 'B' look like control cells of 'C'"):
        package(compose("package", [*SMALL_2026, targets, f"pred={tmp_path / 'swapped.h5ad'}"]))
    assert {p.name for p in tmp_path.iterdir()} == {"controls.h5ad", "targets.csv", "p.h5ad", "p.vcc", "swapped.h5ad"}


def test_no_effect_draws_the_control_cells_themselves(lines: Path, tmp_path: Path):
    found = predict(
        tmp_path / "p.h5ad",
        *SMALL_2026,
        targets_without_numbers(tmp_path),
        f"controls={lines}",
        "predictor=copied_controls",
    )
    controls = ad.read_h5ad(lines)
    for context in "ABC":
        known = set(map(tuple, controls[controls.obs["context"] == context].X.toarray().tolist()))
        assert all(tuple(row) in known for row in found[found.obs["context"] == context].X.toarray().tolist())


def test_baselines_take_their_effects_from_the_run(lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Trained lines' effects, carried over to the control cells of new ones."""
    predict(
        tmp_path / "p.h5ad",
        *SMALL_2026,
        targets_without_numbers(tmp_path),
        f"controls={lines}",
        "predictor=context_mean",
    )
    assert "A, B, C were trained on: the mean of all contexts is used instead" in capsys.readouterr().out


def test_counts_have_the_predicted_mean(in_trained: Path, tmp_path: Path):
    options = ["targets=[GENE0001]", "contexts=[simC]", "n_cells=2000", "predictor=perturbation_mean"]
    expected = predict(tmp_path / "a.h5ad", *options)
    drawn = predict(tmp_path / "b.h5ad", *options, "draw=true")
    perturbed = [cells[cells.obs["target_gene"] == "GENE0001"].X.toarray() for cells in (expected, drawn)]
    control = expected[expected.obs["target_gene"] == "non-targeting"].X.toarray().mean(axis=0)
    change = [cells.mean(axis=0) - control for cells in perturbed]
    assert np.corrcoef(*change)[0, 1] > 0.95
    assert (change[1] @ change[0]) / (change[0] @ change[0]) == pytest.approx(1, abs=0.1)


def test_genes_come_in_the_challenges_order_whatever_the_model_has(
    in_trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = TrainedModel.load(Path(LAST)).identity.genes
    wanted = [*model[:100][::-1], "NEW1", "NEW2"]
    (tmp_path / "genes.csv").write_text("\n".join(wanted) + "\n")
    options = ["targets=[GENE0001]", "contexts=[simC]", "n_cells=9"]
    found = predict(tmp_path / "p.h5ad", *options, f"genes={tmp_path / 'genes.csv'}")
    assert found.var_names.tolist() == wanted
    assert "2 genes are missing from the control cells, and 0 in every cell: NEW1, NEW2" in capsys.readouterr().out
    whole = predict(tmp_path / "q.h5ad", *options)
    np.testing.assert_allclose(found.X.toarray()[:, :100], whole[:, wanted[:100]].X.toarray())
    assert found[:, ["NEW1", "NEW2"]].X.nnz == 0


def test_genes_the_model_never_saw_keep_the_controls_values(in_trained: Path, tmp_path: Path):
    cells = ad.read_h5ad("data/demo/screen/simA.h5ad")
    cells = cells[cells.obs["target_gene"] == "non-targeting"].copy()
    more = ad.AnnData(np.full((cells.n_obs, 1), 3.0, np.float32), obs=cells.obs, var=pd.DataFrame(index=["NEW"]))
    ad.concat([cells, more], axis=1, merge="same").write_h5ad(tmp_path / "controls.h5ad")
    (tmp_path / "genes.csv").write_text(Path(GENES).read_text() + "NEW\n")
    for draw in ("true", "false"):
        found = predict(tmp_path / f"{draw}.h5ad", "targets=[GENE0001]", "contexts=[simA]", "n_cells=9", f"controls={tmp_path / 'controls.h5ad'}",
                        f"genes={tmp_path / 'genes.csv'}", "challenge.controls=forbidden", f"draw={draw}")  # fmt: skip
        assert found.shape == (9, 121)
        library = json.loads(found.uns["vcell"])["target_sum"]
        assert (found[:, "NEW"].X.toarray() > np.log1p(library * 3 / 3000)).all()


def test_a_templates_batches_are_honoured(in_trained: Path, tmp_path: Path):
    template = ad.read_h5ad("data/demo/screen/simC.h5ad")[:20].copy()
    template.obs = pd.DataFrame({"target_gene": ["GENE0005"] * 12 + ["GENE0001"] * 8, "cell_type": "simC",
                                 "batch": ["simC_b1"] * 9 + ["simC_b2"] * 11}, index=template.obs_names)  # fmt: skip
    template.write_h5ad(tmp_path / "template.h5ad")
    found = predict(tmp_path / "p.h5ad", f"targets={tmp_path / 'template.h5ad'}", "challenge.controls=forbidden")
    counted = found.obs.groupby(["target_gene", "batch"], observed=True).size().to_dict()
    assert counted == {("GENE0005", "simC_b1"): 9, ("GENE0005", "simC_b2"): 3, ("GENE0001", "simC_b2"): 8}
    template.obs["batch"] = "simC_b7"
    template.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(VcellError, match=r"'simC_b7' has no control cells.*batches=false"):
        infer_here(f"out={tmp_path / 'q.h5ad'}", f"targets={tmp_path / 'other.h5ad'}")
    assert not (tmp_path / "q.h5ad").exists() and not list(tmp_path.glob("*.parts"))
    infer_here(f"out={tmp_path / 'q.h5ad'}", f"targets={tmp_path / 'other.h5ad'}", "batches=false")


def test_a_blend_adds_up_weighted_effects(in_trained: Path, tmp_path: Path):
    options = ["targets=[GENE0001,GENE0005]", "contexts=[simC]", "n_cells=9"]
    parts = {
        name: predict(tmp_path / f"{name}.h5ad", *options, f"predictor={name}").X.toarray()
        for name in ("model", "copied_controls", "perturbation_mean")
    }
    blend = predict(tmp_path / "b.h5ad", *options, "predictor={model: 0.25, perturbation_mean: 0.75}").X.toarray()
    control = parts["copied_controls"]
    expected = control + 0.25 * (parts["model"] - control) + 0.75 * (parts["perturbation_mean"] - control)
    np.testing.assert_allclose(blend, np.maximum(expected, 0), atol=1e-5)
    best = LAST.replace("last", "best")
    two = predict(tmp_path / "c.h5ad", *options, f"predictor={{model: 0.5, {best}: 0.5}}").X.toarray()
    alone = predict(tmp_path / "d.h5ad", *options, f"ckpt={best}").X.toarray()
    np.testing.assert_allclose(two, (parts["model"] + alone) / 2, atol=1e-5)


def test_2025_is_scaled_to_the_controls_median(in_trained: Path, tmp_path: Path):
    found = predict(
        tmp_path / "p.h5ad", "challenge=vcc2025", "challenge.n_genes=120", f"targets={TARGETS}", "contexts=[simC]"
    )
    store = CellStore.open("data/demo/store")
    median = float(np.median(store.library_size[store.controls_of("simC")]))
    assert json.loads(found.uns["vcell"])["target_sum"] == median
    controls = np.expm1(found[found.obs["target_gene"] == "non-targeting"].X.toarray()).sum(axis=1)
    np.testing.assert_allclose(controls, median, rtol=1e-4)
    package(
        compose(
            "package", ["challenge=vcc2025", "challenge.n_genes=120", f"genes={GENES}", f"pred={tmp_path / 'p.h5ad'}"]
        )
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["contexts=[A,B]"], "C is missing"),
        (["challenge.cells=null", "challenge.n_targets=5", "n_cells=3"], "4 targets; challenge=vcc2026 requires 5"),
        (["targets=" + TARGETS], "exactly 12 cells of each target"),
        (["challenge.n_genes=18533"], "requires 18,533 genes; data/demo/screen/gene_names.csv has 120"),
        (["challenge.max_cells=100"], "144 cells are more than challenge=vcc2026 allows"),
        (["predictor={modl: 1}"], "Did you mean 'model'"),
        (["compression=zip"], "compression=zip must be"),
        (["devices=0"], "devices=0 must be"),
    ],
)
def test_what_the_challenge_would_refuse_is_refused_first(
    overrides: list[str], words: str, lines: Path, tmp_path: Path
):
    listed = [targets_without_numbers(tmp_path)] if not any(o.startswith("targets=") for o in overrides) else []
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VcellError, match=words):
        infer_here(f"out={tmp_path / 'p.h5ad'}", *SMALL_2026, f"controls={lines}", *listed, *overrides)
    assert sorted(tmp_path.iterdir()) == before


# --------------------------------------------------------------------------------------------- interrupted, and shared

MANY = ["targets=[GENE0001,GENE0005,GENE0009]", "contexts=[simC]", "n_cells=40", "draw=true"]


@pytest.fixture()
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CELLS_PER_PART", 40)


def test_an_interrupted_prediction_goes_on_to_the_same_file(
    in_trained: Path, tmp_path: Path, small_parts: None, monkeypatch, capsys
):
    predict(tmp_path / "whole.h5ad", *MANY)
    write, written = Parts.write, []

    def interrupted(self, number, blocks):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, blocks)

    monkeypatch.setattr(Parts, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path / "p.h5ad", *MANY)
    assert (tmp_path / "p.h5ad.parts").is_dir() and not (tmp_path / "p.h5ad").exists()
    monkeypatch.setattr(Parts, "write", write)
    predict(tmp_path / "p.h5ad", *MANY)
    assert "with 2 parts written before" in capsys.readouterr().out
    assert (tmp_path / "p.h5ad").read_bytes() == (tmp_path / "whole.h5ad").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"p.h5ad", "whole.h5ad"}


def test_parts_of_another_prediction_are_not_taken_up(
    in_trained: Path, tmp_path: Path, small_parts: None, monkeypatch, capsys
):
    def interrupted(self, number, blocks):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", interrupted)
        predict(tmp_path / "p.h5ad", *MANY, "seed=1")
    predict(tmp_path / "p.h5ad", *MANY)
    assert "holds parts of another prediction" in capsys.readouterr().out
    predict(tmp_path / "whole.h5ad", *MANY)
    assert (tmp_path / "p.h5ad").read_bytes() == (tmp_path / "whole.h5ad").read_bytes()


@pytest.mark.slow
def test_a_killed_prediction_goes_on_to_the_same_file(in_trained: Path, tmp_path: Path):
    """SIGKILL between parts; the same command then ends with the file of one never killed."""
    large = ["targets=[GENE0001,GENE0005,GENE0009]", "contexts=[simC]", "n_cells=3000", "draw=true"]
    process = Forked("vcell.infer", [f"out={tmp_path / 'p.h5ad'}", *large], in_trained, together=True)
    until = time.monotonic() + 120
    while not (tmp_path / "p.h5ad.parts" / "000000").is_dir():
        assert process.poll() is None and time.monotonic() < until, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "p.h5ad").exists()
    predict(tmp_path / "p.h5ad", *large)
    predict(tmp_path / "whole.h5ad", *large)
    assert (tmp_path / "p.h5ad").read_bytes() == (tmp_path / "whole.h5ad").read_bytes()


@pytest.mark.slow
def test_processes_of_this_machine_share_the_targets(in_trained: Path, tmp_path: Path):
    large = ["targets=[GENE0001,GENE0005,GENE0009]", "contexts=[simC]", "n_cells=2000", "device=cpu"]
    predict(tmp_path / "alone.h5ad", *large)
    predict(tmp_path / "p.h5ad", *large, "devices=2")
    assert (tmp_path / "p.h5ad").read_bytes() == (tmp_path / "alone.h5ad").read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_ranks_share_the_targets_whatever_becomes_of_one(
    in_trained: Path, tmp_path: Path, small_parts: None, monkeypatch
):
    """As torchrun and srun start them: rank 1 begins once rank 0 has, writes its share and dies; rank 0 ends alone."""
    predict(tmp_path / "alone.h5ad", *MANY)
    write, written = Parts.write, []

    def stopped(self, number, blocks):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, blocks)

    for rank in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Parts, "write", stopped)
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", "2")
            patch.setenv("LOCAL_RANK", str(rank))
            written[:] = [None] if rank == 0 else []  # rank 0 writes one part, rank 1 two
            predict(tmp_path / "p.h5ad", *MANY)
        assert [n for n in written if n is not None] == ([0] if rank == 0 else [1, 3])
    predict(tmp_path / "p.h5ad", *MANY)
    assert (tmp_path / "p.h5ad").read_bytes() == (tmp_path / "alone.h5ad").read_bytes()


def test_a_disk_too_small_is_said_after_the_first_part(
    in_trained: Path, tmp_path: Path, small_parts: None, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(VcellError, match=r"will take about .* are free.*out=FOLDER"):
        predict(tmp_path / "p.h5ad", *MANY)
    assert not list(tmp_path.iterdir())


def test_pools_of_control_cells_vary_less(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(trained)
    spread = {}
    for pool in (1, 3):
        out = tmp_path / f"{pool}.h5ad"
        infer_here(
            "predictor=additive",
            f"out={out}",
            "challenge.values=counts",
            "draw=true",
            f"pool={pool}",
            "n_cells=60",
            "contexts=[simC]",
        )
        cells = ad.read_h5ad(out)
        predicted = cells[cells.obs["target_gene"] != "non-targeting"].X.toarray()
        assert (predicted == np.rint(predicted)).all()
        spread[pool] = predicted.std(0).sum()
    assert spread[3] < 0.9 * spread[1]
    with pytest.raises(VcellError, match="pool=9 must be a whole number from 1 to 4"):
        infer_here("predictor=additive", f"out={tmp_path / 'x.h5ad'}", "pool=9")
