"""Where the benchmarks leave their tables."""

from __future__ import annotations

from pathlib import Path

import torch


def device_name() -> str:
    """Of the GPU, as a part of a file's name; cpu where there is none."""
    return torch.cuda.get_device_name().replace(" ", "_") if torch.cuda.is_available() else "cpu"


def save(name: str, command: str, table: str) -> None:
    """Prints a table, and writes it with the command that made it to `results/NAME.md`."""
    print(table)
    out = Path(__file__).parent / "results" / f"{name}.md"
    out.write_text(f"`{command.strip()}`\n\n{table}\n")
    print(f"written to {out}")
