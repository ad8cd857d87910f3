"""Scoring: predictions and measured cells to a table with intervals, next to the baselines to beat and the ceiling set by replicate noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from vcell import __version__
from vcell.atomic import check_folder
from vcell.config import RECORD, wandb_id
from vcell.data.files.labels import CONTROL
from vcell.data.store.ensure import verified
from vcell.data.store.store import is_store
from vcell.data.store.view import open_stores
from vcell.effects.names import BASELINES
from vcell.errors import VcellError
from vcell.process.helper import Helper
from vcell.score import caveats, strata
from vcell.score.cells import CellFile, Columns, ReadCells, StoreCells, check_asked
from vcell.score.grouped import GroupedCells
from vcell.score.metrics import summary
from vcell.score.official import require
from vcell.score.options import ScoreOptions
from vcell.score.painter import painter
from vcell.score.pairs import Pair, common_genes, only, pair_in, pairs, scored_contexts
from vcell.score.references import References
from vcell.score.report import OVERALL, Report, table_text, write_report
from vcell.score.scoring import (
    CEILING,
    SCORERS,
    ContextScorer,
    ContextScores,
    Scorer,
    all_metrics,
    score_context,
    without_cells,
)
from vcell.score.shown import Shown, collect
from vcell.score.side import Side
from vcell.score.statistics import FEW_TARGETS, Interval, Resampled, better_by
from vcell.system import choose_gpu, cores

MISSING = object()
# rows of the table that another prediction's file must not be named like
RESERVED = {"model", "prediction", *BASELINES, CEILING} | {scorer.floor for scorer in SCORERS.values()}


@dataclass
class Evaluation:
    """All contexts scored.

    Attributes
    ----------
    name
        Of the prediction in the tables.
    others
        Names of the predictions it is compared with.
    genes_seen
        Of targets of several genes, how many were seen in training (`strata.genes_seen`).
    """

    scorer: Scorer
    name: str
    others: list[str]
    contexts: list[ContextScores] = field(default_factory=list)
    pictures: list[Shown] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    genes_seen: dict[str, str] = field(default_factory=dict)

    def predictors(self) -> list[str]:
        """Those scored in every context: the predictions first, then references, the split halves last."""
        names = [n for n in self.contexts[0].tables if all(n in c.tables for c in self.contexts)]
        last = [n for n in ("wrong_target", self.scorer.floor, CEILING) if n in names]
        return [*(n for n in names if n not in last), *last]

    @property
    def few(self) -> bool:
        """Whether targets are too few for intervals over targets."""
        return any(c.without_cells for c in self.contexts)

    @property
    def over(self) -> str:
        """What intervals run over."""
        return "cells" if self.few else "targets"

    def showing(
        self, pair: Pair, show: Sequence[str] | None, helper: Helper | None
    ) -> Callable[[Side, ContextScorer], None]:
        """Adds what the pictures show of the prediction in one context, once that is scored."""

        def add(side: Side, judge: ContextScorer) -> None:
            shown = collect(pair, side, judge, show)
            self.pictures.append(shown.drawing(helper) if helper else shown)

        return add

    def resampled(self, predictor: str) -> Resampled:
        """Of the official members and ours."""
        if self.few and all(predictor in c.without_cells for c in self.contexts):
            tables = [c.tables[predictor] for c in self.contexts]
            return Resampled.of_groups(
                tables, [c.without_cells[predictor] for c in self.contexts], all_metrics(self.scorer)
            )
        return Resampled.of([c.tables[predictor] for c in self.contexts], all_metrics(self.scorer))

    def overall(self, found: Resampled) -> Any:
        """The overall score on the official scale, and its resamples."""
        return found.overall([c.floor for c in self.contexts], [c.top for c in self.contexts], self.scorer.metrics)

    def summary(self) -> pd.DataFrame:
        """Predictors (rows) by overall score and metrics, means over contexts."""
        rows = {}
        for predictor in self.predictors():
            found = self.resampled(predictor)
            values = {m.key: found.of_metric(m.key)[0] for m in found.metrics}
            if predictor == CEILING:  # the mean over splits, where there are several
                for metric in self.scorer.metrics:
                    values[metric.key] = sum(c.ceiling[metric.key] for c in self.contexts) / len(self.contexts)
            rows[predictor] = {OVERALL: self.overall(found)[0], **values}
            if predictor == CEILING and self.scorer.perfect is None:
                rows[predictor][OVERALL] = 1.0
        return pd.DataFrame(rows).T.rename_axis("predictor")

    def by_context(self) -> pd.DataFrame:
        """The same for each context, rows by (context, predictor)."""
        parts = {c.context: Evaluation(self.scorer, self.name, self.others, [c]).summary() for c in self.contexts}
        return pd.concat(parts, names=["context", "predictor"])

    def intervals(self, predictor: str) -> dict[str, Interval]:
        found, interval = self.resampled(predictor), Interval.jackknife if self.few else Interval.of
        return {OVERALL: interval(self.overall(found))} | {
            m.key: interval(found.of_metric(m.key)) for m in found.metrics
        }

    def compared(self, other: str) -> dict[str, Interval]:
        """By how much the prediction beats another, metric by metric; positive is better."""
        one, two = self.resampled(self.name), self.resampled(other)
        return {OVERALL: better_by(self.overall(one), self.overall(two), True, self.few)} | {
            m.key: better_by(one.of_metric(m.key), two.of_metric(m.key), m.higher, self.few) for m in one.metrics
        }

    def per_perturbation(self) -> pd.DataFrame:
        """One row per predictor, context and target."""
        tables = [
            table.reset_index().assign(predictor=name, context=c.context)
            for c in self.contexts
            for name, table in c.tables.items()
        ]
        table = pd.concat(tables, ignore_index=True)
        first = ["predictor", "context", "perturbation"]
        if self.genes_seen:
            table.insert(0, "genes_seen", table["perturbation"].map(self.genes_seen))
            first.append("genes_seen")
        return table[[*first, *(c for c in table if c not in first)]]


def evaluate(options: ScoreOptions) -> Report:
    """Scores `options.pred` against `options.real`, writes the report, and says what came of it."""
    check_folder(options.folder, "out")
    helper = painter() if options.pictures else None
    found, references = score(options, helper)
    write_report(options.folder, found, helper)
    if references.run_folder is not None:
        hand_over(references.run_folder, options.folder)
    say(found, references, options)
    return found


def score(options: ScoreOptions, helper: Helper | None = None) -> tuple[Report, References]:
    """The report on a prediction, and the references it was scored with; `helper` draws its pictures meanwhile.

    Raises
    ------
    VcellError
        If a file cannot be read, predicted and measured cells are not comparable, or targets were trained on.
    """
    found, references, about = run_evaluation(options, helper)
    intervals = {n: found.intervals(n) for n in [found.name, *found.others]}
    details = {
        "pred": str(options.pred), "real": str(options.real), "vcell": __version__, "challenge": options.challenge.name,
        "engine": options.engine, "scorer": found.contexts[0].parameters, "floor": {c.context: c.floor for c in found.contexts},
        "top": {c.context: c.top for c in found.contexts}, "ceiling": {c.context: c.ceiling for c in found.contexts},
        "fast_scorer_differs_by": max((c.difference for c in found.contexts if c.difference is not None), default=None),
        **about,
    }  # fmt: skip
    if references.run_folder is not None and (references.run_folder / RECORD).is_file():
        details["run"] = (references.run_folder / RECORD).read_text()
    report = Report(
        found.summary(), found.by_context(), intervals, {o: found.compared(o) for o in found.others}, found.per_perturbation(),
        all_metrics(found.scorer), found.scorer, found.notes, details, found.pictures, options.recorded, found.over,
    )  # fmt: skip
    return report, references


def hand_over(run_folder: Path, out: Path) -> None:
    """Adds the report to the run's curves, where these went to Weights & Biases too."""
    try:
        run: Any = OmegaConf.load(run_folder / RECORD)
        logger = (run.get("logger") or {}).get("wandb")
        if logger is None:
            return
        import wandb

        mode: Any = "offline" if logger.offline else None
        with wandb.init(
            project=logger.project, id=wandb_id(str(logger.id)), dir=str(run_folder), resume="allow", mode=mode
        ) as kept:
            for name in ("report.html", "scores.csv", "scores.json", "scores.png"):
                if (out / name).is_file():
                    kept.save(str(out / name), base_path=str(out), policy="now")
    except Exception as error:  # the scores are there all the same
        print(f"note         the report was not added to the run's curves: {type(error).__name__}: {error}", flush=True)


