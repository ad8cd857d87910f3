"""What a caller from Python gives: names in any form that holds names, and one line for anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from vcell.errors import VcellError, check_choice, check_number
from vcell.process.given import as_mapping, as_name, as_name_or_none, as_names, as_names_or_file, as_plain, as_switch

NAMES = ["MYC", "STAT1"]


@pytest.mark.parametrize(
    "given",
    [
        NAMES, tuple(NAMES), set(NAMES), np.array(NAMES), np.array(NAMES, dtype=object), pd.Series(NAMES), pd.Index(NAMES),
        pd.Categorical(NAMES), pd.Series(NAMES, dtype="category"), dict.fromkeys(NAMES).keys(), (name for name in NAMES),
    ],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_names_come_in_any_form_that_holds_names(given: Any):
    found = as_names("targets", given)
    assert found == NAMES and all(type(name) is str for name in found)


def test_one_name_is_a_list_of_one_and_a_number_is_a_name():
    assert as_names("contexts", "A549") == ["A549"] and as_names("contexts", None) is None
    assert as_names("targets", np.array([3, 3368])) == ["3", "3368"] and as_name("control", np.int64(0)) == "0"


def test_none_is_no_name_but_where_it_may_be():
    assert as_name_or_none("batch", None) is None and as_name_or_none("batch", "lane") == "lane"
    with pytest.raises(VcellError, match="out must be one name, not None"):
        as_name("out", None)
    with pytest.raises(VcellError, match="out must be one name, and is empty"):
        as_name("out", "")


def test_a_file_is_not_taken_for_names():
    assert as_names_or_file("genes", Path("a") / "genes.csv") == str(Path("a") / "genes.csv")
    assert as_names_or_file("genes", "STAT1") == "STAT1" and as_names_or_file("genes", ["STAT1"]) == ["STAT1"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["MYC", None], "targets must be names, and number 2 of them is None"),
        (["MYC", float("nan")], "number 2 of them is nan"),
        ([["MYC"]], "number 1 of them is a value of type list"),
        ({"MYC": 100}, "a name or a list of names, not a value of type dict"),
        (pd.DataFrame({"gene": NAMES}), "not a value of type DataFrame. Give one column of the table"),
        (b"MYC", "not b'MYC'"),
        (0.5, "not 0.5"),
        (True, "not True"),
        (object(), "not a value of type object"),
    ],
)
def test_what_holds_no_names_is_refused(given: Any, words: str):
    with pytest.raises(VcellError, match=words):
        as_names("targets", given)


def test_a_switch_is_no_word():
    assert as_switch("overwrite", np.bool_(True)) is True
    for wrong in ("false", 0, None):
        with pytest.raises(VcellError, match="overwrite must be True or False, not "):
            as_switch("overwrite", wrong)


def test_settings_hold_plain_values():
    given = {
        "a": np.float64(0.5),
        "b": np.array([1, 2]),
        "c": Path("x"),
        "d": pd.Index(NAMES),
        "e": {"f": (torch.tensor(3),)},
    }
    found = as_mapping("settings", given)
    assert found == {"a": 0.5, "b": [1, 2], "c": "x", "d": NAMES, "e": {"f": [3]}}
    assert type(found["a"]) is float and type(found["b"][0]) is int and as_mapping("settings", None) == {}
    assert as_plain({"x", "y"}) == ["x", "y"]
    for wrong in ({1: 2}, [("a", 1)], "a=1"):
        with pytest.raises(VcellError, match="settings must be a dict of names and values, not "):
            as_mapping("settings", wrong)


@pytest.mark.parametrize("given", [np.zeros(0), np.zeros(2), pd.DataFrame({"a": [1]}), pd.Series([1]), [], {}])
def test_a_choice_may_be_compared_with_anything(given: Any):
    with pytest.raises(VcellError, match="must be one of"):
        check_choice("engine", given, ("auto", "fast"))


def test_an_infinite_number_is_out_of_bounds():
    with pytest.raises(VcellError, match="target_sum=inf must be a number above 0"):
        check_number("target_sum", float("inf"), 0, whole=False, above=True)
