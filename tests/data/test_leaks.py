"""No perturbation sneaks into training under another name."""

from __future__ import annotations

import pytest

from vcell.data.leaks import drop_leaks, find_leaks
from vcell.data.splits import Group
from vcell.errors import VcellError


def split(**held_out: str) -> dict[Group, str]:
    """Groups as keywords: "K562:CCDC84"="test"; everything in `TRAINED` trains."""
    trained = [("K562", "STAT1"), ("K562", "IRF1"), ("RPE1", "STAT1")]
    return {**dict.fromkeys(trained, "train"), **{tuple(k.split(":")): v for k, v in held_out.items()}}


@pytest.mark.parametrize(
    ("held", "trained"),
    [
        ("CENATAC", "CCDC84"),  # a previous symbol
        ("CCDC84", "CENATAC"),
        ("H3Y1", "H3.Y"),  # an alias
        ("TAFAZZIN", "TAZ"),  # a name that may mean it
        ("MYC", "MYC+KLF1"),  # inside a double
        ("MYC", "KLF1_MYC"),
        ("MYC", "MYC_sg2"),  # a guide
        ("KLF1+MYC", "MYC+KLF1"),  # turned round
        ("KLF1+MYC", "MYC+KLF1+CD4"),
        ("ENSG00000136997", "MYC"),
        ("GENE0001", "GENE0001+GENE0002"),  # not HGNC's, but the same all the same
    ],
)
def test_a_held_out_gene_under_another_name_is_a_leak(held: str, trained: str):
    assigned = split(**{f"K562:{held}": "test", f"K562:{trained}": "train", f"RPE1:{trained}": "train"})
    assert find_leaks(assigned) == {("K562", trained): ("K562", held), ("RPE1", trained): ("K562", held)}
    with pytest.raises(VcellError, match="2 training groups reveal"):
        drop_leaks(assigned, "refuse")
    kept, notes = drop_leaks(assigned, "drop")
    assert set(assigned) - set(kept) == {("K562", trained), ("RPE1", trained)} and "left out" in notes[0]
    assert drop_leaks(assigned, "allow")[0] == assigned


@pytest.mark.parametrize(
    "assigned",
    [
        split(**{"K562:MYC+KLF1": "test", "K562:MYC": "train", "K562:KLF1": "train"}),  # singles train for a double
        split(**{"RPE1:IRF1": "val"}),  # held out here, trained on there: the split's own doing
        split(**{"K562:HLA-A": "test", "K562:HLA-B": "train"}),
        split(**{"K562:IFNB1": "test"}),
    ],
)
def test_what_is_no_leak_is_left_alone(assigned: dict[Group, str]):
    assert find_leaks(assigned) == {} and drop_leaks(assigned, "refuse") == (assigned, [])


def test_held_out_in_one_context_only_an_alias_may_train_in_another():
    assigned = split(
        **{"K562:CENATAC": "test", "RPE1:CENATAC": "train", "RPE1:CCDC84": "train", "K562:CCDC84": "train"}
    )
    assert find_leaks(assigned) == {("K562", "CCDC84"): ("K562", "CENATAC")}


def test_dropping_everything_is_refused():
    assigned: dict[Group, str] = {("K562", "MYC"): "test", ("K562", "MYC+KLF1"): "train"}
    with pytest.raises(VcellError, match="nothing is left to train on"):
        drop_leaks(assigned, "drop")
