"""The examples of the Python pages run: blocks that begin with a file's name are written, the others executed, commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS / "python.md", *sorted((DOCS / "extend").glob("*.md"))]
FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")
RUN = """
import shlex, sys
exec(compile(open("page.py").read(), "page.py", "exec"))
from vcell.cli.main import main
for line in open("commands.txt"):
    _, verb, *arguments = shlex.split(line)
    sys.argv = [verb, *arguments]
    main(verb)
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path, fresh: Path, trained: Path):
    pytest.importorskip("numba")
    (fresh / "runs" / "demo").parent.mkdir()
    (fresh / "runs" / "demo").symlink_to(trained / "runs" / "demo")
    executed = []
    for block in [*blocks(page, "python"), *blocks(page, "yaml")]:
        if match := FILE.match(block):
            (fresh / match[1]).parent.mkdir(parents=True, exist_ok=True)
            (fresh / match[1]).write_text(block)
        else:
            executed.append(block)
    (fresh / "page.py").write_text("\n".join(executed))
    commands = "".join(blocks(page, "bash"))
    assert all(line.startswith("vcell ") for line in commands.splitlines())
    (fresh / "commands.txt").write_text(commands)
    path = os.pathsep.join(filter(None, [str(fresh), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=fresh,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-3000:])
