"""Run a function over blocks: bounded, resumable, interruptible."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from clemreg.blocks.plan import Block
from clemreg.errors import FormatError
from clemreg.io.atomic import storage_errors

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
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path = path
        self.job = job
        self.done = self._read()

    def _read(self) -> set[int]:
        if not self.path.exists():
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


def run(
    function: Callable[[Block], None],
    blocks: Iterable[Block],
    *,
    ledger: Ledger | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Call `function` once for every block that is not finished.

    At most ``2 * workers`` blocks are under way, so memory does not grow with the volume. The
    first exception, and Ctrl-C, stop the run after the blocks under way; what was finished is in
    the ledger, and the same call goes on from there.
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

    if workers <= 1:
        for block in todo:
            function(block)
            done(block)
        return
    _run_threads(function, todo, workers, done)


def _run_threads(
    function: Callable[[Block], None],
    todo: list[Block],
    workers: int,
    done: Callable[[Block], None],
) -> None:
    with ThreadPoolExecutor(workers) as pool:
        waiting: dict[Future[None], Block] = {}
        queue = iter(todo)
        try:
            while True:
                for block in queue:
                    waiting[pool.submit(function, block)] = block
                    if len(waiting) >= 2 * workers:
                        break
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    block = waiting.pop(future)
                    future.result()
                    done(block)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
