"""The transfer prior and its residual: what they do with evidence, and what they must not look at."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import SMALL, infer_here
from vcell.config import compose
from vcell.data.gather import Gather
from vcell.data.store.view import open_stores
from vcell.effects.bank import SPACES, EffectBank, Profiles
from vcell.effects.controls import ContextControls
from vcell.effects.evidence import Evidence
from vcell.effects.linear import cosine, discrimination
from vcell.effects.loco import LARGEST_RANKED, Smoothing, judged, scale_of_calls, scale_of_ranks, scales, shaped
from vcell.effects.promoters import read_positions
from vcell.effects.residual import TransferResidual, chosen_blend
from vcell.effects.transfer import Transfer
from vcell.errors import VcellError
from vcell.model.checkpoint import read_checkpoint
from vcell.training.train import train

GENES, TARGETS, CONTEXTS = 120, 30, 5
pytestmark = pytest.mark.numeric


def evidence(noise: float = 1.0, seed: int = 0, genes: int = GENES) -> tuple[Evidence, np.ndarray]:
    """Contexts that share most of their responses, measured with noise that differs from gene to gene; and the shared responses."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((TARGETS, genes)) * np.exp(0.5 * rng.standard_normal((TARGETS, 1)))
    own = rng.standard_normal((CONTEXTS, TARGETS, genes))
    size_G = np.exp(0.8 * rng.standard_normal(genes))
    effect = shared + 0.5 * own + noise * size_G * rng.standard_normal((CONTEXTS, TARGETS, genes))
    effect = (0.2 * effect).astype(np.float32)
    names = [f"c{i}" for i in range(CONTEXTS)]
    means = effect.mean(1, keepdims=True)
    centred = (effect - means).reshape(-1, genes)
    contexts = np.repeat(names, TARGETS).tolist()
    found = Evidence(
        [f"G{i}" for i in range(genes)], contexts, contexts, [f"T{t}" for _ in names for t in range(TARGETS)],
        dict.fromkeys(SPACES, centred),
        {space: {c: means[i, 0] for i, c in enumerate(names)} for space in SPACES},
        np.full(len(contexts), float(((0.2 * noise * size_G) ** 2).sum())),
        dict.fromkeys(names, ((0.2 * noise * size_G) ** 2).astype(np.float32)),
    )  # fmt: skip
    return found, shared


@pytest.fixture(scope="module")
def prior() -> Transfer:
    found, _ = evidence()
    model = Transfer(GENES)
    model.fit(found)
    return model


def test_more_contexts_tell_more(prior: Transfer):
    known, shared = evidence(noise=2.0)
    targets = [f"T{t}" for t in range(TARGETS)]
    one = known.only(np.arange(TARGETS))
    centred = shared - shared.mean(0)
    likeness = [cosine(e.fused("bulk", targets), centred.astype(np.float32)).mean() for e in (one, known)]
    assert likeness[1] > likeness[0] + 0.1


def test_noisy_genes_count_less_where_that_helps():
    known, _ = evidence(noise=2.0)
    held = known.only(np.arange(TARGETS))
    model = Transfer(GENES)
    lines = model.fit(known.without("c0"))
    assert model.fitted["settings"]["denoising"] > 0
    plain = Transfer(GENES, denoising=0.0, components=0, whitening=0.0, alpha=0.0, beta=0.0)
    plain.fit(known.without("c0"))
    targets, truth = held.measured("bulk", "c0")
    better, worse = (judged(m.effect("bulk", "c0", targets), truth) for m in (model, plain))
    assert better["cosine"] > worse["cosine"] and better["error"] < worse["error"] < 1
    assert any("denoising" in line for line in lines) and any(line.startswith("c1") for line in lines)


def test_contexts_never_measured_share_what_is_fitted_for_them(monkeypatch: pytest.MonkeyPatch):
    known, _ = evidence(noise=2.0)
    model = Transfer(GENES, smooth=0.5)
    model.fit(known)
    fitted = []
    of = Smoothing.of
    monkeypatch.setattr(Smoothing, "of", lambda *given: fitted.append(given[1]) or of(*given))
    targets = [f"T{t}" for t in range(TARGETS)]
    first, second, there = (model.effect("bulk", context, targets) for context in ("new", "newer", "c0"))
    assert fitted == [None]  # that of c0 is left from the fit
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, there)


