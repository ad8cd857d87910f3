"""Ways of drawing whole counts around the same prediction: what each scores in 2026, and how many genes it has called where nothing changed.

    python benchmarks/emitters.py [--seed 100] [--set KEY=VALUE ...]

`screen=field`; the transfer prior predicts the last context from the others. Each way draws the same predicted effects; and, as the control,
cells without any effect (`predictor=copied_controls`), whose called genes are all false.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from quality import MEMBERS, Bench, challenge, screen_of
from tables import save

from vcell.config import compose
from vcell.data.simulation import simulate
from vcell.evaluate import run as evaluate
from vcell.infer import run as infer
from vcell.score.grouped import GroupedCells
from vcell.score.vcc2026 import Fast2026

WAYS = {
    "`counts=donors`": ["counts=donors"],
    "`counts=moments`": ["counts=moments"],
    "`counts=moments pool=2`": ["counts=moments", "pool=2"],
    "`counts=moments pool=4`": ["counts=moments", "pool=4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=100, help="of the screen [%(default)s]")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the screen")
    options = parser.parse_args()
    screen = screen_of(options.seed, options)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        bench = Bench(simulate(Path(folder) / "screen", screen), list(screen.contexts), 0, 0, None)
        bench.predicted("transfer", "2026")[0].unlink()
        rows = {way: measure(bench, given) for way, given in WAYS.items()}
        os.chdir("/")
    names = [*MEMBERS["2026"], "false calls, median", "90 %", "most"]
    lines = ["| cells drawn by | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [f"| {way} | " + " | ".join(f"{v:.3f}" for v in scores) + " | " + " | ".join(f"{v:.0f}" for v in false) + " |" for way, (scores, false) in rows.items()]  # fmt: skip
    settings = f" --set {' '.join(options.set)}" if options.set else ""
    save("emitters", f"python benchmarks/emitters.py --seed {options.seed}{settings}", "\n".join(lines))


def measure(bench: Bench, given: list[str]) -> tuple[list[float], np.ndarray]:
    """Members of 2026, and quantiles of the number of genes called per target without any effect."""
    ask = [
        "ckpt=runs/transfer/checkpoints/last.ckpt",
        "overwrite=true",
        f"contexts=[{bench.held_out}]",
        *challenge("2026"),
        *given,
    ]
    infer(compose("infer", [*ask, "out=pred.h5ad"]))
    evaluate(compose("evaluate", ["pred=pred.h5ad", f"real={bench.place / bench.held_out}.h5ad", "out=scores", "engine=fast", "pictures=false", "baselines=copied_controls", *challenge("2026")]))  # fmt: skip
    scores = pd.read_csv("scores/scores.csv", index_col="predictor").loc["model", MEMBERS["2026"]].tolist()
    infer(compose("infer", [*ask, "out=null.h5ad", "predictor=copied_controls"]))
    null, measured = (GroupedCells.of(ad.read_h5ad(path), "target_gene", "non-targeting") for path in ("null.h5ad", bench.place / f"{bench.held_out}.h5ad"))  # fmt: skip
    called = Fast2026(measured).side(null).calls.called_PG.sum(1)
    print(given, scores, np.quantile(called, (0.5, 0.9, 1.0)), flush=True)
    return scores, np.quantile(called, (0.5, 0.9, 1.0))


if __name__ == "__main__":
    main()
