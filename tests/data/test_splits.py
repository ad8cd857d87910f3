from pathlib import Path

import pytest

from vcell.data.splits import HoldOut, Split, assign_from_toml
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
