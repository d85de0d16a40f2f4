"""Use a transform: resample an image block by block, or map points."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.blocks.executors import Serial, Threads
from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.pyramid import write_pyramid
from clemreg.blocks.run import Progress, run
from clemreg.blocks.unfinished import forget, open_ledger
from clemreg.errors import FrameError, GridError
from clemreg.io.cache import cached
from clemreg.io.volumes import WriteOptions, create_volume, open_labels, open_volume
from clemreg.io.writer import Format
from clemreg.register.positions import TOLERANCE_VOXELS, Planes, Positions
from clemreg.register.sampling import linear, nearest
from clemreg.space.grid import Box, Grid, Shape
from clemreg.space.transform import FloatArray, Transform
from clemreg.volume import Labels, Volume

BLOCK: Shape = (128, 128, 256)
"""Voxels of the result at a time: large, since chunks at its border are read again next door."""
SOURCE_VOXELS = 32_000_000
"""Most voxels of the image that are in memory for one block."""


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
    check_frames(transform, image, grid)
    return warp_box(Positions(transform, grid, image.grid), image, grid.box)


def warp_box(positions: Positions, image: Volume, box: Box) -> NDArray[np.generic]:
    """Resample an image onto some voxels of a grid.

    The part of the image that is read at a time is bounded: a box that maps to more is cut.

    Parameters
    ----------
    positions
        Where the voxels of the grid lie in the image.
    box
        Voxels of the grid to resample.
    """
    planes = positions.planes(box)
    source = source_box(planes, image.shape)
    if source.size > SOURCE_VOXELS and box.size > 1:
        axis = int(np.argmax(box.shape))
        halves = _halves(box, axis)
        parts = [warp_box(positions, image, half) for half in halves]
        return np.concatenate(parts, axis=axis - 3)
    result = np.zeros((len(image.channels) or 1, *box.shape), image.dtype)
    if source.size:
        _fill(result, planes, image, source)
    return result if image.channels else result[0]


def source_box(planes: Planes, shape: tuple[int, ...]) -> Box:
    """Voxels of an image of that shape that planes of indices need for interpolation."""
    low = np.maximum(0, np.floor(planes.low).astype(int) - 1)
    high = np.minimum(shape, np.ceil(planes.high).astype(int) + 2)
    return Box(tuple(low), tuple(np.maximum(low, high)))


def _halves(box: Box, axis: int) -> tuple[Box, Box]:
    middle = (box.start[axis] + box.stop[axis]) // 2
    stop, start = list(box.stop), list(box.start)
    stop[axis] = start[axis] = middle
    return Box(box.start, tuple(stop)), Box(tuple(start), box.stop)  # type: ignore[arg-type]


def _fill(result: NDArray[Any], planes: Planes, image: Volume, source: Box) -> None:
    """Sample the voxels of `source`, which are all that is needed, at planes of indices."""
    part = image.read(source)
    # What is compiled takes numbers as this machine has them, no floats of 16 bits, no booleans.
    odd = part.dtype.kind == "b" or part.dtype.name == "float16"
    kind = np.dtype(np.float32) if odd else part.dtype.newbyteorder("=")
    channels = np.ascontiguousarray(part if image.channels else part[None], kind)
    labels = isinstance(image, Labels)
    values = np.empty(result.shape[2:], kind if labels else np.float64)
    sample, rounded = (nearest, False) if labels else (linear, part.dtype.kind in "iub")
    first, shape = np.array(source.start), np.array(image.shape)
    for z in range(len(planes)):
        index = planes[z]
        for c, pixels in enumerate(channels):
            sample(pixels, first, index, shape, values)
            result[c, z] = np.rint(values, out=values) if rounded else values


@dataclass(frozen=True)
class _WarpedArray:
    """Resampled when a block is asked for."""

    positions: Positions
    image: Volume

    @property
    def shape(self) -> tuple[int, ...]:
        return self.positions.onto.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.image.dtype

    def __getitem__(self, key: tuple[slice, ...], /) -> NDArray[np.generic]:
        bounds = [k.indices(n) for k, n in zip(key, self.shape, strict=True)]
        box = Box(tuple(b[0] for b in bounds), tuple(b[1] for b in bounds))  # type: ignore[arg-type]
        return warp_box(self.positions, self.image, box)


def warped_volume(transform: Transform, image: Volume, onto: Grid) -> Volume:
    """Return an image (z, y, x) on another grid, lazily: a block is resampled when it is read.

    Raises
    ------
    FrameError
        Grid, transform and image do not meet.
    """
    check_frames(transform, image, onto)
    array = _WarpedArray(Positions(transform, onto, image.grid), cached(image))
    return Volume(array, onto, name=f"warped {image.name}".strip())


@dataclass(frozen=True)
class ApplyOptions:
    """How an image is resampled and stored.

    Attributes
    ----------
    format
        ``"zarr"``, ``"zarr2"`` or ``"n5"``.
    block
        Voxels per block of the output, zyx; multiples of the 64-voxel chunks.
    workers
        Threads.
    tolerance_voxels
        Largest error of a position, in voxels of the image; 0 evaluates the transform at every
        voxel.
    inputs
        Text that changes with the voxels of the image, such as a fingerprint of its file: a killed
        run does not go on with other ones.
    """

    format: Format = "zarr"
    block: Shape = BLOCK
    workers: int = 1
    tolerance_voxels: float = TOLERANCE_VOXELS
    inputs: str = ""


def apply_to_image(
    transform: Transform,
    image: Volume,
    onto: Grid,
    out: Path,
    options: ApplyOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Volume:
    """Resample an image onto a grid, block by block, and write it.

    A killed run goes on with the blocks that are missing.

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

    Raises
    ------
    FormatError
        The unfinished output is of another transform, image, grid or option.
    """
    check_frames(transform, image, onto)
    options = options or ApplyOptions(block=BLOCK)
    positions = Positions(transform, onto, image.grid, options.tolerance_voxels)
    is_labels = isinstance(image, Labels)
    source = cached(image)
    executor = Threads(options.workers) if options.workers > 1 else Serial()
    with create_volume(
        out,
        onto,
        image.dtype,
        format=options.format,
        channels=image.channels,
        options=WriteOptions(labels=is_labels, resume=True),
    ) as writer:

        def work(block: Block) -> None:
            writer[block.core] = warp_box(positions, source, block.core)

        ledger = open_ledger(out, _job(transform, image, onto, options))
        blocks = plan_blocks(onto.shape, options.block)
        run(work, blocks, executor=executor, ledger=ledger, progress=progress)
        write_pyramid(writer, ledger.path, executor, progress)
    forget(out)
    opener = open_labels if is_labels else open_volume
    return opener(out, frame=onto.frame)


def _job(transform: Transform, image: Volume, onto: Grid, options: ApplyOptions) -> str:
    """Text that says what is resampled how; the transform by where it sends a few points."""
    corner, far = onto.to_world((0, 0, 0)), onto.to_world(onto.shape)
    axes = np.linspace(0.02, 0.98, 7)
    points = corner + np.array(list(itertools.product(axes, repeat=3))) * (far - corner)
    print_ = hashlib.sha256(np.round(transform(points), 3).tobytes()).hexdigest()[:16]
    kind = f"{type(image).__name__} {image.name} {image.dtype} {image.grid}"
    return f"apply {print_} {kind} {onto} {options}"


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


def check_frames(transform: Transform, image: Volume, onto: Grid) -> None:
    """Raise FrameError unless the transform leads from the grid's frame to the image's."""
    if onto.frame != transform.source or image.grid.frame != transform.target:
        raise FrameError(
            f"cannot bring an image of frame {image.grid.frame!r} onto a grid of frame "
            f"{onto.frame!r} with a transform {transform.source!r} -> {transform.target!r}",
            hint="the transform must lead from the grid's frame to the image's; try .inverse()",
        )
