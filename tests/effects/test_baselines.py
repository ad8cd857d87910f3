from __future__ import annotations

import numpy as np
import pytest
import torch

from vcell.data.batch import CellSetBatch
from vcell.data.gather import Gather
from vcell.data.store.store import CellStore
from vcell.effects.bank import SPACES, EffectBank, StreamedBank
from vcell.effects.baselines import _most_alike
from vcell.effects.controls import ContextControls
from vcell.effects.evidence import Evidence
from vcell.effects.features import Applied, Spans, leave_one_out, ridge_of
from vcell.effects.make import BASELINES, fallbacks, make_baselines
from vcell.effects.model import EffectModel

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
def bank(gather: Gather, assigned: dict) -> EffectBank:
    return EffectBank.measure(gather, [g for g, split in assigned.items() if split == "train"])


@pytest.fixture(scope="module")
def baselines(gather: Gather, assigned: dict) -> dict[str, EffectModel]:
    return make_baselines(gather, assigned, None, list(BASELINES))


def raw(bank: EffectBank, space: str, context: str, target: str | None = None) -> np.ndarray:
    """Mean of the measured effects of a context, or of one target elsewhere."""
    rows = [
        i for i, (c, p) in enumerate(zip(bank.contexts, bank.perturbations, strict=True))
        if (c == context if target is None else c != context and p == target)
    ]  # fmt: skip
    effect = bank.effects(space)[rows]
    number = (~np.isnan(effect)).sum(0)
    return np.divide(np.nansum(effect, axis=0), number, out=np.full(effect.shape[1], 0.0), where=number > 0)


def test_effects_are_batch_matched_differences_of_means(gather: Gather, bank: EffectBank):
    store, (context, perturbation) = gather.store, (bank.contexts[0], bank.perturbations[0])
    cells, controls = store.groups[context, perturbation], store.controls_of(context)
    batch = store.obs["batch"].astype(str).to_numpy()
    expected = gather.log1p(cells).double().mean(0).numpy()
    for label in np.unique(batch[cells]):
        weight = (batch[cells] == label).mean()
        expected = expected - weight * gather.log1p(controls[batch[controls] == label]).double().mean(0).numpy()
    own = store.genes.index(perturbation)
    assert np.isnan(bank.effects("cell")[0, own]) and np.isfinite(bank.own_effects("cell")[0])
    np.testing.assert_allclose(np.delete(bank.effects("cell")[0], own), np.delete(expected, own), atol=1e-5)


def test_pseudobulks_are_sums_scaled_to_one_total(gather: Gather, bank: EffectBank):
    rows = gather.store.rows(gather.store.groups[bank.contexts[0], bank.perturbations[0]])
    total = np.bincount(rows.indices, rows.values, gather.store.n_genes)
    expected = np.log1p(50_000 * total / rows.library_size.sum())
    np.testing.assert_allclose(bank.profiles.value("bulk")[0], expected, rtol=1e-5, atol=1e-6)


def test_standard_errors_are_what_resampling_cells_gives(gather: Gather, bank: EffectBank):
    store, rng = gather.store, np.random.default_rng(0)
    cells = store.groups[bank.contexts[0], bank.perturbations[0]]
    rows = store.rows(cells)
    cpm = np.zeros((len(cells), store.n_genes))
    cpm[np.repeat(np.arange(len(cells)), np.diff(rows.indptr)), rows.indices] = rows.values * 1e6 / np.repeat(rows.library_size, np.diff(rows.indptr))  # fmt: skip
    drawn = [np.log2(cpm[rng.integers(0, len(cells), len(cells))].mean(0) + 10) for _ in range(200)]
    expected = np.std(drawn, axis=0)
    often = cpm.mean(0) > 200  # where the mean is far from 0, so that its logarithm is near normal
    ratio = np.sqrt(bank.profiles.variance("fold")[0][often]) / expected[often]
    assert 0.8 < np.median(ratio) < 1.25


def test_a_bank_comes_back_from_its_folder(bank: EffectBank, tmp_path):
    bank.save(tmp_path / "bank")
    again = EffectBank.open(tmp_path / "bank")
    for space in ("fold", "bulk", "cell"):
        np.testing.assert_array_equal(again.effects(space), bank.effects(space))
    assert (again.genes, again.perturbations, again.studies) == (bank.genes, bank.perturbations, bank.studies)


