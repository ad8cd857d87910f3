"""Whole counts around a prediction: is what they show what was predicted, and nothing else?

    python benchmarks/counts.py [--genes 3000] [--targets 10]

A screen with known truth is simulated. The mean log1p of each target is given as the prediction (of many of its cells, so that it is
exact), and 400 cells are made of it in several ways: drawn as `vcell.infer` draws them; control cells shifted by the change of the mean,
and these values as whole counts by chance rounding or as Poisson means. A Wilcoxon test against other control cells (Benjamini-Hochberg
5 %, genes above 5 counts per million) calls genes in them and in 400 real cells of the same target; another 400 real cells are the
ceiling. Without an effect, control cells are tested against other control cells. Prints a table and writes it to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse, stats
from tables import save

from vcell.data.files.h5ad import Columns
from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate
from vcell.data.store.ingest import ingest
from vcell.data.store.store import CellStore
from vcell.predict.counts import CountModel

CELLS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=3000, help="[%(default)s]")
    parser.add_argument("--targets", type=int, default=10, help="[%(default)s]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        screen = Screen(genes=options.genes, contexts=("A",), targets=options.targets, test_targets=0, cells_per_target=2500, controls_per_context=4000, library_size=8000)  # fmt: skip
        simulate(Path(name) / "screen", screen)
        store = ingest([Path(name) / "screen" / "A.h5ad"], Path(name) / "store", Columns())
        found = Comparison(store).run()
    save(
        "counts",
        f"python benchmarks/counts.py --genes {options.genes} --targets {options.targets}",
        report(found, options),
    )


class Comparison:
    """One half of the control cells to draw from, the other to test against."""

    def __init__(self, store: CellStore) -> None:
        self.store, self.rng = store, np.random.default_rng(0)
        self.counts = sparse.csr_matrix(
            (store.values, store.indices.astype(np.int32), store.indptr), (store.n_cells, store.n_genes)
        )
        controls = self.rng.permutation(store.controls_of("A"))
        self.half, self.others = np.sort(controls[: len(controls) // 2]), controls[len(controls) // 2 :]
        self.target_sum = float(np.median(store.library_size))
        self.model = CountModel.fit(store, self.half, self.target_sum)
        self.tested = self.model.rate_G * 1e6 > 5
        self.reference = self.log1p(self.counts[self.others])

    def run(self) -> dict[str, dict[str, list[float]]]:
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for target in sorted({p for _, p in self.store.groups} - {self.store.control}):
            cells = self.rng.permutation(self.store.groups["A", target])
            truth = self.log1p(self.counts[cells[2 * CELLS :]]).mean(axis=0)
            real = self.counts[cells[:CELLS]]
            called = self.called(real)
            for way, made in self.ways(truth, self.counts[cells[CELLS : 2 * CELLS]]).items():
                self.note(found[way], made, real, called, truth, self.bulk(self.counts[cells[2 * CELLS :]].toarray()))
            for way, made in self.ways(
                self.model.mean_log1p_G, self.counts[self.rng.choice(self.half, CELLS, replace=False)]
            ).items():
                found[way]["null"].append(self.called(made).sum())
        return found

    def ways(self, truth: np.ndarray, real: sparse.csr_matrix) -> dict[str, sparse.csr_matrix | np.ndarray]:
        """Cells made of a mean of log1p, and real ones of it."""
        controls = self.rng.choice(self.half, CELLS, replace=False)
        before = self.log1p(self.counts[controls])
        change = truth - self.model.mean_log1p_G
        shifted = np.maximum(before + change, 0)
        rates = self.model.rates_of_log1p(np.maximum(before.mean(axis=0) + change, 0), before.mean(axis=0))
        expected = np.expm1(shifted) * (self.store.library_size[controls][:, None] / self.target_sum)
        return {
            "real cells": real,
            "drawn": self.model.draw(self.store.rows(controls), rates, self.rng),
            "shifted log1p": shifted,
            "shifted, rounded by chance": np.floor(expected + self.rng.random(expected.shape)),
            "shifted, Poisson": self.rng.poisson(expected),
        }

    def log1p(self, counts: sparse.csr_matrix | np.ndarray) -> np.ndarray:
        dense = counts.toarray() if sparse.issparse(counts) else np.asarray(counts, float)
        return np.log1p(dense * (self.target_sum / np.maximum(dense.sum(axis=1, keepdims=True), 1)))

    def values(self, made: sparse.csr_matrix | np.ndarray) -> np.ndarray:
        """log1p, whatever was made."""
        is_log1p = not sparse.issparse(made) and (np.asarray(made) % 1).any()
        return np.asarray(made) if is_log1p else self.log1p(made)

    def called(self, made: sparse.csr_matrix | np.ndarray) -> np.ndarray:
        p = stats.mannwhitneyu(self.values(made)[:, self.tested], self.reference[:, self.tested], axis=0).pvalue
        return stats.false_discovery_control(np.nan_to_num(p, nan=1.0)) < 0.05

    def note(
        self,
        found: dict[str, list[float]],
        made: sparse.csr_matrix | np.ndarray,
        real: sparse.csr_matrix,
        called: np.ndarray,
        truth: np.ndarray,
        true_bulk: np.ndarray,
    ) -> None:
        values, measured, here = self.values(made), self.values(real), self.called(made)
        found["called"].append(here.sum())
        found["jaccard"].append((here & called).sum() / max(1, (here | called).sum()))
        found["overlap"].append(overlap(here, called, self.fold(values)))
        before = self.bulk(self.counts[self.half].toarray())
        found["slope"].append(slope(values.mean(axis=0), truth, self.model.mean_log1p_G))
        found["bulk"].append(slope(self.bulk(linear(made, values)), true_bulk, before))
        found["zeros"].append((values == 0).mean() / (measured == 0).mean())
        seen = measured.std(axis=0) > 0
        found["spread"].append(np.median(values.std(axis=0)[seen] / measured.std(axis=0)[seen]))

    @staticmethod
    def bulk(counts: np.ndarray) -> np.ndarray:
        """log1p of summed counts per 50,000."""
        return np.log1p(5e4 * counts.sum(axis=0) / counts.sum())

    def fold(self, values: np.ndarray) -> np.ndarray:
        means = [np.expm1(v[:, self.tested].mean(axis=0)) + 1e-9 for v in (values, self.reference)]
        return np.abs(np.log2(means[0] / means[1]))


def linear(made: sparse.csr_matrix | np.ndarray, values: np.ndarray) -> np.ndarray:
    """Counts; of log1p values what they are when log1p is undone."""
    if sparse.issparse(made):
        return made.toarray()
    return np.expm1(values) if (np.asarray(made) % 1).any() else np.asarray(made)


def slope(found: np.ndarray, truth: np.ndarray, before: np.ndarray) -> float:
    """By how much of the true change the values changed."""
    return float((found - before) @ (truth - before) / ((truth - before) @ (truth - before)))


def overlap(called: np.ndarray, truly: np.ndarray, fold: np.ndarray) -> float:
    """The 2025 score: share of the truly changed genes among as many called with the largest fold changes."""
    chosen = np.flatnonzero(called)
    chosen = chosen[np.argsort(-fold[chosen])[: truly.sum()]]
    return truly[chosen].sum() / max(1, truly.sum())


def report(found: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> str:
    table = pd.DataFrame(
        {way: {name: np.mean(values) for name, values in noted.items()} for way, noted in found.items()}
    ).T
    lines = [
        f"{options.targets} targets, {options.genes:,} genes, {CELLS} cells of each; means over targets.\n",
        "| cells | genes called without an effect | genes called | Jaccard with those of real cells | overlap at N | change of mean log1p | of pseudobulk | zeros | spread |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way, row in table.iterrows():
        lines.append(
            f"| {way} | {row['null']:.1f} | {row['called']:,.0f} | {row['jaccard']:.2f} | {row['overlap']:.2f} | {row['slope']:.2f} | {row['bulk']:.2f} | "
            f"{row['zeros']:.2f} | {row['spread']:.2f} |"
        )
    lines.append("\nChanges relative to the predicted one, zeros and spread relative to real cells: 1 is right.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
