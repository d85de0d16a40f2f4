"""What resampling an image would take: blocks, bytes, time; measured on a few blocks."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.register.apply import ApplyOptions, check_frames, source_box, warp_box
from clemreg.register.positions import Positions
from clemreg.space.grid import Box, Grid
from clemreg.space.transform import Transform
from clemreg.volume import Volume

_MAPPED = 64
_TIMED = 4
_PLANE_BYTES = 64  # corners, fractions and the values around each voxel of a plane


@dataclass(frozen=True)
class ApplyEstimate:
    """What a run would take.

    Attributes
    ----------
    blocks, voxels
        Of the output.
    output_bytes
        Before compression, without the pyramid (which adds a seventh at most).
    input_bytes
        Read, before decompression; what neighbouring blocks read twice counts twice.
    block_bytes
        Work space of one block and worker.
    step
        Voxels between evaluations of the transform; 0: at every voxel.
    seconds
        With the workers asked for, from resampling a few blocks; without writing.
    """

    blocks: int
    voxels: int
    output_bytes: int
    input_bytes: int
    block_bytes: int
    step: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def estimate_apply(
    transform: Transform, image: Volume, onto: Grid, options: ApplyOptions | None = None
) -> ApplyEstimate:
    """Estimate what `apply_to_image` would take; nothing is written.

    Blocks spread over the volume are mapped to the image, and a few of them resampled.

    Raises
    ------
    FrameError
        Grid, transform and image do not meet.
    """
    options = options or ApplyOptions()
    check_frames(transform, image, onto)
    positions = Positions(transform, onto, image.grid, options.tolerance_voxels)
    blocks = plan_blocks(onto.shape, options.block)
    channels = len(image.channels) or 1
    width = image.dtype.itemsize * channels
    read = [
        source_box(positions.planes(b.core), image.shape).size for b in _spread(blocks, _MAPPED)
    ]
    timed = _spread(blocks, _TIMED)
    begin = time.perf_counter()
    for block in timed:
        warp_box(positions, image, block.core)
    rate = sum(b.core.size for b in timed) / max(time.perf_counter() - begin, 1e-9)
    largest = max((b.core for b in blocks), key=lambda core: core.size)
    return ApplyEstimate(
        blocks=len(blocks),
        voxels=onto.size,
        output_bytes=onto.size * width,
        input_bytes=int(np.mean(read) * len(blocks)) * width,
        block_bytes=largest.size * width + max(read) * width + _index_bytes(largest, positions),
        step=positions.step,
        seconds=onto.size / rate / max(1, options.workers),
    )


def _index_bytes(box: Box, positions: Positions) -> int:
    """Memory for places in the image: of a plane, or of all voxels if each is evaluated."""
    plane = box.shape[1] * box.shape[2]
    return plane * _PLANE_BYTES + (plane if positions.step else box.size) * 3 * 8


def _spread(blocks: list[Block], count: int) -> list[Block]:
    """Choose `count` blocks at random, the same ones every time."""
    rng = np.random.default_rng(0)
    return [blocks[i] for i in rng.choice(len(blocks), min(count, len(blocks)), replace=False)]
