"""A small simulated screen, its store and a short training run, made once for all tests."""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_repository import ConfigRepository

from tests.forked import Forked
from vcell.config import compose
from vcell.data.files.h5ad import Columns
from vcell.data.simulation.screen import Screen
from vcell.data.simulation.write import simulate
from vcell.data.store.ingest import ingest
from vcell.data.store.store import CellStore
from vcell.records.metrics import read_metrics

# a shell has its background jobs ignore Ctrl-C, and commands that tests start would too: those that test it would fail there
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared" / "data"
# what makes `experiment=demo` take seconds: few cells, with effects that few cells show, and a model that starts from control cells
SMALL = [
    "data.simulate.field=null",
    "data.simulate.effect_sd=0.25",
    "data.simulate.embedding_noise=0.2",
    "model.prior=null",
    "data.simulate.genes=120",
    "data.simulate.targets=20",
    "data.simulate.test_targets=4",
    "data.simulate.cells_per_target=14",
    "data.simulate.controls_per_context=60",
    "data.simulate.batches=2",
    "data.simulate.library_size=800",
    "data.simulate.embedding=12",
    "data.sets.set_size=8",
    "data.sets.sets_per_step=4",
    "model.hidden=32",
    "model.head_width=8",
    "model.feed_forward=32",
    "callbacks.curves=null",  # a picture takes as long as the training
]
# before a release, VCELL_RELEASE=1 runs what is too slow for every change
RELEASE = bool(os.environ.get("VCELL_RELEASE"))
BEFORE_RELEASE = pytest.mark.skipif(not RELEASE, reason="before a release: VCELL_RELEASE=1")
PICTURED = [setting for setting in SMALL if not setting.startswith("callbacks.curves")]
SMALL_SCREEN = Screen(
    genes=120,
    targets=20,
    test_targets=4,
    cells_per_target=14,
    controls_per_context=60,
    batches=2,
    library_size=800,
    embedding=12,
)


def pytest_collection_finish() -> None:
    """What imports have made is never garbage: looking through it again and again would take a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def configurations_read_once() -> Iterator[None]:
    """Hydra reads some thirty files, always the same, for every configuration that is composed: half of the time that takes."""
    read, kept = ConfigRepository.load_config, dict[tuple[str, ...], bytes]()

    def load(self: ConfigRepository, config_path: str) -> Any:
        key = (config_path, *(source.path for source in self.get_sources()))
        if key not in kept:
            found = read(self, config_path)
            if found is None:  # it may be written yet
                return None
            kept[key] = pickle.dumps(found)
        return pickle.loads(kept[key])  # a copy of its own, for Hydra changes it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load)
        yield


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a simulated screen."""
    return simulate(tmp_path_factory.mktemp("screen") / "screen", SMALL_SCREEN)


@pytest.fixture(scope="session")
def store(screen: Path, tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    """The cell store of that screen."""
    files = [screen / f"{context}.h5ad" for context in SMALL_SCREEN.contexts]
    return ingest(files, tmp_path_factory.mktemp("store") / "store", Columns())


def train_here(*overrides: str) -> None:
    """Trains in this process, in the working folder."""
    from vcell.training.train import train

    train(compose("train", ["experiment=demo", "trainer=cpu", *SMALL, *overrides]))


def run_here(verb: str, *overrides: str) -> None:
    """Runs a command in this process, in the working folder."""
    importlib.import_module(f"vcell.{verb}").run(compose(verb, list(overrides)))


def infer_here(*overrides: str) -> None:
    run_here("infer", *overrides)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `experiment=demo` was trained for some steps: data/ and runs/."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        run_here(
            "train", "experiment=demo", "trainer=cpu", *PICTURED, "trainer.max_steps=40", "trainer.val_check_interval=20", "trainer.log_every_n_steps=5"
        )  # fmt: skip
    finally:
        os.chdir(before)
    return folder


@pytest.fixture()
def in_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, as the working folder."""
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture()
def fresh(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data, without a run."""
    shutil.copytree(trained / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture()
def vcell() -> Command:
    """Runs a command as a user does: vcell("train", "experiment=demo", cwd=folder)."""

    def run(verb: str, *arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess:
        return Forked(f"vcell.{verb}", arguments, cwd, **options).completed()

    return run


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2, one message with `words`, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    for word in words:
        assert word in done.stderr, f"{word!r} not in {done.stderr!r}"


def start(folder: Path, *arguments: str, **environment: str) -> Forked:
    """Training that runs beside the test."""
    command = ["experiment=demo", "trainer=cpu", *SMALL, *arguments]
    return Forked("vcell.train", command, folder, {**os.environ, **environment}, together=True)


def wait_for(path: Path, process: Forked | subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until, process.stdout.read()  # type: ignore[union-attr]
        time.sleep(0.05)


def val_rows(run: str) -> dict[int, dict[str, float]]:
    """Scores of each validation by the number of steps trained before it."""
    rows = read_metrics(Path(run) / "metrics.csv")
    return {int(row["step"]) + 1: row for row in rows if "val/loss" in row}
