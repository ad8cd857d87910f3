"""Files read side by side: in this process, in several, or on a cluster through Dask; the same code path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from vcell.data.store.part import PartJob, read_part
from vcell.errors import VcellError, install
from vcell.process.progress import progress_bar
from vcell.system import cores

# smaller inputs are read before a second process has started
WORTH_PROCESSES = 256 * 2**20
LOOK_EVERY_S = 0.5
CONNECT_S = 30


def read_parts(jobs: Sequence[PartJob], workers: int | None = None, cluster: str | None = None) -> None:
    """Reads all files.

    Parameters
    ----------
    workers
        Processes; by default one a core where the files are large enough, else this one alone.
    cluster
        ``slurm``, which starts `workers` jobs through dask-jobqueue as Dask's own configuration describes them, or the
        address of a Dask scheduler. Its workers must see the same folders.

    Raises
    ------
    VcellError
        The first file's error; the others are stopped.
    """
    if workers is None:
        large = sum(job.path.stat().st_size for job in jobs) >= WORTH_PROCESSES
        workers = min(len(jobs), cores()) if large or cluster else 1
    with progress_bar(sum(job.n_cells for job in jobs), "reading", "cells") as progress:
        if cluster is None and workers <= 1:
            for job in jobs:
                read_part(job, progress.update)
            return
        with _executor(cluster, workers) as pool:
            pending: set[Future] = {pool.submit(_read_and_note, job) for job in jobs}
            while pending:
                done, pending = wait(pending, LOOK_EVERY_S, FIRST_COMPLETED)
                progress.update(sum(map(_cells_done, jobs)) - progress.n)
                for future in done:
                    _raise_error(future, pending)


def _read_and_note(job: PartJob) -> None:
    """Reads a file, noting the cells done where the command can see it from any machine."""
    note = _note(job)
    cells = 0

    def report(more: int) -> None:
        nonlocal cells
        cells += more
        note.write_text(str(cells))

    try:
        read_part(job, report)
    finally:
        note.unlink(missing_ok=True)


def _cells_done(job: PartJob) -> int:
    if job.folder.exists():
        return job.n_cells
    try:
        return int(_note(job).read_text() or 0)
    except (OSError, ValueError):
        return 0


def _note(job: PartJob) -> Path:
    return job.folder.with_name(job.folder.name + ".cells")


def _raise_error(future: Future, others: set[Future]) -> None:
    error = future.exception()
    if error is None:
        return
    for other in others:
        other.cancel()
    if isinstance(error, BrokenProcessPool):
        raise VcellError(
            "a process that read a file was killed, most likely because memory ran out; use fewer: prepare.workers=1"
        ) from error
    raise error


@contextmanager
def _executor(cluster: str | None, workers: int) -> Iterator[Executor]:
    if cluster is None:
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))  # forked threads of torch would hang
        try:
            yield pool
        except BaseException as error:
            if not isinstance(error, Exception):  # told to stop: files that take minutes are not waited for
                for process in list((pool._processes or {}).values()):
                    process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise VcellError(f"prepare.cluster needs Dask: {install('cluster')}") from error
    with _scheduler(cluster, workers) as address:
        try:
            client = Client(address, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            raise VcellError(
                f"prepare.cluster={cluster}: no Dask scheduler responds there ({error}). Start one (dask scheduler), or use "
                "prepare.cluster=slurm"
            ) from error
        with client:
            yield client.get_executor(pure=False, retries=0)


@contextmanager
def _scheduler(cluster: str, workers: int) -> Iterator[object]:
    """What a Dask client connects to."""
    if cluster != "slurm":
        yield cluster
        return
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise VcellError(f"prepare.cluster=slurm needs dask-jobqueue: {install('cluster')}") from error
    try:
        jobs = SLURMCluster()
    except ValueError as error:
        raise VcellError(
            f"prepare.cluster=slurm: {' '.join(str(error).split())} Specify what a job needs in ~/.config/dask/jobqueue.yaml: jobqueue: slurm: "
            "{cores: 2, processes: 1, memory: 4GB, walltime: '02:00:00'}"
        ) from error
    with jobs:
        jobs.scale(jobs=workers)
        yield jobs
