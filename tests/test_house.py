"""The floor plan: what lies where, and what may know of what."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "src" / "vcell"
FILES = sorted(HOUSE.rglob("*.py"))
# from the ground up: a floor imports from those below it, and from itself
FLOORS = [
    "errors", "process", "atomic", "pages", "system", "config", "challenge", "downloads", "data.files", "data.simulation", "data.store",
    "data", "effects", "model", "records", "proteins", "inspection", "predict", "training", "submission", "score", "cli",
]  # fmt: skip
# rooms in which a configuration is read: the commands, and what makes options and objects of it
BUILDERS = {
    "cli/arguments.py", "cli/launch.py", "cli/settings.py", "cli/lookup.py", "cli/usage.py", "config.py", "training/build.py", "predict/options.py",
    "submission/options.py", "score/options.py", "data/store/options.py",
}  # fmt: skip


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")


def floor_of(module: str) -> str | None:
    parts = module.split(".")
    two = ".".join(parts[:2])
    return two if two in FLOORS else parts[0] if parts[0] in FLOORS else None


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vcell."):
            found.append(node.module.removeprefix("vcell."))
    return found


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_floor_knows_of_a_higher_one(path: Path):
    own = floor_of(module_of(path))
    if own is None:
        return
    higher = [name for name in imports_of(path) if (f := floor_of(name)) and FLOORS.index(f) > FLOORS.index(own)]
    assert not higher


def test_every_folder_has_its_floor():
    assert {module_of(p).split(".")[0] for p in HOUSE.glob("*/__init__.py")} <= {
        floor.split(".")[0] for floor in FLOORS
    }


def test_the_root_holds_the_commands_and_little_else():
    assert len(list(HOUSE.glob("*.py"))) <= 20


def test_no_two_files_of_a_wing_share_a_name():
    names = Counter(
        (p.relative_to(HOUSE).parts[0], p.name) for p in FILES if p.parent != HOUSE and p.name != "__init__.py"
    )
    assert not [name for name, number in names.items() if number > 1]


def test_configuration_is_read_by_commands_and_builders_only():
    commands = {p.name for p in HOUSE.glob("*.py") if "from vcell.cli.main import main" in p.read_text()}
    for path in FILES:
        name = path.relative_to(HOUSE).as_posix()
        if name in BUILDERS or name in commands:
            continue
        read = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"
        ]
        assert not read, f"{name} reads the configuration in line {read[0].lineno}"
