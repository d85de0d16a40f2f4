"""Predict a volume with any network that keeps the contract, block by block and resumable."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Progress, run
from clemreg.blocks.unfinished import forget, open_ledger
from clemreg.errors import ConfigError
from clemreg.io.quantise import quantise
from clemreg.io.volumes import WriteOptions, create_volume, open_volume
from clemreg.segment.blockwise import (
    WORKERS,
    Pace,
    PredictOptions,
    Where,
    find_limits,
    finish,
)
from clemreg.segment.contract import BlockNetwork
from clemreg.segment.reading import Reader, misfit, reader_for
from clemreg.space.grid import Box, Grid
from clemreg.volume import Volume

log = logging.getLogger(__name__)

# Voxels may differ from the network's by this ratio along an axis: 5.24 nm counts as 4 nm.
TOLERATED_RATIO = 1.35
_SAME_RATIO = 1.01


def predict_with(
    volume: Volume,
    network: BlockNetwork,
    out: Path,
    *,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Predict with a network of the user's own, or of the paper.

    While one block is computed, the next is read and the last one written.

    Parameters
    ----------
    volume
        EM (z, y, x); the level of its pyramid with the network's voxel size is used. If none
        comes near, it is resampled, with a note in the log.
    network
        Its own block is used; ``options.block`` must be 0, or that block.
    out
        OME-Zarr to write: uint8 (class, z, y, x), ``v = clip(round(128 x + 127), 0, 255)``.
        While unfinished it lies beside, with a ledger, and is gone on with.

    Raises
    ------
    VoxelSizeError
        The EM is too coarse.
    DataError
        The EM is constant, or holds NaN.
    ConfigError
        Another block was asked for.
    """
    options = options or PredictOptions()
    if options.block and (options.block,) * 3 != network.output_size:
        raise ConfigError(
            f"{network.name} gives blocks of {network.output_size} voxels (z, y, x), "
            f"not of {options.block}",
            hint="leave the block away, or change output_size in the script",
        )
    reader = _reader(volume, network)
    grid = output_grid(reader.grid, network)
    limits = options.limits or find_limits(volume)
    where = Where(options.mask, grid)
    job = f"{network.job} {volume.name} {reader.grid} {limits} {options.job}"
    busy = threading.Lock()
    storage = WriteOptions(chunk=network.output_size, resume=True)
    writer = create_volume(out, grid, np.uint8, channels=network.classes, options=storage)
    ledger = open_ledger(out, job)  # not before the name of the output is known to be one
    fresh = not ledger.done
    with writer:

        def work(block: Block) -> None:
            inside = where.read(block.core)
            if not inside.any():
                writer[block.core] = np.zeros((len(network.classes), *block.core.shape), np.uint8)
                return
            em = _normalised(reader.read(_input_box(block.core, network)), limits)
            z, y, x = block.core.shape
            with busy:
                mean = _mean_of_views(network, em, options.mirrorings)
            writer[block.core] = quantise(mean[:, :z, :y, :x]) * inside

        told = None if progress is None else Pace(progress, grid.shape)
        blocks = plan_blocks(grid.shape, network.output_size)
        run(work, blocks, ledger=ledger, workers=WORKERS, progress=told)
        if fresh:
            where.warn_if_nowhere()
        finish(writer, ledger, progress)
    forget(out)
    return open_volume(out, frame=volume.grid.frame)


def _mean_of_views(
    network: BlockNetwork, em: NDArray[np.float32], mirrorings: Sequence[tuple[int, ...]]
) -> NDArray[np.float32]:
    """Mean of the predictions of mirrored blocks, mirrored back."""
    mean = np.zeros((len(network.classes), *network.output_size), np.float32)
    for axes in mirrorings:
        mean += np.flip(network(np.flip(em, axes)), tuple(a + 1 for a in axes))
    return mean / np.float32(len(mirrorings))


def output_grid(grid: Grid, network: BlockNetwork) -> Grid:
    """Voxels of the prediction: those of the EM, divided as often as the network does."""
    scale = np.asarray(network.scale)
    spacing = np.asarray(grid.spacing_nm) / scale
    origin = np.asarray(grid.origin_nm) - (scale - 1) / 2 * spacing
    shape = np.asarray(grid.shape) * scale
    return Grid(tuple(shape), tuple(spacing), tuple(origin), grid.frame)


def _reader(volume: Volume, network: BlockNetwork) -> Reader:
    """Read the level whose voxels are nearest as they are, or resample."""
    level = min(volume.levels, key=lambda v: misfit(v.grid.spacing_nm, network.input_nm))
    off = misfit(level.grid.spacing_nm, network.input_nm)
    if off > TOLERATED_RATIO:
        return reader_for(volume, network.input_nm, 1.0)  # exactly, as it was trained
    if off > _SAME_RATIO:
        log.warning(
            "EM voxels of %s nm (z, y, x) are taken as the network's %s nm",
            level.grid.spacing_nm,
            network.input_nm,
        )
    return Reader(level, level.grid)


def _input_box(core: Box, network: BlockNetwork) -> Box:
    """Input voxels (they may lie outside) for the output block that starts at a core."""
    start = tuple(
        a // s - h for a, s, h in zip(core.start, network.scale, network.halo, strict=True)
    )
    stop = tuple(a + n for a, n in zip(start, network.input_size, strict=True))
    return Box(start, stop)  # type: ignore[arg-type]


def _normalised(em: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.float32]:
    low, high = limits
    scaled: NDArray[np.float32] = np.clip((em - low) * (2 / (high - low)) - 1, -1, 1)
    return scaled.astype(np.float32)
