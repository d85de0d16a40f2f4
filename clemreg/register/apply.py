"""Use a transform: resample an image block by block, or map points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Progress, run
from clemreg.errors import FrameError, GridError
from clemreg.io.volumes import WriteOptions, create_volume, open_volume
from clemreg.io.writer import Format
from clemreg.space.grid import Box, Grid
from clemreg.space.resample import sample_array
from clemreg.space.transform import FloatArray, Transform
from clemreg.volume import Labels, Volume

BLOCK = (64, 128, 128)


def apply_to_points(transform: Transform, points_nm: ArrayLike) -> FloatArray:
    """Map points (N, 3) zyx nm of the transform's source frame to its target frame."""
    return transform(points_nm)


def warp_block(transform: Transform, image: Volume, grid: Grid) -> NDArray[np.generic]:
    """Resample an image onto a (small) grid: linear, or nearest for `Labels`; 0 outside.

    Only the part of the image that the grid maps to is read.

    Parameters
    ----------
    transform
        From the grid's frame to the image's frame.
    image
        (z, y, x) or (c, z, y, x), lazy.
    grid
        Where the result's voxels are.

    Raises
    ------
    FrameError
        Grid, transform and image do not meet.
    """
    _check(transform, image, grid)
    points = transform(grid.points_nm().reshape(-1, 3))
    count = len(image.channels) or 1
    is_labels = isinstance(image, Labels)
    result = np.zeros((count, *grid.shape), image.dtype)
    index = image.grid.to_index(points)
    low = np.maximum(0, np.floor(index.min(axis=0)).astype(int) - 1)
    high = np.minimum(image.shape, np.ceil(index.max(axis=0)).astype(int) + 2)
    if (high > low).all():
        box = Box(tuple(int(v) for v in low), tuple(int(v) for v in high))  # type: ignore[arg-type]
        part = image.read(box)
        inside = image.grid.contains(points)
        for c, pixels in enumerate(part if image.channels else part[None]):
            values = sample_array(
                pixels, image.grid.crop(box), points[inside], order=0 if is_labels else 1
            )
            if image.dtype.kind in "iu" and not is_labels:
                values = np.rint(values)
            result[c].reshape(-1)[inside] = values.astype(image.dtype)
    return result if image.channels else result[0]


@dataclass(frozen=True)
class _WarpedArray:
    """Resampled when a block is asked for."""

    transform: Transform
    image: Volume
    grid: Grid

    @property
    def shape(self) -> tuple[int, ...]:
        return self.grid.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.image.dtype

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.generic]:
        bounds = [k.indices(n) for k, n in zip(key, self.shape, strict=True)]
        box = Box(tuple(b[0] for b in bounds), tuple(b[1] for b in bounds))  # type: ignore[arg-type]
        return warp_block(self.transform, self.image, self.grid.crop(box))


def warped_volume(transform: Transform, image: Volume, onto: Grid) -> Volume:
    """Return an image (z, y, x) on another grid, lazily: a block is resampled when it is read.

    Raises
    ------
    FrameError
        Grid, transform and image do not meet.
    """
    _check(transform, image, onto)
    return Volume(_WarpedArray(transform, image, onto), onto, name=f"warped {image.name}".strip())


def apply_to_image(
    transform: Transform,
    image: Volume,
    onto: Grid,
    out: Path,
    *,
    format: Format = "zarr",  # noqa: A002
    progress: Progress | None = None,
) -> Volume:
    """Resample an image onto a grid, block by block, and write it.

    Parameters
    ----------
    transform
        From ``onto.frame`` to the image's frame: the registration itself for EM onto LM, its
        inverse for LM onto EM.
    image
        Intensities or `Labels`.
    onto
        Grid of the result.
    out
        Volume to write; memory is bounded by the block, not by the volume.

    Returns
    -------
    Volume
        What was written.
    """
    _check(transform, image, onto)
    options = WriteOptions(labels=isinstance(image, Labels))
    with create_volume(
        out, onto, image.dtype, format=format, channels=image.channels, options=options
    ) as writer:

        def work(block: Block) -> None:
            writer[block.core] = warp_block(transform, image, onto.crop(block.core))

        run(work, plan_blocks(onto.shape, BLOCK), progress=progress)
    return open_volume(out, frame=onto.frame)


def covering_box(transform: Transform, image: Grid, onto: Grid, margin_nm: float = 0.0) -> Box:
    """Voxels of `onto` that an image covers, with a margin.

    The transform is evaluated forward on a lattice, so that a transform that folds, and so has
    no inverse, has a covering box too.

    Parameters
    ----------
    transform
        From the frame of `onto` to that of the image.
    margin_nm
        Added on every side.

    Raises
    ------
    GridError
        The image lies elsewhere.
    """
    reach = min(250.0, float(image.extent_nm.min()) / 4)
    step = np.maximum(1, (reach / np.asarray(onto.spacing_nm)).astype(int))
    axes = [
        np.unique(np.append(np.arange(0, n, k), n - 1))
        for n, k in zip(onto.shape, step, strict=True)
    ]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    near = index[image.contains(transform(onto.to_world(index)))]
    if not len(near):
        raise GridError("the image does not reach the grid", hint="are frames and units right?")
    grown = step + np.ceil(margin_nm / np.asarray(onto.spacing_nm)).astype(int)
    low, high = near.min(axis=0) - grown, near.max(axis=0) + grown + 1
    box = Box(tuple(int(v) for v in low), tuple(int(v) for v in high))  # type: ignore[arg-type]
    return box.clip(onto.shape)


def _check(transform: Transform, image: Volume, onto: Grid) -> None:
    if onto.frame != transform.source or image.grid.frame != transform.target:
        raise FrameError(
            f"cannot bring an image of frame {image.grid.frame!r} onto a grid of frame "
            f"{onto.frame!r} with a transform {transform.source!r} -> {transform.target!r}",
            hint="the transform must lead from the grid's frame to the image's; try .inverse()",
        )
