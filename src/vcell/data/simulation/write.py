"""Simulated screens on disk: streamed, laid out as the challenge lays out its own. The model behind is in `screen.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from vcell.atomic import written_folder
from vcell.data.files.labels import CONTROL
from vcell.data.files.writer import H5adWriter
from vcell.data.simulation.screen import CELLS, Screen, Truth
from vcell.errors import VcellError, shortlist
from vcell.process.progress import progress_bar


def ensure_screen(out: Path, screen: Screen) -> Path:
    """The simulated screen in folder `out`, written first where it is not there yet.

    Raises
    ------
    VcellError
        If another screen lies there.
    """
    if not out.exists():
        return simulate(out, screen)
    then = json.loads((out / "screen.json").read_text()) if (out / "screen.json").is_file() else {}
    now = json.loads(json.dumps(asdict(screen)))
    differing = [f"{key} ({then.get(key)} then, {now[key]} now)" for key in now if then.get(key) != now[key]]
    if differing:
        raise VcellError(
            f"{out} holds another screen: {shortlist(differing)}. Remove the folder (and the store made from it), or "
            "choose another one with data.simulate.out=FOLDER"
        )
    return out


def simulate(out: Path, screen: Screen) -> Path:
    """Writes a simulated screen into the new folder `out`.

    CONTEXT.h5ad
        Raw counts; obs `target_gene`, `guide_id`, `batch`, `cell_type`, as the challenge's training file.
    embedding.pt, gene_names.csv, pert_counts_Training.csv, pert_counts_Test.csv
        As the challenge distributes them.
    screen.json
        The parameters.
    truth/CONTEXT_test.h5ad
        Of the last context: its test targets, withheld from the file above, and the same controls.
    truth/effects.h5ad
        Effects, one row per (context, target), natural-log fold change; layers hold their parts.
    """
    if out.exists():
        raise VcellError(f"{out} exists already; remove it, or choose another folder with out=FOLDER")
    with written_folder(out, "the screen") as scratch:
        truth = Truth(screen)
        for number, context in enumerate(screen.contexts):
            cells = _cell_table(truth, number)
            is_last = number == len(screen.contexts) - 1
            withheld = cells["target_gene"].isin(truth.test_targets) & is_last
            _write_cells(scratch, f"{context}.h5ad", truth, number, cells, ~withheld.to_numpy())
            if is_last and withheld.any():
                control = cells["target_number"] < 0
                _write_cells(
                    scratch, f"truth/{context}_test.h5ad", truth, number, cells, (withheld | control).to_numpy()
                )
        (scratch / "gene_names.csv").write_text("\n".join(truth.gene_names) + "\n")
        torch.save(truth.table(), scratch / "embedding.pt")
        _write_truth(scratch / "truth" / "effects.h5ad", truth)
        (scratch / "screen.json").write_text(json.dumps(asdict(screen), indent=1))
    return out


def _cell_table(truth: Truth, context: int) -> pd.DataFrame:
    """Every cell of a context but its counts, ordered by batch and target."""
    screen, rng = truth.screen, truth.rng(CELLS, context)
    field = truth.field
    more, deeper = (1.0, 1.0) if field is None else field.study(context)
    wanted = screen.cells_per_target * more * rng.uniform(0.6, 1.4, screen.targets)
    if field is not None:
        wanted = wanted / (1 + field.field.depletion * field.relative_T)
    sizes = np.maximum(1, rng.poisson(wanted))
    target = np.concatenate([np.repeat(-1, screen.controls_per_context), np.repeat(np.arange(screen.targets), sizes)])
    n = len(target)
    guide = rng.integers(0, screen.guides, n)
    names = np.array([*truth.targets, CONTROL], dtype=object)[target]  # -1 is the last
    table = pd.DataFrame(
        {
            "target_gene": names,
            "guide_id": [f"{name}_g{g + 1}" for name, g in zip(names, guide, strict=True)],
            "batch_number": rng.integers(0, screen.batches, n),
            "target_number": target,
            "efficiency": np.where(target < 0, 0.0, truth.guide_efficiencies(context)[target, guide]),
            "library_size": screen.library_size * deeper * np.exp(screen.library_sd * rng.standard_normal(n)),
        }
    )
    if field is not None:
        shares = {t: field.batches_of(context, t) for t in range(screen.targets)}
        number = [
            rng.choice(screen.batches, p=shares[t]) if t >= 0 else b
            for t, b in zip(target, table["batch_number"], strict=True)
        ]
        table["batch_number"] = number
    table["batch"] = [f"{screen.contexts[context]}_b{b + 1}" for b in table["batch_number"]]
    table["cell_type"] = screen.contexts[context]
    table = table.sort_values(["batch_number", "target_number"], kind="stable", ignore_index=True)
    table.index = pd.Index([f"{screen.contexts[context]}_{i:07d}" for i in range(n)])
    return table


def _write_cells(folder: Path, name: str, truth: Truth, context: int, cells: pd.DataFrame, chosen: np.ndarray) -> None:
    obs = cells.loc[chosen, ["target_gene", "guide_id", "batch", "cell_type"]].astype("category")
    umi: dict[str, list[np.ndarray]] = {}
    with (
        H5adWriter(folder / name, obs, truth.gene_names, compression="lzf") as writer,
        progress_bar(int(chosen.sum()), f"simulating {name}", "cells") as progress,
    ):
        for block in _blocks(len(cells), truth.screen.block):
            keep = chosen[block]
            if not keep.any():
                continue
            # whole blocks are drawn whatever is kept: a cell has the same counts in every file it is in
            counts = truth.counts(context, cells.iloc[block], block.start)[keep]
            writer.write(sparse.csr_matrix(counts.astype(np.float32)))
            for label, total in zip(cells["target_gene"].iloc[block][keep], counts.sum(axis=1), strict=True):
                umi.setdefault(label, []).append(total)
            progress.update(int(keep.sum()))
    if context == len(truth.screen.contexts) - 1:
        rows = [(t, len(u), float(np.median(u))) for t, u in sorted(umi.items()) if t != CONTROL]
        file = "pert_counts_Test.csv" if name.endswith("_test.h5ad") else "pert_counts_Training.csv"
        frame = pd.DataFrame(rows, columns=["target_gene", "n_cells", "median_umi_per_cell"])
        frame.to_csv(folder / file, index=False)


def _write_truth(path: Path, truth: Truth) -> None:
    """Effects and their parts, streamed: X holds their sum."""
    screen = truth.screen
    keys = [(c, t) for c in range(len(screen.contexts)) for t in range(screen.targets)]
    last = len(screen.contexts) - 1
    obs = pd.DataFrame(
        {
            "cell_type": [screen.contexts[c] for c, _ in keys],
            "target_gene": [truth.targets[t] for _, t in keys],
            "withheld": [c == last and truth.targets[t] in truth.test_targets for c, t in keys],
        },
        index=pd.Index([f"{screen.contexts[c]}/{truth.targets[t]}" for c, t in keys]),
    )
    with H5adWriter(path, obs, truth.gene_names) as writer:
        layers = writer.file["layers"]
        shape, chunk = (len(keys), screen.genes), (1, screen.genes)
        datasets = {name: layers.create_dataset(name, shape, np.float32, chunks=chunk) for name in screen.parts}
        for dataset in datasets.values():
            dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for row, (c, t) in enumerate(keys):
            parts = truth.effect_parts(c, t)
            for name, part in parts.items():
                datasets[name][row] = part
            writer.write(truth.effect(c, t)[None].astype(np.float32))


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(n, start + size)) for start in range(0, n, size))
