"""Predictors on real responses: between two cell lines, for targets never measured, and cross-validated on small public screens.

    python benchmarks/real.py --data FOLDER [--parts signatures unseen crossval]

FOLDER holds `signatures/replogle2022_k562.tsv.gz` and `..._rpe1.tsv.gz` (Replogle et al. 2022 as ranked gene lists of 585 targets), a table of
gene vectors `embeddings/go_pfam_svd128.npz`, and the screens of Papalexi et al. 2021, Norman et al. 2019 with McFaline-Figueroa et al. 2024, and Kang et al. 2018
as h5ad. A ranked list becomes a profile: 1 + log(1000 / place) for the 1,000 genes that rise most, 0 for the others.

Shape legend: T targets, G genes.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from tables import save

from vcell.config import compose
from vcell.crossval import run as crossval
from vcell.effects.bank import SPACES
from vcell.effects.baselines import PerturbationMean, Ridge
from vcell.effects.evidence import Evidence
from vcell.effects.linear import cosine, discrimination
from vcell.effects.model import EffectModel
from vcell.effects.transfer import Transfer
from vcell.model.table import PerturbationTable

FOLDS = 5
SCREENS = {
    "papalexi, 25 targets": ["experiment=papalexi", "data.path={data}/papalexi2021_thp1.h5ad"],
    "norman_mcfaline, K562": ["experiment=perturb_seq", "data.name=norman", "data.split.test.perturbations=0", "data.path={data}/norman_mcfaline_4lines.h5ad", "data.columns.batch=batch_var", "within=[K562]", "data.split.leaks=drop"],
    "kang, a cell type held out": ["experiment=perturb_seq", "data.name=kang", "data.split.test.perturbations=0", "data.split.val.perturbations=0", "data.path={data}/kang_pbmc_ifnb.h5ad", "data.columns.batch=batch_var", "by=context"],
}  # fmt: skip


def profiles(data: Path) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Profiles by line ``(T, G)``, 0 at a target's own gene; targets and genes."""
    lists: dict[str, dict[str, list[str]]] = {}
    for line in ("k562", "rpe1"):
        with gzip.open(data / "signatures" / f"replogle2022_{line}.tsv.gz", "rt") as rows:
            parts = (row.rstrip("\n").split("\t") for row in rows)
            lists[line] = {target: genes.split(",") for target, kind, genes in parts if kind == "up_full"}
    targets = sorted(set(lists["k562"]) & set(lists["rpe1"]))
    genes = sorted({gene for line in lists.values() for ranked in line.values() for gene in ranked})
    place = {gene: i for i, gene in enumerate(genes)}
    found = {line: np.zeros((len(targets), len(genes)), np.float32) for line in lists}
    for line, ranked in lists.items():
        for row, target in enumerate(targets):
            here = ranked[target]
            found[line][row, [place[g] for g in here]] = 1 + np.log(len(here) / np.arange(1, len(here) + 1))
            if target in place:
                found[line][row, place[target]] = 0
    return found, targets, genes


def evidence_of(line: str, values_TG: np.ndarray, targets: list[str], genes: list[str]) -> Evidence:
    """One line's profiles as evidence."""
    mean = values_TG.mean(0)
    return Evidence(
        genes, [line] * len(targets), [line] * len(targets), list(targets), dict.fromkeys(SPACES, values_TG - mean),
        {space: {line: mean} for space in SPACES}, np.zeros(len(targets)), {line: np.zeros(len(genes), np.float32)},
    )  # fmt: skip


def between_lines(data: Path, table: PerturbationTable) -> str:
    """One line's responses predicted from the other's."""
    values, targets, genes = profiles(data)
    lines = ["| predicted | predictor | pds, raw | pds, centred | cosine, centred |", "|---|---|---|---|---|"]
    for source, destination in (("k562", "rpe1"), ("rpe1", "k562")):
        evidence, truth = evidence_of(source, values[source], targets, genes), values[destination]
        for made in (PerturbationMean, Transfer):
            effect = fitted(made, evidence, table).effect("bulk", destination, targets)
            lines.append(f"| {source} to {destination} | {made.__name__} | {judged(effect, truth)} |")
    return "\n".join(lines)


