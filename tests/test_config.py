"""Which keys may differ when work is resumed is said of every key there is."""

from __future__ import annotations

import importlib

import pytest
from omegaconf import OmegaConf

from vcell.cli.former import MOVED
from vcell.config import CONFIG_DIR, FIXED, FREE, build, compose, flatten, may_change, with_trainer
from vcell.errors import VcellError

TRAINERS = sorted(path.stem for path in (CONFIG_DIR / "trainer").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
WHOLE = {"data", "trainer", "data.sets"}  # too large to be named as one


def keys_of(verb: str) -> set[str]:
    wanted = (
        [[f"trainer={t}"] for t in TRAINERS] + [[f"experiment={e}"] for e in EXPERIMENTS] if verb == "train" else [[]]
    )
    configs = [compose(verb, overrides) for overrides in wanted]
    return {key for config in configs for key, _ in flatten(OmegaConf.to_container(config))}


@pytest.mark.parametrize("verb", FREE)
def test_every_key_is_free_or_fixed(verb: str):
    names = {*FREE[verb], *FIXED[verb]}
    assert not set(FREE[verb]) & set(FIXED[verb]) and not names & WHOLE
    unclassed = [key for key in keys_of(verb) if not any(key == n or key.startswith(f"{n}.") for n in names)]
    assert not unclassed, "name each of these in vcell.config.FREE or FIXED"


@pytest.mark.parametrize("verb", FREE)
def test_the_tables_name_no_key_that_is_gone(verb: str):
    keys = keys_of(verb)
    assert not [n for n in (*FREE[verb], *FIXED[verb]) if not any(k == n or k.startswith(f"{n}.") for k in keys)]


def test_the_longest_name_decides():
    assert may_change("train", "trainer.max_steps") and not may_change("train", "trainer.precision")
    assert may_change("train", "callbacks.best.monitor") and not may_change("train", "a.key.that.nobody.knows")


def test_a_configuration_of_an_earlier_version_finds_its_classes():
    made = build(OmegaConf.create({"_target_": "vcell.model.module.Schedule", "warmup_steps": 7}), floor=0.5)
    assert (made.warmup_steps, made.floor) == (7, 0.5)


def test_arguments_beside_a_configuration_are_handed_over_as_they_are():
    """A configuration of 18,000 gene names would take seconds to make."""
    genes = ["STAT1", "MYC"]
    made = build(OmegaConf.create({"_target_": "builtins.dict", "genes": None, "seed": 3}), genes=genes)
    assert made["genes"] is genes and made["seed"] == 3


@pytest.mark.parametrize("more", [{}, {"n_genes": 5}])
def test_what_cannot_be_made_names_its_part_of_the_configuration(more: dict[str, int]):
    whole = OmegaConf.create({"model": {"_target_": "vcell.model.transition.TransitionModel", "nosuch": 1}})
    with pytest.raises(VcellError, match=r"invalid value in model: .*nosuch"):
        build(whole.model, **more)


@pytest.mark.parametrize(("then", "now"), MOVED.items())
def test_a_module_is_found_under_its_former_name(then: str, now: str):
    former, present = importlib.import_module(f"vcell.{then}"), importlib.import_module(f"vcell.{now}")
    assert former is present and present.__spec__.name == f"vcell.{now}"


@pytest.mark.parametrize("arguments", [["trainer=cpu", "seed=1", "--cfg", "job"], ["-m", "trainer=cpu", "seed=1,2"]])
def test_settings_of_a_trainer_stay_beside_the_others(arguments: list[str]):
    made = with_trainer(arguments)
    settings = [number for number, argument in enumerate(made) if "=" in argument]
    assert "trainer.accelerator=cpu" in made and settings == list(range(settings[0], settings[-1] + 1))
    assert [argument for argument in made if argument in arguments] == arguments
