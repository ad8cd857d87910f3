"""Validation scores: the same for any number of ranks and any order, and what they say is true."""

from __future__ import annotations

import pytest
import torch

from vcell.data.batch import CellSetBatch
from vcell.model.losses import SetLoss
from vcell.training.validation import ValidationScores

pytestmark = pytest.mark.numeric

GENERATOR = torch.Generator().manual_seed(1)
GENES = [f"G{i}" for i in range(40)]
GROUPS = [("A", "G1"), ("A", "G2"), ("A", "G3"), ("A", "G4"), ("B", "G1"), ("B", "G2")]
LOSS = SetLoss({"energy": 1.0, "delta": 0.5, "contrastive": 0.3})
EFFECT = torch.randn(6, 1, 40, generator=GENERATOR)
CONTROL = 2 + 0.3 * torch.rand(6, 12, 40, generator=GENERATOR)
MEASURED = CONTROL + EFFECT + 0.1 * torch.randn(6, 12, 40, generator=GENERATOR)


def validate(predicted: torch.Tensor, *parts: list[int]) -> dict[str, float]:
    scores = ValidationScores(GENES)
    for part in parts:
        contexts, perturbations = zip(*[GROUPS[i] for i in part], strict=True)
        batch = CellSetBatch(list(contexts), list(perturbations), CONTROL[part], MEASURED[part])
        scores.add(batch, predicted[part], LOSS)
    return scores.compute(LOSS)


def test_how_groups_are_dealt_to_steps_changes_nothing():
    predicted = CONTROL + 0.7 * EFFECT
    whole = validate(predicted, [0, 1, 2, 3, 4, 5])
    assert validate(predicted, [5, 0], [3, 1], [2, 4]) == pytest.approx(whole, rel=1e-5)
    assert validate(predicted, [0, 1, 2], [3, 4, 5], [0, 1]) == pytest.approx(
        whole, rel=1e-5
    )  # some twice, as by ranks


def test_the_right_cells_score_best_and_others_worse():
    right, none, swapped = (validate(p, list(range(6))) for p in (MEASURED, CONTROL, CONTROL + EFFECT.flip(0)))
    assert right["discrimination"] == 1 and right["de_overlap"] == 1 and right["mae"] == 0
    assert right["delta_correlation"] == pytest.approx(1, abs=1e-5)
    assert none["de_overlap"] == 0 and none["mae"] > 0.5 and none["distinctness"] < 1e-6
    assert swapped["discrimination"] < 0.8 and swapped["delta_correlation"] < 0.5
    assert right["loss"] < none["loss"] and right["loss"] < swapped["loss"]


def test_one_profile_for_all_is_a_collapse():
    scores = ValidationScores(GENES, differential_expression=False)
    contexts, perturbations = zip(*GROUPS, strict=True)
    batch = CellSetBatch(list(contexts), list(perturbations), CONTROL, MEASURED)
    for predicted, collapsed in ((CONTROL + EFFECT[:1], True), (CONTROL + EFFECT, False)):
        scores.add(batch, predicted, LOSS)
        scores.compute(LOSS)
        assert scores.collapsed is collapsed


def test_the_loss_is_the_weighted_sum_of_the_terms():
    found = validate(CONTROL + 0.5 * EFFECT, [0, 1, 2], [3, 4, 5])
    assert found["loss"] == pytest.approx(found["energy"] + 0.5 * found["delta"] + 0.3 * found["contrastive"])
