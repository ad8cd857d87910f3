"""Executes the examples of pages that `test_docs` has written: PAGE.py, then the commands in PAGE.txt."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from vcell.cli.main import main

if __name__ == "__main__":
    for page in sys.argv[1:]:
        print("page", page)
        exec(compile(Path(f"{page}.py").read_text(), page, "exec"), {})
        for line in Path(f"{page}.txt").read_text().splitlines():
            _, verb, *arguments = shlex.split(line)
            sys.argv = [verb, *arguments]
            main(verb)
