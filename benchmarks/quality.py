"""What predictors score in a context that was never trained on: baselines, the transfer prior, its residual, transformers, arc-state.

    python benchmarks/quality.py                      screen=field, three seeds: about 40 minutes on two cores
    python benchmarks/quality.py --rows effects transfer     without the networks
    python benchmarks/quality.py --large-steps 1000 --peer PYTHON     besides, state_sm and arc-state 0.11.1 for as many steps: for a GPU

`PYTHON` is that of an environment with arc-state (pip install arc-state==0.11.1), which gets the same cells, table and steps of 16 sets of 128.
What is found is kept row by row in the folder `--keep`: a benchmark that was stopped goes on there, and rows from several machines join in it.

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
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scanpy
import torch
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
        "| effects of | pds (cosine) | weak | middle | strong | cosine | centred cosine | MSE / unchanged | weak | middle | strong | CPU min |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, table in rows.items():
        parts = [table[third == part] for part in ("weak", "middle", "strong")]
        by = [one["pds"].mean() for one in parts]
        errors = [one["error"].sum() / one["size"].sum() for one in (table, *parts)]
        spent = "" if np.isnan(minutes.get(name, np.nan)) else f"{minutes[name]:.2f}"
        lines.append(
            f"| {name} | {table['pds'].mean():.3f} | " + " | ".join(f"{b:.2f}" for b in by)
            + f" | {table['cosine'].mean():.3f} | {table['centred'].mean():.3f} | " + " | ".join(f"{e:.3f}" for e in errors) + f" | {spent} |"
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


def plain_strings(path: Path) -> None:
    """Rewrites names that pandas 3 has stored as nullable strings, which arc-state cannot read, as plain ones."""
    with h5py.File(path, "r+") as file:
        found: list[str] = []
        file.visititems(
            lambda name, item: (
                found.append(name) if item.attrs.get("encoding-type") == "nullable-string-array" else None
            )
        )
        for name in found:
            values = file[name]["values"][:]
            del file[name]
            written = file.create_dataset(name, data=values, dtype=h5py.string_dtype())
            written.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


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
        plain_strings(folder / f"{context}.h5ad")
    controls = np.flatnonzero(cells.obs["target_gene"] == "non-targeting")
    wanted = np.flatnonzero(cells.obs["target_gene"] != "non-targeting")
    template = cells[np.concatenate([controls, np.random.default_rng(0).choice(controls, len(wanted))])].copy()
    template.obs["target_gene"] = ["non-targeting"] * len(controls) + cells.obs["target_gene"].iloc[wanted].tolist()
    template.obs_names_make_unique()
    template.write_h5ad(place / "template.h5ad")
    plain_strings(place / "template.h5ad")
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


ROWS = {
    "transfer": ["model=transfer", "data.split.val.perturbations=0"],
    "transfer_residual": ["model=transfer_residual", "data.split.val.perturbations=0"],
    "tiny": ["model=tiny"],
    "tiny, model.prior=transfer": ["model=tiny_transfer"],
    "tiny, model.head=nb": ["model=tiny", "model.head=nb"],
    "state_sm": ["model=state_sm", *LARGE],
    "state_sm, model.prior=transfer": ["model=state_sm", "model.prior=transfer", *LARGE],
}
PEER = "arc-state 0.11.1, state_sm"
EFFECTS = "effects"


@dataclass(frozen=True)
class Bench:
    """One screen, and what is trained on it.

    Parameters
    ----------
    place, contexts
        The simulated screen; its last context is held out.
    steps, large_steps
        Of the small transformers; of state_sm and the peer.
    peer
        Python of its environment.
    """

    place: Path
    contexts: list[str]
    steps: int
    large_steps: int
    peer: str | None

    @property
    def held_out(self) -> str:
        return self.contexts[-1]

    def training(self, name: str) -> list[str]:
        """What a row is trained with; networks are validated on targets held out in the training contexts."""
        found = [*ROWS[name], f"data.path='{self.place}/sim?.h5ad'", f"perturbation.path={self.place / 'embedding.pt'}", "data.name=field",
                 f"data.split.test.contexts=[{self.held_out}]", "data.split.test.perturbations=0"]  # fmt: skip
        if name.startswith("transfer"):
            return found
        steps = self.large_steps if name.startswith("state_sm") else self.steps
        trainer = "trainer=gpu" if torch.cuda.is_available() else "trainer=cpu"
        return [trainer, "loss=energy_contrastive", *found, f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}"]  # fmt: skip

    def predicted(self, name: str, year: str) -> tuple[Path, float]:
        """Cells of a row in the held-out context, and minutes of training."""
        run = re.sub(r"\W+", "_", name)
        last, minutes = Path(f"runs/{run}/checkpoints/last.ckpt"), Path(f"runs/{run}/minutes")
        if not last.is_file():
            start = time.perf_counter()
            train(compose("train", ["experiment=perturb_seq", f"name={run}", *self.training(name)]))
            minutes.write_text(str((time.perf_counter() - start) / 60))
        amplitude = ["amplitude=ranks"] if year == "2025" else []
        pred = Path(f"{run}.h5ad")
        infer(compose("infer", [f"ckpt={last}", f"out={pred}", "overwrite=true", f"contexts=[{self.held_out}]", *challenge(year), *amplitude]))  # fmt: skip
        return pred, float(minutes.read_text())

    def scores(self, name: str, year: str) -> pd.DataFrame:
        """Members of a year by predictor: the row's, and with `transfer` those of all baselines."""
        if name == PEER:
            start = time.perf_counter()
            pred = arc_state(self.place, self.contexts, self.large_steps, str(self.peer))
            minutes = (time.perf_counter() - start) / 60
        else:
            pred, minutes = self.predicted(name, year)
        baselines = "all" if name == "transfer" else "copied_controls"
        out = f"{pred.stem}_{year}"
        evaluate(compose("evaluate", [f"pred={pred}", f"real={self.place / self.held_out}.h5ad", f"out={out}", "engine=fast", "pictures=false", f"baselines={baselines}", *challenge(year)]))  # fmt: skip
        pred.unlink()
        scores = pd.read_csv(Path(out) / "scores.csv", index_col="predictor")[MEMBERS[year]]
        scores = scores.rename(index={"model": name, "prediction": name})
        scores = scores[~scores.index.duplicated()]  # the row itself may be among the baselines
        kept = scores if name == "transfer" else scores.loc[[name]]
        return kept.assign(minutes=np.where(kept.index == name, minutes, np.nan))


