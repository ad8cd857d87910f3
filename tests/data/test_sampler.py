"""The sampler's promises, for any step: a pure function, batch-matched, disjoint, complete."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from vcell.data.batch import CellSets
from vcell.data.sampler import CellSetSampler, ControlPool, Weights
from vcell.data.store.store import CellStore
from vcell.errors import VcellError


def sampler(store: CellStore, **kwargs) -> CellSetSampler:
    groups = [g for g in store.groups if g[1] != store.control]
    return CellSetSampler(store, groups, **{"set_size": 6, "sets_per_step": 4, "seed": 3, **kwargs})


def same(a: CellSets, b: CellSets) -> bool:
    return (
        a.perturbations == b.perturbations
        and a.contexts == b.contexts
        and np.array_equal(a.controls_SC, b.controls_SC)
        and np.array_equal(a.perturbed_SC, b.perturbed_SC)
    )


def test_a_step_is_the_same_in_any_process_and_order(store: CellStore):
    first, second = sampler(store), sampler(store)
    for step in (900, 0, 17):
        assert same(first.batch(step), second.batch(step))
    assert not same(first.batch(0), sampler(store, seed=4).batch(0))


def test_sets_are_of_one_context_and_perturbation(store: CellStore):
    obs = store.obs
    for step in range(30):
        sets = sampler(store).batch(step)
        assert sets.controls_SC.shape == sets.perturbed_SC.shape == (4, 6)
        for i in range(4):
            cells, controls = obs.iloc[sets.perturbed_SC[i]], obs.iloc[sets.controls_SC[i]]
            assert (cells["context"] == sets.contexts[i]).all() and (controls["context"] == sets.contexts[i]).all()
            assert (cells["perturbation"] == sets.perturbations[i]).all()
            assert (controls["perturbation"] == store.control).all()


def test_controls_match_batch_cell_by_cell(store: CellStore):
    batch = store.obs["batch"].astype(str).to_numpy()
    for step in range(30):
        sets = sampler(store).batch(step)
        np.testing.assert_array_equal(batch[sets.perturbed_SC], batch[sets.controls_SC])


def test_ranks_are_disjoint_and_together_one_rank(store: CellStore):
    alone = sampler(store, sets_per_step=6)
    ranks = [sampler(store, sets_per_step=2, rank=r, world_size=3) for r in range(3)]
    for step in range(20):
        parts = [rank.batch(step) for rank in ranks]
        np.testing.assert_array_equal(np.concatenate([p.perturbed_SC for p in parts]), alone.batch(step).perturbed_SC)
        np.testing.assert_array_equal(np.concatenate([p.controls_SC for p in parts]), alone.batch(step).controls_SC)


def test_every_training_cell_is_reached_in_every_epoch_and_sets_are_fresh(store: CellStore):
    s = sampler(store, sets_per_step=1)
    everything = np.sort(np.concatenate([store.groups[g] for g in s.groups]))
    epochs = []
    for epoch in range(2):
        steps = range(epoch * s.sets_per_epoch, (epoch + 1) * s.sets_per_epoch)
        cells = [s.batch(step).perturbed_SC.ravel() for step in steps]
        np.testing.assert_array_equal(np.unique(np.concatenate(cells)), everything)
        epochs.append({tuple(sorted(c)) for c in cells})
    assert len(epochs[0] & epochs[1]) < len(epochs[0]) / 2


def test_cells_do_not_repeat_within_a_set_where_there_are_enough(store: CellStore):
    for step in range(30):
        for cells in sampler(store).batch(step).perturbed_SC:
            assert len(set(cells)) == len(cells)


def test_small_groups_repeat_cells_evenly(store: CellStore):
    s = sampler(store, set_size=50)
    for cells, group in zip(s.batch(0).perturbed_SC, zip(s.batch(0).contexts, s.batch(0).perturbations, strict=True), strict=True):  # fmt: skip
        counts = np.unique(cells, return_counts=True)[1]
        assert set(cells) == set(store.groups[group]) and counts.max() - counts.min() <= 1


def test_a_batch_without_controls_falls_back_on_its_context_and_is_counted(store: CellStore):
    obs = store.obs.copy()
    obs["batch"] = obs["batch"].astype(str)
    odd = (obs["context"] == "simA") & (obs["batch"] == "simA_b1") & (obs["perturbation"] != store.control)
    obs.loc[odd, "batch"] = "lonely"
    changed = replace(store, obs=obs)
    s = sampler(changed)
    assert s.fallback_cells == odd.sum() > 0
    assert sampler(store).fallback_cells == 0
    for step in range(20):
        sets = s.batch(step)
        assert (obs["perturbation"].to_numpy()[sets.controls_SC] == store.control).all()
        assert all(
            (obs["context"].to_numpy()[row] == c).all() for row, c in zip(sets.controls_SC, sets.contexts, strict=True)
        )


def test_validation_sets_are_fixed_and_cover_every_group(store: CellStore):
    for world_size in (1, 3):
        ranks = [sampler(store, rank=r, world_size=world_size).validation() for r in range(world_size)]
        assert len({len(steps) for steps in ranks}) == 1
        seen = {g for steps in ranks for s in steps for g in zip(s.contexts, s.perturbations, strict=True)}
        assert seen == set(sampler(store).groups)
    assert all(same(a, b) for a, b in zip(sampler(store).validation(), sampler(store).validation(), strict=True))


def test_a_plan_depends_on_its_own_target_only(store: CellStore):
    pool, smaller = ControlPool(store, store.contexts), ControlPool(store, ["simA"])
    plan = pool.plan("simA", "anything", 20, 8, seed=1)
    assert plan.controls_SC.shape == (3, 8) and plan.perturbed_SC is None
    np.testing.assert_array_equal(plan.controls_SC, smaller.plan("simA", "anything", 20, 8, seed=1).controls_SC)
    others = [pool.plan("simA", "other", 20, 8, seed=1), pool.plan("simA", "anything", 20, 8, seed=2)]
    assert all(not np.array_equal(plan.controls_SC, other.controls_SC) for other in others)
    assert len(set(plan.controls_SC.ravel())) == 24  # of 60 controls, none twice


def test_an_empty_split_is_refused(store: CellStore):
    with pytest.raises(VcellError, match="empty"):
        CellSetSampler(store, [], 4, 4)


def test_steps_go_on_across_epochs_without_a_gap(store: CellStore):
    s = sampler(store, sets_per_step=7)
    positions = [(step * 7, step * 7 + 7) for step in range(50)]
    assert all(a[1] == b[0] for a, b in pairwise(positions))
    last_of_epoch = s.sets_per_epoch // 7
    assert len(s.batch(last_of_epoch)) == 7


def sets_of_an_epoch(store: CellStore, weights: Weights) -> dict[tuple[str, str], int]:
    s = sampler(store, sets_per_step=1, weights=weights)
    found: dict[tuple[str, str], int] = {}
    for step in range(s.sets_per_epoch):
        sets = s.batch(step)
        for group in zip(sets.contexts, sets.perturbations, strict=True):
            found[group] = found.get(group, 0) + 1
    return found


def test_weights_change_how_often_a_group_is_drawn(store: CellStore):
    plain = sets_of_an_epoch(store, Weights())
    target = next(p for c, p in plain if c == "simB")
    weighted = sets_of_an_epoch(store, Weights(contexts={"simB": 2}, perturbations={target: 3}))
    for (context, perturbation), number in plain.items():
        assert weighted[context, perturbation] == number * (2 if context == "simB" else 1) * (
            3 if perturbation == target else 1
        )


def test_balanced_perturbations_get_equally_many_sets_and_more_turns_show_all_cells_again(store: CellStore):
    lopsided = store.obs["perturbation"].astype(str).to_numpy().copy()
    few, many = [p for c, p in store.groups if c == "simA" and p != store.control][:2]
    lopsided[store.groups["simA", few][3:]] = many
    changed = replace(store, obs=store.obs.assign(perturbation=pd.Categorical(lopsided)))
    plain, balanced = (sets_of_an_epoch(changed, Weights(balance)) for balance in ("cells", "perturbations"))
    assert len(set(balanced.values())) == 1 < len(set(plain.values()))
    s = sampler(changed, sets_per_step=1, weights=Weights(perturbations={many: 3}))
    cells = changed.groups["simA", many]
    drawn = [
        s.batch(step).perturbed_SC.ravel()
        for step in range(s.sets_per_epoch)
        if (s.batch(step).contexts, s.batch(step).perturbations) == (["simA"], [many])
    ]
    times = pd.Series(np.concatenate(drawn)).value_counts()
    assert set(times.index) == set(cells) and times.min() >= 3


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (Weights("cell"), "balance=cell must be one of"),
        (Weights(contexts={"simb": 2}), "Did you mean 'sim"),
        (Weights(contexts={"simA": 0}), "above 0"),
    ],
)
def test_meaningless_weights_are_refused(store: CellStore, weights: Weights, words: str):
    with pytest.raises(VcellError, match=words):
        sampler(store, weights=weights)
