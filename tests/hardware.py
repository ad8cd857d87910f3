"""The numeric tests as on other machines: python tests/hardware.py (make test-hardware).

Restricts instruction sets and threads, one setting after the other, says what of it this machine took, and runs every test marked
`numeric` under it.
"""

from __future__ import annotations

import os
import subprocess
import sys

SETTINGS: list[dict[str, str]] = [
    {},
    {"MKL_CBWR": "COMPATIBLE"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
]
THREADS = (1, 2)
# the sums of matrix products and of elementwise code, by which a setting shows to have taken effect
PROBE = """
import hashlib, torch
x = torch.rand(64, 4099, generator=torch.Generator().manual_seed(0))
def digest(t): return hashlib.blake2b(t.numpy().tobytes(), digest_size=4).hexdigest()
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), digest(x @ x.T), digest(x.exp().sum(1)),
      digest(torch.nn.functional.linear(x.bfloat16(), x.bfloat16()).float()))
"""


def probe(environment: dict[str, str]) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def main() -> int:
    plain = probe({**os.environ, "OMP_NUM_THREADS": "1"})
    failed = []
    for setting in SETTINGS:
        for threads in THREADS:
            name = " ".join(
                [*(f"{k}={v}" for k, v in setting.items()), f"{threads} thread{'s' if threads > 1 else ''}"]
            )
            environment = {**os.environ, **setting, "OMP_NUM_THREADS": str(threads)}
            capability, found_threads, *sums = probe(environment)
            kinds = ("matrix products", "elementwise sums", "bf16 products")
            changed = [kind for kind, a, b in zip(kinds, sums, plain[2:], strict=True) if a != b]
            effect = f"other rounding in {', '.join(changed)}" if changed else "the same rounding as without it"
            print(f"== {name}: torch runs {capability} with {found_threads} threads; {effect}", flush=True)
            tests = [sys.executable, "-m", "pytest", "-q", "-m", "numeric", "-p", "no:cacheprovider", *sys.argv[1:]]
            if subprocess.run(tests, env=environment).returncode:
                failed.append(name)
    print(f"hardware     failed under: {'; '.join(failed)}" if failed else "hardware     every setting passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
