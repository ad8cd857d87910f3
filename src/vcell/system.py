"""What this job has of the machine: its cores and memory (not the node's), its ranks, its devices; and work on all of its cores."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from threadpoolctl import ThreadpoolController

from vcell.errors import VcellError, check_choice

if TYPE_CHECKING:
    import torch

CGROUPS = Path("/sys/fs/cgroup")
VARIABLES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
DEVICES = ("auto", "cpu", "cuda")
MATMUL_PRECISIONS = ("highest", "high", "medium")
LARGE_NETWORK = 10_000_000  # weights
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
MADV_HUGEPAGE = 14  # of Linux
HEAP = 2**30  # bytes that a heap which keeps its memory grows by
Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Processor cores this process may use: the fewest of its affinity, its control group's share, and what SLURM gave the task."""
    found = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm):
        found.append(int(slurm))
    return min(found + _granted(CGROUPS))


@cache
def _granted(groups: Path) -> list[int]:
    """Cores that control groups below a folder grant. Read once: work on all cores asks how many there are thousands of times."""
    found = []
    for group in _groups():
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            found.append(max(1, round(int(quota) / int(period))))
        with suppress(OSError, ValueError):
            quota_us = int((group / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                found.append(max(1, round(quota_us / int((group / "cpu.cfs_period_us").read_text()))))
    return found


def free_memory() -> int | None:
    """Bytes of memory that this job can have without swapping; None where that cannot be told."""
    found = []
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    for group in _groups():
        for most, now in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with suppress(OSError, ValueError):  # "max" is no limit
                found.append(max(0, int((group / most).read_text()) - int((group / now).read_text())))
    return min(found, default=None)


def _groups() -> Iterator[Path]:
    """Control groups that this process is in, from its own up to the machine's."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            base = CGROUPS / controllers if controllers else CGROUPS
            path = base / name.lstrip("/")
            while True:
                yield path
                if path in (base, path.parent):
                    break
                path = path.parent


@dataclass(frozen=True)
class Rank:
    """Process `number` of `world`; `local` counts those of this machine."""

    number: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Rank:
        for names in VARIABLES:
            values = [os.environ.get(name, "") for name in names]
            if all(value.isdigit() for value in values):
                return cls(*map(int, values))
        return cls()


def slurm_tasks() -> int:
    """Tasks that srun has started, including this one; 1 for a process that it did not start."""
    if not os.environ.get("SLURM_PROCID", "").isdigit() or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return 1
    number = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS", "1")
    return int(number) if number.isdigit() and "SLURM_STEP_ID" in os.environ else 1


def slurm_tasks_per_node() -> int:
    """Tasks on each node of a SLURM job, whichever of its variables say so: ``4``, ``4(x2)``, or all tasks over the nodes."""
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        if match := re.match(r"\d+", os.environ.get(name, "")):
            return int(match[0])
    tasks, nodes = (os.environ.get(name, "") for name in ("SLURM_NTASKS", "SLURM_NNODES"))
    return max(1, int(tasks) // int(nodes)) if tasks.isdigit() and nodes.isdigit() and int(nodes) else 1


def choose_device(device: str | torch.device, number: int) -> torch.device:
    """The device to predict on; of several GPUs, that of this process.

    Raises
    ------
    VcellError
        If there is no such device.
    """
    device = str(device)  # torch's own too
    if device.startswith("cuda:"):
        raise VcellError(f"device={device} must be cuda; choose the GPU with CUDA_VISIBLE_DEVICES={device[5:]}")
    check_choice("device", device, DEVICES)
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise VcellError(
            "device=cuda needs a GPU that torch can use, and there is none here (python -m vcell.doctor shows what torch sees). Use auto or cpu"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", number % torch.cuda.device_count())


def choose_gpu(device: str | torch.device) -> torch.device | None:
    """`choose_device`, None for the CPU: where that is asked for torch is not loaded, which takes a second."""
    if str(device) == "cpu":
        return None
    found = choose_device(device, 0)
    return None if found.type == "cpu" else found


def gpu_has_bf16(device: torch.device) -> bool:
    """Whether `device` is a GPU that computes bf16 itself."""
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def auto_precision(device: torch.device, weights: int) -> str:
    """The precision, in Lightning's words, in which a network of so many weights runs best where nothing else is asked for.

    bf16 on GPUs that have it, and fp16 with loss scaling on older ones. On CPUs bf16 for large networks where matrix units do it (AMX) or
    vector units (AVX512-BF16): twice as fast and more, while for small ones casting takes longer than the products. Else float32.
    """

    if device.type == "cuda":
        return "bf16-mixed" if gpu_has_bf16(device) else "16-mixed"
    return "bf16-mixed" if device.type == "cpu" and fast_bf16() and weights >= LARGE_NETWORK else "32-true"


def processor() -> tuple[str, set[str]]:
    """The processor's name, and the flags by which Linux tells what it can."""
    about: dict[str, str] = {}
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return about.get("model name") or platform.processor() or platform.machine(), set(about.get("flags", "").split())


def fast_bf16() -> bool:
    """Whether this machine's processor has units for bf16 (AMX or AVX512-BF16) that torch uses."""
    import torch

    units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return torch.backends.mkldnn.is_available() and any(getattr(torch.cpu, unit, bool)() for unit in units)


@contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """Products of float32 matrices: ``highest``; ``high`` or ``medium``, of factors rounded to TF32 or bf16 where the processor is faster
    with those. Afterwards as before."""
    import torch

    check_choice("matmul_precision", precision, MATMUL_PRECISIONS)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Memory that is freed stays with this process for what it needs next, and lies in pages of 2 MB: where Linux and glibc have such.

    A training step on a CPU frees hundreds of megabytes; to have them again from the system, page by page and zeroed, takes a tenth of its
    time, and to look up small pages another tenth. Afterwards what lies free goes back.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    _allocate(libc, separate=HEAP, kept=2**31 - 1, more=HEAP)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # more than lies free, so that the heap grows now, by all of HEAP; nothing of that is in memory before it is used
    libc.free(libc.malloc(HEAP // 4))
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith("[heap]"):
                first, last = (int(address, 16) for address in line.split()[0].split("-"))
                libc.madvise(first, last - first, MADV_HUGEPAGE)
    try:
        yield
    finally:
        _allocate(libc, separate=2**25, kept=2**26, more=0)  # what glibc comes to by itself, at most
        libc.malloc_trim(0)


def _allocate(libc: ctypes.CDLL, separate: int, kept: int, more: int) -> None:
    """From how many bytes on memory comes from the system by itself, how many may lie free at the heap's end, and by how many more it grows."""
    libc.mallopt(M_MMAP_THRESHOLD, separate)
    libc.mallopt(M_TRIM_THRESHOLD, kept)
    libc.mallopt(M_TOP_PAD, more)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each item, in order, on all cores of this job; no more results wait than there are threads.

    Within a thread of another call, on that thread's share of the cores.
    """
    mine = getattr(_here, "cores", 0) or _threads()
    threads = max(1, min(mine, len(items))) if isinstance(items, Sized) else mine
    if threads == 1:
        yield from map(function, items)
        return

    def begin() -> None:
        _here.cores = mine // threads
        _torch_takes(_here.cores)

    with _one_core_each, ThreadPoolExecutor(threads, initializer=begin) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_here = threading.local()  # `cores`: this thread's share of them


def _torch_takes(cores: int) -> None:
    """Has torch take no more cores within this thread. It would start a team of threads on all cores for each of ours, which wait for work
    in busy loops."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch.get_num_threads()  # torch sets the number itself when a thread first has use for it: from now on not
    for library in _libraries(True).select(user_api="openmp").lib_controllers:
        library.set_num_threads(cores)


def _threads() -> int:
    """As many as torch takes, which is told by `OMP_NUM_THREADS` too, and no more than there are cores. Torch is not loaded for that."""
    torch, told = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS", "")
    if torch is not None:
        return min(torch.get_num_threads(), cores())
    return min(int(told), cores()) if told.isdigit() and int(told) else cores()


class _OneCoreEach:
    """While any block is within, products of numpy's matrices take one core: their threads, one per core and item at work, would wait for
    each other in busy loops (measured: half of the time)."""

    def __init__(self) -> None:
        self.lock, self.within = threading.Lock(), 0
        self.limit: Any = None

    def __enter__(self) -> None:
        with self.lock:
            self.within += 1
            if self.within == 1:
                self.limit = _libraries("torch" in sys.modules).limit(limits=1, user_api="blas")
                self.limit.__enter__()

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.within -= 1
            if self.within == 0:
                self.limit.__exit__(None, None, None)


@cache
def _libraries(with_torch: bool) -> ThreadpoolController:
    """Those loaded that start threads, before torch is or after: to look for them takes 2 ms."""
    return ThreadpoolController()


_one_core_each = _OneCoreEach()