def test_held_out_groups_are_in_no_mean(baselines: dict[str, EffectModel], assigned: dict):
    known = baselines["additive"].known
    assert set(zip(known.contexts, known.targets, strict=True)) <= {
        g for g, split in assigned.items() if split == "train"
    }


@pytest.mark.parametrize("space", ["fold", "bulk", "cell"])
def test_means_and_their_fallbacks(bank: EffectBank, baselines: dict[str, EffectModel], space: str):
    target = next(
        t
        for c, t in zip(bank.contexts, bank.perturbations, strict=True)
        if c == "simA" and t in raw_targets(bank, "simC")
    )
    of_context = baselines["context_mean"].effect(space, "simA", [target, "unseen"])
    np.testing.assert_allclose(of_context, np.repeat(raw(bank, space, "simA")[None], 2, 0), atol=1e-5)
    elsewhere = baselines["perturbation_mean"].effect(space, "simA", [target, "unseen"])
    own = bank.genes.index(target)  # a gene masked everywhere falls back to the context mean
    np.testing.assert_allclose(
        np.delete(elsewhere[0], own), np.delete(raw(bank, space, "simA", target), own), atol=1e-5
    )
    np.testing.assert_allclose(elsewhere[1], of_context[1], atol=1e-6)


def raw_targets(bank: EffectBank, context: str) -> list[str]:
    return [p for c, p in zip(bank.contexts, bank.perturbations, strict=True) if c == context]


def test_what_is_known_of_no_training_cells(baselines: dict[str, EffectModel]):
    known = baselines["additive"].known
    new_contexts, new_targets = fallbacks(known, [("simB", "unseen"), ("simA", known.targets_in("simC")[0])])
    assert (new_contexts, new_targets) == ([("simB", "unseen")], [("simB", "unseen")])


