"""``--help``: what a command does, then its keys by topic with the comments of their YAML files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcell.config import CONFIG_DIR, read_yaml

KEY = re.compile(r"^(\s*)([A-Za-z_][\w.]*):(?:\s+(.*))?$")
COMMENT = re.compile(r"(^|\s)#\s?(.*)$")
SILENT = ("defaults", "hydra", "_target_", "_partial_", "strategy")
WIDTH = 46
TITLES = {
    "data": "the data: files, columns, labels, genes, split, cell sets",
    "model": "the model",
    "loss": "the loss",
    "trainer": "how to train: devices, precision, steps",
    "logger": "where figures go",
    "callbacks": "checkpoints, progress, plots",
    "challenge": "the rules of a challenge",
    "experiment": "settings that belong together",
}


def usage(verb: str, overrides: list[str]) -> str:
    """The help of a command; `overrides` choose the options of groups that are shown."""
    text = (CONFIG_DIR / f"{verb}.yaml").read_text()
    template = read_yaml(CONFIG_DIR / f"{verb}.yaml")["hydra"]["help"]["template"]
    about = template.split("== Groups of configuration")[0].split("== Configuration")[0].rstrip()
    chosen = dict(o.split("=", 1) for o in overrides if "=" in o and "." not in o.split("=", 1)[0])
    own, groups = _parts(verb, text)
    lines = [about, "", "Keys are given as KEY=VALUE; the value shown is the default."]
    if own:
        lines += ["", "== this command", *own]
    for group, option in groups.items():
        lines += _group(group, chosen.get(group, option))
    lines += ["", f"Everything as it would run: python -m vcell.{verb} ... --cfg job"]
    return "\n".join(lines)


def _parts(verb: str, text: str) -> tuple[list[str], dict[str, str | None]]:
    """Lines of the command's own keys, and its groups with the option that is taken."""
    lines: list[str] = []
    groups: dict[str, str | None] = {}
    for entry in read_yaml(CONFIG_DIR / f"{verb}.yaml")["defaults"]:
        if isinstance(entry, str) and entry != "_self_":
            more, found = _parts(entry, (CONFIG_DIR / f"{entry}.yaml").read_text())
            lines += more
            groups |= found
        elif isinstance(entry, dict):
            for name, option in entry.items():
                if not str(name).startswith("override"):
                    groups[str(name).split("@")[0]] = option[0] if isinstance(option, list) else option
    return [*_lines(keys_of(text)), *lines], groups


def _group(group: str, option: Any) -> list[str]:
    files = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml") if path.stem != "base")
    title = (
        f"== {group}={'|'.join(files)}: {TITLES.get(group, group)}"
        if len(files) > 1
        else f"== {TITLES.get(group, 'settings')}"
    )
    lines = ["", title]
    if group == "experiment":
        return [
            *lines,
            *(f"  {group}={name:<{WIDTH - len(group) - 1}} {_first_comment(group, name)}" for name in files),
        ]
    prefix = "" if group == "screen" else f"{group}."
    keys: dict[str, Key] = {}
    for name in _chain(group, str(option).strip("[]").split(",")[0]):
        for key in keys_of((CONFIG_DIR / group / f"{name}.yaml").read_text(), prefix):
            said = key.comments or (keys[key.name].comments if key.name in keys else [])
            keys[key.name] = Key(
                key.name, key.value, said
            )  # the value of the option, in the words of what it builds on
    return [*lines, *_lines(keys.values())]


def _chain(group: str, option: str) -> list[str]:
    """An option and what it builds on, the base first."""
    path = CONFIG_DIR / group / f"{option}.yaml"
    if not path.is_file():
        return []
    content = read_yaml(path)
    below = [str(d) for d in content.get("defaults", []) if isinstance(d, str) and d != "_self_"]
    return [*(name for base in below for name in _chain(group, base)), option]


def _first_comment(group: str, option: str) -> str:
    lines = Path(CONFIG_DIR / group / f"{option}.yaml").read_text().splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line), "")


@dataclass
class Key:
    """A key of a YAML file: its dotted name, its value, and its comment, line by line."""

    name: str
    value: str
    comments: list[str]


def _lines(keys: Iterable[Key]) -> list[str]:
    out = []
    for key in keys:
        shown = f"{key.name}={key.value}" if key.value else key.name
        first, *more = key.comments or [""]
        out.append(f"  {shown:<{WIDTH}}   {first}".rstrip())
        out += [f"{'':<{WIDTH + 5}}{line}" for line in more]
    return out


def keys_of(text: str, prefix: str = "") -> list[Key]:
    """Keys of a YAML text that have a value or a comment, in its order."""
    stack: list[tuple[int, str]] = []
    out: list[Key] = []
    skip: int | None = None
    for line in text.splitlines():
        comment = COMMENT.search(line)
        bare = line[: comment.start()].rstrip() if comment else line.rstrip()
        match = KEY.match(bare)
        if match is None:
            if comment and not bare and line.startswith(" ") and out and skip is None:
                out[-1].comments.append(comment[2].strip())
            continue
        indent = len(match[1])
        if skip is not None and indent > skip:
            continue
        skip = indent if match[2] in SILENT or match[2].endswith("_target_") else None
        if skip is not None:
            continue
        stack = [*(s for s in stack if s[0] < indent), (indent, match[2])]
        value = (match[3] or "").strip()
        if value or comment:
            name = prefix + ".".join(key for _, key in stack)
            out.append(Key(name, value, [comment[2].strip()] if comment else []))
    return out