def run_evaluation(options: ScoreOptions, helper: Helper | None) -> tuple[Evaluation, References, dict[str, Any]]:
    """Every context, one after the other."""
    scorer, device, columns = SCORERS[options.challenge.scorer], choose_gpu(options.device), options.columns
    if options.engine != "fast":
        require(scorer.package.replace("-", "_"), scorer.year)
    room = next(parent for parent in options.folder.resolve().parents if parent.is_dir())  # for scratch files
    pred = CellFile(options.pred, columns, needs_controls=not scorer.counts, folder=room)
    real = measured_cells(options, room)
    _check_asked(options, pred, real)
    about, notes = pred.about, list[str]()
    references = References.find(options, about)
    others = {
        name: CellFile(path, columns, not scorer.counts, folder=room)
        for name, path in other_predictions(options).items()
    }
    found = Evaluation(scorer, label_of(about), list(others), notes=notes)
    target_sums = {}
    for pair in pairs(pred, real, columns, scorer.counts, notes):
        pair, made = with_others(pair, others, real, columns, scorer, notes)
        leaked = {pair.context: references.trained_on(pair.context, pair.pred.targets)}
        if not options.allow_leaks:
            caveats.refuse_leaks(leaked, "the run that made the prediction")
        chosen = references.chosen_by(pair.context, pair.pred.targets)
        if chosen:
            notes.append(
                f"{len(chosen):,} scored targets are those the run was validated on, by which its checkpoint was chosen"
            )
        baselines, threads = references.predictions(pair), options.threads or cores()
        shown = found.showing(pair, options.show, helper) if options.pictures else lambda side, judge: None
        scores = score_context(pair, made, baselines, found.name, scorer, options.engine, threads, device, shown)
        found.contexts.append(scores)
        notes += scores.notes
        if len(pair.pred.targets) < FEW_TARGETS:
            scores.without_cells = without_cells(pair, {found.name: pair.pred, **made}, scorer, device)
        target_sums[pair.context] = pair.target_sum
        del pair, made, shown  # before the next context is read
    trained = {target for (_, target), split in references.split.items() if split == "train"}
    if trained:
        found.genes_seen = strata.genes_seen({t for c in found.contexts for t in c.tables[found.name].index}, trained)
        notes += strata.notes([c.tables[found.name] for c in found.contexts], found.genes_seen, scorer.metrics)
    notes += references.notes()
    notes += remarks(found, options.pds_subset)
    return found, references, {"target_sum": target_sums, "prediction": about}