def test_scales_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    effect, mean = rng.standard_normal((20, 50)), rng.standard_normal(50)
    truth = 0.3 * effect + 0.5 * mean
    assert scales([effect], [mean], [truth]) == pytest.approx((0.3, 0.5))
    assert scales([effect], [mean], [-truth]) == (0.0, 0.0)  # nothing is predicted the other way round
    called = np.ones((20, 50), bool)
    assert scale_of_calls([effect], [1.8 * effect], [called], 1.0) == pytest.approx(1.8, rel=0.1)
    assert scale_of_calls([effect], [truth], [~called], 1.0) is None


def test_shaping_keeps_norms_and_takes_out_directions():
    rng = np.random.default_rng(0)
    cells = rng.standard_normal((200, GENES)).astype(np.float32) + 5 * rng.standard_normal((200, 1)).astype(np.float32)
    controls = ContextControls(Profiles.empty(1, GENES), cells - cells.mean(0))
    effect = rng.standard_normal((4, GENES)).astype(np.float32) + 1
    settings = {"denoising": 0.0, "components": 1, "whitening": 0.0}
    found = shaped(effect, controls, np.ones(GENES, np.float32), settings)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(effect, axis=1), rtol=1e-5)
    assert np.abs(found @ controls.components(1)[0]).max() < 1e-4 * np.linalg.norm(effect)


def test_discrimination_counts_ranks():
    truth = np.eye(5, dtype=np.float32)
    assert discrimination(truth, truth) == 1 and discrimination(np.roll(truth, 1, 0), truth) < 0.5
    assert discrimination(np.ones((5, 5), np.float32), truth) == 0.5


def test_an_untrained_residual_is_the_prior_to_the_bit(prior: Transfer):
    found, _ = evidence()
    model = TransferResidual(GENES, rank=8, steps=0, blend=1.0)
    model.fit(found)
    targets = [f"T{t}" for t in range(TARGETS)]
    for context in ("c0", "new"):
        assert np.array_equal(model.effect("bulk", context, targets), prior.effect("bulk", context, targets))


def test_a_trained_residual_differs_and_comes_back_from_its_state():
    found, _ = evidence()
    model = TransferResidual(GENES, rank=8, steps=30, blend=0.5, seeds=2)
    model.fit(found)
    targets = [f"T{t}" for t in range(TARGETS)]
    effect = model.effect("bulk", "new", targets)
    prior = Transfer.effect(model, "bulk", "new", targets)
    assert not np.array_equal(effect, prior)
    again = TransferResidual(GENES, rank=8, steps=30, blend=0.5, seeds=2)
    again.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(again.effect("bulk", "new", targets), effect)


@pytest.mark.parametrize("made", [Transfer, TransferResidual])
def test_a_context_predicted_from_others_is_not_looked_at(made: type[Transfer]):
    """Whatever was measured in the held-out context, what is fitted without it predicts the same there."""
    found, _ = evidence()
    other = replace(
        found,
        centred={s: np.where(np.arange(len(found))[:, None] < TARGETS, 7 * a, a) for s, a in found.centred.items()},
    )
    effects = []
    for one in (found, other):
        model = made(GENES) if made is Transfer else made(GENES, rank=8, steps=10, seeds=1, blend=0.5)
        model.fit(one.without("c0"))
        effects.append(model.effect("bulk", "c0", ["T0", "T1"]))
    np.testing.assert_array_equal(effects[0], effects[1])


def test_evidence_of_the_own_context_is_left_out_of_what_a_prediction_reads():
    found, _ = evidence()
    model = TransferResidual(GENES, rank=8, steps=10, seeds=1, blend=0.5)
    model.fit(found)
    before = (
        model.transferred("bulk", "c0", ["T0", "T1"]),
        model.residual("bulk", "c0", ["T0", "T1"], model.fitted["residual"]),
    )
    model.evidence = replace(found, centred={s: np.where(np.arange(len(found))[:, None] < TARGETS, 7 * a, a) for s, a in found.centred.items()})  # fmt: skip
    model._reliable.clear()
    after = (
        model.transferred("bulk", "c0", ["T0", "T1"]),
        model.residual("bulk", "c0", ["T0", "T1"], model.fitted["residual"]),
    )
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.parametrize("made", [Transfer, TransferResidual])
def test_a_single_context_is_fitted_too(made: type[Transfer]):
    """No other context says anything of its targets: known ones get the context's mean at most, unknown ones too."""
    found, _ = evidence()
    model = made(GENES)
    lines = model.fit(found.only(np.arange(TARGETS)))
    assert any("no context could be left out" in line for line in lines)
    for context in ("c0", "new"):
        assert np.isfinite(model.effect("bulk", context, ["T0", "never measured"])).all()


