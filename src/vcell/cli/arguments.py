"""The typed arguments: KEY=VALUE pairs quoted for Hydra, checked, and explained if they are not valid."""

from __future__ import annotations

import json
import os
import re

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vcell.cli.kinds import as_list, check_groups, check_kinds, check_types, is_group, key_of, without
from vcell.config import CONFIG_DIR, at_home, check_is_group, compose, flatten
from vcell.errors import VcellError, nearest

_CONTINUE = (
    "A run is continued by its name: repeat the command that started it (runs/NAME resumes from its last.ckpt). To start a new run "
    "with another's weights: init_from=FILE.ckpt name=NEW"
)
SWEPT = ("train", "crossval")  # commands that Hydra runs several times (-m)
# keys that users of STATE's trainer are used to
FORMER_KEYS = dict.fromkeys(
    [
        "resume_from_checkpoint",
        "ckpt_path",
        "ckpt",
        "checkpoint",
        "trainer.resume_from_checkpoint",
        "training.resume_from_checkpoint",
    ],
    _CONTINUE,
) | {
    key: f"Here it is {ours}"
    for key, ours in {
        "data.kwargs.toml_config_path": "data.toml=FILE.toml",
        "data.kwargs.perturbation_features_file": "perturbation.path=TABLE.pt",
        "data.kwargs.pert_col": "data.columns.perturbation=COLUMN",
        "data.kwargs.batch_col": "data.columns.batch=COLUMN",
        "data.kwargs.cell_type_key": "data.columns.context=COLUMN",
        "data.kwargs.control_pert": "data.control=LABEL",
        "data.kwargs.embed_key": "data.input=KEY; without it the model sees expression",
        "data.kwargs.output_space": "data.hvg=2000 for the most variable genes; all genes otherwise",
        "data.kwargs.num_workers": "data.sets.threads=N",
        "training.max_steps": "trainer.max_steps=N",
        "training.batch_size": "data.sets.sets_per_step=N",
        "training.lr": "optimizer.lr=X",
        "training.weight_decay": "optimizer.weight_decay=X",
        "training.val_freq": "trainer.val_check_interval=N",
        "training.ckpt_every_n_steps": "callbacks.last.every_n_steps=N",
        "training.gradient_clip_val": "trainer.gradient_clip_val=X",
        "training.devices": "trainer.devices=N trainer=ddp",
        "training.strategy": "trainer=ddp or trainer=fsdp",
        "training.train_seed": "seed=N",
        "model.kwargs.cell_set_len": "data.sets.set_size=N",
        "model.kwargs.hidden_dim": "model.hidden=N",
        "model.kwargs.batch_encoder": "model.covariates=[batch]",
        "model.kwargs.loss": "loss=energy, loss.weights.sinkhorn=1 ...",
        "model.kwargs.blur": "loss.blur=X",
        "model.kwargs.init_from": "init_from=FILE.ckpt",
        "output_dir": "run_dir=FOLDER (runs/NAME by default)",
        "use_wandb": "logger=wandb, or logger=csv",
        "wandb.project": "logger=wandb logger.wandb.project=NAME",
    }.items()
}


# what people give without a key, by command
MAIN = {"inspect": "path", "prepare": "data.path", "train": "data.path", "crossval": "data.path", "infer": "ckpt",
        "evaluate": "pred", "package": "pred", "simulate": "out", "genes": "path", "embed": "fasta", "table": "path",
        "download": "names", "runs": "names", "config": "names", "doctor": "folder"}  # fmt: skip
# commands with a word of what to do, and the key of the words after it: vcell genes lookup QARS TAZ
DEEDS = {
    "genes": {"lookup": "names", "check": "path", "update": "path"},
    "table": {"show": "path"},
    "runs": {"list": "runs", "compare": "names"},
    "config": {"diff": "names"},
}
# commands whose words are the values of one key: vcell download NAME NAME; and flags that people know from elsewhere
WORDS_OF = {"download": "names"}
FLAGS = {"download": {"--dry-run": "dry_run=true"}}
# options of Hydra, and those of them that take a value of their own
OPTIONS = {"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--info", "-i", "--shell-completion", "-sc"}  # fmt: skip
WITH_VALUE = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun"}  # fmt: skip


def readable(verb: str, arguments: list[str]) -> list[str]:
    """The arguments as Hydra reads them: values in quotes where they need them.

    Raises
    ------
    VcellError
        For what is no KEY=VALUE, saying what was probably meant.
    """
    arguments = [_at_home(argument) for argument in _with_keys(verb, arguments)]
    out, expects_value = [], False
    for number, argument in enumerate(arguments):
        if expects_value:
            out.append(argument)
            expects_value = False
        elif argument.startswith("-"):
            _check_option(verb, argument, arguments[number + 1 : number + 2])
            out.append(argument)
            expects_value = argument in WITH_VALUE
        else:
            swept = {"-m", "--multirun"} & set(arguments)  # in which commas stand between values to try
            out.append(_quoted(verb, argument if swept else _one_file(as_list(verb, argument)), arguments))
    return out


