"""The examples of the Python pages run: blocks that begin with a file's name are written, the others executed, commands run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.forked import Forked

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
