"""A network that starts from a prior made of measured effects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

from tests.conftest import SMALL, infer_here, train_here
from vcell.config import compose
from vcell.data.batch import CellSetBatch
from vcell.data.gather import Gather
from vcell.data.sampler import CellSets
from vcell.data.store.view import open_stores
from vcell.effects.features import leave_one_out
from vcell.errors import VcellError
from vcell.model.checkpoint import Identity, read_checkpoint
from vcell.model.trained import TrainedModel
from vcell.model.transition import TransitionModel
from vcell.predict.predictors import transfer_kept
from vcell.training.train import train
from vcell.training.validation import Validated, worth_keeping

LAST = Path("runs/demo/checkpoints/last.ckpt")
# effects that few cells show
CLEAR = ["data.simulate.effect_sd=1.0", "data.simulate.library_size=4000"]
WITH_PRIOR = [*CLEAR, "model.prior=transfer", "trainer.val_check_interval=3", "schedule.decay=constant"]


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def batch_of(model: TrainedModel, groups: list[tuple[str, str]]) -> CellSetBatch:
    """Sets of six control cells."""
    gather = Gather(open_stores([Path("data/demo/store")]), model.identity.target_sum)
    cells = np.stack([gather.store.controls_of(c)[:6] for c, _ in groups])
    return gather.to_device(gather.fetch(CellSets([c for c, _ in groups], [p for _, p in groups], cells, None)))


def test_untrained_it_is_the_prior_to_the_bit(folder: Path):
    small = [key for key in SMALL if not key.startswith("model.")]
    train(compose("train", ["experiment=demo", "trainer=cpu", *small, *CLEAR, "model=transfer", "name=alone"]))
    train_here(*WITH_PRIOR, "trainer.max_steps=1", "optimizer.lr=0")
    alone, network = TrainedModel.load(Path("runs/alone/checkpoints/last.ckpt")), TrainedModel.load(LAST)
    groups = network.identity.trained[:2] + [g for g, s in network.identity.assigned.items() if s == "val"][:2]
    batch = batch_of(network, groups)
    with torch.inference_mode():
        expected, found = alone.predict(batch), network.predict(batch)
    assert torch.equal(found, expected) and not torch.equal(found, batch.control_SCG)
    # references of evaluate take it from either, but not where it was given settings: a baseline has none
    path = Path("runs/alone/checkpoints/last.ckpt")
    kept = [
        transfer_kept(model.identity, read_checkpoint(where)["state_dict"], where)
        for model, where in ((alone, path), (network, LAST))
    ]
    assert all(one is not None and one.fitted["settings"] == alone.model.fitted["settings"] for one in kept)
    changed = read_checkpoint(path)
    changed["vcell"]["config"]["model"]["smooth"] = 0.5
    assert transfer_kept(Identity.of(changed["vcell"], path), changed["state_dict"], path) is None


def test_a_continued_run_ends_like_one_never_stopped(folder: Path):
    train_here(*WITH_PRIOR, "trainer.max_steps=8")
    whole = read_checkpoint(LAST)["state_dict"]
    shutil.rmtree("runs")
    for steps in (5, 8):
        train_here(*WITH_PRIOR, f"trainer.max_steps={steps}")
    parts = read_checkpoint(LAST)["state_dict"]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    # another run may start from it; its prior is fitted anew
    train_here(*WITH_PRIOR, "trainer.max_steps=2", "name=warm", f"init_from={LAST}")


def test_the_amplitude_for_ranks_is_that_of_its_prior(folder: Path):
    train_here(*WITH_PRIOR, "trainer.max_steps=4")
    changed = read_checkpoint(LAST)
    changed["vcell"]["prior"]["fitted"]["scale"].update(cell=0.2, ranks=0.6)
    torch.save(changed, "changed.ckpt")
    moved = {}
    for amplitude in ("error", "ranks"):
        infer_here("ckpt=changed.ckpt", f"out={amplitude}.h5ad", f"amplitude={amplitude}", "knockdown=off")
        found = ad.read_h5ad(f"{amplitude}.h5ad")
        assert json.loads(found.uns["vcell"])["amplitude"] == amplitude
        moved[amplitude] = np.abs(found.X.toarray()).sum()
    assert moved["ranks"] != moved["error"]
    with pytest.raises(VcellError, match="amplitude=rank must be one of auto, error, ranks"):
        infer_here("ckpt=changed.ckpt", "out=x.h5ad", "amplitude=rank")


def test_in_training_it_starts_from_what_others_say_of_a_target():
    """Predictions of a ridge regression with a target left out are those of a regression that never saw it."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 5)), rng.standard_normal((12, 7)).astype(np.float32)
    inverse = np.linalg.inv(x @ x.T + 2.0 * np.eye(12))
    found = leave_one_out(inverse, y)
    for row in range(12):
        others = np.arange(12) != row
        weights = x[others].T @ np.linalg.inv(x[others] @ x[others].T + 2.0 * np.eye(11)) @ y[others]
        np.testing.assert_allclose(found[row], x[row] @ weights, rtol=1e-3, atol=1e-4)


