"""Coarser levels of a volume that is being written, block by block."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from clemreg.blocks.executors import Executor
from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Ledger, Progress, remove_ledger, run
from clemreg.io.writer import VolumeWriter


def write_pyramid(
    writer: VolumeWriter, ledger: Path, executor: Executor, progress: Progress | None = None
) -> None:
    """Pool all levels of a volume whose finest is written; then the writer need not.

    Parameters
    ----------
    ledger
        File for the finished blocks of the level that is being made.
    """
    for level in range(writer.pooled + 1, len(writer.grids)):
        blocks = plan_blocks(writer.grids[level].shape, writer.pooling_block)
        done = Ledger(ledger.with_suffix(f".level{level}"), f"{writer.pooling_block}")
        work = _PoolBlock(writer, level)
        run(work, blocks, executor=executor, ledger=done, progress=progress)
        writer.pooled = level


def remove_ledgers(ledger: Path) -> None:
    """Remove what `write_pyramid` has noted of its levels."""
    for path in ledger.parent.glob(f"{glob.escape(ledger.stem)}.level*"):
        if path.suffix.removeprefix(".level").isdigit():
            remove_ledger(path)


@dataclass(frozen=True)
class _PoolBlock:
    writer: VolumeWriter
    level: int

    def __call__(self, block: Block) -> None:
        self.writer.pool(self.level, block.core)