def test_a_blend_is_used_only_where_it_gains_more_than_its_standard_error():
    rows = [
        {"context": f"c{i}", "blend": b, "pds": 0.8 + gain * b, "error": 0.9}
        for i, gain in enumerate((0.1, 0.12, 0.09))
        for b in (0.0, 0.5)
    ]
    assert chosen_blend(pd.DataFrame(rows)) == 0.5
    rows = [
        {"context": f"c{i}", "blend": b, "pds": 0.8 + gain * b, "error": 0.9}
        for i, gain in enumerate((0.1, -0.12, 0.03))
        for b in (0.0, 0.5)
    ]
    assert chosen_blend(pd.DataFrame(rows)) == 0.0


def fit_here() -> None:
    small = [key for key in SMALL if not key.startswith("model.")]
    train(
        compose(
            "train",
            [
                "experiment=demo",
                "trainer=cpu",
                *small,
                "model=transfer",
                "name=prior",
                "effects={elsewhere: elsewhere.csv}",
            ],
        )
    )


@pytest.fixture(scope="module")
def transferred(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the transfer prior on the same cells as the demo's, with a table of effects from elsewhere besides."""
    folder = tmp_path_factory.mktemp("transferred")
    shutil.copytree(trained / "data", folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        genes = (folder / "data/demo/screen/gene_names.csv").read_text().split()
        frame = pd.DataFrame(np.random.default_rng(0).normal(0, 0.1, (12, len(genes))), columns=genes)
        frame.insert(0, "target_gene", genes[:12])
        frame.to_csv("elsewhere.csv", index=False)
        fit_here()
    return folder


def test_the_command_writes_a_run_that_predicts(transferred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(transferred)
    ckpt = torch.load("runs/prior/checkpoints/last.ckpt", weights_only=True)
    state = ckpt["state_dict"]["model._extra_state"]
    assert "elsewhere" in state["evidence"]["contexts"] and state["fitted"]["scale"]["bulk"] >= 0
    infer_here("ckpt=runs/prior/checkpoints/last.ckpt", f"out={tmp_path / 'p.h5ad'}")
    found = ad.read_h5ad(tmp_path / "p.h5ad")
    assert np.isfinite(found.X.data).all() and (found.X.data >= 0).all()


def test_the_same_command_finds_it_finished(
    transferred: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(transferred)
    fit_here()
    assert "was fitted already" in capsys.readouterr().out


def test_where_nothing_is_shared_hardly_anything_is_predicted():
    """A screen without any effect: what one context measured is noise in the next, and every amplitude is near 0."""
    for seed in range(3):
        found, _ = evidence(noise=2.0, seed=seed)
        rng = np.random.default_rng(seed)
        noise = 0.4 * rng.standard_normal(found.centred["bulk"].shape).astype(np.float32)
        empty = replace(found, centred=dict.fromkeys(SPACES, noise), study_means={s: dict.fromkeys(m, np.zeros(GENES, np.float32)) for s, m in found.study_means.items()})  # fmt: skip
        model = Transfer(GENES)
        model.fit(empty)
        predicted = model.transferred("bulk", "new", [f"T{t}" for t in range(TARGETS)])
        assert model.fitted["scale"]["bulk"] <= 0.1 and model.fitted["scale"]["ranks"] <= 0.1
        assert (predicted**2).sum() < 0.01 * (noise**2).sum() / CONTEXTS


def test_the_scale_for_ranks_is_the_smallest_that_is_not_clearly_worse():
    """Effects that other contexts show weakly: ranks by L1 distance take a larger scale than the least error, but none without bounds."""
    rng = np.random.default_rng(1)
    truth = [rng.standard_normal((40, 300)).astype(np.float32) * np.exp(0.5 * rng.standard_normal((40, 1))).astype(np.float32) for _ in range(3)]  # fmt: skip
    seen = [t + 2.0 * rng.standard_normal(t.shape).astype(np.float32) for t in truth]
    means, largest = [np.zeros(300, np.float32)] * 3, np.full(300, 4.0, np.float32)
    usual, _ = scales(seen, means, truth)
    found = scale_of_ranks(seen, means, truth, usual, largest)
    assert usual <= found <= LARGEST_RANKED
    noise = [rng.standard_normal(t.shape).astype(np.float32) for t in truth]
    assert scale_of_ranks(noise, means, truth, 0.01, largest) < 0.3


def test_a_kept_bank_serves_other_runs_on_the_same_cells(
    transferred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(transferred)
    kept = tmp_path / "bank"
    small = [key for key in SMALL if not key.startswith("model.")]
    fit = ["experiment=demo", "trainer=cpu", *small, "model=additive", f"run_dir={tmp_path / 'run'}", "overwrite=true"]
    train(compose("train", fit))
    anew = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]["model._extra_state"]["evidence"]
    for _ in range(2):  # measured, then read
        train(compose("train", [*fit, f"bank={kept}"]))
        found = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["state_dict"]["model._extra_state"]["evidence"]
        assert found["targets"] == anew["targets"]
        assert all(torch.equal(found["centred"][space], anew["centred"][space]) for space in anew["centred"])
    other = open_stores([Path("data/demo/store")])
    with pytest.raises(VcellError, match="was measured per another target sum"):
        EffectBank.kept(kept, Gather(other, 77.0), other.groups)


def positions(path: Path, gtf: bool) -> Path:
    """G0 and G1 face each other across 2,000 bp, and so do G2 and G3, ...; pairs lie far apart."""
    starts = [(f"G{i}", 100_000 * (i // 2) + (2000 if i % 2 else 0) + 50_000) for i in range(GENES)]
    if gtf:
        lines = [f'chr1\tx\tgene\t{s}\t{s + 900}\t.\t+\t.\tgene_id "E{g}"; gene_name "{g}";' for g, s in starts]
        path = path / "genes.gtf"
        path.write_text("#! a comment\n" + "\n".join(lines) + "\n")
    else:
        path = path / "genes.csv"
        path.write_text("gene,chromosome,tss\n" + "".join(f"{g},chr1,{s}\n" for g, s in starts))
    return path


@pytest.mark.parametrize("gtf", [False, True])
def test_genes_that_start_next_to_a_target_change_as_in_training(gtf: bool, tmp_path: Path):
    found, _ = evidence(noise=0.2)
    names = [f"G{2 * int(t[1:])}" for t in found.targets]  # targets with a gene next to each
    centred = found.centred["fold"].copy()
    centred[np.arange(len(names)), [2 * int(t[1:]) + 1 for t in found.targets]] = -1.5
    known = replace(found, targets=names, centred={**found.centred, "fold": centred})
    model = Transfer(GENES, neighbours=str(positions(tmp_path, gtf)))
    assert "150 pairs" in model.fit(known)[-1]
    effect = model.effect("fold", "new", ["G0", "G50"])
    assert effect[0, 1] < -1.2 and effect[1, 51] < -1.2 and abs(effect[0, 51]) < 1
    again = Transfer(GENES)
    again.set_extra_state(model.get_extra_state())
    np.testing.assert_array_equal(again.effect("fold", "new", ["G0", "G50"]), effect)


def test_positions_that_are_none_are_refused(tmp_path: Path):
    (tmp_path / "x.csv").write_text("gene,start\nA,1\n")
    with pytest.raises(VcellError, match="has no column chromosome"):
        read_positions(tmp_path / "x.csv")
    (tmp_path / "x.gtf").write_text("nothing\n")
    with pytest.raises(VcellError, match="holds no positions"):
        read_positions(tmp_path / "x.gtf")


def test_a_single_target_does_elsewhere_what_it_does_here():
    found, _ = evidence(noise=0.1)
    rows = np.flatnonzero(np.array(found.targets) == "T3")
    one = found.only(rows)
    alone = {space: np.zeros_like(array) for space, array in one.centred.items()}  # centred over one target
    means = {space: {c: found.centred[space][r] for c, r in zip(one.contexts, rows, strict=True)} for space in SPACES}
    model = Transfer(GENES)
    model.fit(replace(one, centred=alone, study_means=means))
    expected = np.mean(list(means["bulk"].values()), axis=0)
    np.testing.assert_allclose(model.effect("bulk", "new", ["T3"])[0], expected, rtol=1e-4, atol=1e-6)
