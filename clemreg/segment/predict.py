"""Predict a volume block by block; a killed run goes on with the blocks that are missing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Ledger, Progress, run
from clemreg.errors import DataError, VoxelSizeError
from clemreg.io.atomic import partial_path, remove
from clemreg.io.quantise import quantise
from clemreg.io.volumes import WriteOptions, create_volume, open_volume
from clemreg.segment.data import contrast_limits, normalise
from clemreg.segment.models import Model
from clemreg.segment.network import UNet
from clemreg.segment.training import bfloat16_is_fast
from clemreg.space.grid import Box
from clemreg.volume import Volume

log = logging.getLogger(__name__)

# A voxel size within this ratio of the network's is taken as it is: training covers it.
TOLERATED_RATIO = 1.25
# Finer than this in volume and the resampled EM would be mostly invention.
MOST_UPSAMPLING = 30.0
COLOURS = ("FF00FF", "00FF00", "00FFFF")


@dataclass(frozen=True)
class PredictOptions:
    """How to predict.

    Attributes
    ----------
    block
        Output voxels per block along each axis.
    threads
        Threads of torch; 0: as torch chooses.
    precise
        Compute in float32 even where bfloat16 is faster; blocks of any size then give the same
        voxels.
    limits
        Grey values that become -1 and 1; None: percentiles of the volume.
    """

    block: int = 96
    threads: int = 0
    precise: bool = False
    limits: tuple[float, float] | None = None


def predict(
    volume: Volume,
    model: Model,
    out: Path,
    *,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Predict signed distances of the model's classes.

    Parameters
    ----------
    volume
        EM (z, y, x). If its voxels differ from the model's by more than a quarter, it is
        resampled to the model's, with a note in the log.
    out
        OME-Zarr to write: uint8 (class, z, y, x), ``v = clip(round(128 x + 127), 0, 255)``. While
        unfinished it lies beside, with a ledger, and is gone on with.

    Returns
    -------
    Volume
        What was written.

    Raises
    ------
    DataError
        The EM is one slice, constant, or holds NaN.
    """
    options = options or PredictOptions()
    if options.threads:
        torch.set_num_threads(options.threads)
    reader = _Reader(volume, model)
    limits = options.limits or _limits(volume)
    network = _Runner(model.network, options.precise)
    size = max(network.step, options.block // network.step * network.step)
    blocks = plan_blocks(reader.grid.shape, (size,) * 3, network.halo)
    job = f"{model.card.name} {reader.grid} {size} {limits} {options.precise}"
    ledger_path = partial_path(out).with_suffix(".blocks")
    if not partial_path(out).exists():
        ledger_path.unlink(missing_ok=True)
    ledger = Ledger(ledger_path, job)
    writing = WriteOptions(
        chunk=(min(size, 64),) * 3, resume=True, colours=COLOURS[: len(model.classes)]
    )
    if size % writing.chunk[0]:
        writing = WriteOptions(chunk=(size,) * 3, resume=True, colours=writing.colours)

    with create_volume(
        out, reader.grid, np.uint8, channels=model.classes, options=writing
    ) as writer:

        def work(block: Block) -> None:
            em = normalise(reader.read(_input_box(block, network)), limits)
            values = network(em)
            z, y, x = block.core.shape
            writer[block.core] = quantise(values[:, :z, :y, :x])

        run(work, blocks, ledger=ledger, progress=progress)
    remove(ledger_path)
    return open_volume(out, frame=volume.grid.frame)


def _input_box(block: Block, network: _Runner) -> Box:
    """Core grown to a multiple of the network's step, with the halo."""
    stop = tuple(
        a + -(-(b - a) // network.step) * network.step
        for a, b in zip(block.core.start, block.core.stop, strict=True)
    )
    return Box(block.core.start, stop).grow(network.halo)  # type: ignore[arg-type]


class _Runner:
    """The network as a function of numpy arrays."""

    def __init__(self, network: UNet, precise: bool) -> None:
        self.network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.halo, self.step = network.halo, network.step
        self.half = bfloat16_is_fast() and not precise

    def __call__(self, em: NDArray[np.float32]) -> NDArray[np.float32]:
        x = torch.from_numpy(em)[None, None].to(memory_format=torch.channels_last_3d)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return np.asarray(self.network(x)[0].float().numpy(), dtype=np.float32)


class _Reader:
    """Boxes of a volume at the model's voxel size; beyond its borders it is mirrored."""

    def __init__(self, volume: Volume, model: Model) -> None:
        if min(volume.shape) < 2:
            raise DataError(
                f"{volume.name or 'the EM'} is {volume.shape} voxels; a volume is needed",
                hint="one slice cannot be segmented in 3D",
            )
        wanted = np.asarray(model.card.spacing_nm)
        volume = _nearest_level(volume, wanted)
        ratio = np.asarray(volume.grid.spacing_nm) / wanted
        if np.prod(ratio) > MOST_UPSAMPLING:
            raise VoxelSizeError(
                f"EM voxels of {volume.grid.spacing_nm} nm (z, y, x) are too coarse for a network "
                f"made for {model.card.spacing_nm} nm",
                hint="is the unit right? Otherwise use a network for coarser EM",
            )
        self.volume = volume
        self.same = bool((np.maximum(ratio, 1 / ratio) <= TOLERATED_RATIO).all())
        self.grid = volume.grid if self.same else volume.grid.with_spacing(tuple(wanted))
        if not self.same:
            log.warning(
                "EM voxels of %s nm (z, y, x) are resampled to the network's %s nm",
                volume.grid.spacing_nm,
                model.card.spacing_nm,
            )

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box that may reach outside."""
        if self.same:
            return _mirrored_read(self.volume, box)
        from clemreg.segment.data import separable_resample

        positions, widths = [], []
        for axis in range(3):
            index = np.arange(box.start[axis], box.stop[axis])
            world = self.grid.origin_nm[axis] + index * self.grid.spacing_nm[axis]
            fine = self.volume.grid
            positions.append((world - fine.origin_nm[axis]) / fine.spacing_nm[axis])
            widths.append(self.grid.spacing_nm[axis] / fine.spacing_nm[axis])
        low = [int(np.floor(p.min() - w)) for p, w in zip(positions, widths, strict=True)]
        high = [int(np.ceil(p.max() + w)) + 2 for p, w in zip(positions, widths, strict=True)]
        part = _mirrored_read(self.volume, Box(tuple(low), tuple(high)))  # type: ignore[arg-type]
        shifted = [p - a for p, a in zip(positions, low, strict=True)]
        return separable_resample(part, shifted, widths)


def _nearest_level(volume: Volume, wanted_nm: NDArray[np.float64]) -> Volume:
    """Coarsest level of a pyramid that is not coarser than wanted."""
    fit = [v for v in volume.levels if (np.asarray(v.grid.spacing_nm) <= wanted_nm * 1.26).all()]
    return fit[-1] if fit else volume


def _mirrored_read(volume: Volume, box: Box) -> NDArray[np.float32]:
    indices = [
        _mirror(np.arange(a, b), n)
        for a, b, n in zip(box.start, box.stop, volume.shape, strict=True)
    ]
    low = [int(i.min()) for i in indices]
    inner = Box(tuple(low), tuple(int(i.max()) + 1 for i in indices))  # type: ignore[arg-type]
    block = np.asarray(volume.read(inner), dtype=np.float32)
    if not np.isfinite(block).all():
        raise DataError(f"{volume.name or 'the EM'} holds NaN or infinite values in {inner}")
    z, y, x = (i - a for i, a in zip(indices, low, strict=True))
    return np.ascontiguousarray(block[z][:, y][:, :, x])


def _mirror(index: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Reflect indices at the outer voxels, as often as needed."""
    period = max(1, 2 * (n - 1))
    folded = np.abs(index) % period
    return np.where(folded > n - 1, period - folded, folded)


def _limits(volume: Volume) -> tuple[float, float]:
    """Percentiles of the coarsest level, or of a few planes of a large one."""
    level = volume.levels[-1]
    planes = np.unique(np.linspace(0, level.shape[0] - 1, 24).astype(int))
    sample = np.concatenate(
        [level.read(Box((int(z), 0, 0), (int(z) + 1, *level.shape[1:]))) for z in planes]
    )
    if not np.isfinite(sample).all():
        raise DataError(f"{volume.name or 'the EM'} holds NaN or infinite values")
    if sample.min() == sample.max():
        raise DataError(f"{volume.name or 'the EM'} has the same grey value everywhere")
    return contrast_limits(sample)
