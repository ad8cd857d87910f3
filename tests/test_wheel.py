"""The built wheel, in an empty environment and an empty folder, trains the demo."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import RELEASE, SMALL

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_carries_every_config(wheel: Path):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vcell/configs/")}
    assert inside == {f"vcell/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").rglob("*.yaml")}


@pytest.mark.slow
def test_installed_wheel_trains_in_an_empty_folder(wheel: Path, tmp_path: Path):
    """With this environment's packages beside it, or, before a release (VCELL_RELEASE=1), with what pip installs for it."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    install: list = [python, "-m", "pip", "install", "--quiet", wheel]
    if RELEASE:
        install += ["--constraint", ROOT / "constraints.txt"]
    else:
        install += ["--no-deps", "--no-index"]
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
        )
        # a plain path: the checkout itself, which is linked into this environment, stays out
        (Path(own.stdout.strip()) / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run(install, capture_output=True, text=True, timeout=540, env=environment)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "empty"
    folder.mkdir()
    train = [python, "-m", "vcell.train", "experiment=demo", "trainer=cpu", *SMALL, "trainer.max_steps=5"]
    done = subprocess.run(train, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "runs" / "demo" / "checkpoints" / "last.ckpt").is_file()
    where = subprocess.run(
        [python, "-c", "import vcell; print(vcell.__file__)"], cwd=folder, capture_output=True, text=True
    )
    assert str(tmp_path / "env") in where.stdout


def test_everything_imported_is_declared():
    """Packages that modules import when they are loaded are dependencies; those of an extra are imported where they are used."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[ ]", d)[0].replace("-", "_") for d in project["dependencies"]}
    known = {"hydra_core": "hydra", "scikit_learn": "sklearn", "pyyaml": "yaml"}
    # hydra's own configuration; what GPU builds of torch bring along, in a module that is loaded where it is there
    declared = {known.get(n, n) for n in names} | {"omegaconf", "vcell", "triton"}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) else []
            )  # fmt: skip
            for module in modules:
                top = str(module).split(".")[0]
                assert top in declared or top in sys.stdlib_module_names, f"{path} imports {module}"