def test_predictors_shift_controls_by_their_effect(gather: Gather, baselines: dict[str, EffectModel]):
    context, target = baselines["additive"].known.contexts[0], baselines["additive"].known.targets[0]
    control_SCG = gather.log1p(gather.store.controls_of(context)[:8]).view(2, 4, -1)
    batch = CellSetBatch([context] * 2, [target] * 2, control_SCG, None)
    assert torch.equal(baselines["copied_controls"].predict(batch), control_SCG)
    model = baselines["perturbation_mean"]
    shift = torch.from_numpy(model.effect("cell", context, [target]))
    # the few cells of a set are moved to the mean of all control cells of the context, plus the effect
    mean = torch.from_numpy(model.controls[context].profile.log1p[0])
    expected = (control_SCG - control_SCG.mean(1, keepdim=True) + mean + shift).relu()
    torch.testing.assert_close(model.predict(batch), expected, atol=1e-5, rtol=1e-5)
    # but where cells of certain batches are asked for, they keep what sets those apart
    model.recentred = False
    torch.testing.assert_close(model.predict(batch), (control_SCG + shift).relu(), atol=1e-5, rtol=1e-5)
    model.recentred = True
    elsewhere = CellSetBatch(["a context never shown"] * 2, [target] * 2, control_SCG, None)
    shift = torch.from_numpy(model.effect("cell", "a context never shown", [target]))
    torch.testing.assert_close(model.predict(elsewhere), (control_SCG + shift).relu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_fitted_predictor_is_the_same_from_its_state(baselines: dict[str, EffectModel], name: str):
    model = baselines[name]
    again = type(model)(model.n_genes)
    again.load_state_dict(model.state_dict())
    again.vectors, again.controls = model.vectors, model.controls
    targets = baselines["additive"].known.targets_in("simA")[:5]
    for space in ("fold", "bulk", "cell"):
        np.testing.assert_array_equal(again.effect(space, "simA", targets), model.effect(space, "simA", targets))


@pytest.mark.parametrize("name", list(BASELINES))
def test_the_effect_of_a_target_does_not_depend_on_what_else_is_asked(baselines: dict[str, EffectModel], name: str):
    targets = baselines["additive"].known.targets_in("simA")[:6]
    together = baselines[name].effect("bulk", "simB", targets)
    alone = np.concatenate([baselines[name].effect("bulk", "simB", [t]) for t in targets])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", ["additive", "perturbation_mean"])
def test_a_prediction_ignores_what_its_own_context_measured_of_the_target(gather: Gather, bank: EffectBank, name: str):
    evidence = Evidence.of(bank)
    target = next(t for t in evidence.targets_in("simA") if t in evidence.targets_in("simC"))
    rows = [i for i in range(len(evidence)) if (evidence.contexts[i], evidence.targets[i]) != ("simA", target)]
    effects = []
    for one in (evidence, evidence.only(np.array(rows))):
        model = BASELINES[name](gather.store.n_genes)
        model.fit(one)
        effects.append(model.effect("bulk", "simA", [target]))
    np.testing.assert_allclose(effects[0], effects[1], atol=1e-5)


@pytest.mark.parametrize("space", ["bulk", "cell"])
def test_effects_of_several_genes_are_the_sum_of_those_of_each(
    space: str, baselines: dict[str, EffectModel], bank: EffectBank
):
    model, (a, b) = baselines["sum_of_singles"], sorted(set(bank.perturbations))[:2]

    def alone(target: str, context: str) -> np.ndarray:
        rows = [
            i
            for i, group in enumerate(zip(bank.contexts, bank.perturbations, strict=True))
            if group == (context, target)
        ]
        return np.nan_to_num(bank.effects(space)[rows]).sum(0)

    here = model.effect(space, "simA", [f"{a}+{b}", f"{b}+{a}", a])
    np.testing.assert_allclose(here[0], alone(a, "simA") + alone(b, "simA"), atol=1e-5)
    np.testing.assert_array_equal(here[0], here[1])
    np.testing.assert_array_equal(here[2], baselines["perturbation_mean"].effect(space, "simA", [a])[0])
    np.testing.assert_allclose(
        model.effect(space, "simB", [f"{a}+{b}"])[0],
        raw(bank, space, "simB", a) + raw(bank, space, "simB", b),
        atol=1e-5,
    )  # in a context where neither was measured: what they do elsewhere
    np.testing.assert_array_equal(baselines["transfer"].effect(space, "simA", [f"{a}+{b}"])[0], here[0])


@pytest.mark.parametrize("features", [5, 12, 40])
def test_errors_of_left_out_targets_are_those_of_leaving_them_out(features: int):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, features)), rng.standard_normal((12, 30))
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    spans = Spans.of(left, values, y @ y.T)
    for penalty in (0.1, 3.0):
        inverse = np.linalg.inv(x @ x.T + penalty * np.eye(12))
        expected = ((y - leave_one_out(inverse, y)) ** 2).sum(1)
        np.testing.assert_allclose(spans.left_out_errors(penalty), expected, rtol=1e-4)
        some = np.array([2, 7, 11])
        np.testing.assert_allclose(spans.left_out_errors(penalty, some), expected[some], rtol=1e-4)


