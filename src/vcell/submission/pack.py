"""Packing a submission from Python: `vcell.pack_submission`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vcell.challenge import Challenge, challenge_of
from vcell.data.files.memory import Given, as_file
from vcell.errors import VcellError
from vcell.predict.key import key_of
from vcell.predict.options import PredictOptions
from vcell.process.given import as_name_or_none, as_names, as_names_or_file, check_switches
from vcell.process.progress import spoken
from vcell.submission.container import Packed
from vcell.submission.options import PackageOptions
from vcell.submission.package import package


def pack_submission(
    pred: Given,
    challenge: str | Challenge,
    *,
    genes: str | Path | Sequence[str] | None = None,
    targets: str | Path | Sequence[str] | None = None,
    controls: str | Path | Sequence[str] | None = None,
    contexts: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    check: bool = False,
    convert: bool = False,
    by: str = "auto",
    overwrite: bool = False,
    verbose: bool = False,
) -> Packed | None:
    """Checks a prediction against every rule of a challenge, and packs it as the official tools do.

    Parameters
    ----------
    pred
        Predicted cells: an h5ad file or an AnnData; or a table with one row for each perturbation.
    challenge
        ``vcc2025`` or ``vcc2026``, or the rules themselves.
    genes, targets
        The challenge's lists, as files or as names.
    controls
        Real control cells: cells are drawn from them around a table's rows, and swapped contexts are found by them.
    contexts
        Of a table's rows.
    out
        The file to write; None: next to `pred`.
    check
        Only check.
    convert
        Put right what changes no value: order of genes, layout, type, controls where none may be.
    by
        ``vcell``, ``official``, or ``auto``.
    overwrite
        Replace files that are there.
    verbose
        Print what the command would print.

    Returns
    -------
    Path, SHA-256 and sizes of the container; None where nothing was packed.

    Raises
    ------
    VcellError
        Naming the rule that is broken, and the cells, genes or labels that break it.
    """
    if not isinstance(pred, str | Path) and out is None and not check:
        raise VcellError("specify where to write the submission: out='submission.vcc'")
    rules = challenge_of(challenge)
    what = PredictOptions(
        rules,
        targets=as_names_or_file("targets", targets),
        genes=as_names_or_file("genes", genes),
        controls=as_names_or_file("controls", controls),
        contexts=as_names("contexts", contexts),
    )
    check_switches(check=check, convert=convert, overwrite=overwrite, verbose=verbose)
    name = as_name_or_none("out", out)
    with as_file(pred, "prediction.h5ad") as path, spoken(verbose):
        key = key_of("package", {"pred": str(path), "challenge": rules.name}, (), path)
        place = None if name is None else Path(name)
        return package(PackageOptions(path, what, place, check, convert, overwrite, by, key=key))
