"""One pass over a volume, resumable: every block makes voxels, or a few arrays, or both."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from clemreg.blocks.executors import Executor, Serial
from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.pyramid import write_pyramid
from clemreg.blocks.run import Ledger, Progress, run
from clemreg.blocks.unfinished import forget, open_ledger
from clemreg.errors import DataError
from clemreg.io.atomic import atomic_path
from clemreg.io.volumes import VolumeWriter, WriteOptions, create_volume, open_volume
from clemreg.space.grid import Box, Grid, Shape, Triple
from clemreg.volume import Volume

Read = Callable[[Box], NDArray[Any]]
"""Gives the voxels (z, y, x) of any box inside a volume; picklable, as `Volume.read` is."""

Part = Mapping[str, NDArray[Any]]

LONGEST_CHUNK = 96
MANY_CHUNKS = 50_000
"""With more of them, a volume is stored in shards, one file a block: file systems want fewer."""


@dataclass(frozen=True)
class Blockwise:
    """How a volume is gone through.

    Attributes
    ----------
    block
        Voxels per block, zyx. Results do not depend on it.
    executor
        Who does the work.
    progress
        Told of finished blocks.
    """

    block: Shape = (128, 128, 128)
    executor: Executor = field(default_factory=Serial)
    progress: Progress | None = None

    def blocks(self, grid: Grid) -> list[Block]:
        """Blocks of a grid, z slowest, without halo."""
        return plan_blocks(grid.shape, self.block)

    def named(self, stage: str) -> Blockwise:
        """Let progress carry the name of a stage."""
        progress = self.progress
        if progress is None:
            return self
        return replace(self, progress=lambda done, total, _: progress(done, total, stage))


@dataclass(frozen=True)
class VolumeFile:
    """Reads boxes of a volume that each process opens for itself (TIFF and HDF5 need that).

    Parameters
    ----------
    uri, spacing_nm, channel, frame
        As in `clemreg.io.volumes.open_volume`.
    """

    uri: str
    spacing_nm: Triple | None = None
    channel: str | int | None = None
    frame: str = "em"

    def open(self) -> Volume:
        """Open the volume, once a process unless the file changes."""
        path = Path(self.uri.partition("::")[0])
        return _opened(self, path.stat().st_mtime_ns if path.exists() else 0)

    def __call__(self, box: Box) -> NDArray[Any]:
        """Read a box.

        Raises
        ------
        DataError
            The volume holds NaN there.
        """
        voxels = self.open().read(box)
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            raise DataError(f"{self.uri} holds NaN or infinite values in {box}")
        return voxels


@lru_cache(maxsize=16)
def _opened(file: VolumeFile, _written_ns: int) -> Volume:
    return open_volume(file.uri, spacing_nm=file.spacing_nm, channel=file.channel, frame=file.frame)


def map_volume(
    read: Read,
    out: Path,
    grid: Grid,
    dtype: DTypeLike,
    how: Blockwise,
    options: WriteOptions | None = None,
) -> Volume:
    """Write what `read` computes, block by block.

    Parameters
    ----------
    read
        Computes the voxels of a box, reading as far around it as it needs.
    out
        OME-Zarr to write. If it is there already, nothing is done; unfinished, it is gone on with.
    options
        Pyramid and pooling; default: one level. Chunks are chosen so that blocks do not share any.

    Returns
    -------
    Volume
        What was written.

    Raises
    ------
    StorageError
        A file or folder that is not ours has the name of the ledger, ``.NAME.blocks``.
    """
    if not out.exists():
        options = stored(options or WriteOptions(levels=1), grid, how.block)
        options = replace(options, resume=True)
        ledger = open_ledger(out, f"{grid} {np.dtype(dtype)} {how.block}")
        with create_volume(out, grid, dtype, options=options) as writer:
            run(
                _WriteBlock(read, writer),
                how.blocks(grid),
                executor=how.executor,
                ledger=ledger,
                progress=how.progress,
            )
            write_pyramid(writer, ledger.path, how.executor, how.progress)
        forget(out)
    return open_volume(out, frame=grid.frame)


@dataclass(frozen=True)
class _WriteBlock:
    read: Read
    writer: VolumeWriter

    def __call__(self, block: Block) -> None:
        self.writer[block.core] = self.read(block.core)


def stored(options: WriteOptions, grid: Grid, block: Shape) -> WriteOptions:
    """Options with chunks, and shards where these are many, of which no two blocks share any."""
    chunk = chunk_of(block)
    many = math.prod(-(-n // c) for n, c in zip(grid.shape, chunk, strict=True)) > MANY_CHUNKS
    return replace(options, chunk=chunk, shard=block if many and chunk != block else None)


def chunk_of(block: Shape) -> Shape:
    """Largest chunk of at most `LONGEST_CHUNK` voxels along each axis that divides a block."""
    z, y, x = (_divisor(n) for n in block)
    return z, y, x


def _divisor(n: int) -> int:
    return next((n // k for k in range(1, 9) if n % k == 0 and n // k <= LONGEST_CHUNK), n)


@dataclass(frozen=True)
class Parts:
    """What `collect` found, one set of arrays a block, read from disk when asked for.

    Parameters
    ----------
    folder
        Where the parts are.
    count
        Number of blocks.
    """

    folder: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, NDArray[Any]]:
        return self.some(number)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        return (self[number] for number in range(self.count))

    def some(self, number: int, *names: str) -> dict[str, NDArray[Any]]:
        """Arrays of one block: those named and there, or all."""
        with np.load(self.path(number)) as stored:
            return {name: stored[name] for name in names or stored.files if name in stored.files}

    def path(self, number: int) -> Path:
        """File of one block."""
        return self.folder / f"{number // 1000:06d}" / f"{number:09d}.npz"


def collect(
    function: Callable[[Block], Part], folder: Path, blocks: list[Block], how: Blockwise
) -> Parts:
    """Keep the arrays that `function` makes of each block; resumable.

    Parameters
    ----------
    function
        Returns named arrays for a block; picklable if the executor has processes.
    folder
        Working folder; what is finished in it is not done again.
    blocks
        Numbered from 0 without gap.

    Returns
    -------
    Parts
        The arrays of each block, in the order of `blocks`.
    """
    parts = Parts(folder, len(blocks))
    job = f"{len(blocks)} {blocks[0].core} {blocks[-1].core}" if blocks else "nothing"
    ledger = Ledger(folder / "blocks", job)
    run(
        _KeepPart(function, parts),
        blocks,
        executor=how.executor,
        ledger=ledger,
        progress=how.progress,
    )
    return parts


@dataclass(frozen=True)
class _KeepPart:
    function: Callable[[Block], Part]
    parts: Parts

    def __call__(self, block: Block) -> None:
        arrays = dict(self.function(block))
        with (
            atomic_path(self.parts.path(block.number)) as partial,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