def _check_asked(options: ScoreOptions, pred: CellFile, real: ReadCells) -> None:
    """Refuses columns and a label of control cells that were asked for, and that neither file has."""
    files = [pred, real] if isinstance(real, CellFile) else [pred]
    columns, usual = options.columns, options.challenge
    asked = {
        "columns.perturbation": columns.perturbation if columns.perturbation != usual.perturbation else None,
        "columns.context": columns.context if columns.context != usual.context else None,
    }
    named = isinstance(real, CellFile) and columns.control not in (CONTROL, usual.control)
    check_asked(files, asked, columns.control if named else None)
    if isinstance(real, CellFile):
        own = {"real_columns.perturbation": options.real_perturbation, "real_columns.context": options.real_context}
        check_asked([real], own)


def measured_cells(options: ScoreOptions, room: Path | None = None) -> ReadCells:
    """The measured cells: of a file, whose columns may be named otherwise than in the prediction, or of a cell store."""
    columns = options.columns
    stores = options.real_stores or ([str(options.real)] if is_store(str(options.real)) else [])
    if stores:
        return StoreCells(verified(open_stores(stores)), columns, options.real_groups)
    own = replace(
        columns,
        perturbation=options.real_perturbation or columns.perturbation,
        context=options.real_context or columns.context,
    )
    return CellFile(options.real, own, needs_controls=True, matrix=options.real_matrix, folder=room)


