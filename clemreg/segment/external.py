"""Predict a volume with any network that keeps the contract, block by block and resumable."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Ledger, Progress, run
from clemreg.errors import DataError, VoxelSizeError
from clemreg.io.atomic import partial_path, remove
from clemreg.io.quantise import quantise
from clemreg.io.volumes import WriteOptions, create_volume, open_volume
from clemreg.segment.contract import BlockNetwork
from clemreg.segment.data import contrast_limits
from clemreg.space.grid import Box, Grid
from clemreg.volume import Volume

log = logging.getLogger(__name__)

# Voxels may differ from the network's by this ratio along an axis: 5.24 nm counts as 4 nm.
TOLERATED_RATIO = 1.35
_PLANES = 24


def predict_with(
    volume: Volume,
    network: BlockNetwork,
    out: Path,
    *,
    limits: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Predict with a network of the user's own, or of the paper.

    Parameters
    ----------
    volume
        EM (z, y, x); the level of its pyramid with the network's voxel size is used.
    out
        OME-Zarr to write: uint8 (class, z, y, x), ``v = clip(round(128 x + 127), 0, 255)``.
        While unfinished it lies beside, with a ledger, and is gone on with.
    limits
        Grey values that become -1 and 1; None: percentiles of the volume.

    Raises
    ------
    VoxelSizeError
        No level has the voxel size that the network takes.
    DataError
        The EM holds NaN.
    """
    level = _fitting_level(volume, network)
    grid = output_grid(level.grid, network)
    low_high = limits or contrast_limits(_sample(volume.levels[-1]))
    job = f"{network.name} {network.classes} {network.output_size} {level.grid} {low_high}"
    ledger_path = partial_path(out).with_suffix(".blocks")
    if not partial_path(out).exists():
        ledger_path.unlink(missing_ok=True)
    ledger = Ledger(ledger_path, job)
    options = WriteOptions(chunk=network.output_size, resume=True)
    with create_volume(out, grid, np.uint8, channels=network.classes, options=options) as writer:

        def work(block: Block) -> None:
            em = _normalised(_read(level, _input_box(block.core, network)), low_high)
            z, y, x = block.core.shape
            writer[block.core] = quantise(network(em)[:, :z, :y, :x])

        run(work, plan_blocks(grid.shape, network.output_size), ledger=ledger, progress=progress)
    remove(ledger_path)
    return open_volume(out, frame=volume.grid.frame)


def output_grid(grid: Grid, network: BlockNetwork) -> Grid:
    """Voxels of the prediction: those of the EM, divided as often as the network does."""
    scale = np.asarray(network.scale)
    spacing = np.asarray(grid.spacing_nm) / scale
    origin = np.asarray(grid.origin_nm) - (scale - 1) / 2 * spacing
    shape = np.asarray(grid.shape) * scale
    return Grid(tuple(shape), tuple(spacing), tuple(origin), grid.frame)


def _fitting_level(volume: Volume, network: BlockNetwork) -> Volume:
    wanted = np.asarray(network.input_nm)
    misfits = []
    for level in volume.levels:
        ratio = np.asarray(level.grid.spacing_nm) / wanted
        misfits.append(float(np.maximum(ratio, 1 / ratio).max()))
    nearest = int(np.argmin(misfits))
    level = volume.levels[nearest]
    if misfits[nearest] > TOLERATED_RATIO:
        raise VoxelSizeError(
            f"{network.name} takes EM of {network.input_nm} nm (z, y, x); "
            f"{volume.name or 'the EM'} has {[v.grid.spacing_nm for v in volume.levels]} nm",
            hint="resample the EM, or use a network made for its voxel size",
        )
    if misfits[nearest] > 1.01:
        log.warning(
            "EM voxels of %s nm (z, y, x) are taken as the network's %s nm",
            level.grid.spacing_nm,
            network.input_nm,
        )
    return level


def _input_box(core: Box, network: BlockNetwork) -> Box:
    """Input voxels (they may lie outside) for the output block that starts at a core."""
    start = tuple(
        a // s - h for a, s, h in zip(core.start, network.scale, network.halo, strict=True)
    )
    stop = tuple(a + n for a, n in zip(start, network.input_size, strict=True))
    return Box(start, stop)  # type: ignore[arg-type]


def _read(volume: Volume, box: Box) -> NDArray[np.float32]:
    """Read a box; beyond the volume it is mirrored."""
    inside = box.clip(volume.shape)
    block = np.asarray(volume.read(inside), dtype=np.float32)
    if not np.isfinite(block).all():
        raise DataError(f"{volume.name or 'the EM'} holds NaN or infinite values in {inside}")
    width = [
        (low - a, b - high)
        for a, b, low, high in zip(box.start, box.stop, inside.start, inside.stop, strict=True)
    ]
    mirrored: NDArray[np.float32] = np.pad(block, width, mode="symmetric")
    return mirrored


def _normalised(em: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.float32]:
    low, high = limits
    scaled: NDArray[np.float32] = np.clip((em - low) * (2 / (high - low)) - 1, -1, 1)
    return scaled.astype(np.float32)


def _sample(volume: Volume) -> NDArray[np.generic]:
    """Read some planes of a volume."""
    planes = np.unique(np.linspace(0, volume.shape[0] - 1, _PLANES).astype(int))
    _, y, x = volume.shape
    return np.concatenate([volume.read(Box((int(z), 0, 0), (int(z) + 1, y, x))) for z in planes])
