"""What simple predictors reach in a simulated screen, beside what is published of real ones: is the screen as hard as the real problem?

    python benchmarks/ladder.py                       a screen of `screen=field`, three seeds
    python benchmarks/ladder.py --set genes=2000      with other settings of the screen

Effects are differences of pseudobulks (log1p of summed counts per 50,000) from the controls of their batches. The last context is the
destination, all others are sources; targets' own genes are left out.

Shape legend: T targets, G genes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import vcell
from vcell.config import compose, plain
from vcell.data.files.normalize import pseudobulk_log1p
from vcell.data.gather import Gather
from vcell.data.simulation import Screen, simulate
from vcell.data.store.store import Cells
from vcell.effects.bank import BULK_SUM, EffectBank
from vcell.effects.evidence import Evidence
from vcell.effects.linear import cosine, discrimination
from vcell.model.table import PerturbationTable

# what each rung is in real screens (five sources to H1, other pairs of lines), and the range that a screen should reach
RUNGS = {
    "one source, pds, lowest": (0.69, (0.65, 0.88)),
    "one source, pds, highest": (0.85, (0.65, 0.88)),
    "one source, cosine": (0.06, (0.03, 0.11)),
    "average of sources, pds": (0.858, (0.80, 0.90)),
    "average of sources, cosine": (0.113, (0.08, 0.14)),
    "average of sources, scaled MSE": (0.984, (0.97, 0.99)),
    "context mean (oracle), cosine": (0.149, None),
    "context mean (oracle), MSE": (0.979, (0.96, 0.99)),
    "mean + average, MSE": (0.963, None),
    "mean + average, pds": (0.55, (0.0, 0.65)),
    "split halves, pds": (0.95, (0.90, 0.99)),
    "new target by its table, pds": (None, (0.55, 0.85)),
    "the same, table shuffled": (0.50, (0.45, 0.55)),
    "wrong target, pds": (0.50, (0.45, 0.55)),
    "effect norm, p90 / p10": (10.0, (5.0, 15.0)),
}


def halves(store: Cells, context: str, targets: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Effects of two halves of the cells of each target, held against two halves of the controls, ``(T, G)`` each."""
    rng = np.random.default_rng(seed)

    def bulks(cells: np.ndarray) -> list[np.ndarray]:
        return [
            pseudobulk_log1p(np.bincount(r.indices, r.values, store.n_genes), BULK_SUM)
            for r in map(store.rows, np.array_split(rng.permutation(cells), 2))
        ]

    controls = bulks(store.controls_of(context))
    groups = [bulks(store.groups[context, target]) for target in targets]
    one, other = (np.array([g[i] for g in groups]) - controls[i] for i in (0, 1))
    return one, other


def by_table(table: PerturbationTable, targets: list[str], effect_TG: np.ndarray, shuffled: bool = False) -> float:
    """Discrimination of targets whose effects a ridge on their vectors predicts, each fifth from the others."""
    x = table.standardised().lookup(targets).numpy().astype(np.float64)
    rng = np.random.default_rng(0)
    x = x[rng.permutation(len(x))] if shuffled else x
    predicted = np.zeros_like(effect_TG)
    for test in np.array_split(rng.permutation(len(x)), 5):
        train = np.setdiff1d(np.arange(len(x)), test)
        centre = effect_TG[train].mean(0)
        weights = np.linalg.solve(
            x[train] @ x[train].T + 3 * x.shape[1] * np.eye(len(train)), effect_TG[train] - centre
        )
        predicted[test] = x[test] @ x[train].T @ weights
    return discrimination(predicted, effect_TG)


def ladder(store: Cells, table: PerturbationTable, norms_T: np.ndarray, seed: int) -> dict[str, float]:
    """Every rung in a store whose last context is the destination."""
    destination = store.contexts[-1]
    evidence = Evidence.of(
        EffectBank.measure(Gather(store, BULK_SUM), [g for g in store.groups if g[1] != store.control])
    )
    targets, truth = evidence.measured("bulk", destination)
    own = [evidence.genes.index(t) for t in evidence.rows_of if t in evidence.genes]
    kept = np.setdiff1d(np.arange(len(evidence.genes)), own)
    truth = truth[:, kept]
    single = []
    for context in evidence.context_names:
        if context != destination:
            names, effect = evidence.measured("bulk", context)
            rows = [names.index(t) for t in targets]
            single.append(effect[rows][:, kept])
    average, mean = np.mean(single, axis=0), np.repeat(truth.mean(0)[None], len(truth), 0)
    centred = evidence.fused("bulk", targets, destination)[:, kept]

    def scaled(p: np.ndarray) -> np.ndarray:
        return p * ((p * truth).sum() / (p * p).sum())

    def error(p: np.ndarray) -> float:
        return float(((p - truth) ** 2).sum() / (truth**2).sum())

    both = mean + centred * ((centred * truth).sum() / (centred**2).sum())
    one, other = halves(store, destination, targets, seed)
    pds = [discrimination(s, truth) for s in single]
    return {
        "one source, pds, lowest": min(pds),
        "one source, pds, highest": max(pds),
        "one source, cosine": float(np.mean([cosine(s, truth).mean() for s in single])),
        "average of sources, pds": discrimination(average, truth),
        "average of sources, cosine": float(cosine(average, truth).mean()),
        "average of sources, scaled MSE": error(scaled(average)),
        "context mean (oracle), cosine": float(cosine(mean, truth).mean()),
        "context mean (oracle), MSE": error(mean),
        "mean + average, MSE": error(both),
        "mean + average, pds": discrimination(both, truth),
        "split halves, pds": discrimination(one[:, kept], other[:, kept]),
        "new target by its table, pds": by_table(table, targets, truth),
        "the same, table shuffled": by_table(table, targets, truth, shuffled=True),
        "wrong target, pds": discrimination(np.roll(average, 1, 0), truth),
        "effect norm, p90 / p10": float(np.percentile(norms_T, 90) / np.percentile(norms_T, 10)),
    }


def of_screen(screen: Screen, folder: Path) -> dict[str, float]:
    """The ladder of a screen, simulated at `folder`."""
    import anndata as ad

    place = simulate(folder, screen)
    store = vcell.build_store([place / f"{c}.h5ad" for c in screen.contexts], place / "store")
    truth = ad.read_h5ad(place / "truth" / "effects.h5ad")
    last = (truth.obs["cell_type"] == screen.contexts[-1]).to_numpy()
    norms = np.linalg.norm(np.asarray(truth.X.todense() if hasattr(truth.X, "todense") else truth.X)[last], axis=1)
    return ladder(store, PerturbationTable.load(place / "embedding.pt"), norms, screen.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the screen")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        given = plain(compose("simulate", ["screen=field", f"seed={seed}", "out=x", *options.set]))
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(of_screen(Screen(**{k: v for k, v in given.items() if k != "out"}), Path(scratch) / "screen"))
    print(f"{'':34s}{'mean':>7s}   {'lowest to highest':>18s}   {'real':>6s}   wanted")
    for name, (real, wanted) in RUNGS.items():
        values = [row[name] for row in rows]
        mean = float(np.mean(values))
        outside = wanted is not None and not wanted[0] <= mean <= wanted[1]
        print(
            f"{name:34s}{mean:7.3f}   {min(values):8.3f} to {max(values):.3f}   {'' if real is None else f'{real:6.3f}':>6s}   "
            f"{'' if wanted is None else f'{wanted[0]} to {wanted[1]}'}{'   outside' if outside else ''}"
        )


if __name__ == "__main__":
    main()
