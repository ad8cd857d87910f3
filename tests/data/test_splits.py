import json
from pathlib import Path

import numpy as np
import pytest

from vcell.data.splits import Folds, HoldOut, Split, assign_from_toml, fingerprint, write_split
from vcell.errors import VcellError

CONTEXTS = ["H1", "K562", "RPE1"]
TARGETS = [f"T{i}" for i in range(10)]
GROUPS = [(c, p) for c in CONTEXTS for p in [*TARGETS, "non-targeting"]]


def assign(**kwargs):
    return Split(**kwargs).assign(GROUPS, "non-targeting")


def test_perturbations_are_held_out_where_asked():
    assigned = assign(test=HoldOut(["T1", "T2"], within=["H1"]))
    assert {g for g, s in assigned.items() if s == "test"} == {("H1", "T1"), ("H1", "T2")}


def test_contexts_are_held_out_whole():
    assigned = assign(test=HoldOut(contexts=["RPE1"]), val=HoldOut(["T3"]))
    assert all((s == "test") == (c == "RPE1") for (c, _), s in assigned.items())
    assert {g for g, s in assigned.items() if s == "val"} == {("H1", "T3"), ("K562", "T3")}


def test_a_seed_below_zero_is_refused():
    with pytest.raises(VcellError, match=r"data\.split\.seed=-1 must be a whole number from 0"):
        assign(seed=-1)


def test_fractions_draw_that_many_and_the_same_again():
    first = assign(test=HoldOut(0.2), val=HoldOut(0.3), seed=1)
    by_split = {s: {p for (_, p), t in first.items() if t == s} for s in ("train", "val", "test")}
    assert {s: len(p) for s, p in by_split.items()} == {"train": 5, "val": 3, "test": 2}
    assert by_split["test"].isdisjoint(by_split["val"] | by_split["train"])
    assert first == assign(test=HoldOut(0.2), val=HoldOut(0.3), seed=1)
    assert first != assign(test=HoldOut(0.2), val=HoldOut(0.3), seed=2)


def test_controls_are_in_no_split():
    assert all(p != "non-targeting" for _, p in assign())


@pytest.mark.parametrize(
    ("hold_out", "words"),
    [
        (HoldOut(["T11"]), "T11.*Did you mean 'T1'"),
        (HoldOut(contexts=["h1"]), "Did you mean 'H1'"),
        (HoldOut(["T1"], within=["HepG2"]), "HepG2"),
        (HoldOut(1.5), "fraction"),
        (HoldOut(contexts=CONTEXTS), "nothing to train on"),
    ],
)
def test_meaningless_splits_are_refused(hold_out: HoldOut, words: str):
    with pytest.raises(VcellError, match=words):
        assign(test=hold_out)


TOML = """
[datasets]
replogle_h1 = "support/{a,b}.h5"
[training]
replogle_h1 = "train"
[zeroshot]
"replogle_h1.RPE1" = "test"
[fewshot."replogle_h1.K562"]
val = ["T1"]
test = ["T2", "NOT_MEASURED"]
"""


def test_toml_of_state_is_read(tmp_path: Path):
    (tmp_path / "starter.toml").write_text(TOML)
    assigned = assign_from_toml(tmp_path / "starter.toml", GROUPS, "non-targeting")
    assert {g for g, s in assigned.items() if s == "val"} == {("K562", "T1")}
    assert {g for g, s in assigned.items() if s == "test"} == {("RPE1", t) for t in TARGETS} | {("K562", "T2")}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("replogle_h1.RPE1", "replogle_h1.rpe1", "Did you mean 'RPE1'"), ('"test"\n', '"tset"\n', "'tset'"), ("[zeroshot]", "[zero_shot]", "zero_shot")],
)  # fmt: skip
def test_toml_mistakes_are_named(tmp_path: Path, old: str, new: str, words: str):
    (tmp_path / "starter.toml").write_text(TOML.replace(old, new))
    with pytest.raises(VcellError, match=words):
        assign_from_toml(tmp_path / "starter.toml", GROUPS, "non-targeting")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'replogle_h1 = "support/{a,b}.h5"',
            "replogle_h1 = 3",
            r'\[datasets\] replogle_h1 must be written NAME = "folder',
        ),
        ('[datasets]\nreplogle_h1 = "support/{a,b}.h5"', 'datasets = "support"', r"\[datasets\] must be written"),
        (
            '"replogle_h1.RPE1" = "test"',
            '"replogle_h1.RPE1" = ["test"]',
            r"\[zeroshot\] replogle_h1.RPE1 must be written",
        ),
        ('val = ["T1"]', 'val = "T1"', r"\[fewshot\] replogle_h1.K562 must be written"),
        ('val = ["T1"]', "val = [1]", r"\[fewshot\] replogle_h1.K562 must be written"),
        ('[fewshot."replogle_h1.K562"]', "[fewshot]", r"\[fewshot\] val must be written"),
    ],
)
def test_toml_of_another_form_is_refused_with_the_form(tmp_path: Path, old: str, new: str, words: str):
    (tmp_path / "starter.toml").write_text(TOML.replace(old, new))
    with pytest.raises(VcellError, match=words):
        assign_from_toml(tmp_path / "starter.toml", GROUPS, "non-targeting")


