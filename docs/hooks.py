"""What the site adds to the pages: settings from the YAML files, benchmark tables, links to files of the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Pages that are made: settings, and the tables of benchmarks."""
    for name in ("settings.md",):
        files.remove(files.get_file_from_path(name))
    files.append(File.generated(config, "settings.md", content=settings()))
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        title = path.stem.replace("_", " ")
        files.append(File.generated(config, f"benchmarks/{path.name}", content=f"# {title}\n\n{path.read_text()}"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that leave docs/ lead to this site's copy of a table, or to the repository."""
    up = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+benchmarks/results/", f"]({up}benchmarks/", markdown)
    return re.sub(
        r"\]\((?:\.\./)+(benchmarks|notebooks|scripts|containers)/", rf"]({config['repo_url']}/blob/main/\1/", markdown
    )


def settings() -> str:
    """Every command's settings with their defaults and comments."""
    from vcell.cli.main import VERBS
    from vcell.cli.usage import usage

    parts = [
        "# Settings",
        "",
        "Every command's settings, as `--help` prints them: `KEY=VALUE`, with the default and what it means.",
        "",
    ]
    for verb in VERBS:
        parts += [f"## vcell {verb}", "", "```text", usage(verb, []), "```", ""]
    return "\n".join(parts)
