"""The pages of the site: their examples run, their commands have keys that exist, their links lead somewhere, and the site builds.

Of the Python pages blocks that begin with a file's name are written, the others executed, commands run.
"""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import anndata as ad
import pytest

from tests.conftest import SHARED
from tests.forked import Forked
from vcell.cli.arguments import check_overrides, readable
from vcell.cli.main import VERBS

DOCS = Path(__file__).parents[1] / "docs"
# pages that are executed one after the other, in one process: starting one takes longer than most examples
TOGETHER = {"python": [DOCS / "python.md"], "extend": sorted((DOCS / "extend").glob("*.md"))}
FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def write_examples(page: Path, folder: Path) -> None:
    """The page's files; its other blocks as PAGE.py; its commands as PAGE.txt."""
    executed = []
    for block in [*blocks(page, "python"), *blocks(page, "yaml")]:
        if match := FILE.match(block):
            (folder / match[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / match[1]).write_text(block)
        else:
            executed.append(block)
    commands = "".join(blocks(page, "bash"))
    assert executed and all(line.startswith("vcell ") for line in commands.splitlines())
    (folder / f"{page.stem}.py").write_text("\n".join(executed))
    (folder / f"{page.stem}.txt").write_text(commands)


@pytest.mark.slow
@pytest.mark.parametrize("pages", TOGETHER)
def test_the_examples_of_the_pages_run(pages: str, fresh: Path, trained: Path):
    pytest.importorskip("numba")
    (fresh / "runs").mkdir()
    (fresh / "runs" / "demo").symlink_to(trained / "runs" / "demo")
    for page in TOGETHER[pages]:
        write_examples(page, fresh)
    done = Forked("tests.pages", [page.stem for page in TOGETHER[pages]], fresh).completed()
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-3000:])


SITE = sorted(DOCS.rglob("*.md"))
COMMAND = re.compile(r"^(?: {4})?(?:python -m vcell\.|vcell )([a-z]+)(.*)$", re.MULTILINE)
PLACEHOLDERS = re.compile(r"\.\.\.|\$\{|FOLDER|NAME|FILE|^-m ")


def command_lines(page: Path) -> list[tuple[str, list[str]]]:
    """Commands on a page, wherever they stand: verb and arguments; without those that are there to be filled in."""
    found = []
    for match in COMMAND.finditer(page.read_text()):
        verb, rest = match[1], re.split(r" {3,}| \(", match[2].strip())[0]
        if not PLACEHOLDERS.search(rest):
            found.append((verb, shlex.split(rest)))
    return found


@pytest.mark.parametrize("page", SITE, ids=lambda page: page.stem)
def test_commands_on_every_page_have_keys_that_exist(page: Path, monkeypatch: pytest.MonkeyPatch):
    for verb, arguments in command_lines(page):
        assert verb in VERBS, (page.name, verb)
        check_overrides(verb, readable(verb, [a for a in arguments if a not in ("\\", "--help")]))


def test_links_between_pages_lead_somewhere():
    for page in SITE:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith(("http", "mailto")):
                assert (page.parent / target).exists(), (page.name, target)


def test_every_command_and_group_has_its_settings_on_the_site():
    pytest.importorskip("mkdocs")
    text = runpy.run_path(str(DOCS / "hooks.py"))["settings"]()
    assert all(f"## vcell {verb}\n" in text for verb in VERBS)
    assert "trainer.max_steps" in text and "of all draws" in text


@pytest.mark.slow
def test_the_five_minutes_run_word_by_word(fresh: Path):
    lines = [line for block in blocks(DOCS / "index.md", "bash") for line in block.splitlines()]
    assert len(lines) == 7
    smaller = {"simulate": ["genes=120", "targets=20", "test_targets=4"], "train": ["trainer.max_steps=4", "trainer.val_check_interval=2", "data.sets.set_size=8"]}  # fmt: skip
    for line in lines:
        _, verb, *arguments = shlex.split(line)
        kept = [a for a in arguments if a.split("=")[0] not in {s.split("=")[0] for s in smaller.get(verb, [])}]
        done = Forked(f"vcell.{verb}", [*kept, *smaller.get(verb, [])], fresh).completed()
        assert done.returncode == 0, (line, done.stderr[-2000:])
    assert (fresh / "first_scores" / "report.html").is_file() and "first  finished" in done.stdout


def test_the_housekeeping_runs_word_by_word(fresh: Path, trained: Path):
    (fresh / "runs").mkdir()
    (fresh / "runs" / "demo").symlink_to(trained / "runs" / "demo")
    said = []
    for line in [line for block in blocks(DOCS / "runs.md", "bash") for line in block.splitlines()]:
        _, verb, *arguments = shlex.split(line)
        done = Forked(f"vcell.{verb}", arguments, fresh).completed()
        assert done.returncode == 0, (line, done.stderr[-2000:])
        said.append(done.stdout)
    assert len(said) == 4 and "demo  finished" in said[0] and "nothing was fetched" in said[3]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not beside the checkout")
def test_the_tutorial_runs_and_prints_what_it_says(fresh: Path):
    (fresh / "papalexi2021_thp1.h5ad").symlink_to(SHARED / "papalexi2021_thp1.h5ad")
    (fresh / "gene_vectors.npz").symlink_to(SHARED / "embeddings" / "go_pfam_svd128.npz")
    genes = ad.read_h5ad(fresh / "papalexi2021_thp1.h5ad", backed="r").var_names
    (fresh / "genes.csv").write_text("\n".join(genes) + "\n")
    page = DOCS / "tutorial.md"
    text, lines = page.read_text(), [line for block in blocks(page, "bash") for line in block.splitlines()]
    for line in lines:
        _, verb, *arguments = shlex.split(line)
        if verb == "train":
            arguments += ["trainer.max_steps=10", "trainer.val_check_interval=10"]
        done = Forked(f"vcell.{verb}", arguments, fresh).completed()
        assert done.returncode == 0, (line, done.stderr[-2000:])
        if verb in ("inspect", "prepare"):
            assert all(f"    {said.rstrip()}" in text for said in done.stdout.splitlines() if said.strip()), done.stdout
    assert (fresh / "sub.vcc").is_file()


def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "settings" / "index.html").is_file()
