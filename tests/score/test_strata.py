from __future__ import annotations

import numpy as np
import pandas as pd

from vcell.score import strata
from vcell.score.metrics import Metric


def test_targets_of_several_genes_are_told_apart_by_how_many_were_trained_on():
    trained = ["KLF1", "MAP2K6", "CBL+CNN1", "STAT1"]
    asked = ["KLF1+MAP2K6", "MYC_KLF1", "GATA1+MYC", "CNN1+KLF1", "STAT1", "HLA-A"]
    assert strata.genes_seen(asked, trained) == {
        "KLF1+MAP2K6": "2/2", "MYC_KLF1": "1/2", "GATA1+MYC": "0/2", "CNN1+KLF1": "2/2"
    }  # fmt: skip
    assert strata.genes_seen(["STAT1", "MYC"], trained) == {}


def test_each_stratum_is_scored():
    table = pd.DataFrame({"MAE": [0.1, 0.3, 0.8, np.nan]}, index=["A+B", "A+C", "D+E", "F"])
    seen = {"A+B": "2/2", "A+C": "2/2", "D+E": "0/2"}
    lines = strata.notes([table], seen, [Metric("MAE", None, False, "mean absolute error")])
    assert lines == [
        "1 targets of several genes, 0/2 of them seen in training: MAE 0.800",
        "2 targets of several genes, 2/2 of them seen in training: MAE 0.200",
    ]