def test_an_unknown_prior_is_refused():
    with pytest.raises(VcellError, match=r"model.prior=transfr must be one of null, .*Did you mean 'transfer'"):
        TransitionModel(10, 3, 8, 1, 1, 8, 8, 1, 1, prior="transfr")


def test_what_the_network_adds_is_kept_by_as_much_as_validation_found(folder: Path, capsys: pytest.CaptureFixture[str]):
    train_here(*WITH_PRIOR, "trainer.max_steps=6", "optimizer.lr=0.01")
    kept = read_checkpoint(LAST)["vcell"]["addition"]
    assert 0 <= kept <= 1 and f"{kept:.2f} of what the network adds to it is kept" in capsys.readouterr().out
    network = TrainedModel.load(LAST)
    batch = batch_of(network, network.identity.trained[:2])
    predicted = {}
    with torch.inference_mode():
        start = network.start(batch)
        for network.addition in (0.0, 0.25, 1.0, None):
            predicted[network.addition] = network.predict(batch)
    assert torch.equal(predicted[0.0], start) and not torch.equal(predicted[1.0], start)
    torch.testing.assert_close(predicted[0.25], torch.lerp(start, predicted[1.0], 0.25))
    torch.testing.assert_close(predicted[None], torch.lerp(start, predicted[1.0], kept))


def test_with_nothing_added_whole_counts_are_the_priors(folder: Path):
    small = [key for key in SMALL if not key.startswith("model.")]
    train(compose("train", ["experiment=demo", "trainer=cpu", *small, *CLEAR, "model=transfer", "name=alone"]))
    train_here(*WITH_PRIOR, "trainer.max_steps=6", "optimizer.lr=0.01")
    counts = {}
    for name, ckpt, addition in (("alone", "runs/alone/checkpoints/last.ckpt", 1), ("none", LAST, 0), ("all", LAST, 1)):
        infer_here(f"ckpt={ckpt}", f"out={name}.h5ad", f"addition={addition}", "challenge.values=counts", "draw=true")
        counts[name] = ad.read_h5ad(f"{name}.h5ad").X
    assert (counts["alone"] != counts["none"]).nnz == 0 and (counts["all"] != counts["none"]).nnz > 0
    with pytest.raises(VcellError, match="addition=2 must be a number from 0 to 1 or auto"):
        infer_here(f"ckpt={LAST}", "out=x.h5ad", "addition=2")


def test_noise_that_a_network_has_learnt_is_not_kept():
    rng = np.random.default_rng(0)
    start, effect, noise = (torch.from_numpy(rng.normal(size=(20, 500))) for _ in range(3))
    right = [Validated({}, s + e, s + e + n, None, 0.0, None, s) for s, e, n in zip(start, effect, noise, strict=True)]
    wrong = [Validated({}, s + e, s + n, None, 0.0, None, s) for s, e, n in zip(start, effect, noise, strict=True)]
    chance = 4 / np.sqrt(20 * 500)  # four standard deviations of the mean product of two such draws
    assert worth_keeping(right) > 1 - chance and worth_keeping(wrong) < chance


def test_averaged_weights_start_from_the_prior_too(folder: Path):
    train_here(*WITH_PRIOR, "trainer.max_steps=6", "callbacks=[default,average]")
    network = TrainedModel.load(LAST)
    batch = batch_of(network, network.identity.trained[:1])
    with torch.inference_mode():
        start = network.start(batch)
        network.addition = 0.0
        assert torch.equal(network.predict(batch), start) and not torch.equal(start, batch.control_SCG)
