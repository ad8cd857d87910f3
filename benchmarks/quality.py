"""What predictors score in a context that was never trained on: baselines, the transfer prior, its residual, transformers, arc-state.

    python benchmarks/quality.py                      screen=field, three seeds: about 40 minutes on two cores
    python benchmarks/quality.py --seeds 1 --steps 0  without the transformers
    python benchmarks/quality.py --large-steps 300 --peer PYTHON     besides, on the first seed, state_sm and arc-state 0.11.1 for as many steps

`PYTHON` is that of an environment with arc-state (pip install arc-state==0.11.1), which gets the same cells, table and steps of 16 sets of 128.

The last context of each screen is held out whole; everything is fitted, and every setting chosen, on the others. Two tables come of it:
effects as predicted (differences of pseudobulks, before any cell is drawn), and cells as scored by the six official members of 2026
and by those of 2025, by our scorers, which equal the official packages. Differences are over targets, resampled in pairs.

Shape legend: T targets, G genes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy
from ladder import halves
from scipy import sparse
from tables import save

import vcell
from vcell.config import compose, plain
from vcell.data.gather import Gather
from vcell.data.simulation import Screen, simulate
from vcell.data.store.store import Cells
from vcell.effects.bank import BULK_SUM
from vcell.effects.linear import cosine, discrimination_by_target
from vcell.effects.make import FITTED, fit_model, observed, training_evidence
from vcell.evaluate import run as evaluate
from vcell.infer import run as infer
from vcell.model.table import PerturbationTable
from vcell.train import run as train

COUNTS = [
    "challenge=vcc2026",
    "challenge.n_genes=null",
    "challenge.n_targets=null",
    "challenge.cells=null",
    "challenge.contexts=[]",
]
LARGE = ["data.sets.set_size=128", "data.sets.sets_per_step=16"]
NAMES = ["challenge.perturbation=target_gene", "challenge.context=cell_type"]
MEMBERS = {
    "2026": ["SCORE", "PDS", "MSE", "FIDELITY", "REACH", "JACCARD", "NMAE"],
    "2025": ["SCORE", "DES", "PDS", "MAE"],
}


def effects_of(
    store: Cells, table: PerturbationTable, context: str
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, float]]:
    """Effects that each predictor gives a held-out context, the measured ones ``(T, G)``, and CPU minutes."""
    gather = Gather(store, BULK_SUM)
    groups = [g for g in store.groups if g[1] != store.control]
    here = training_evidence(gather, {g: "train" for g in groups if g[0] == context})
    targets, truth = here.measured("bulk", context)
    evidence = training_evidence(gather, {g: "train" for g in groups if g[0] != context})
    controls = observed(gather, store.contexts)
    own = [store.genes.index(t) for t in targets]
    kept = np.setdiff1d(np.arange(store.n_genes), own)
    found, minutes = {}, {}
    for made in FITTED:
        start, model = time.process_time(), made(store.n_genes)
        fit_model(model, evidence, controls, table)
        model.observe(controls)
        found[made.__name__] = model.effect("bulk", context, targets)[:, kept]
        minutes[made.__name__] = (time.process_time() - start) / 60
    shuffled = PerturbationTable(
        table.names, table.vectors[np.random.default_rng(0).permutation(len(table.names))], "shuffled"
    )
    model = next(m for m in FITTED if m.__name__ == "Ridge")(store.n_genes)
    fit_model(model, evidence, controls, shuffled)
    found["Ridge, table shuffled"] = model.effect("bulk", context, targets)[:, kept]
    found["context mean of the truth (oracle)"] = np.repeat(truth[:, kept].mean(0)[None], len(targets), 0)
    found["half of the cells"], other = (h[:, kept] for h in halves(store, context, targets, 0))
    minutes |= dict.fromkeys(found.keys() - minutes.keys(), float("nan"))
    return {**found, "other half": other}, truth[:, kept], minutes


def per_target(predicted: np.ndarray, truth: np.ndarray) -> pd.DataFrame:
    """Discrimination, squared error, and size of the truth for each target."""
    centred = cosine(predicted - predicted.mean(0), truth - truth.mean(0))
    return pd.DataFrame({
        "pds": discrimination_by_target(predicted, truth), "error": ((predicted - truth) ** 2).sum(1), "size": (truth**2).sum(1),
        "cosine": cosine(predicted, truth), "centred": centred,
    })  # fmt: skip


def effect_table(rows: dict[str, pd.DataFrame], minutes: dict[str, float]) -> str:
    """Means over targets, by strength too, as Markdown."""
    size = next(iter(rows.values()))["size"]
    third = pd.qcut(size, 3, labels=["weak", "middle", "strong"]).to_numpy()
    lines = [
        "| effects of | pds (cosine) | weak | middle | strong | cosine | centred cosine | MSE / unchanged | CPU min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, table in rows.items():
        by = [table["pds"][third == part].mean() for part in ("weak", "middle", "strong")]
        spent = "" if np.isnan(minutes.get(name, np.nan)) else f"{minutes[name]:.2f}"
        lines.append(
            f"| {name} | {table['pds'].mean():.3f} | " + " | ".join(f"{b:.2f}" for b in by)
            + f" | {table['cosine'].mean():.3f} | {table['centred'].mean():.3f} | {table['error'].sum() / table['size'].sum():.3f} | {spent} |"
        )  # fmt: skip
    return "\n".join(lines)


def differences(rows: dict[str, pd.DataFrame], name: str) -> str:
    """How much better `name` is than each other predictor, with 95 % of 2,000 samples of targets."""
    rng = np.random.default_rng(0)
    mine = rows[name]
    draws = rng.integers(0, len(mine), (2000, len(mine)))
    lines = [f"| {name} against | pds | MSE / unchanged |", "|---|---|---|"]
    for other, table in rows.items():
        if other == name or "half" in other or "oracle" in other:
            continue
        pds = (mine["pds"] - table["pds"]).to_numpy()
        gain, size = (table["error"] - mine["error"]).to_numpy(), mine["size"].to_numpy()
        spread = [
            np.quantile(pds[draws].mean(1), (0.025, 0.975)),
            np.quantile(-gain[draws].sum(1) / size[draws].sum(1), (0.025, 0.975)),
        ]
        lines.append(
            f"| {other} | {pds.mean():+.3f} [{spread[0][0]:+.3f}, {spread[0][1]:+.3f}] | {-gain.sum() / size.sum():+.3f} "
            f"[{spread[1][0]:+.3f}, {spread[1][1]:+.3f}] |"
        )
    return "\n".join(lines)


def arc_state(place: Path, contexts: list[str], steps: int, python: str) -> Path:
    """The last context's cells as arc-state predicts them, after training on the other contexts."""
    command, held = Path(python).with_name("state"), contexts[-1]
    folder = place / "log1p"
    folder.mkdir(exist_ok=True)
    for context in contexts:
        cells = ad.read_h5ad(place / f"{context}.h5ad")
        scanpy.pp.normalize_total(cells, target_sum=1e4)
        scanpy.pp.log1p(cells)
        cells.obs["cell_type"] = cells.obs["cell_type"].astype("category")
        cells.write_h5ad(folder / f"{context}.h5ad")
    controls = np.flatnonzero(cells.obs["target_gene"] == "non-targeting")
    wanted = np.flatnonzero(cells.obs["target_gene"] != "non-targeting")
    template = cells[np.concatenate([controls, np.random.default_rng(0).choice(controls, len(wanted))])].copy()
    template.obs["target_gene"] = ["non-targeting"] * len(controls) + cells.obs["target_gene"].iloc[wanted].tolist()
    template.obs_names_make_unique()
    template.write_h5ad(place / "template.h5ad")
    (place / "field.toml").write_text(
        f'[datasets]\nfield = "{folder}"\n[training]\nfield = "train"\n[zeroshot]\n"field.{held}" = "test"\n'
    )
    common = {"env": {**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, "capture_output": True, "text": True}
    for arguments in (
        ["train", f"data.kwargs.toml_config_path={place / 'field.toml'}", "data.kwargs.pert_col=target_gene", "data.kwargs.cell_type_key=cell_type",
         "data.kwargs.batch_col=batch", "data.kwargs.control_pert=non-targeting", "data.kwargs.embed_key=null", "data.kwargs.num_workers=2",
         "data.kwargs.output_space=all", f"data.kwargs.perturbation_features_file={place / 'embedding.pt'}", "model=state_sm",
         "training.batch_size=16", "use_wandb=false", f"training.max_steps={steps}", "training.val_freq=1000000",
         f"training.ckpt_every_n_steps={steps}", f"output_dir={place / 'peer'}", "name=run"],
        ["infer", "--checkpoint", place / "peer" / "run" / "checkpoints" / "last.ckpt", "--model-dir", place / "peer" / "run", "--adata",
         place / "template.h5ad", "--pert-col", "target_gene", "--output", place / "peer.h5ad", "--celltype-col", "cell_type",
         "--batch-col", "batch", "--control-pert", "non-targeting"],
    ):  # fmt: skip
        done = subprocess.run([command, "tx", *map(str, arguments)], cwd=place, **common)  # type: ignore[call-overload]
        if done.returncode:
            raise SystemExit(
                f"arc-state failed: {' '.join(map(str, arguments))}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
            )
    predicted = ad.read_h5ad(place / "peer.h5ad")
    assert predicted.obs["target_gene"].astype(str).tolist() == template.obs["target_gene"].astype(str).tolist()
    x = predicted.X.toarray() if sparse.issparse(predicted.X) else np.array(predicted.X)
    x[: len(controls)] = template.X[: len(controls)].toarray()  # it predicts those too; they are measured
    ad.AnnData(np.maximum(x, 0), obs=template.obs, var=template.var).write_h5ad(place / "peer.h5ad")
    return place / "peer.h5ad"


def official(place: Path, contexts: list[str], options: argparse.Namespace, year: str, first: bool) -> pd.DataFrame:
    """Scores of every predictor's cells in the last context by the members of a year, and minutes of training."""
    steps, large = options.steps, options.large_steps if first else 0
    data = [f"data.path='{place}/sim?.h5ad'", f"perturbation.path={place / 'embedding.pt'}", "data.name=field",
            f"data.split.test.contexts=[{contexts[-1]}]", "data.split.test.perturbations=0"]  # fmt: skip
    runs = {
        "transfer": ["model=transfer", "data.split.val.perturbations=0"],
        "transfer_residual": ["model=transfer_residual", "data.split.val.perturbations=0"],
    }
    several = {"trainer": "trainer=cpu", "loss": "loss=energy_contrastive"}
    for name, changes, number in (
        ("tiny", ["model=tiny"], steps), ("tiny, model.prior=transfer", ["model=tiny_transfer"], steps), ("tiny, model.head=nb", ["model=tiny", "model.head=nb"], steps),
        ("state_sm", ["model=state_sm", *LARGE], large), ("state_sm, model.prior=transfer", ["model=state_sm", "model.prior=transfer", *LARGE], large),
    ):  # fmt: skip
        if number:
            runs[name] = [
                *several.values(),
                *changes,
                f"trainer.max_steps={number}",
                f"trainer.val_check_interval={number}",
            ]
    found = []
    for number, (name, overrides) in enumerate(runs.items()):
        run = re.sub(r"\W+", "_", name)
        pred, out = Path(f"{run}_{year}.h5ad"), Path(f"{run}_{year}")
        if not Path(f"runs/{run}/checkpoints/last.ckpt").is_file():
            start = time.perf_counter()
            train(compose("train", ["experiment=perturb_seq", f"name={run}", *data, *overrides]))
            Path(f"runs/{run}/minutes").write_text(str((time.perf_counter() - start) / 60))
        challenge = [*COUNTS, *NAMES] if year == "2026" else NAMES
        infer(
            compose(
                "infer",
                [
                    f"ckpt=runs/{run}/checkpoints/last.ckpt",
                    f"out={pred}",
                    "overwrite=true",
                    f"contexts=[{contexts[-1]}]",
                    *challenge,
                    *(["amplitude=ranks"] if year == "2025" else []),
                ],
            )
        )
        baselines = "all" if number == 0 else "copied_controls"
        evaluate(compose("evaluate", [f"pred={pred}", f"real={place / contexts[-1]}.h5ad", f"out={out}", "engine=fast", "pictures=false", f"baselines={baselines}", *challenge]))  # fmt: skip
        scores = pd.read_csv(out / "scores.csv", index_col="predictor")[MEMBERS[year]].rename(index={"model": name})
        found.append(
            scores.assign(
                minutes=np.where(scores.index == name, float(Path(f"runs/{run}/minutes").read_text()), np.nan)
            )
        )
        pred.unlink()
    if options.peer and large and year == "2025":
        start = time.perf_counter()
        pred = arc_state(place, contexts, large, options.peer)
        spent = (time.perf_counter() - start) / 60
        evaluate(compose("evaluate", [f"pred={pred}", f"real={place / contexts[-1]}.h5ad", "out=peer", "engine=fast", "pictures=false", "baselines=copied_controls", *NAMES]))  # fmt: skip
        scores = pd.read_csv("peer/scores.csv", index_col="predictor").loc[["model"], MEMBERS[year]].rename(index={"model": "arc-state 0.11.1, state_sm"})  # fmt: skip
        found.append(scores.assign(minutes=spent))
    joined = pd.concat(found)
    return joined[~joined.index.duplicated(keep="first")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500, help="of the small transformers; 0 leaves them out")
    parser.add_argument(
        "--large-steps", type=int, default=0, help="of state_sm and arc-state on the first seed; 0 leaves them out"
    )
    parser.add_argument("--peer", help="Python of an environment with arc-state [none]")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the screen")
    parser.add_argument("--name", default="quality", help="of the table in benchmarks/results")
    options = parser.parse_args()
    effects: dict[str, list[pd.DataFrame]] = {}
    minutes: dict[str, list[float]] = {}
    scores: dict[str, list[pd.DataFrame]] = {"2026": [], "2025": []}
    for seed in range(100, 100 + options.seeds):
        given = {
            k: v
            for k, v in plain(compose("simulate", ["screen=field", f"seed={seed}", "out=x", *options.set])).items()
            if k != "out"
        }
        screen = Screen(**given)
        with tempfile.TemporaryDirectory() as scratch, redirect_stdout(StringIO()):
            os.chdir(scratch)
            place = simulate(Path(scratch) / "screen", screen)
            store = vcell.build_store([place / f"{c}.h5ad" for c in screen.contexts], place / "store")
            predicted, truth, spent = effects_of(
                store, PerturbationTable.load(place / "embedding.pt"), screen.contexts[-1]
            )
            other = predicted.pop("other half")
            for name, effect in predicted.items():
                effects.setdefault(name, []).append(per_target(effect, other if name == "half of the cells" else truth))
                minutes.setdefault(name, []).append(spent[name])
            for year in scores:
                scores[year].append(official(place, list(screen.contexts), options, year, seed == 100))
            os.chdir("/")
        print(f"seed {seed}: prior pds {effects['Transfer'][-1]['pds'].mean():.3f}", flush=True)
    joined = {name: pd.concat(tables, ignore_index=True) for name, tables in effects.items()}
    key = hashlib.sha256(
        json.dumps([given, options.steps, options.large_steps], sort_keys=True, default=str).encode()
    ).hexdigest()[:12]
    sections = [
        f"`screen=field`, {options.seeds} seeds from 100 ({len(joined['Transfer'])} targets in all); the last of {len(screen.contexts)} contexts held out; settings {key}.\n",
        "## Effects as predicted\n", effect_table(joined, {n: float(np.mean(m)) for n, m in minutes.items()}) + "\n",
        differences(joined, "Transfer") + "\n",
    ]  # fmt: skip
    for year, tables in scores.items():
        mean = pd.concat(tables).groupby(level=0, sort=False).mean()
        spread = pd.concat(tables).groupby(level=0, sort=False).std()
        lines = [
            f"## Cells as scored in {year} (mean over seeds, standard deviation of SCORE)\n",
            "| predictor | " + " | ".join(mean) + " |",
            "|---|" + "---|" * len(mean.columns),
        ]
        for name in mean.sort_values("SCORE", ascending=False).index:
            known = not np.isnan(spread.loc[name, "SCORE"])
            first = f"{mean.loc[name, 'SCORE']:.3f}" + (
                f" ± {spread.loc[name, 'SCORE']:.3f}" if known else " (one seed)"
            )
            values = [
                "" if np.isnan(v) else f"{v:.1f}" if key == "minutes" else f"{v:.3f}"
                for key, v in mean.loc[name].iloc[1:].items()
            ]
            lines.append(f"| {name} | {first} | " + " | ".join(values) + " |")
        sections.append("\n".join(lines) + "\n")
    save(
        options.name,
        f"python benchmarks/quality.py --seeds {options.seeds} --steps {options.steps} --large-steps {options.large_steps} {'--peer PYTHON ' if options.peer else ''}--set {' '.join(options.set)} --name {options.name}",
        "\n".join(sections),
    )


if __name__ == "__main__":
    main()