@pytest.mark.parametrize("features", [5, 12, 40])
def test_a_ridge_regression_predicts_by_the_effects_it_was_fitted_to(features: int):
    """By the smaller of two matrices of products, with the penalty that it chose: as solved directly."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, features)).astype(np.float32)
    y = (x[:, :2] @ rng.standard_normal((2, 30)) + 0.1 * rng.standard_normal((12, 30))).astype(np.float32)
    fit = ridge_of(x, y)
    assert fit is not None and fit.regression.kernel is None
    inverse = np.linalg.inv(x.astype(np.float64) @ x.T + fit.penalty * np.eye(12))
    np.testing.assert_allclose(fit.inverse(), inverse, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fit.inverse([3, 1]), inverse[[3, 1]], rtol=1e-4, atol=1e-6)
    new = rng.standard_normal((4, features)).astype(np.float32)
    expected = new @ x.T @ inverse @ y
    np.testing.assert_allclose(fit.regression.predict(new, y), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        Applied(fit.regression, lambda _: y).predict("bulk", new), expected, rtol=1e-3, atol=1e-3
    )


def test_effects_shrink_by_how_much_of_them_is_noise(bank: EffectBank):
    plain, shrunk = Evidence.of(bank), Evidence.of(bank, shrunk=True)
    error = np.nan_to_num(bank.standard_errors("bulk"))
    for row in (0, 3):
        before, after = plain.centred["bulk"][row], shrunk.centred["bulk"][row]
        kept = np.divide(after, before, out=np.ones_like(before), where=before != 0)
        assert (kept >= 0).all() and (kept <= 1 + 1e-6).all()
        noisy, quiet = error[row].argmax(), np.where(error[row] > 0, error[row], np.inf).argmin()
        assert kept[noisy] <= kept[quiet]


def test_where_effects_are_linear_in_the_vectors_no_kernel_is_taken():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((90, 9)).astype(np.float32)
    vectors[5] = 0  # nothing is known of it
    truth = vectors @ rng.standard_normal((9, 40)) + 0.3 * rng.standard_normal((90, 40))
    effects = (truth - truth.mean(0)).astype(np.float32)
    fit = ridge_of(vectors, effects)
    assert fit is not None and fit.regression.kernel is None and fit.explained > 0.5


def test_likeness_on_a_circle_needs_a_kernel():
    """Effects that depend on the angle between vectors in no linear way."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 120)
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    effects = np.stack([np.cos(3 * angle + k) for k in range(6)], 1).astype(np.float32)
    fit = ridge_of(vectors, effects)
    assert fit is not None and fit.regression.kernel is not None and fit.explained > 0.8
    nothing = np.zeros((1, 2), np.float32)
    assert (fit.regression.predict(nothing, effects) == 0).all()


def test_checkpoints_from_before_keep_the_effects_of_directions():
    """The first kept those of the features alone."""
    rng = np.random.default_rng(2)
    x, effects = rng.standard_normal((30, 4)).astype(np.float32), rng.standard_normal((30, 6)).astype(np.float32)
    fit = ridge_of(x, effects)
    assert fit is not None
    kept = fit.regression.plain()
    again = Applied.of_plain(kept, lambda _: effects).predict("bulk", x)
    former = {k: kept[k] for k in ("kernel", "basis")} | {
        "weights": dict.fromkeys(SPACES, fit.regression.weights(effects))
    }
    none_left = Applied.of_plain(former, lambda _: pytest.fail("it has its weights"))
    np.testing.assert_array_equal(none_left.predict("bulk", x), again)
    if kept["kernel"] is None:
        first = {"weights": dict.fromkeys(SPACES, kept["basis"] @ fit.regression.weights(effects))}
        np.testing.assert_allclose(Applied.of_plain(first, list).predict("bulk", x), again, rtol=1e-4, atol=1e-5)


def test_effects_do_not_depend_on_how_many_groups_are_measured_at_a_time(
    bank: EffectBank, gather: Gather, assigned: dict, monkeypatch: pytest.MonkeyPatch
):
    groups = [g for g, split in assigned.items() if split == "train"]
    whole = Evidence.of(bank)
    monkeypatch.setattr("vcell.effects.evidence.MEASURED", 3)
    some = Evidence.of(StreamedBank.of(gather, groups))
    assert (some.targets, some.contexts, some.studies) == (whole.targets, whole.contexts, whole.studies)
    for space in SPACES:
        np.testing.assert_allclose(some.centred[space], whole.centred[space], atol=1e-5)  # float32 sums over batches
    np.testing.assert_allclose(some.noise, whole.noise, rtol=1e-4)


def test_nearest_takes_the_first_of_equally_like_targets():
    likeness = np.array([[0.5, 0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]], np.float32)
    np.testing.assert_array_equal(_most_alike(likeness, 3), [[1, 0, 2], [0, 1, 2]])
    many = np.random.default_rng(0).integers(0, 9, (40, 300)).astype(np.float32)
    np.testing.assert_array_equal(_most_alike(many, 20), np.argsort(-many, axis=1, kind="stable")[:, :20])


@pytest.mark.filterwarnings("error")
def test_nothing_is_read_off_control_cells_that_are_all_alike(gather: Gather, assigned: dict, store: CellStore):
    model = make_baselines(gather, assigned, None, ["covariance"])["covariance"]
    known = model.controls["simA"]
    model.observe({"simA": ContextControls(known.profile, np.zeros_like(known.cells_CG))})
    assert not model.effect("cell", "simA", [store.genes[0], "UNKNOWN"]).any()