def challenge(year: str) -> list[str]:
    return [*COUNTS, *NAMES] if year == "2026" else NAMES


def years_of(name: str) -> list[str]:
    """Years by whose members a row is scored: the peer predicts log1p, which 2026 does not take."""
    return ["2025"] if name == PEER else list(MEMBERS)


def measure(seed: int, rows: list[str], options: argparse.Namespace) -> None:
    """Makes the screen of a seed, and what is missing of its rows."""
    kept = Path(options.keep).resolve()
    missing = [(row, year) for row in rows for year in (years_of(row) if row != EFFECTS else [""]) if not part(kept, seed, row, year).exists()]  # fmt: skip
    if not missing:
        return
    screen = screen_of(seed, options)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        place = simulate(Path(scratch) / "screen", screen)
        bench = Bench(place, list(screen.contexts), options.steps, options.large_steps, options.peer)
        for row, year in missing:
            found = effects_by_target(bench) if row == EFFECTS else bench.scores(row, year).reset_index()
            found.to_csv(part(kept, seed, row, year), index=False)
            print(f"seed {seed}, {row} {year}: done", flush=True)
        os.chdir("/")


def part(kept: Path, seed: int, row: str, year: str) -> Path:
    return kept / f"{seed}-{re.sub(r'[^a-z0-9]+', '_', row.lower())}{year and '-'}{year}.csv"


def screen_of(seed: int, options: argparse.Namespace) -> Screen:
    config = plain(compose("simulate", ["screen=field", f"seed={seed}", "out=x", *options.set]))
    return Screen(**{k: v for k, v in config.items() if k != "out"})


def effects_by_target(bench: Bench) -> pd.DataFrame:
    """Per target and predictor: the effects as predicted, against the measured ones."""
    store = vcell.build_store([bench.place / f"{c}.h5ad" for c in bench.contexts], bench.place / "store")
    table = PerturbationTable.load(bench.place / "embedding.pt")
    predicted, truth, minutes = effects_of(store, table, bench.held_out)
    other = predicted.pop("other half")
    return pd.concat([
        per_target(effect, other if name == "half of the cells" else truth).assign(predictor=name, minutes=minutes[name])
        for name, effect in predicted.items()
    ])  # fmt: skip


