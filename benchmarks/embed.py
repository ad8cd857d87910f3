"""What embedding all human proteins costs, from a measured slope; and that a killed command continues to the same bytes.

    python benchmarks/embed.py [--size 8M 35M] [--proteins 60]

Makes an ESM2 of the given size with random weights (what they are does not change the work) and proteins of human lengths, embeds some of them twice
over, and takes the time and memory that the second half adds. Then the same command is killed with SIGKILL halfway and started again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tables import device_name, save
from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<null_1>", "<mask>"]
SIZES = {
    "8M": (6, 320, 20),
    "35M": (12, 480, 20),
    "150M": (30, 640, 20),
    "650M": (33, 1280, 20),
}  # layers, width, heads
HUMAN = 20_000  # genes, one protein each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["8M", "35M"], choices=SIZES, help="[%(default)s]")
    parser.add_argument("--proteins", type=int, default=60, help="in the smaller of two runs [%(default)s]")
    options = parser.parse_args()
    lines = ["| ESM2 | seconds for 20,000 proteins | peak memory | killed and continued |", "|---|---|---|---|"]
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            lines.append(measure(size, options.proteins, Path(folder)))
            print(lines[-1], flush=True)
    command = f"python benchmarks/embed.py --size {' '.join(options.size)} --proteins {options.proteins}"
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{len(os.sched_getaffinity(0))} CPU cores"
    save(
        f"embed_{device_name()}",
        command,
        f"{where}; median length 415 residues, as in human proteins.\n\n" + "\n".join(lines),
    )


def measure(size: str, number: int, folder: Path) -> str:
    model(size, folder / "esm")
    rng = np.random.default_rng(0)
    write(folder / "one.fa", number, rng)
    write(folder / "three.fa", 3 * number, rng)
    (short, _), (long, peak) = (run(folder, name) for name in ("one", "three"))
    return f"| {size} | {(long - short) / (2 * number) * HUMAN:,.0f} | {peak / 1e9:.1f} GB | {'the same bytes' if killed(folder, long) else 'OTHER BYTES'} |"


def model(size: str, folder: Path) -> None:
    """A checkpoint of ESM2's shape with random weights."""
    layers, width, heads = SIZES[size]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(TOKENS))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = EsmConfig(
        vocab_size=len(TOKENS), mask_token_id=32, pad_token_id=1, num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=1026, position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False,
    )  # fmt: skip
    torch.manual_seed(0)
    EsmForMaskedLM(config).save_pretrained(folder)


def write(path: Path, number: int, rng: np.random.Generator) -> None:
    """Proteins whose lengths spread as those of human genes do: a median of 415 residues, a tenth above 1,150."""
    lengths = np.clip(np.exp(rng.normal(np.log(415), 0.8, number)), 40, 5000).astype(int)
    lines = [f">GENE{i}\n{''.join(rng.choice(list(LETTERS), n))}" for i, n in enumerate(lengths)]
    path.write_text("\n".join(lines) + "\n")


def command(folder: Path, name: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "vcell.embed",
        f"fasta={folder / name}.fa",
        f"out={folder / name}.pt",
        f"checkpoint={folder / 'esm'}",
    ]


def run(folder: Path, name: str) -> tuple[float, int]:
    """Seconds and peak memory of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command(folder, name), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("vcell.embed failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def killed(folder: Path, seconds: float) -> bool:
    """Whether a command killed halfway, and started again, writes the same bytes as one that was left alone."""
    whole = (folder / "three.pt").read_bytes()
    (folder / "three.pt").unlink()
    (folder / "three.json").unlink()
    process = subprocess.Popen(command(folder, "three"), stdout=subprocess.DEVNULL)
    time.sleep(0.7 * seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (folder / "three.pt").exists():
        raise SystemExit("the command had ended before it was killed: more --proteins")
    run(folder, "three")
    return (folder / "three.pt").read_bytes() == whole


if __name__ == "__main__":
    main()