def other_predictions(options: ScoreOptions) -> dict[str, Path]:
    """Files to compare with, by name."""
    names = [p.stem for p in options.against]
    plain_names = [n not in RESERVED and names.count(n) == 1 for n in names]
    return {n if fine else str(p): p for n, p, fine in zip(names, options.against, plain_names, strict=True)}


def with_others(
    pair: Pair, others: dict[str, CellFile], real: ReadCells, columns: Columns, scorer: Scorer, notes: list[str]
) -> tuple[Pair, dict[str, GroupedCells]]:
    """The same context of other predictions, all on the targets that every one of them has."""
    found: dict[str, GroupedCells] = {}
    targets = set(pair.pred.targets)
    for name, file in others.items():
        unsaid: list[str] = []
        contexts = scored_contexts(file, real, columns, unsaid)
        context = next((c for c in contexts if not c or not pair.context or c == pair.context), MISSING)
        if context is MISSING:
            raise VcellError(
                f"{file.path} has no cells of context {pair.context!r}, in which the predictions are compared"
            )
        place = common_genes(file, real, unsaid)
        match = pair_in(context, file, real, columns, scorer.counts, place, unsaid)  # type: ignore[arg-type]
        if pair.target_sum is not None and abs(match.target_sum / pair.target_sum - 1) > 1e-3:  # type: ignore[operator]
            raise VcellError(
                f"{file.path} is scaled to {match.target_sum:,.0f} counts per cell, the other prediction to {pair.target_sum:,.0f}: "
                "write both with the same target_sum, or both as whole counts"
            )
        if list(match.pred.genes) != list(pair.pred.genes):
            if set(match.pred.genes) != set(pair.pred.genes):
                raise VcellError(f"{file.path} has other genes than the other prediction: the two cannot be compared")
            match = replace(match, pred=match.pred.in_genes(pair.pred.genes))
        found[name] = match.pred
        targets &= set(match.pred.targets)
    if not targets:
        raise VcellError(f"the predictions share no target of {pair.context or 'their context'}")
    if len(targets) < len(pair.pred.targets):
        notes.append(f"compared on the {len(targets):,} targets that all predictions have")
    kept = sorted(targets)
    return only(pair, kept), {name: cells.only(kept) for name, cells in found.items()}


def remarks(found: Evaluation, pds_subset: int | None) -> list[str]:
    """Remarks that a reader of these numbers should know."""
    scorer = found.scorer
    tables = [c.tables[found.name] for c in found.contexts]
    notes = [] if not found.few else [
        f"FEWER THAN {FEW_TARGETS} TARGETS: these scores say little about other targets. Intervals are over cells (leaving out groups "
        "in turn), not over targets"
    ]  # fmt: skip
    if (alone := member_alone(found)) is not None:
        notes.append(alone)
    notes += [caveats.discrimination_note(tables, scorer.perfect is not None, pds_subset)]
    notes.append(
        "genes are called by Benjamini-Hochberg at 5 % within each target, as the official scorers do, not over all targets together"
    )
    with_ceiling = [c for c in found.contexts if any(value == value for value in c.ceiling.values())]
    weak = caveats.weak_metrics(found.resampled(scorer.floor), found.resampled(CEILING), scorer.metrics)
    for key, gap in weak.items() if with_ceiling else ():
        notes.append(
            f"{key} cannot distinguish a replicate of the experiment from the floor on these data (the gap is {gap}): do not select models by it here"
        )
    left_out = {
        key
        for c in (found.contexts if scorer.perfect is not None else with_ceiling)
        for key in c.floor
        if not abs(c.top[key] - c.floor[key]) > 0 or c.top[key] != c.top[key]
    }
    if left_out:
        notes.append(
            f"{', '.join(sorted(left_out))} has the same value at floor and ceiling and is left out of the overall score"
        )
    worst = max((c.difference for c in found.contexts if c.difference is not None), default=None)
    if worst is not None:
        notes.append(f"our scorer agrees with the official values to within {worst:.1e}; the references are scored with it"
                     if worst < 1e-6 else
                     f"our scorer differs from the official one by {worst:.1e}: use engine=official, and please report this")  # fmt: skip
    return notes