def test_toml_as_an_editor_on_windows_writes_it(tmp_path: Path):
    (tmp_path / "starter.toml").write_bytes(TOML.replace("\n", "\r\n").encode("utf-8-sig"))
    assert "val" in assign_from_toml(tmp_path / "starter.toml", GROUPS, "non-targeting").values()


@pytest.mark.parametrize("by", ["perturbation", "context"])
def test_folds_test_every_group_once_and_never_train_on_it(by: str):
    tested: list = []
    for fold in range(3):
        assigned = assign(folds=Folds(3, fold, by), val=HoldOut(0.2), seed=5)
        test = {g for g, s in assigned.items() if s == "test"}
        place = 1 if by == "perturbation" else 0
        assert {g[place] for g in test}.isdisjoint({g[place] for g, s in assigned.items() if s == "train"})
        assert "val" in assigned.values()
        tested += sorted(test)
    assert sorted(tested) == sorted(g for g in GROUPS if g[1] != "non-targeting")


def test_folds_of_both_hold_out_new_perturbations_in_new_contexts():
    assigned = assign(folds=Folds(3, 1, "both"), seed=5)
    test, train = ({g for g, s in assigned.items() if s == split} for split in ("test", "train"))
    for place in (0, 1):
        assert {g[place] for g in test}.isdisjoint({g[place] for g in train})
    assert test and train


def test_folds_within_a_context_leave_the_others_to_train():
    assigned = assign(folds=Folds(5, 0, within=["H1"]))
    assert {c for (c, _), s in assigned.items() if s == "test"} == {"H1"}
    assert {c for (c, _), s in assigned.items() if s == "train"} == set(CONTEXTS)


def test_a_fraction_of_contexts_and_of_perturbations_at_once():
    assigned = assign(test=HoldOut(0.2, contexts=0.34), seed=3)
    whole = {c for c in CONTEXTS if all(s == "test" for g, s in assigned.items() if g[0] == c)}
    everywhere = {p for p in TARGETS if all(s == "test" for g, s in assigned.items() if g[1] == p)}
    assert len(whole) == 1 and len(everywhere) == 2
    assert all((s == "test") == (c in whole or p in everywhere) for (c, p), s in assigned.items())


@pytest.mark.parametrize(
    ("folds", "words"),
    [((1, 0), "number=1 must be a whole number of at least 2"), ((3, 3), "fold=3 must be a whole number from 0 to 2"), ((3, 0, "gene"), "one of perturbation, context, both"), ((4, 0, "context"), "more than there are contexts")],
)  # fmt: skip
def test_meaningless_folds_are_refused(folds: tuple, words: str):
    with pytest.raises(VcellError, match=words):
        assign(folds=Folds(*folds))


def test_a_split_is_written_down_with_its_hash(tmp_path: Path):
    assigned = assign(test=HoldOut(["T1"]))
    cells = {g: np.arange(i, i + 5) for i, g in enumerate(GROUPS)}
    write_split(tmp_path / "split.json", assigned, cells, "store")
    found = json.loads((tmp_path / "split.json").read_text())
    assert {(g["context"], g["perturbation"]): g["split"] for g in found["groups"]} == assigned
    assert found["hash"] == fingerprint(assigned, "store") != fingerprint(assign(test=HoldOut(["T2"])), "store")
    other = {**cells, ("H1", "T1"): np.arange(99, 104)}
    write_split(tmp_path / "other.json", assigned, other, "store")
    hashes = [
        {g["hash"] for g in json.loads((tmp_path / f).read_text())["groups"]} for f in ("split.json", "other.json")
    ]
    assert len(hashes[0] ^ hashes[1]) == 2
