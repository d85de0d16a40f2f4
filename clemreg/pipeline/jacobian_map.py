"""``clemreg evaluate jacobian --map``: the determinant as an image, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Progress, run
from clemreg.io.atomic import remove
from clemreg.io.volumes import create_volume, open_volume, write_tiff
from clemreg.space.grid import Grid
from clemreg.space.transform import Transform

BLOCK = (64, 128, 128)
TIFF = (".tif", ".tiff")


def write_jacobian_map(
    transform: Transform, grid: Grid, out: Path, progress: Progress | None = None
) -> None:
    """Write the Jacobian determinant at every voxel of a grid, as float32.

    1 is no change of volume, 0 or less is a fold; the affine part is included.

    Parameters
    ----------
    transform
        Evaluated on its source side.
    grid
        In the transform's source frame.
    out
        ``.zarr``, or ``.tif`` for ImageJ.
    progress
        Told after each block.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    is_tiff = out.suffix.lower() in TIFF
    store = out.with_name(f".{out.name}.zarr") if is_tiff else out
    with create_volume(store, grid, np.float32) as writer:

        def work(block: Block) -> None:
            points = grid.points_nm(block.core).reshape(-1, 3)
            writer[block.core] = transform.determinant(points).reshape(block.core.shape)

        run(work, plan_blocks(grid.shape, BLOCK), progress=progress)
    if is_tiff:
        write_tiff(out, open_volume(store, frame=grid.frame))
        remove(store)
