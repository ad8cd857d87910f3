from __future__ import annotations

import numpy as np
import pytest
import torch

from vcell.data.batch import CellSetBatch
from vcell.data.gather import Gather
from vcell.data.store.store import CellStore
from vcell.model.baselines import TrainingDeltas, make_baselines

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def gather(store: CellStore) -> Gather:
    return Gather(store, 1000.0)


@pytest.fixture(scope="module")
def assigned(store: CellStore) -> dict:
    groups = [g for g in store.groups if g[1] != store.control]
    held_out = groups[0][1]
    return {g: "test" if g[1] == held_out or g[0] == "simB" else "train" for g in groups}


@pytest.fixture(scope="module")
def deltas(gather: Gather, assigned: dict) -> TrainingDeltas:
    return TrainingDeltas.of(gather, assigned)


def test_deltas_are_batch_matched_differences_of_means(gather: Gather, deltas: TrainingDeltas):
    store = gather.store
    (context, perturbation), delta = next(iter(deltas.deltas.items()))
    cells, controls = store.groups[context, perturbation], store.controls_of(context)
    batch = store.obs["batch"].astype(str).to_numpy()
    expected = gather.log1p(cells).double().mean(0).numpy()
    for label in np.unique(batch[cells]):
        weight = (batch[cells] == label).mean()
        expected = expected - weight * gather.log1p(controls[batch[controls] == label]).double().mean(0).numpy()
    np.testing.assert_allclose(delta, expected, atol=1e-6)


def test_held_out_groups_are_in_no_mean(deltas: TrainingDeltas, assigned: dict):
    assert set(deltas.deltas) == {g for g, split in assigned.items() if split == "train"}


def test_means_and_their_fallbacks(deltas: TrainingDeltas, assigned: dict):
    deltas.fallbacks.clear()
    trained = next(g for g, split in assigned.items() if split == "train" and ("simC", g[1]) in deltas.deltas)
    both = [deltas.deltas[c, trained[1]] for c in ("simA", "simC")]
    np.testing.assert_allclose(deltas.perturbation_mean(("simB", trained[1])), np.mean(both, axis=0))
    in_a = [d for (c, _), d in deltas.deltas.items() if c == "simA"]
    np.testing.assert_allclose(deltas.context_mean(("simA", "x")), np.mean(in_a, axis=0))
    assert not deltas.fallbacks
    np.testing.assert_allclose(deltas.perturbation_mean(("simA", "unseen")), deltas.context_mean(("simA", "unseen")))
    deltas.context_mean(("simB", "unseen"))
    assert deltas.fallbacks == {"perturbation mean": {("simA", "unseen")}, "context mean": {("simB", "unseen")}}


def test_predictors_shift_controls_by_their_mean(gather: Gather, assigned: dict):
    baselines, deltas = make_baselines(gather, assigned)
    (context, perturbation) = next(iter(deltas.deltas))
    control_SCG = gather.log1p(gather.store.controls_of(context)[:8]).view(2, 4, -1)
    batch = CellSetBatch([context] * 2, [perturbation] * 2, control_SCG, None)
    assert torch.equal(baselines["copied_controls"].predict(batch), control_SCG)
    shift = torch.from_numpy(deltas.perturbation_mean((context, perturbation))).float()
    torch.testing.assert_close(baselines["perturbation_mean"].predict(batch), (control_SCG + shift).relu())
