"""Run a function over blocks: bounded, resumable, interruptible."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from clemreg.blocks.executors import Executor, Pool, Serial, Threads, Work
from clemreg.blocks.plan import Block
from clemreg.errors import ClemregError, FormatError, StorageError
from clemreg.io.atomic import storage_errors

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with (done, total, message)."""


class Ledger:
    """A text file with the number of each finished block, one a line.

    Its first line says which job it belongs to. A torn last line counts for nothing.

    Parameters
    ----------
    path
        Ledger file.
    job
        Identifies job and block layout; a ledger of another job is refused.

    Raises
    ------
    FormatError
        The ledger belongs to another job.
    StorageError
        Something else has this name.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path = path
        self.job = job
        self.done = self._read()

    def _read(self) -> set[int]:
        check_ledger(self.path)
        if not self.path.exists() or not self.path.stat().st_size:
            with storage_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(f"job {self.job}\n", encoding="utf-8")
            return set()
        lines = self.path.read_text(encoding="utf-8").split("\n")
        if lines[0] != f"job {self.job}":
            raise FormatError(
                f"{self.path} belongs to another job",
                hint="choose another output, or remove the unfinished one",
            )
        return {int(line) for line in lines[1:-1] if line.isdigit()}

    def add(self, number: int) -> None:
        """Note that a block is finished."""
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{number}\n")
            stream.flush()
        self.done.add(number)


def remove_ledger(path: Path) -> None:
    """Remove a ledger, if it is there.

    Raises
    ------
    StorageError
        Something else has this name.
    """
    check_ledger(path)
    path.unlink(missing_ok=True)


def check_ledger(path: Path) -> None:
    """Check that a path is free, or a ledger.

    Raises
    ------
    StorageError
        Something else has this name.
    """
    if not path.exists() and not path.is_symlink():
        return
    if path.is_file():
        with path.open("rb") as stream:
            head = stream.read(4)
        if head in (b"job ", b""):  # empty: killed before the first line was on disk
            return
    raise StorageError(
        f"{path} is in the way: notes on finished blocks have this name, but it is none of these",
        hint="rename or move it, or choose another output",
    )


def run(
    function: Work,
    blocks: Iterable[Block],
    *,
    executor: Executor | None = None,
    ledger: Ledger | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Call `function` once for every block that is not finished.

    At most two blocks a worker are under way, so memory does not grow with the volume. The first
    exception, and Ctrl-C, stop the run after the blocks under way; what was finished is in the
    ledger, and the same call goes on from there. A block whose worker died, or that met a storage
    failure, is done again as often as the executor allows; so doing a block twice must be
    harmless.

    Parameters
    ----------
    function
        Does one block; what it makes goes to storage.
    executor
        Who does the work; None: `workers` threads, or the calling thread if that is 1.
    ledger
        Notes what is finished.

    Raises
    ------
    ClemregError
        The worker of a block died too often.
    """
    todo = list(blocks)
    total = len(todo)
    if ledger is not None:
        todo = [block for block in todo if block.number not in ledger.done]
    finished = total - len(todo)

    def done(block: Block) -> None:
        nonlocal finished
        finished += 1
        if ledger is not None:
            ledger.add(block.number)
        if progress is not None:
            progress(finished, total, "blocks")

    if not todo:
        return
    executor = executor or (Threads(workers) if workers > 1 else Serial())
    with executor.open(function) as pool:
        _drive(pool, todo, executor.retries, done)


def _drive(pool: Pool, todo: list[Block], retries: int, done: Callable[[Block], None]) -> None:
    queue = deque(todo)
    waiting: dict[Any, Block] = {}
    failures: Counter[int] = Counter()
    while queue or waiting:
        while queue and len(waiting) < pool.width:
            block = queue.popleft()
            waiting[pool.submit(block)] = block
        for task in pool.first_done(waiting):
            block = waiting.pop(task)
            try:
                task.result()
            except pool.lost as error:
                failures[block.number] += 1
                if failures[block.number] > retries:
                    raise ClemregError(
                        f"the worker of block {block.number} ({block.core}) died each time",
                        hint="most often memory is short: take smaller blocks or fewer workers",
                    ) from error
                log.warning("the worker of block %d died; it is done again", block.number)
                queue.appendleft(block)
            except OSError as error:
                failures[block.number] += 1
                if failures[block.number] > retries or isinstance(error, ClemregError):
                    raise
                log.warning("block %d is done again: %s", block.number, error)
                queue.appendleft(block)
            else:
                done(block)
