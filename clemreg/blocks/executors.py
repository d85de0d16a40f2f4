"""Who does the work of a run: this thread, several threads, or several processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import wait as wait_for_end
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol

from clemreg.blocks.plan import Block
from clemreg.errors import ConfigError

Work = Callable[[Block], None]


class Pool(Protocol):
    """Workers that are ready for the blocks of one function."""

    @property
    def width(self) -> int:
        """How many blocks may be under way, so that no worker waits."""

    @property
    def lost(self) -> tuple[type[Exception], ...]:
        """What a task raises when its worker died."""

    def submit(self, block: Block) -> Any:
        """Start a block; the task that comes back has a ``result()``."""

    def first_done(self, tasks: Collection[Any]) -> Collection[Any]:
        """Wait until at least one of the tasks is finished, and return those that are."""


class Executor(Protocol):
    """How the blocks of a run are worked on. A value: the workers live only while it is open."""

    @property
    def retries(self) -> int:
        """How often a block is done again after its worker died or storage failed."""

    def open(self, function: Work) -> AbstractContextManager[Pool]:
        """Start the workers; those under way are waited for at the end."""


@dataclass(frozen=True)
class Serial:
    """One block after the other, in the calling thread."""

    retries: int = 0

    @contextmanager
    def open(self, function: Work) -> Iterator[Pool]:
        """Return the calling thread as a pool."""
        yield _SerialPool(function)


@dataclass(frozen=True)
class Threads:
    """Threads of this process: for functions that release the interpreter lock, or wait for disk.

    Parameters
    ----------
    workers
        Number of threads.
    """

    workers: int = 2
    retries: int = 0

    @contextmanager
    def open(self, function: Work) -> Iterator[Pool]:
        """Start the threads."""
        executor = ThreadPoolExecutor(self.workers)
        try:
            yield _FuturePool(lambda block: executor.submit(function, block), 2 * self.workers)
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Processes:
    """Processes of this machine; the function and its arguments must be picklable.

    A process that is killed (the kernel's answer to lack of memory) is replaced, and the blocks
    that were under way are done again. Processes start fresh, so a script that uses them needs
    the ``if __name__ == "__main__"`` guard.

    Parameters
    ----------
    workers
        Number of processes.
    retries
        How often a block whose worker died, or met a storage failure, is done again.
    """

    workers: int = 2
    retries: int = 3

    @contextmanager
    def open(self, function: Work) -> Iterator[Pool]:
        """Start the processes when the first block comes."""
        with self.started() as running, running.open(function) as pool:
            yield pool

    @contextmanager
    def started(self) -> Iterator[RunningProcesses]:
        """Keep the processes for several runs; they start when the first block comes."""
        workers = _Workers(self.workers)
        try:
            yield RunningProcesses(workers, self.retries)
        finally:
            workers.close()


@dataclass(frozen=True)
class RunningProcesses:
    """Processes that serve one run after the other; from `Processes.started`."""

    processes: _Workers
    retries: int = 3

    @contextmanager
    def open(self, function: Work) -> Iterator[Pool]:
        """Leave the function where every process finds it, once, however large it is."""
        with tempfile.TemporaryDirectory(prefix="clemreg-") as folder:
            path = Path(folder) / "function"
            path.write_bytes(pickle.dumps(function))
            pool = _ProcessPool(path, self.processes)
            try:
                yield pool
            finally:
                pool.leave()


def executor_named(name: str, workers: int) -> Executor:
    """Executor as a user names it.

    Parameters
    ----------
    name
        ``serial``, ``threads``, ``processes``; or for Dask ``local``, ``slurm``, ``lsf``, or the
        address of a scheduler such as ``tcp://host:8786``.
    workers
        How many of them; ignored for a scheduler that runs already.

    Raises
    ------
    ConfigError
        There is no such executor, or fewer than one worker.
    """
    if workers < 1:
        raise ConfigError(f"{workers} workers cannot work", hint="give 1 or more")
    if name == "serial":
        return Serial()
    if name == "threads":
        return Threads(workers)
    if name == "processes":
        return Processes(workers)
    from clemreg.blocks.dask import CLUSTERS, Dask

    if name in CLUSTERS or "://" in name:
        return Dask(name, workers)
    raise ConfigError(
        f"there is no executor {name!r}",
        hint="serial, threads, processes, local, slurm, lsf, or a Dask address tcp://host:port",
    )


@contextmanager
def started(executor: Executor) -> Iterator[Executor]:
    """Keep the processes, or the Dask cluster, of an executor for several runs."""
    from clemreg.blocks.dask import Dask

    if isinstance(executor, Processes | Dask):
        with executor.started() as running:
            yield running
    else:
        yield executor


class _SerialPool:
    width = 1
    lost: tuple[type[Exception], ...] = ()

    def __init__(self, function: Work) -> None:
        self.function = function

    def submit(self, block: Block) -> Future[None]:
        task: Future[None] = Future()
        try:
            task.set_result(self.function(block))
        except Exception as error:  # noqa: BLE001 - handed on by result()
            task.set_exception(error)
        return task

    def first_done(self, tasks: Collection[Future[None]]) -> Collection[Future[None]]:
        return list(tasks)


class _FuturePool:
    lost: tuple[type[Exception], ...] = (BrokenExecutor,)

    def __init__(self, submit: Callable[[Block], Future[None]], width: int) -> None:
        self.submit = submit
        self.width = width

    def first_done(self, tasks: Collection[Future[None]]) -> Collection[Future[None]]:
        return wait(tasks, return_when=FIRST_COMPLETED).done


class _ProcessPool(_FuturePool):
    """The blocks of one function, for processes that outlive it."""

    def __init__(self, function: Path, workers: _Workers) -> None:
        super().__init__(self._submit, 2 * workers.count)
        self.function = function
        self.workers = workers
        self.tasks: set[Future[None]] = set()

    def _submit(self, block: Block) -> Future[None]:
        task = self.workers.submit(self.function, block)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def leave(self) -> None:
        """Drop blocks that have not begun, and wait for those under way."""
        left = list(self.tasks)
        for task in left:
            task.cancel()
        wait(left)


class _Workers:
    """Processes that are replaced when one of them dies."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.executor: ProcessPoolExecutor | None = None

    def submit(self, function: Path, block: Block) -> Future[None]:
        if self.executor is not None:
            try:
                return self.executor.submit(_call, function, block)
            except BrokenExecutor:
                self.executor.shutdown(wait=False, cancel_futures=True)
        self.executor = ProcessPoolExecutor(
            self.count, mp_context=_clean_context(), initializer=_prepare_process
        )
        return self.executor.submit(_call, function, block)

    def close(self) -> None:
        if self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.executor = None


def _clean_context() -> BaseContext:
    """How processes start: not as forks of this one.

    Forking a process that has threads (zarr and tensorstore start some) can deadlock. Where there
    is a fork server, it imports once for all, so that a pass over a volume starts quickly.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    return context


# Imported once by the fork server: with zarr among them, a pass starts in 0.2 s, not in 1.2 s.
PRELOADED = ("clemreg.blocks.components", "scipy.ndimage", "cc3d", "edt", "zarr")


def _prepare_process() -> None:
    """Make a worker leave Ctrl-C to its parent, end when the parent is gone, and use one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "zarr" in sys.modules:
        sys.modules["zarr"].config.set({"threading.max_workers": 1})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


@lru_cache(maxsize=1)
def _function(path: Path) -> Work:
    """Return the function of a run; read once, as each run has a path of its own."""
    function: Work = pickle.loads(path.read_bytes())  # of our own parent
    return function


def _call(function: Path, block: Block) -> None:
    _function(function)(block)
