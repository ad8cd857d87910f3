"""Scores of one prediction by our own scorer, next to the official commands: time and peak memory.

    python benchmarks/score.py [--years 2025 2026] [--controls 5000] [--targets 100] [--cells 150] [--genes 18080] [--folder DIR]

A screen and a prediction of it are drawn (over-dispersed counts, about 3,400 genes seen a cell, a tenth of the genes changed by each
target). Then whole processes are timed, from files to scores: `cell-eval run --profile vcc` (2025), `cell-eval2 run --preset vcc2026`
(2026), ours on the same files, and `vcell.evaluate engine=fast`, which scores five references, the floor, the split halves (five of
them in 2026) and draws the report besides, in a process of its own whose memory is not in the peak. Last, the rank tests alone: ours,
those of pdex (numba-mwu, timed on ten targets), and of illico where that is installed. Prints tables and writes them to
benchmarks/results/; on a CPU only the ratios say something of other machines.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from tables import device_name, processor, save

from vcell.system import cores

CONTROL = "non-targeting"
TEN = 10
OFFICIAL = {2025: "cell-eval run --profile vcc", 2026: "cell-eval2 run --preset vcc2026"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, nargs="+", default=[2025, 2026], choices=[2025, 2026], help="[both]")
    for name, number in (("controls", 5_000), ("targets", 100), ("cells", 150), ("genes", 18_080)):
        parser.add_argument(f"--{name}", type=int, default=number, help="[%(default)s]")
    parser.add_argument("--folder", type=Path, help="where to work; 5 GB [a temporary one]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        draw(folder, options)
        rows = []
        for year in options.years:
            rows += compare(folder, year)
        rows += rank_tests(folder)
        sizes = (
            f"--controls {options.controls} --targets {options.targets} --cells {options.cells} --genes {options.genes}"
        )
        n_cells = options.controls + options.targets * options.cells
        years = " ".join(map(str, options.years))
        save(
            f"score_{device_name()}_{n_cells}x{options.genes}",
            f"python benchmarks/score.py --years {years} {sizes}",
            table(rows, n_cells, options.genes),
        )


def draw(folder: Path, options: argparse.Namespace) -> None:
    """pred.h5ad and real.h5ad: the same screen drawn twice, whole counts."""
    rng = np.random.default_rng(0)
    genes = [f"GENE{i:05d}" for i in range(options.genes)]
    targets = [genes[i * (options.genes // options.targets)] for i in range(options.targets)]
    rate = np.exp(rng.normal(0, 2.2, options.genes))
    effects = {t: np.exp(0.4 * rng.standard_normal(len(rate)) * (rng.random(len(rate)) < 0.1)) for t in targets}

    def some(number: int, effect: np.ndarray | float) -> sparse.csr_matrix:
        mean = rate * effect
        depth = 12_000 * np.exp(0.3 * rng.standard_normal((number, 1)))
        noisy = rng.standard_gamma(4, (number, len(rate))) / 4 * depth * (mean / mean.sum())
        return sparse.csr_matrix(rng.poisson(noisy).astype(np.float32))

    for name in ("real", "pred"):
        controls = [some(min(500, options.controls - i), 1.0) for i in range(0, options.controls, 500)]
        cells = sparse.vstack([*controls, *(some(options.cells, effects[t]) for t in targets)], format="csr")
        labels = [CONTROL] * options.controls + [t for t in targets for _ in range(options.cells)]
        obs = pd.DataFrame({"target_gene": labels}, index=[str(i) for i in range(len(labels))])
        ad.AnnData(cells, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(folder / f"{name}.h5ad")


def compare(folder: Path, year: int) -> list[dict]:
    """The official command, our scores, and our whole report."""
    pred, real = folder / "pred.h5ad", folder / "real.h5ad"
    files = ["-ap", str(pred), "-ar", str(real), "--pert-col", "target_gene", "-o", str(folder / f"official{year}")]
    module = ["-m", "cell_eval", "run", *files, "--profile", "vcc"]
    if year == 2026:
        module = ["-c", "from cell_eval2.cli import main; main()", "run", *files, "--preset", "vcc2026"]
    once = [str(Path(__file__).with_name("score_once.py")), str(year), str(pred), str(real)]
    report = [sys.executable, "-m", "vcell.evaluate", f"pred={pred}", f"real={real}", f"challenge=vcc{year}", "engine=fast",
              f"out={folder / f'scores{year}'}"]  # fmt: skip
    timed(report)  # compiles our kernels, which are kept on disk from then on
    found = {
        OFFICIAL[year]: timed([sys.executable, *module]),
        "vcell, the same scores": timed([sys.executable, *once]),
        "vcell.evaluate engine=fast": timed(report),
    }
    official = found[OFFICIAL[year]]
    return [
        {"year": year, "what": what, "ratio": official[0] / seconds, "peak": peak, "share": peak / official[1]}
        for what, (seconds, peak) in found.items()
    ]


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of a process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": "0"}
    )
    said = process.stderr.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{said.decode()[-2000:]}")
    return time.perf_counter() - started, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rank_tests(folder: Path) -> list[dict]:
    """All targets against the controls, compiled and warmed up, on all cores; numba-mwu on ten of them, its time scaled up."""
    from numba_mwu import mannwhitneyu_sparse, sparse_column_index

    from vcell.score.grouped import GroupedCells
    from vcell.score.ranksum import SortedControls, rank_sum_p
    from vcell.system import in_threads

    cells = GroupedCells.of(ad.read_h5ad(folder / "real.h5ad"), "target_gene", CONTROL)
    groups = [cells.cells[t] for t in cells.targets]
    batches = [[cells.cells[t] for t in batch] for batch in cells.batches()]

    def ours() -> np.ndarray:
        controls = SortedControls.of(cells.controls)
        return np.concatenate(list(in_threads(lambda batch: rank_sum_p(batch, controls), batches)))

    def numba_mwu() -> np.ndarray:
        index = sparse_column_index(cells.controls)
        return np.array([mannwhitneyu_sparse(group, index).pvalue for group in groups[:TEN]])

    tests = {"rank tests: vcell": ours, "rank tests: numba-mwu, as in pdex": numba_mwu}
    try:
        from illico import asymptotic_wilcoxon
    except ImportError:
        pass
    else:
        part = cells.anndata("target_gene")

        def illico() -> np.ndarray:
            found = asymptotic_wilcoxon(part, is_log1p=False, group_keys="target_gene", reference=CONTROL, n_threads=cores(),
                                        batch_size=1024)  # fmt: skip
            return found["p_value"].unstack().loc[cells.targets, part.var_names].to_numpy()

        tests["rank tests: illico"] = illico
    seconds, values = {}, {}
    for name, test in tests.items():
        test()
        started = time.perf_counter()
        values[name] = test()
        seconds[name] = (time.perf_counter() - started) * len(groups) / len(values[name])
    first = values["rank tests: vcell"]
    peer = seconds["rank tests: numba-mwu, as in pdex"]
    for name, p in values.items():
        below = first[: len(p)] < 0.99  # illico's lie below 1 where those of scipy are 1
        assert np.allclose(p[below], first[: len(p)][below], rtol=1e-5, atol=1e-12), f"{name} gives other p-values"
    return [{"year": "", "what": name, "ratio": peer / s, "peak": None, "share": None} for name, s in seconds.items()]


def table(rows: list[dict], n_cells: int, genes: int) -> str:
    """Markdown."""
    lines = [
        f"{n_cells:,} cells x {genes:,} genes in each of the two files, {processor()}. Times as often as the official command "
        "(of the rank tests: numba-mwu) could run while this runs once.",
        "",
        "| year | what | speed relative | peak memory | of the official |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        peak = f"{row['peak'] / 1e9:.1f} GB" if row["peak"] else ""
        share = f"{row['share']:.2f}" if row["share"] else ""
        lines.append(f"| {row['year']} | {row['what']} | {row['ratio']:.1f} x | {peak} | {share} |")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (
        "\n".join([*lines, "", f"(The benchmark itself took up to {own / 1e6:.1f} GB.)"])
        if own > 20e6
        else "\n".join(lines)
    )


if __name__ == "__main__":
    main()
