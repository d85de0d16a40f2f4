"""Predict a volume block by block; a killed run goes on with the blocks that are missing."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Ledger, Progress, run
from clemreg.errors import ConfigError, DataError, VoxelSizeError
from clemreg.io.atomic import partial_path, remove
from clemreg.io.quantise import quantise
from clemreg.io.volumes import WriteOptions, create_volume, open_volume
from clemreg.segment.data import contrast_limits, normalise
from clemreg.segment.models import Model
from clemreg.segment.network import UNet
from clemreg.segment.training import bfloat16_is_fast
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import Volume

log = logging.getLogger(__name__)

# A voxel size within this ratio of the network's is taken as it is: training covers it.
TOLERATED_RATIO = 1.25
# Finer than this in volume and the resampled EM would be mostly invention.
MOST_UPSAMPLING = 30.0
VIEWS = (1, 2, 4, 8)
# One block is computed while another is read and a third written.
WORKERS = 3
# Values of the finest features of one block, 4 bytes each; a few such arrays live at a time.
MOST_FEATURES = 7e7
COLOURS = ("FF00FF", "00FF00", "00FFFF")


@dataclass(frozen=True)
class PredictOptions:
    """How to predict.

    Attributes
    ----------
    block
        Output voxels per block along each axis; 0: `automatic_block`.
    threads
        Threads of torch; 0: as torch chooses.
    precise
        Compute in float32 even where bfloat16 is faster; blocks of any size then give the same
        voxels.
    limits
        Grey values that become -1 and 1; None: percentiles of the volume.
    views
        Mirrored views of each block whose predictions are averaged: 1 (as it is), 2, 4 or 8
        (mirrored along x, y, z). Each costs as much time as the first.
    mask
        Where to predict: not 0 in this volume, which lies in the same frame as the EM. Elsewhere
        the prediction is 0, far outside; blocks wholly outside are not computed.
    """

    block: int = 0
    threads: int = 0
    precise: bool = False
    limits: tuple[float, float] | None = None
    views: int = 1
    mask: Volume | None = None

    def __post_init__(self) -> None:
        if self.views not in VIEWS:
            raise ConfigError(f"{self.views} views; expected one of {', '.join(map(str, VIEWS))}")


def predict(
    volume: Volume,
    model: Model,
    out: Path,
    *,
    options: PredictOptions | None = None,
    progress: Progress | None = None,
) -> Volume:
    """Predict signed distances of the model's classes.

    While one block is computed, the next is read and the last one written.

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
    network = _Runner(model.network, options.precise, options.views)
    mask = None if options.mask is None else _Mask(options.mask, reader.grid)
    block = options.block or automatic_block(model.network)
    size = max(network.step, block // network.step * network.step)
    blocks = plan_blocks(reader.grid.shape, (size,) * 3, network.halo)
    ledger = _ledger(out, _job(model, reader.grid, size, limits, options))
    with create_volume(
        out, reader.grid, np.uint8, channels=model.classes, options=_storage(size, model)
    ) as writer:

        def work(block: Block) -> None:
            inside = None if mask is None else mask.read(block.core)
            if inside is not None and not inside.any():
                writer[block.core] = np.zeros((len(model.classes), *block.core.shape), np.uint8)
                return
            values = network(normalise(reader.read(_input_box(block, network)), limits))
            z, y, x = block.core.shape
            pixels = quantise(values[:, :z, :y, :x])
            writer[block.core] = pixels if inside is None else pixels * inside

        told = None if progress is None else _Pace(progress, reader.grid.shape)
        run(work, blocks, ledger=ledger, workers=WORKERS, progress=told)
    remove(ledger.path)
    return open_volume(out, frame=volume.grid.frame)


def automatic_block(network: UNet) -> int:
    """Voxels along a block's axis so that the halo costs little and memory stays about 1 GB."""
    features = network.options.fold**3 / network.options.widths[0] * MOST_FEATURES
    whole = int(np.cbrt(features)) - 2 * network.halo
    step = max(network.step, 32)
    return max(step, whole // step * step)


def _job(
    model: Model, grid: Grid, size: int, limits: tuple[float, float], options: PredictOptions
) -> str:
    """Name what the content of a block depends on, besides the EM."""
    mask = options.mask and f"{options.mask.name} {options.mask.grid}"
    return (
        f"{model.card.name} {model.card.steps} {grid} {size} {limits} {options.precise} "
        f"{options.views} {mask}"
    )


def _ledger(out: Path, job: str) -> Ledger:
    path = partial_path(out).with_suffix(".blocks")
    if not partial_path(out).exists():
        path.unlink(missing_ok=True)
    return Ledger(path, job)


def _storage(size: int, model: Model) -> WriteOptions:
    """Chunks of at most 64 voxels that no two blocks share."""
    chunk = next(size // n for n in range(1, size + 1) if size % n == 0 and size // n <= 64)
    return WriteOptions(chunk=(chunk,) * 3, resume=True, colours=COLOURS[: len(model.classes)])


def _input_box(block: Block, network: _Runner) -> Box:
    """Core grown to a multiple of the network's step, with the halo."""
    stop = tuple(
        a + -(-(b - a) // network.step) * network.step
        for a, b in zip(block.core.start, block.core.stop, strict=True)
    )
    return Box(block.core.start, stop).grow(network.halo)  # type: ignore[arg-type]


class _Pace:
    """Adds voxels per second to the progress of blocks, which knows the time left."""

    def __init__(self, progress: Progress, shape: Shape) -> None:
        self.progress = progress
        self.voxels = float(np.prod(shape))
        self.begin = time.monotonic()
        self.before: int | None = None

    def __call__(self, done: int, total: int, _message: str) -> None:
        if self.before is None:
            self.before = done - 1  # finished by an earlier run
        seconds = max(time.monotonic() - self.begin, 1e-6)
        share = (done - self.before) / total
        self.progress(done, total, f"{share * self.voxels / seconds / 1e6:.2f} Mvoxel/s")


class _Runner:
    """The network as a function of numpy arrays, one at a time."""

    def __init__(self, network: UNet, precise: bool, views: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.halo, self.step = network.halo, network.step
        self.half = not precise and (self.device.type == "cuda" or bfloat16_is_fast())
        self.flips = [
            [axis for bit, axis in enumerate((4, 3, 2)) if view >> bit & 1] for view in range(views)
        ]
        self.busy = threading.Lock()

    def __call__(self, em: NDArray[np.float32]) -> NDArray[np.float32]:
        x = torch.from_numpy(em)[None, None]
        if self.device.type == "cuda":
            x = x.pin_memory().to(self.device, non_blocking=True)
        with self.busy, torch.inference_mode():
            values = torch.stack([self._view(x, axes) for axes in self.flips]).mean(dim=0)
            return np.asarray(values[0].cpu().numpy(), dtype=np.float32)

    def _view(self, x: torch.Tensor, axes: list[int]) -> torch.Tensor:
        """Predict a mirrored block and mirror the answer back."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            answer: torch.Tensor = self.network(x.flip(axes) if axes else x)
        return (answer.flip(axes) if axes else answer).float()


class _Mask:
    """Where to predict, on the grid of the prediction."""

    def __init__(self, mask: Volume, grid: Grid) -> None:
        self.mask, self.grid = mask, grid

    def read(self, box: Box) -> NDArray[np.bool_]:
        """Nearest mask voxel of each voxel of a box; beyond the mask there is nothing."""
        picks = []
        for axis in range(3):
            index = np.arange(box.start[axis], box.stop[axis])
            world = self.grid.origin_nm[axis] + index * self.grid.spacing_nm[axis]
            place = (world - self.mask.grid.origin_nm[axis]) / self.mask.grid.spacing_nm[axis]
            picks.append(np.floor(place + 0.5).astype(int))
        within = [(p >= 0) & (p < n) for p, n in zip(picks, self.mask.shape, strict=True)]
        result = np.zeros(box.shape, dtype=bool)
        if not all(w.any() for w in within):
            return result
        low = [int(p[w].min()) for p, w in zip(picks, within, strict=True)]
        high = [int(p[w].max()) + 1 for p, w in zip(picks, within, strict=True)]
        part = self.mask.read(Box(tuple(low), tuple(high))) != 0  # type: ignore[arg-type]
        local = [p[w] - a for p, w, a in zip(picks, within, low, strict=True)]
        result[np.ix_(*within)] = part[np.ix_(*local)]
        return result


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
