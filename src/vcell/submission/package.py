"""Packaging: a prediction, ours or anybody's, to a container that the challenge takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from vcell.atomic import sha256, written_file
from vcell.challenge import Challenge
from vcell.data.files.h5ad import n_rows, open_h5ad
from vcell.data.files.labels import CONTROL
from vcell.data.files.paths import expand
from vcell.data.store.store import is_store
from vcell.errors import VcellError, check_choice, check_ending, install, no_such_file, shortlist
from vcell.predict.inside import profiles_in
from vcell.predict.options import PredictOptions
from vcell.predict.parts import PartsFolder
from vcell.predict.profile import control_profiles
from vcell.predict.request import read_targets
from vcell.predict.table import is_table
from vcell.submission.container import Packed, memory_of_official, pack
from vcell.submission.convert import convert
from vcell.submission.labels import Findings
from vcell.submission.options import PackageOptions
from vcell.submission.rules import check_submission
from vcell.system import cores, free_memory

BY = ("auto", "vcell", "official")
EXTRAS = {"vcc-cli": "submit", "cell-eval": "score"}  # of vcell, that bring the official tools


@dataclass(frozen=True)
class Job:
    """A submission on its way: what was asked for, checked."""

    options: PackageOptions
    out: Path
    genes: list[str] | None
    targets: list[str] | None
    changes: list[str] = field(default_factory=list)

    @property
    def challenge(self) -> Challenge:
        return self.options.cells.challenge

    @property
    def pred(self) -> Path:
        return self.options.pred

    @property
    def control(self) -> str:
        return self.challenge.control or CONTROL

    @property
    def cells(self) -> Path:
        """The h5ad of cells that a table becomes."""
        return self.out.with_name(f"{self.out.stem}.cells.h5ad") if self.challenge.container else self.out


def package(options: PackageOptions) -> Packed | None:
    """Checks `options.pred` against the challenge's rules, and packs it; a table of profiles becomes cells first.

    Returns
    -------
    What was packed; None where it was only checked, or the challenge has no container.

    Raises
    ------
    VcellError
        Naming the rule that is broken, with the cells, genes or labels that break it.
    """
    job = job_of(options)
    table = is_table(job.pred, job.challenge.perturbation, job.challenge.context)
    if not options.check:
        for path in {job.out, *([job.cells] if table else [])}:
            if path.exists() and not options.overwrite:
                raise VcellError(f"{path} exists already; choose out=OTHER, or overwrite=true to replace it")
    if table:
        if options.check:
            raise VcellError(
                f"{job.pred} is a table, not cells that could be checked; without check=true cells are drawn around it"
            )
        from vcell.predict.from_table import cells_from_table  # here: it takes torch, and torch a second to load

        cells_from_table(options.cells, job.pred, PartsFolder(job.cells, options.key))
    with submission(job, job.cells if table else job.pred) as (path, profiles):
        targets = None if job.targets is None else dict.fromkeys(job.targets)
        findings = check_submission(path, job.challenge, job.genes, targets, job.control, profiles)
        print(report(job, findings), flush=True)
        if options.check:
            print(f"checked      no rule of challenge={job.challenge.name} is broken", flush=True)
        elif job.challenge.container is not None:
            done = packed(job, path, findings)
            print(packed_report(done, job.challenge), flush=True)
            return done
        else:
            if path != job.out:
                _copy(path, job.out)
            print(f"written      {job.out} ({job.out.stat().st_size / 1e6:,.1f} MB)", flush=True)
    return None


def job_of(options: PackageOptions) -> Job:
    """Checks what can be checked before the prediction is opened."""
    challenge, pred = options.cells.challenge, options.pred
    check_choice("by", options.by, BY)
    if not pred.is_file():
        raise no_such_file(pred)
    out = options.out or pred.with_suffix(".vcc" if challenge.container else ".checked.h5ad")
    if out.resolve() == pred.resolve():
        raise VcellError(f"out={out} is the prediction itself; choose another file")
    check_ending("out", out, [".vcc"] if challenge.container else [".h5ad", ".h5", ""])
    controls, genes = options.cells.controls, options.cells.gene_list
    if controls is not None and not is_store(controls):
        expand(controls, "controls")  # they are read when all else is right
    if genes is None and challenge.n_genes is not None:
        raise VcellError(f"challenge={challenge.name} has a gene list whose order matters: genes=gene_names.csv")
    return Job(options, out, genes, _targets(options.cells))


def _targets(options: PredictOptions) -> list[str] | None:
    """The challenge's list of targets."""
    given, challenge = options.targets, options.challenge
    if given is None:
        if challenge.n_targets is not None:
            raise VcellError(f"challenge={challenge.name} has a list of targets: targets=pert_counts.csv")
        return None
    found = read_targets(given)["target_gene"] if isinstance(given, str) else given
    listed = list(dict.fromkeys(t for t in found if t != (challenge.control or CONTROL)))
    if challenge.n_targets is not None and len(listed) != challenge.n_targets:
        raise VcellError(
            f"{given if isinstance(given, str) else 'the list'} names {len(listed):,} targets; challenge={challenge.name} has "
            f"{challenge.n_targets:,}"
        )
    return listed


@contextmanager
def submission(job: Job, cells: Path) -> Iterator[tuple[Path, Callable[[], Mapping[str, np.ndarray] | None]]]:
    """The h5ad to check and pack, and what finds the profiles of real control cells by context: None where they are not known."""
    converted = job.out.with_name(f".{job.out.name}.converted.h5ad")
    given = cells == job.pred
    try:
        if given and job.options.convert:
            converted.parent.mkdir(parents=True, exist_ok=True)
            job.changes.extend(convert(cells, converted, job.challenge, job.genes, job.control))
            cells = converted
        yield cells, lambda: (_profiles_of_controls(job) if given else None) or _profiles_inside(cells)
    finally:
        converted.unlink(missing_ok=True)


