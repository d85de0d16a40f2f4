"""Work through blocks and keep what each found: in memory, or in a folder that a rerun goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Ledger, Progress, run
from clemreg.errors import GridError
from clemreg.io.atomic import atomic_path
from clemreg.space.grid import Shape
from clemreg.volume import Volume

Found = Mapping[str, NDArray[Any]]
"""What one block found: named arrays."""


@dataclass(frozen=True)
class Schedule:
    """How a volume is worked through; no choice here changes a result.

    Attributes
    ----------
    block
        Voxels per block, zyx.
    workers
        Threads.
    scratch
        Folder for what each block found: a killed job goes on from there, and memory does not
        grow with the number of blocks. None: in memory.
    progress
        Called with (done, total, message).
    """

    block: Shape = (128, 128, 128)
    workers: int = 1
    scratch: Path | None = None
    progress: Progress | None = None


def gather(
    function: Callable[[Block], Found],
    shape: Shape,
    schedule: Schedule,
    *,
    halo: int | Sequence[int] = 0,
    job: str = "",
) -> Iterator[Found]:
    """Run `function` over every block of `shape`; yield what they found in the order of the plan.

    Parameters
    ----------
    job
        What is computed from what; with it a rerun knows its own unfinished work from another's.

    Raises
    ------
    FormatError
        The scratch folder holds the unfinished work of another job.
    """
    blocks = plan_blocks(shape, schedule.block, halo)
    if schedule.scratch is None:
        yield from _in_memory(function, blocks, schedule)
        return
    folder = schedule.scratch

    def work(block: Block) -> None:
        with atomic_path(folder / f"{block.number}.npz") as partial, partial.open("wb") as stream:
            np.savez(stream, **function(block))  # type: ignore[arg-type]

    words = f"{job} {shape} {schedule.block}"
    ledger = Ledger(folder / "ledger", hashlib.sha256(words.encode()).hexdigest()[:16])
    run(work, blocks, ledger=ledger, workers=schedule.workers, progress=schedule.progress)
    for block in blocks:
        with np.load(folder / f"{block.number}.npz") as found:
            yield dict(found)


def _in_memory(
    function: Callable[[Block], Found], blocks: Sequence[Block], schedule: Schedule
) -> Iterator[Found]:
    kept: dict[int, Found] = {}

    def work(block: Block) -> None:
        kept[block.number] = function(block)

    run(work, blocks, workers=schedule.workers, progress=schedule.progress)
    for block in blocks:
        yield kept.pop(block.number)


def same_grid(first: Volume, second: Volume) -> None:
    """Check that two volumes have the same voxels.

    Raises
    ------
    GridError
        Shape, voxel size or origin differ.
    """
    a, b = first.grid, second.grid
    near = np.allclose(a.spacing_nm, b.spacing_nm, rtol=1e-6) and np.allclose(
        a.origin_nm, b.origin_nm, atol=1e-3 * min(a.spacing_nm)
    )
    if a.shape != b.shape or not near:
        raise GridError(
            f"{first.name or 'the first volume'} (shape {a.shape}, voxel {a.spacing_nm} nm, origin "
            f"{a.origin_nm} nm, zyx) and {second.name or 'the second'} (shape {b.shape}, voxel "
            f"{b.spacing_nm} nm, origin {b.origin_nm} nm) do not have the same voxels",
            hint="bring both onto one grid first",
        )