def _one_file(argument: str) -> str:
    """A file with a comma in its name in quotes: Hydra would take it for several values to try."""
    key, equals, value = argument.partition("=")
    is_file = "," in value and value[:1] not in "[{\"'" and ("/" in value or os.path.exists(value))  # noqa: PTH110
    return f"{key}{equals}{json.dumps(value, ensure_ascii=False)}" if is_file else argument


def _at_home(argument: str) -> str:
    """The home folder in place of ``~/``, here already: in a list Hydra cannot read it."""
    key, equals, value = argument.partition("=")
    return f"{key}{equals}{at_home(value)}"


def _with_keys(verb: str, arguments: list[str]) -> list[str]:
    """The arguments with the keys that a command of `DEEDS` does without."""
    arguments = [FLAGS.get(verb, {}).get(a, a) for a in arguments]
    if verb in WORDS_OF:
        words, rest = _words(arguments)
        return [*([f"{WORDS_OF[verb]}={json.dumps(words)}"] if words else []), *rest]
    if verb not in DEEDS or not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        return arguments
    deed, more = arguments[0], arguments[1:]
    if deed not in DEEDS[verb]:
        raise VcellError(f"vcell {verb} {deed}: it has {', '.join(DEEDS[verb])}.{nearest(deed, DEEDS[verb])}")
    words, rest = _words(more)
    key = DEEDS[verb][deed]
    if key == "names":
        words = [f"names={json.dumps(words)}"] if words else []
    elif len(words) > 1:
        raise VcellError(f"vcell {verb} {deed} takes one file, not {len(words)}: {' '.join(words)}")
    else:
        words = [f"{key}={word}" for word in words]
    return [f"do={deed}", *words, *rest]


