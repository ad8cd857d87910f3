"""What a release needs: whole archives that describe themselves, bounds that are stated, and a demo that runs from the wheel alone."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import yaml

from tests.conftest import BEFORE_RELEASE
from tests.lowest import lowest
from vcell import __version__

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_what_people_look_for_is_there_and_says_the_same():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["license"] == "MIT"
    assert __version__ in (ROOT / "CHANGELOG.md").read_text() or "Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    for name in ("CONTRIBUTING.md", "SECURITY.md", "LICENSE", "docs/model_card.md"):
        assert (ROOT / name).stat().st_size > 400, name
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / "mkdocs.yml"]:
        assert yaml.safe_load(path.read_text().replace("!!python", "python")), path


def test_every_dependency_has_a_lower_bound():
    bounds = lowest()
    assert {"torch", "lightning", "hydra-core", "anndata", "h5py", "numpy", "pandas", "scipy", "numba"} <= set(bounds)
    assert bounds["torch"].startswith("2.11")


def test_containers_install_what_pyproject_names():
    extras = set(yaml.safe_load("[" + (ROOT / "containers/Dockerfile").read_text().split("'.[")[1].split("]")[0] + "]"))
    assert extras <= set(_extras())
    assert (ROOT / "containers/vcell.def").read_text().count("'.[" + ",".join(_written("containers/Dockerfile"))) == 1


def _written(path: str) -> list[str]:
    return (ROOT / path).read_text().split("'.[")[1].split("]")[0].split(",")


def _extras() -> list[str]:
    import tomllib

    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    return out


@BEFORE_RELEASE
def test_the_source_archive_holds_everything(archives: Path):
    tracked = set(run("git", "ls-files").split("\n")) - {""}
    with tarfile.open(next(archives.glob("*.tar.gz"))) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    missing = {name for name in tracked - packed if not name.startswith((".ci/", ".github/"))}
    assert not missing


@BEFORE_RELEASE
def test_the_archives_describe_themselves(archives: Path):
    pytest.importorskip("twine")
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, archives.iterdir()))


@BEFORE_RELEASE
def test_the_demo_runs_from_the_wheel_in_an_empty_environment(archives: Path, tmp_path: Path):
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    wheel = next(archives.glob("*.whl"))
    run(python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[score]")
    demo = tmp_path / "demo"
    demo.mkdir()
    for command in (
        ["doctor", "disk=false"],
        ["prepare", "data=demo"],
        ["train", "experiment=demo", "trainer.max_steps=50", "trainer.val_check_interval=25"],
        ["infer", "ckpt=last.ckpt", "out=pred.h5ad"],
        ["evaluate", "pred=pred.h5ad", "real=data/demo/screen/truth/simC_test.h5ad", "out=scores"],
        ["runs"],
    ):
        said = run(python, "-m", f"vcell.{command[0]}", *command[1:], cwd=demo)
    assert "demo  finished" in said and (demo / "scores" / "report.html").stat().st_size > 500_000