def report(kept: Path, seeds: list[int], options: argparse.Namespace) -> str:
    """The tables of all parts that are there."""
    screen = screen_of(seeds[0], options)
    given = {**screen.__dict__, "seed": None}
    key = hashlib.sha256(json.dumps([given, options.steps, options.large_steps], sort_keys=True, default=str).encode()).hexdigest()[:12]  # fmt: skip
    sections = [
        f"`screen=field`, seeds {seeds[0]} to {seeds[-1]}; the last of {len(screen.contexts)} contexts held out, {screen.targets} targets; "
        f"{options.steps:,} steps of the small transformers, {options.large_steps:,} of the large; settings {key}. {options.note}\n"
    ]
    parts = [pd.read_csv(path) for seed in seeds if (path := part(kept, seed, EFFECTS, "")).exists()]
    if parts:
        joined = pd.concat(parts, ignore_index=True)
        rows = {name: rows.reset_index(drop=True) for name, rows in joined.groupby("predictor", sort=False)}
        minutes = {name: rows["minutes"].mean() for name, rows in rows.items()}
        sections += [
            "## Effects as predicted\n",
            effect_table(rows, minutes) + "\n",
            differences(rows, "Transfer") + "\n",
        ]
    for year in MEMBERS:
        if table := score_table(kept, seeds, year):
            sections.append(f"## Cells as scored in {year} (mean and standard deviation over seeds)\n\n{table}\n")
    return "\n".join(sections)


def score_table(kept: Path, seeds: list[int], year: str) -> str:
    parts = [
        pd.read_csv(path).assign(seed=seed) for seed in seeds for row in (*ROWS, PEER) if (path := part(kept, seed, row, year)).exists()
    ]  # fmt: skip
    if not parts:
        return ""
    found = pd.concat(parts).groupby("predictor", sort=False)
    mean, spread, number = found.mean(), found["SCORE"].std(), found["SCORE"].count()
    names = [*MEMBERS[year], "minutes"]
    lines = ["| predictor | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for name in mean.sort_values("SCORE", ascending=False).index:
        few = "" if number[name] == len(seeds) else f" ({number[name]} of {len(seeds)} seeds)"
        first = f"{mean.loc[name, 'SCORE']:.3f}" + (f" ± {spread[name]:.3f}" if number[name] > 1 else "") + few
        values = [f"{mean.loc[name, key]:.3f}" for key in names[1:-1]]
        spent = mean.loc[name, "minutes"]
        lines.append(
            f"| {name} | {first} | " + " | ".join(values) + f" | {'' if np.isnan(spent) else f'{spent:.1f}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[100, 101, 102])
    parser.add_argument("--rows", nargs="*", help=f"of {EFFECTS}, {', '.join(ROWS)}, peer [all that have steps]")
    parser.add_argument("--steps", type=int, default=1500, help="of the small transformers; 0 leaves them out")
    parser.add_argument("--large-steps", type=int, default=0, help="of state_sm and arc-state; 0 leaves them out")
    parser.add_argument("--peer", help="Python of an environment with arc-state [none]")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the screen")
    parser.add_argument("--keep", default="runs/quality", help="folder of what is found [%(default)s]")
    parser.add_argument("--name", default="quality", help="of the table in benchmarks/results")
    parser.add_argument("--note", default="", help="what the table should say of the machines its rows come from")
    options = parser.parse_args()
    steps = {"tiny": options.steps, "state_sm": options.large_steps}
    known = [EFFECTS, *(row for row in ROWS if steps.get(row.split(",")[0], 1)), *([PEER] if options.peer and options.large_steps else [])]  # fmt: skip
    asked = [PEER if row == "peer" else row for row in options.rows or known]
    if unknown := set(asked) - set(known):
        parser.error(f"there is no row {unknown.pop()!r}, or it has no steps; rows are {', '.join(known)}")
    Path(options.keep).mkdir(parents=True, exist_ok=True)
    kept = Path(options.keep).resolve()
    for seed in options.seeds:
        measure(seed, asked, options)
    given = f"--steps {options.steps} --large-steps {options.large_steps}" + " --peer PYTHON" * bool(options.peer)
    settings = f" --set {' '.join(options.set)}" if options.set else ""
    save(
        options.name,
        f"python benchmarks/quality.py {given}{settings} --name {options.name}",
        report(kept, options.seeds, options),
    )


if __name__ == "__main__":
    main()