def _words(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments that are neither settings nor options; and the others."""
    words = [a for a in arguments if "=" not in a and not a.startswith("-")]
    return words, [a for a in arguments if a not in words]


def _check_option(verb: str, option: str, following: list[str]) -> None:
    name = option.split("=", 1)[0]
    if name in OPTIONS | WITH_VALUE:
        return
    word = name.lstrip("-").replace("-", "_")
    value = (
        option.split("=", 1)[1] if "=" in option else following[0] if following and "=" not in following[0] else "VALUE"
    )
    try:
        known = [k for k, _ in flatten(OmegaConf.to_container(compose(verb, [])))]
    except (HydraException, OmegaConfBaseException):
        known = []
    known += [k.split(".")[0] for k in known] + ["experiment"]
    meant = word if word in known else next((k for k in known if k.rsplit(".", 1)[-1] == word), None)
    hint = f" Write {meant}={value}" if meant else nearest(word, known, "Write KEY=VALUE; did you mean")
    raise VcellError(f"vcell.{verb} has no option {name}: settings are given as KEY=VALUE, without dashes.{hint}")


def _quoted(verb: str, argument: str, arguments: list[str]) -> str:
    """One KEY=VALUE as Hydra can read it."""
    key, equals, value = argument.partition("=")
    if argument.startswith("~") and not equals and "/" not in argument:
        raise VcellError(f"keys cannot be removed ({argument}); set the value you want: {argument[1:]}=null")
    if not equals or not key.strip():
        if "=" in arguments or any(a.startswith("=") for a in arguments) or (equals and not key):
            raise VcellError("there must be no spaces around =: write KEY=VALUE as one word")
        main = MAIN[verb]
        if argument.endswith((".yaml", ".yml")):
            raise VcellError(
                f"{argument} is not a setting. A configuration file is chosen by its group: experiment=NAME"
            )
        if "/" in argument or "." in argument or os.path.exists(argument):  # noqa: PTH110
            raise VcellError(f"{argument!r} needs the name of its setting: write {main}={argument}")
        raise VcellError(f"{argument!r} is not a setting: settings are given as KEY=VALUE. {_keys_hint(verb)}")
    if value == "" and any(a.strip() and "=" not in a and not a.startswith("-") for a in arguments):
        raise VcellError(f"there must be no spaces around =: write {key}=VALUE as one word")
    if key != key.strip():
        raise VcellError(f"there must be no spaces around =: write {key.strip()}={value.strip()}")
    if _parses(argument):
        return argument
    if value[:1] in "[{":
        raise VcellError(
            f"{argument} cannot be read. Names with spaces or brackets in a list need quotes of their own: "
            f"'{key}=[\"A (1).h5ad\",B.h5ad]'"
        )
    escaped = value.replace("\\", "\\\\").replace('"', '\\"') if value.endswith("\\") else value.replace('"', '\\"')
    quoted = f'{key}="{escaped}"'
    if not _parses(quoted):
        raise VcellError(f"{argument} cannot be read as KEY=VALUE")
    return quoted


def _parses(argument: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        OverridesParser.create().parse_override(argument)
        return True
    except HydraException:
        return False


def _keys_hint(verb: str) -> str:
    return f"All keys: python -m vcell.{verb} --help"


def check_overrides(verb: str, arguments: list[str]) -> DictConfig | None:
    """The configuration that arguments give; None where there is more among them than settings, which is left to Hydra.

    Raises
    ------
    VcellError
        For an unknown override, with a suggestion: Hydra says so too, but not which key was meant. Sweeps and other folders of
        configuration are left to it.
    """
    flags = [a for a in arguments if a.startswith("-")]
    if {"-m", "--multirun"} & set(flags) and verb in SWEPT:
        _check_sweep(arguments)
    if any(f not in ("--cfg", "--resolve", "-c") for f in flags):
        return None
    overrides = [a for a in arguments if "=" in a and not a.startswith("-") and not a.startswith("hydra")]
    try:
        check_groups(overrides)
        if any(o.startswith("+") for o in overrides):
            known = compose(verb, [o for o in overrides if not o.startswith("+")])
            for key in (key_of(o) for o in overrides if o.startswith("+")):
                first = key.split(".")[0].split("@")[0]
                if first not in known and not is_group(first):  # it would be taken, and read by nothing
                    raise VcellError(_unknown_key(verb, key, overrides))
        config = compose(verb, overrides)
        check_types(verb, overrides, config)
        check_kinds(verb, config, map(key_of, overrides))
        return config if len(overrides) == len(arguments) else None
    except (HydraException, OmegaConfBaseException) as error:
        raise VcellError(_explain(verb, overrides, str(error))) from error
    finally:
        GlobalHydra.instance().clear()


def _check_sweep(arguments: list[str]) -> None:
    """Refuses sweeps whose runs share a name: they would fail one after the other, hours apart."""
    names = [a for a in arguments if a.startswith(("name=", "run_dir="))]
    swept = [a.split("=")[0] for a in arguments if re.search(r"=[^\[{(]*,", a)]
    if swept and not any("${" in name or "," in name for name in names):
        raise VcellError(
            f"each run of a sweep over {swept[0]} needs a name of its own: 'name=sweep_${{hydra:job.num}}' (in single quotes)"
        )


def _explain(verb: str, overrides: list[str], message: str) -> str:
    absent = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", message)
    if absent is not None and (folder := CONFIG_DIR / absent[1]).is_dir():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        return f"{absent[1]}={absent[2]} is none of {', '.join(known)}.{nearest(absent[2], known)}"
    if several := re.search(r"Ambiguous value for argument '([^']+)'", message):
        hint = "; to run the command once for each of them, add -m" if verb in SWEPT else ""
        return f"{several[1]} is several values, where one is taken{hint}"
    if merging := re.search(r"Error merging override \+*([^\s=]+)=(.*)", message):
        return _other_kind(verb, merging[1], merging[2], overrides)
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown is None:
        return " ".join(line.strip() for line in message.splitlines() if line.strip())
    return _unknown_key(verb, unknown[1], overrides)


def _other_kind(verb: str, key: str, value: str, overrides: list[str]) -> str:
    """Of a list where there are settings, or settings where there is a list."""
    usual = OmegaConf.select(compose(verb, without(overrides, key)), key)
    check_is_group(key, value, usual)
    if isinstance(usual, ListConfig):
        return f"{key}={value} must be a list: '{key}=[A,B]'"
    return f"{key}={value} needs names with their values: '{key}={{NAME: VALUE}}'"


def _unknown_key(verb: str, key: str, overrides: list[str]) -> str:
    if verb == "train" and key in FORMER_KEYS:
        return f"vcell.train has no configuration key {key!r}. {FORMER_KEYS[key]}"
    try:
        known = [k for k, _ in flatten(OmegaConf.to_container(compose(verb, without(overrides, key))))]
    except (HydraException, OmegaConfBaseException):
        known = []
    groups = sorted({k.rsplit(".", 1)[0] for k in known if "." in k})
    whole = [k for k in known if k.endswith(f".{key}")]
    meant = f" Did you mean {whole[0]!r}?" if whole else nearest(key, [*known, *groups])
    return (
        f"vcell.{verb} has no configuration key {key!r}.{meant} "
        f"All keys: python -m vcell.{verb} --help, and with their values --cfg job"
    )