def _profiles_of_controls(job: Job) -> dict[str, np.ndarray] | None:
    if job.options.cells.controls is None:
        return None
    with tempfile.TemporaryDirectory(prefix="vcell-controls-") as folder:
        from vcell.predict.from_table import control_cells
        from vcell.predict.layout import Layout

        store = control_cells(job.options.cells, job.genes, Path(folder) / "store")
        layout = Layout.of(job.genes or store.genes, store, "counts", 1.0)
        return control_profiles(store, store.control_contexts, layout)


def _profiles_inside(path: Path) -> dict[str, np.ndarray] | None:
    """Those that `vcell.infer` left in the file."""
    with open_h5ad(path) as file:
        return profiles_in(file, path, n_rows(file, "var", path)) or None


def packed(job: Job, path: Path, findings: Findings) -> Packed:
    """The container, by the official tool where that is asked for, or is there and has the memory it needs."""
    challenge, by = job.challenge, job.options.by
    tool = str(challenge.container)
    given = job.options.cells.targets
    targets = Path(given) if isinstance(given, str) else None
    try:
        there = bool(version(tool))
    except PackageNotFoundError:
        there = False
    if by == "official" and not there:
        raise VcellError(f"by=official needs {tool}: {install(EXTRAS[tool])}")
    if by == "auto":
        needed, free = memory_of_official(findings), free_memory()
        wanted = there and tool == "vcc-cli" and targets is not None
        by = "official" if wanted and (free is None or needed < free) else "vcell"
        if wanted and by == "vcell" and free is not None:
            print(f"note         packed by vcell: vcc prep would hold about {needed / 1e9:,.0f} GB, and {free / 1e9:,.0f} GB are free",
                  flush=True)  # fmt: skip
    if by == "vcell":
        return pack(path, job.out, challenge, findings, targets, job.options.threads or cores())
    return _by_official(job, path, findings)


def _by_official(job: Job, path: Path, findings: Findings) -> Packed:
    """Runs ``vcc prep`` or ``cell-eval prep`` on a file that has been checked."""
    with written_file(job.out) as scratch, tempfile.TemporaryDirectory(prefix="vcell-lists-") as folder:
        # as plain as can be: the official tools read no byte-order marks, semicolons or other columns
        genes, targets = Path(folder, "genes.csv"), Path(folder, "targets.csv")
        genes.write_text("\n".join(job.genes or []) + "\n")
        targets.write_text("\n".join(["target_gene", *(job.targets or [])]) + "\n")
        _run_official(job, path, findings, scratch, genes, targets)
    return Packed(job.out, sha256(job.out), job.out.stat().st_size, path.stat().st_size)


def _run_official(job: Job, path: Path, findings: Findings, scratch: Path, genes: Path, targets: Path) -> None:
    challenge = job.challenge
    if challenge.container == "vcc-cli":
        command = ["vcc", "prep", str(path), "--genes", str(genes), "--perts", str(targets)]
        command += ["--contexts", ",".join(findings.contexts), "--output", str(scratch), "--force"]
        command += ["--cells-per-pert", str(challenge.cells or -1), "--context-col", str(challenge.context)]
    else:
        command = [
            "cell_eval",
            "prep",
            "--input",
            str(path),
            "--genes",
            str(genes),
            "--output",
            str(scratch),
        ]
        command += ["--ntc-name", job.control]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--pert-col", challenge.perturbation], capture_output=True, text=True
    )
    if done.returncode or not scratch.is_file():
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise VcellError(f"{command[0]} {command[1]} refused {path}, which passed vcell's own checks: {said}")


def _copy(path: Path, out: Path) -> None:
    with written_file(out) as scratch:
        shutil.copyfile(path, scratch)


def report(job: Job, findings: Findings) -> str:
    """What was found in the file."""
    targets = len({target for _, target in findings.cells})
    contexts = [c for c in findings.contexts if c]
    sizes = sorted(set(findings.cells.values()))
    each = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    lines = [
        f"submission   {job.pred}",
        f"cells        {findings.n_cells:,}, {findings.n_controls:,} of them controls; "
        f"{findings.stored / findings.n_cells:,.0f} genes per cell",
        f"targets      {targets:,}{f' in {shortlist(contexts)}' if contexts else ''}, {each} cells each",
        f"values       {'whole counts' if findings.whole else 'log1p'}, {np.median(findings.totals):,.0f} per cell (median)",
        *(f"changed      {change}" for change in job.changes),
        *(f"note         {note}" for note in findings.notes),
    ]
    return "\n".join(lines)


def packed_report(packed: Packed, challenge: Challenge) -> str:
    relaxed = challenge.n_genes is None or (challenge.container == "vcc-cli" and challenge.n_targets is None)
    upload = (
        "nothing to upload: this was not checked against the challenge's own lists"
        if relaxed
        else (
            f"vcc submit {packed.path}" if challenge.container == "vcc-cli" else "upload it at virtualcellchallenge.org"
        )
    )
    return (
        f"written      {packed.path} ({packed.size / 1e6:,.1f} MB, {packed.unpacked / 1e6:,.1f} MB unpacked)\n"
        f"sha256       {packed.sha256}\n"
        f"next         {upload}"
    )
