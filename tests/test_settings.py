"""Settings: a number out of bounds, or a word that means nothing, is refused where it enters, and says what can be set."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcell.atomic import check_folder, written_file
from vcell.cli.arguments import check_overrides, readable
from vcell.cli.kinds import with_names
from vcell.config import build, compose, with_settings
from vcell.data.simulation.screen import Screen
from vcell.errors import VcellError, check_choice, check_number
from vcell.inspection.tables import look_at, plot
from vcell.predict.options import PredictOptions
from vcell.score.options import CrossvalOptions, ScoreOptions
from vcell.training.build import RunSettings
from vcell.training.effects import given_effects

SIZES = {"n_genes": 5, "perturbation_width": 3}
READ: dict[str, Callable[[list[str]], Any]] = {
    "infer": lambda given: PredictOptions.of(compose("infer", given)),
    "evaluate": lambda given: ScoreOptions.of(compose("evaluate", ["real=r.h5ad", *given])),
    "crossval": lambda given: CrossvalOptions.of(compose("crossval", given)),
    "train": lambda given: RunSettings.of(compose("train", given)),
    "schedule": lambda given: build(compose("train", given).schedule),
    "model": lambda given: build(compose("train", given).model, **SIZES),
    "loss": lambda given: build(compose("train", given).loss),
    "simulate": lambda given: build({"_target_": "vcell.data.simulation.screen.Screen", **_screen(given)}),
}
WRONG = [
    ("infer", "n_cells=0", "a whole number from 1 to 10,000,000"), ("infer", "n_cells=2.5", "a whole number from 1"),
    ("infer", "n_cells=1e3", "Write 1000"), ("infer", "n_cells=1000000000", "from 1 to 10,000,000"),
    ("infer", "max_controls=-1", "a whole number of at least 0"), ("infer", "max_controls=x", "a whole number of at least 0"),
    ("infer", "sets_per_step=0", "a whole number of at least 1"), ("infer", "target_sum=0", "a number above 0"),
    ("infer", "target_sum=x", "a number above 0"), ("infer", "seed=-1", "from 0 to 4,294,967,295"), ("infer", "seed=1.5", "a whole number"),
    ("infer", "challenge.cells=many", "a whole number above 0 or null"), ("infer", "challenge.max_cells=[1]", "a whole number above 0"),
    ("infer", "challenge.n_genes=0", "a whole number above 0"), ("infer", "challenge.below_log1p=x", "a number above 0"),
    ("infer", "counts=donor", "one of auto, donors, moments. Did you mean 'donors'?"), ("infer", "draw=maybe", "one of null, true, false"),
    ("infer", "addition=true", "a number from 0 to 1 or auto"), ("infer", "addition=2", "a number from 0 to 1 or auto"),
    ("evaluate", "pds_subset=1", "a whole number of at least 2"), ("evaluate", "threads=0", "a whole number from 1 to 4,096"),
    ("crossval", "folds=1", "a whole number of at least 2"), ("crossval", "fold=5", "a whole number from 0 to 4 or null"),
    ("train", "seed=-1", "a whole number from 0"), ("train", "trainer.max_steps=1.5", "a whole number from 1 to 1,000,000,000"),
    ("train", "trainer.max_steps=-1", "a whole number from 1"), ("train", "trainer.max_steps=null", "trainer.max_steps=null must be"),
    ("train", "trainer.precision=bf16-true", "one of auto, 32-true, bf16-mixed, 16-mixed"), ("train", "trainer.precision=null", "one of auto"),
    ("train", "trainer.max_time=5", "DD:HH:MM:SS"), ("train", "trainer.max_time=00:00:00:00", "DD:HH:MM:SS"), ("train", "trainer.max_time=1:00", "DD:HH:MM:SS"),
    ("train", "trainer.check_val_every_n_epoch=0", "from 1 to 1,000,000,000 or null"),
    ("train", "trainer.max_steps=1e4", "Write 10000"), ("train", "trainer.val_check_interval=0", "from 1"),
    ("train", "trainer.log_every_n_steps=0", "from 1"), ("train", "trainer.accumulate_grad_batches=0", "from 1"),
    ("train", "trainer.gradient_clip_val=-1", "a number of at least 0"), ("train", "compile=foo", "one of default, reduce-overhead"),
    ("train", "name=", "names no run"), ("train", "name=.", "names no run"),
    ("train", "name=null", "names no run"), ("train", "run_dir=null", "is no folder"), ("train", "run_dir=.", "is no folder of its own"),
    ("schedule", "schedule.warmup_steps=-1", "at least 0"), ("schedule", "schedule.floor=2", "a number from 0 to 1"),
    ("schedule", "schedule.decay=cosin", "Did you mean 'cosine'?"),
    ("model", "model.hidden=0", "from 1 to 1,000,000"), ("model", "model.layers=-1", "from 1 to 1,000"), ("model", "model.head_width=0", "from 1 to 1,000,000"),
    ("model", "model.dropout=2", "a number from 0 to 1"), ("loss", "loss.blur=0", "a number above 0"),
    ("model", "model.prior=3", "one of null, "), ("loss", "loss.weights=null", "needs terms with their weights"),
    ("loss", "loss.weights.energy=null", "a number of at least 0"),
    ("simulate", "library_size=-1", "a number above 0"), ("simulate", "embedding=0", "at least 1"), ("simulate", "genes=1.5", "a whole number"),
    ("simulate", "seed=-1", "a whole number from 0"), ("simulate", "field={nul: 1}", "field has no nul"), ("simulate", "contexts=null", "one or more different names"), ("simulate", "guide_efficiency=null", "a number above 0"),
    ("simulate", "contexts=[a/b]", "'a/b' cannot be the name of a file"),
]  # fmt: skip


def _screen(given: list[str]) -> dict[str, Any]:
    whole = compose("simulate", ["out=o", *given])
    return {key: whole[key] for key in Screen.__dataclass_fields__}


@pytest.mark.parametrize(
    ("where", "setting", "words"), WRONG, ids=[f"{where} {setting}" for where, setting, _ in WRONG]
)
def test_what_cannot_be_set_is_refused_with_what_can(where: str, setting: str, words: str):
    READ[where]([])
    with pytest.raises(VcellError, match=re.escape(words)) as refused:
        READ[where]([setting])
    assert setting.split("=")[0] in str(refused.value)


@pytest.mark.parametrize("value", [3, 1, 5, np.int64(2)])
def test_bounds_are_allowed(value: int):
    check_number("key", value, 1, 5)


@pytest.mark.parametrize("value", [0, 6, True, None, "3", 2.0, float("nan"), [3]])
def test_no_other_value_is_a_whole_number_within_bounds(value: Any):
    with pytest.raises(VcellError, match=r"^key=.* must be a whole number from 1 to 5 or auto"):
        check_number("key", value, 1, 5, other="auto")


@pytest.mark.parametrize("value", [0.0, -1, float("nan"), False, "0.5"])
def test_a_bound_may_be_left_out(value: Any):
    check_number("key", 1e-9, 0, whole=False, above=True)
    with pytest.raises(VcellError, match=r"must be a number above 0$"):
        check_number("key", value, 0, whole=False, above=True)


def test_lists_are_no_choice():
    with pytest.raises(VcellError, match=r"key=\['a'\] must be one of a, null"):
        check_choice("key", ["a"], ("a", None))


def test_one_context_is_a_list_of_one():
    assert PredictOptions.of(compose("infer", ["contexts=K562"])).contexts == ["K562"]


@pytest.mark.parametrize(
    ("verb", "override", "words"),
    [
        ("infer", "challenge=vcc2052", "challenge=vcc2052 is none of none, vcc2025, vcc2026. Did you mean"),
        ("train", "callbacks=[defaults]", "callbacks=defaults is none of average, default"),
        ("prepare", "path=a.h5ad", "no configuration key 'path'. Did you mean 'data.path'?"),
    ],
)
def test_options_and_keys_that_are_not_there_are_answered_with_those_that_are(verb: str, override: str, words: str):
    with pytest.raises(VcellError, match=re.escape(words)):
        check_overrides(verb, [override])


def test_effects_from_elsewhere_name_their_context(tmp_path: Path):
    with pytest.raises(VcellError, match=r"effects=a\.csv needs the context.*effects=\{K562: FILE\}"):
        given_effects("a.csv")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verb", "given", "read"),
    [
        ("infer", "contexts=K562", "contexts=[K562]"), ("infer", "contexts=K562,HEK 293", 'contexts=[K562,"HEK 293"]'),
        ("infer", "targets=STAT1,MYC", "targets=[STAT1,MYC]"), ("infer", "targets=list.csv", "targets=list.csv"),
        ("infer", "genes=list.txt", "genes=list.txt"), ("table", "genes=STAT1", "genes=[STAT1]"), ("evaluate", "show=STAT1", "show=[STAT1]"),
        ("train", "data.exclude=STAT1", "data.exclude=[STAT1]"), ("train", "data.split.test.perturbations=STAT1,MYC", "data.split.test.perturbations=[STAT1,MYC]"),
        ("train", "data.split.val.perturbations=0.2", "data.split.val.perturbations=0.2"), ("train", "data.exclude=[A,B]", "data.exclude=[A,B]"),
        ("train", "data.split.val.within=null", "data.split.val.within=null"), ("train", "data.sets.weights.contexts={H1: 2}", "data.sets.weights.contexts={H1: 2}"),
    ],
)  # fmt: skip
def test_names_without_brackets_are_a_list(verb: str, given: str, read: str):
    assert readable(verb, [given]) == [read]


def test_in_a_sweep_commas_stand_between_values_to_try():
    assert readable("train", ["-m", "data.split.folds.within=A,B"]) == ["-m", "data.split.folds.within=A,B"]


@pytest.mark.parametrize(
    ("verb", "override", "words"),
    [
        ("evaluate", "pred=[a.h5ad]", "pred=['a.h5ad'] must be one name, without brackets: pred=NAME"),
        ("train", "name=[a,b]", "name=['a', 'b'] must be one name"),
        (
            "train",
            "data.sets.weights.contexts=2",
            "needs names with their values: 'data.sets.weights.contexts={NAME: VALUE}'",
        ),
        ("train", "perturbation.aliases=foo", "needs names with their values"),
        ("train", "data.simulate=foo", "is a group of settings"),
        (
            "train",
            "optimizer=null",
            "optimizer=null is a group of settings: set one of them, such as optimizer.lr=VALUE",
        ),
        (
            "train",
            "data.split.folds=-1",
            "is a group of settings: set one of them, such as data.split.folds.number=VALUE",
        ),
        ("train", "data.split=[a]", "data.split=[a] is a group of settings"),
        ("train", "data.exclude={a: 1}", "data.exclude={a: 1} must be a list: 'data.exclude=[A,B]'"),
        ("train", "data.required=[a]", "data.required=[a] needs names with their values"),
        ("infer", "targets=[STAT1,null]", "targets=['STAT1', None] must be a list of names: 'targets=[A,B]'"),
        ("infer", "contexts=[[a]]", "must be a list of names"),
        ("table", "of=[a.csv]", "of=['a.csv'] must be one name"),
        ("infer", "out=", "out= is empty: a name is missing"),
        ("prepare", "data.path=", "data.path= is empty"),
        ("evaluate", "real_columns.context=", "real_columns.context= is empty"),
        ("inspect", "path=null", "vcell.inspect needs path=VALUE, not null"),
        ("infer", "out=null", "vcell.infer needs out=VALUE, not null"),
        ("infer", "targets=true", "targets=true must be a name"),
        ("inspect", "columns=true", "columns=true is a group of settings"),
        ("train", "overwrite=-1", "overwrite=-1 must be true or false"),
        ("train", "check=null", "check=null must be true or false"),
        ("train", "model=null", "model=null must be one of "),
        ("train", "model=[tiny,state]", "must be one of "),
        ("train", "loss=3", "loss=3 must be one of energy, "),
        ("train", "callbacks=[]", "must be one of average, default"),
        ("train", "logger=[csv,3]", "logger=3 must be one of csv, "),
        ("evaluate", "real_matrix=[X]", "real_matrix=['X'] must be one name"),
    ],
)
def test_other_kinds_of_values_are_refused(verb: str, override: str, words: str):
    with pytest.raises(VcellError, match=re.escape(words)):
        check_overrides(verb, [override])


@pytest.mark.parametrize(
    ("verb", "override"), [("crossval", "folds=2"), ("infer", "genes=null"), ("infer", "perturbation=null"), ("simulate", "genes=60")]
)  # fmt: skip
def test_settings_that_are_called_as_a_group_is_elsewhere_take_what_they_take(verb: str, override: str):
    assert check_overrides(verb, [override]) is not None


@pytest.mark.parametrize(
    "override", ["callbacks.curves=null", "logger.csv=null", "callbacks=[default,average]", "trainer.max_time=null", "data.sets.resident=true"]
)  # fmt: skip
def test_what_may_be_left_out_or_several_is(override: str):
    assert check_overrides("train", [override]) is not None


def test_a_list_that_is_null_is_empty():
    assert with_names("table", compose("table", ["path=t.pt", "genes=null"])).genes == []


def test_a_group_of_settings_stays_one_from_python():
    with pytest.raises(VcellError, match=r"optimizer=null is a group of settings"):
        with_settings(compose("train", []), {"optimizer": None})


def test_a_folder_that_cannot_be_one_is_refused_before_work_begins(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    check_folder(tmp_path / "new" / "deep", "out")
    for folder in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(VcellError, match=r"out=.* cannot be a folder: .*file is a file"):
            check_folder(folder, "out")
    with pytest.raises(VcellError, match="could not be written"), written_file(tmp_path / "file" / "deep" / "a.txt"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_plot_of_no_known_kind_is_refused(tmp_path: Path):
    (tmp_path / "t.csv").write_text("gene,a,b\nSTAT1,1,2\nMYC,0,1\nGATA1,1,1\n")
    found = look_at(str(tmp_path / "t.csv"))
    with pytest.raises(VcellError, match=r"plot=.*x\.foo must end in one of .*\.png"):
        plot(found, tmp_path / "x.foo")