def unseen(data: Path, table: PerturbationTable) -> str:
    """Targets of K562 predicted by their vectors, from the other four fifths."""
    values, targets, genes = profiles(data)
    truth, fold = values["k562"], np.random.default_rng(0).permutation(len(targets)) % FOLDS
    dealt = np.random.default_rng(1).permutation(len(table.names))
    tables = {"": table, ", table shuffled": PerturbationTable(table.names, table.vectors[dealt], "shuffled")}
    lines = ["| predictor | pds, centred | cosine, centred |", "|---|---|---|"]
    for words, vectors in tables.items():
        for made in (Ridge, Transfer):
            predicted = np.zeros_like(truth)
            for number in range(FOLDS):
                seen, asked = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
                evidence = evidence_of("k562", truth[seen], [targets[i] for i in seen], genes)
                model = fitted(made, evidence, vectors)
                effect = model.effect("bulk", "k562", [targets[i] for i in asked])
                # beyond what it says of a target it knows nothing of: means of the other targets differ from fold to fold
                predicted[asked] = effect - model.effect("bulk", "k562", ["NO GENE"])
            centred = truth - truth.mean(0)
            lines.append(
                f"| {made.__name__}{words} | {discrimination(predicted, centred):.3f} | {float(cosine(predicted, centred).mean()):.3f} |"
            )
    return "\n".join(lines)


def fitted(made: type[EffectModel], evidence: Evidence, table: PerturbationTable) -> EffectModel:
    model = made(len(evidence.genes))
    model.use_table(table)
    model.fit(evidence)
    return model


def judged(predicted: np.ndarray, truth: np.ndarray) -> str:
    centred = predicted - predicted.mean(0), truth - truth.mean(0)
    figures = discrimination(predicted, truth), discrimination(*centred), float(cosine(*centred).mean())
    return " | ".join(f"{figure:.3f}" for figure in figures)


def cross_validated(data: Path, vectors: Path, models: list[str]) -> str:
    """Mean and standard error over folds of the members of 2025, each screen next to all baselines."""
    found = []
    for name, settings in SCREENS.items():
        for model in models:
            asked = [setting.format(data=data) for setting in settings]
            run = f"{re.sub(r'[^a-z]+', '_', name)}_{model}"
            steps = (
                []
                if model == "transfer"
                else ["trainer=cpu", "trainer.max_steps=600", "trainer.val_check_interval=200"]
            )
            crossval(compose("crossval", [*asked, f"name={run}", f"folds={FOLDS}", f"model={model}", *steps, f"perturbation.path={vectors}", "perturbation.missing=mean"]))  # fmt: skip
            table = pd.read_csv(Path("runs") / run / "crossval.csv")
            found.append(f"### {name}, `model={model}`\n\n{over_folds(table)}")
    return "\n\n".join(found)


def over_folds(table: pd.DataFrame) -> str:
    """Mean and standard deviation over folds, as Markdown."""
    metrics = [column for column in table if column not in ("fold", "predictor")]
    lines = ["| predictor | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    for name, rows in table.groupby("predictor", sort=False):
        lines.append(f"| {name} | " + " | ".join(f"{rows[m].mean():.3f} ± {rows[m].std():.3f}" for m in metrics) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--parts", nargs="*", default=["signatures", "unseen", "crossval"], help="[all]")
    parser.add_argument(
        "--models", nargs="*", default=["transfer", "tiny_transfer"], help="cross-validated [%(default)s]"
    )
    options = parser.parse_args()
    data = options.data.resolve()
    vectors = data / "embeddings" / "go_pfam_svd128.npz"
    table, sections = PerturbationTable.load(vectors), []
    if "signatures" in options.parts:
        sections.append(f"## Between K562 and RPE1\n\n{between_lines(data, table)}")
    if "unseen" in options.parts:
        sections.append(f"## Targets never measured, in K562\n\n{unseen(data, table)}")
    print("\n\n".join(sections), flush=True)
    if "crossval" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            sections.append(f"## Cross-validation, five folds\n\n{cross_validated(data, vectors, options.models)}")
            os.chdir("/")
    save(
        "real",
        f"python benchmarks/real.py --data FOLDER --parts {' '.join(options.parts)} --models {' '.join(options.models)}",
        "\n\n".join(sections),
    )


if __name__ == "__main__":
    main()
