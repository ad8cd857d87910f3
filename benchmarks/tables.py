"""Where the benchmarks leave their tables."""

from __future__ import annotations

from pathlib import Path

import torch

from vcell import system


def device_name() -> str:
    """Of the GPU, as a part of a file's name; cpu where there is none, and cpu_amx where that has the units that multiply matrices in bf16."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().replace(" ", "_")
    return "cpu_amx" if "amx_bf16" in system.processor()[1] else "cpu"


def processor() -> str:
    """Cores, and what of the processor matters: "2 cores (Intel(R) Xeon(R) Processor, AVX-512, bf16, AMX)"."""
    name, flags = system.processor()
    units = {"avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX"}
    return f"{system.cores()} cores ({', '.join([name, *(word for flag, word in units.items() if flag in flags)])})"


def save(name: str, command: str, table: str) -> None:
    """Prints a table, and writes it with the command that made it to `results/NAME.md`."""
    print(table)
    out = Path(__file__).parent / "results" / f"{name}.md"
    out.write_text(f"`{command.strip()}`\n\n{table}\n")
    print(f"written to {out}")
