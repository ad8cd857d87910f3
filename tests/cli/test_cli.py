"""Every command explains itself, and a mistyped one is told what was meant."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import Command, assert_refused
from vcell.cli.arguments import FORMER_KEYS, check_overrides, readable
from vcell.cli.kinds import with_names
from vcell.cli.lookup import look_up
from vcell.cli.usage import usage
from vcell.config import CONFIG_DIR, compose, flatten, with_home
from vcell.errors import VcellError
from vcell.evaluate import run as vcell_evaluate
from vcell.infer import run as vcell_infer

# training.yaml is what two of them share
VERBS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml") if "app_name" in path.read_text())
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONFIG_DIR.glob("*/*.yaml")
    if path.parent.name not in ("challenge", "screen") and path.stem != "base"
)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_resolves(option: str):
    # files are only known to the user
    config = compose("train", [option, "data.path=x.h5ad"])
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert resolved["run_dir"].startswith("runs/")


@pytest.mark.parametrize("challenge", sorted(path.stem for path in (CONFIG_DIR / "challenge").glob("*.yaml")))
def test_every_challenge_composes(challenge: str):
    assert compose("infer", [f"challenge={challenge}"]).challenge.name == challenge


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains(verb: str, vcell: Command, tmp_path: Path):
    done = vcell(verb, "--help", cwd=tmp_path)
    assert done.returncode == 0 and f"python -m vcell.{verb}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_h1_replogle_composes_without_its_files(vcell: Command, tmp_path: Path):
    done = vcell("train", "experiment=h1_replogle", "--cfg", "job", "--resolve", cwd=tmp_path)
    assert done.returncode == 0 and "max_steps: 40000" in done.stdout and "hidden: 672" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_mistyped_key_is_refused_with_a_suggestion(vcell: Command, tmp_path: Path):
    done = vcell("train", "experiment=demo", "trainer.max_step=5", cwd=tmp_path)
    assert_refused(done, "no configuration key 'trainer.max_step'", "Did you mean 'trainer.max_steps'?", "--cfg job")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("experiment=demos", "experiment=demos is none of demo, .* Did you mean 'demo'"),
        ("modle=tiny", "Did you mean 'model'"),
        ("data.split.test.perturbation=[A]", "Did you mean 'data.split.test.perturbations'"),
    ],
)
def test_mistakes_are_explained(override: str, words: str):
    with pytest.raises(VcellError, match=words.replace("[", r"\[")):
        check_overrides("train", [override])


def test_a_command_without_its_files_says_so(vcell: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("cell_eval")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VcellError, match=r"no checkpoint last\.ckpt.*python -m vcell\.train"):
        vcell_infer(compose("infer", []))
    with pytest.raises(VcellError, match=r"no such file: pred\.h5ad"):
        vcell_evaluate(compose("evaluate", ["real=absent.h5ad"]))
    assert_refused(vcell("simulate", cwd=tmp_path), "needs out=VALUE")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("verb", "words"), [("inspect", "needs path=VALUE"), ("prepare", "data.path=FILE.h5ad")])
def test_a_value_that_must_be_given_is_asked_for(verb: str, words: str, vcell: Command, tmp_path: Path):
    (tmp_path / "abc").write_text("a file whose name would match ???")
    assert_refused(vcell(verb, *(["data=perturb_seq"] if verb == "prepare" else []), cwd=tmp_path), words)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("resume_from_checkpoint=last.ckpt", "A run is continued by its name"),
        ("ckpt=last.ckpt", "init_from=FILE.ckpt"),
        ("+ckpt_path=last.ckpt", "A run is continued by its name"),
        ("data.kwargs.pert_col=gene", "data.columns.perturbation=COLUMN"),
        ("training.lr=1e-4", "optimizer.lr=X"),
        ("+optimiser.lr=1", "Did you mean 'optimizer.lr'"),
    ],
)
def test_keys_of_other_tools_are_answered_with_ours(argument: str, words: str):
    with pytest.raises(VcellError, match=re.escape(words)):
        check_overrides("train", ["experiment=demo", argument])


def test_every_former_key_names_keys_that_exist():
    known = {key for key, _ in flatten(OmegaConf.to_container(compose("train", ["logger=wandb"])))}
    known |= {key.rsplit(".", 1)[0] for key in known} | {"trainer", "logger", "loss"}
    for answer in set(FORMER_KEYS.values()):
        named = re.findall(r"([a-z_][\w.]*)=", answer)
        assert named and all(name in known for name in named), answer


def test_runs_of_a_sweep_need_names_of_their_own():
    with pytest.raises(VcellError, match=r"sweep over seed .*name=sweep_\$\{hydra:job.num\}"):
        check_overrides("train", ["-m", "experiment=demo", "seed=0,1"])
    check_overrides("train", ["-m", "experiment=demo", "seed=0,1", "name=demo_${hydra:job.num}"])
    check_overrides("train", ["-m", "experiment=demo", "callbacks=[default,average]"])


def test_settings_are_composed_once(monkeypatch: pytest.MonkeyPatch):
    composed: list[list[str]] = []

    def counted(verb: str, overrides: list[str]):
        composed.append(overrides)
        return compose(verb, overrides)

    monkeypatch.setattr("vcell.cli.arguments.compose", counted)
    given = ["experiment=demo", "name=mine", "run_dir=elsewhere", "trainer.max_steps=3"]
    assert check_overrides("train", given) is not None and composed == [given]
    assert check_overrides("train", ["-m", "experiment=demo", "name=a,b"]) is None  # Hydra's to run


@pytest.mark.parametrize(
    ("verb", "arguments", "words"),
    [
        ("train", ["--experiment", "demo"], "Write experiment=demo"),
        ("train", ["--max-steps=5"], "Write trainer.max_steps=5"),
        ("train", ["experiment", "=", "demo"], "no spaces around ="),
        ("train", ["trainer.max_steps=", "5"], "no spaces around ="),
        ("train", ["~data.filter"], "keys cannot be removed"),
        ("train", ["demo"], "settings are given as KEY=VALUE"),
        ("inspect", ["my.h5ad"], "write path=my.h5ad"),
        ("infer", ["runs/x/last.ckpt"], "write ckpt=runs/x/last.ckpt"),
        ("prepare", ["data.path=[a (1).h5ad]"], "need quotes of their own"),
    ],
)
def test_what_is_no_setting_is_told_what_was_meant(verb: str, arguments: list[str], words: str):
    with pytest.raises(VcellError, match=re.escape(words)):
        readable(verb, arguments)


@pytest.mark.parametrize(
    "value",
    [
        "a (1).h5ad",
        "x~/y.h5ad",
        "Smith, J/x.h5ad",
        "a b.h5ad",
        "it's.h5ad",
        'say "x".h5ad',
        "a#b.h5ad",
        "Ä&ö!.h5ad",
        "x:y.h5ad",
        "(a).h5ad",
    ],
)
def test_names_of_files_need_no_quotes(value: str):
    argument = readable("inspect", [f"path={value}"])[0]
    assert compose("inspect", [argument]).path == value


@pytest.mark.parametrize(
    ("verb", "more"), [("train", "; to run the command once for each of them, add -m"), ("infer", "")]
)
def test_several_values_where_one_is_taken_are_refused(verb: str, more: str):
    with pytest.raises(VcellError, match=f"^seed=1,2 is several values, where one is taken{more}$"):
        check_overrides(verb, readable(verb, ["seed=1,2"]))


@pytest.mark.parametrize("home", ["/home/me", "/home/Jane Doe"])
def test_files_at_home_are_found_there(home: str, monkeypatch: pytest.MonkeyPatch):
    """A shell replaces ~ only where a word begins: ``out=~/p.h5ad`` would make a folder called ~."""
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("USERPROFILE", home)
    assert compose("infer", readable("infer", ["out=~/p.h5ad"])).out == f"{home}/p.h5ad"
    if " " not in home:
        config = compose("train", readable("train", ["data.path=[~/a.h5ad,~/b.h5ad]", "experiment=perturb_seq"]))
        assert config.data.path == [f"{home}/a.h5ad", f"{home}/b.h5ad"]
    written = {"a": {"path": "~/x", "list": ["~/y", 3]}, "same": "${a.path}", "kept": ["~", "x~/y", None, "~x"]}
    config = with_home(OmegaConf.create(written))
    assert config.a == {"path": f"{home}/x", "list": [f"{home}/y", 3]} and config.same == f"{home}/x"
    assert config.kept == written["kept"]


@pytest.mark.parametrize(
    ("verb", "overrides", "key", "expected"),
    [
        ("evaluate", ["real=r.h5ad", "control=0"], "control", "0"),
        ("evaluate", ["real=r.h5ad", "show=[3,3368]"], "show", ["3", "3368"]),
        ("infer", ["targets=[3,STAT1]", "contexts=[7]"], "targets", ["3", "STAT1"]),
        ("infer", ["out=5", "n_cells=5"], "n_cells", 5),
        ("train", ["data.path=7", "data.columns.batch=2"], "data.columns.batch", "2"),
        ("train", ["data.split.test.perturbations=[3]"], "data.split.test.perturbations", ["3"]),
        ("train", ["data.split.test.perturbations=0.3"], "data.split.test.perturbations", 0.3),
        ("simulate", ["out=7", "genes=50"], "genes", 50),
    ],
)
def test_a_number_is_a_name_where_names_are_taken(verb: str, overrides: list[str], key: str, expected: object):
    """Perturbations of some screens are called 0 to 3368."""
    config = with_names(verb, compose(verb, readable(verb, overrides)))
    assert OmegaConf.select(config, key) == expected


@pytest.mark.parametrize(
    ("verb", "overrides", "words"),
    [
        ("infer", ["out=p.vcc"], r"must end in one of .h5ad, .h5. A submission is packed from it: .* vcell.package"),
        ("infer", ["out=p.csv"], "out=p.csv must end in"),
        ("genes", ["do=check", "path=g.csv", "out=p.html"], "must end in one of .csv, .txt"),
        ("runs", ["do=compare", "names=[a,b]", "out=p.png"], "must end in one of .html, .htm"),
    ],
)
def test_a_file_is_not_written_under_a_name_of_another_kind(verb: str, overrides: list[str], words: str):
    with pytest.raises(VcellError, match=words):
        look_up(verb, compose(verb, overrides))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_steps=abc", "trainer.max_steps=abc must be a whole number, such as 1000"),
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number"),
        ("overwrite=yes", "overwrite=yes must be true or false"),
        ("seed=one", "seed=one must be a whole number"),
        ("trainer.max_epochs=[1]", "trainer.max_epochs=[1] must be a whole number"),
        ("callbacks.curves.every_seconds={a: 1}", "callbacks.curves.every_seconds={'a': 1} must be a whole number"),
        ("validation=often", "validation=often is a group of settings: set one of them, such as validation."),
    ],
)
def test_text_where_a_number_is_wanted_is_refused(override: str, words: str):
    with pytest.raises(VcellError, match=re.escape(words)):
        check_overrides("train", ["experiment=demo", override])


def test_words_that_stand_for_numbers_are_taken():
    for fine in (
        "trainer.devices=auto",
        "compile=max-autotune",
        "data.sets.resident=auto",
        "trainer.max_steps=7",
        "data.target_sum=1e4",
    ):
        check_overrides("train", ["experiment=demo", fine])


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_key_of_the_command(verb: str):
    text = usage(verb, [])
    for key, _ in flatten(OmegaConf.to_container(compose(verb, ["data=perturb_seq"] if verb == "prepare" else []))):
        if (
            "_target_" not in key
            and "_partial_" not in key
            and not key.startswith(("hydra", "trainer.strategy", "data.required", "data.simulate."))
        ):
            assert re.search(rf"^  {re.escape(key.split('.weights.')[0])}", text, re.MULTILINE), key
    assert "a whole number" not in text and "# " not in text
    if verb not in ("train", "crossval"):
        assert "experiment=" not in text  # which these commands refuse


def test_a_mistake_is_answered_before_torch_is_loaded(tmp_path: Path):
    code = (
        "import sys\nsys.argv = ['x', *sys.argv[2:]]\nverb = sys.argv.pop(1)\nimport importlib\nfrom vcell.cli.launch import launch\n"
        "try:\n launch(verb, importlib.import_module('vcell.' + verb).run)\n"
        "finally:\n print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    for arguments in (
        ["infer", "ckpt=no.ckpt"], ["evaluate", "pred=no.h5ad", "real=b.h5ad"], ["package", "pred=no.h5ad"], ["inspect", "path=no.h5ad"],
        ["prepare", "data=perturb_seq", "data.path=no.h5ad"], ["train", "experiment=perturb_seq", "data.path=no.h5ad"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, "-", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert_refused(done, "no")
        assert done.stdout.split() == ["False", "False"], (arguments, done.stdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_any_console_is_spoken_to(encoding: str, vcell: Command, tmp_path: Path):
    done = vcell("inspect", "--help", cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