def member_alone(found: Evaluation) -> str | None:
    """That the overall score comes from one member alone, the others being no better than the floor."""
    above: dict[str, bool] = {}
    for member in found.scorer.metrics:
        scaled = []
        for context in found.contexts:
            room = context.top[member.key] - context.floor[member.key]
            value = summary(context.tables[found.name], [member])[member.key]
            scaled.append((value - context.floor[member.key]) / room if room and room == room else float("nan"))
        known = [value for value in scaled if value == value]
        if known:
            above[member.key] = sum(known) / len(known) > 0
    good = [key for key, is_above in above.items() if is_above]
    if len(good) != 1 or len(above) < 2:
        return None
    others = ", ".join(key for key in above if key != good[0])
    return f"the overall score comes from {good[0]} alone: in {others} the prediction is no better than {found.scorer.floor}"


def say(report: Report, references: References, options: ScoreOptions) -> None:
    """Prints the table, the comparison and the remarks."""
    out = options.folder
    details = report.details
    package = details["scorer"].get("package", f"vcell {__version__}, equal to {report.scorer.package}")
    n_targets = report.per_perturbation["perturbation"].nunique()
    sums = {f"{s:,.0f}" for s in details["target_sum"].values() if s}
    scale = f", log1p of counts per {', '.join(sorted(sums))}" if sums else ", whole counts"
    print(f"{package}, {n_targets:,} targets{scale}\n")
    print(table_text(report.scores, report.metrics) + "\n")
    name = next(iter(report.intervals))
    print(f"score        {name} {report.intervals[name][OVERALL]} (95 % over {report.over}); 0 is {report.scorer.floor}, 1 is "
          f"{'a perfect prediction' if report.scorer.perfect else 'a replicate of the experiment'}")  # fmt: skip
    if len(details["target_sum"]) > 1:
        each = report.by_context.xs(name, level="predictor")[OVERALL]
        print(f"contexts     {', '.join(f'{context} {score:.3f}' for context, score in each.items())}")
    for other, differences in report.compared.items():
        print(f"compared     {comparison_text(name, other, differences[OVERALL])}")
    for note in report.notes:
        print(f"note         {note}")
    if references.run_folder is not None:
        print(f"run folder   {from_here(references.run_folder)}")
    pictures = f"\nplots        {out / 'scores.png'} and others next to it" if report.pictures else ""
    print(f"prediction   {options.pred}\nreport       {out / 'report.html'}\ntables       {out / 'scores.csv'}, "
          f"{out / 'per_perturbation.csv'}{pictures}", flush=True)  # fmt: skip


def comparison_text(name: str, other: str, difference: Interval) -> str:
    """Which of two predictions is better, and whether the difference is significant."""
    if not difference.excludes_zero:
        return f"{name} and {other} do not differ significantly: {difference}"
    better, worse = (name, other) if difference.value > 0 else (other, name)
    sign = 1 if difference.value > 0 else -1
    low, high = sorted((sign * difference.low, sign * difference.high))
    return f"{better} beats {worse} by {Interval(abs(difference.value), low, high)}"


def label_of(about: dict[str, Any]) -> str:
    """The scored prediction's name in the table; the file of a baseline must not be confused with the baseline in the table."""
    name = about.get("predictor", "prediction")
    return name if name == "model" else f"prediction ({name})" if name != "prediction" else name


def from_here(path: Path) -> Path:
    """`path` as one would type it from the working folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
