"""Predict a volume block by block; a killed run goes on with the blocks that are missing."""

from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Progress, run
from clemreg.blocks.unfinished import forget, open_ledger
from clemreg.errors import DataError
from clemreg.io.volumes import WriteOptions, create_volume, open_volume
from clemreg.segment.blockwise import (
    WORKERS,
    Pace,
    PredictOptions,
    Where,
    find_limits,
    finish,
)
from clemreg.segment.data import normalise
from clemreg.segment.inference import Ends, FastUNet, joined, mirrored
from clemreg.segment.models import Model
from clemreg.segment.network import NetworkOptions
from clemreg.segment.parallel import bfloat16_is_fast, training_device
from clemreg.segment.reading import TOLERATED_RATIO, reader_for, size_ratio
from clemreg.space.grid import Box, Shape, Triple
from clemreg.volume import Volume

# Values of the finest features of one block, 4 bytes each; a few such arrays live at a time.
MOST_FEATURES = 7e7
COLOURS = ("FF00FF", "00FF00", "00FFFF")


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
        resampled to the nearest that do not, with a note in the log.
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
    if min(volume.shape) < 2:
        raise DataError(
            f"{volume.name or 'the EM'} is {volume.shape} voxels; a volume is needed",
            hint="one slice cannot be segmented in 3D",
        )
    reader = reader_for(volume, model.card.spacing_nm, TOLERATED_RATIO)
    limits = options.limits or find_limits(volume)
    network = _Runner(_for_voxels(model, reader.grid.spacing_nm), options)
    where = Where(options.mask, reader.grid)
    shape = _block_shape(reader.grid.shape, model, options)
    job = f"{model.identity} {volume.name} {reader.grid} {shape} {limits} {options.job}"
    writer = create_volume(
        out, reader.grid, np.uint8, channels=model.classes, options=_storage(shape, model)
    )
    ledger = open_ledger(out, job)  # not before the name of the output is known to be one
    fresh = not ledger.done
    with writer:

        def work(block: Block) -> None:
            inside = where.read(block.core)
            if not inside.any():
                writer[block.core] = np.zeros((len(model.classes), *block.core.shape), np.uint8)
                return
            box, given = _input(block.core, reader.grid.shape, network)
            pixels = network(normalise(reader.read(box), limits), given)
            z, y, x = block.core.shape
            writer[block.core] = pixels[:, :z, :y, :x] * inside

        blocks = plan_blocks(reader.grid.shape, shape, network.halo)
        told = None if progress is None else Pace(progress, reader.grid.shape)
        run(work, blocks, ledger=ledger, workers=WORKERS, progress=told)
        if fresh:
            where.warn_if_nowhere()
        finish(writer, ledger, progress)
    forget(out)
    return open_volume(out, frame=volume.grid.frame)


def automatic_block(shape: Shape, network: NetworkOptions) -> Shape:
    """Voxels of a block zyx for which a volume takes the least time, in about 1 GB of memory.

    Between two blocks of an axis each costs as much as if it were larger by half the halo; where
    the volume ends there is next to none. So blocks are large, and of like size, and a thin volume
    is not cut along its short axis.
    """
    most = network.fold**3 / network.widths[0] * MOST_FEATURES
    step = network.step * -(-32 // network.step)
    sizes = [
        sorted({-(-n // (k * step)) * step for k in range(1, 1 + -(-n // step))}) for n in shape
    ]

    def cost(block: Shape) -> tuple[int, Shape]:
        pieces = [-(-n // b) for n, b in zip(shape, block, strict=True)]
        axes = (k * b + (k - 1) * network.halo for k, b in zip(pieces, block, strict=True))
        return math.prod(axes), block

    def held(block: Shape) -> int:
        inner = (min(-(-n // b) - 1, 2) for n, b in zip(shape, block, strict=True))
        ends = 4 * network.fold
        return math.prod(b + k * network.halo + ends for k, b in zip(inner, block, strict=True))

    fitting = ((z, y, x) for z, y, x in itertools.product(*sizes) if held((z, y, x)) <= most)
    return min(fitting, key=cost, default=(step, step, step))


def _for_voxels(model: Model, taken_nm: Triple) -> Model:
    """Let distances that the network knows in its own voxels be those in nm.

    It was trained on EM stretched by up to `TOLERATED_RATIO`, with the distances stretched alike.
    """
    ratio = size_ratio(taken_nm, model.card.spacing_nm)
    if ratio == 1:
        return model
    network = copy.deepcopy(model.network)
    with torch.no_grad():  # tanh(d / 50 nm) comes after the head
        for values in (network.head.weight, network.head.bias):
            if values is not None:
                values.mul_(ratio)
    return replace(model, network=network)


def _block_shape(shape: Shape, model: Model, options: PredictOptions) -> Shape:
    network = model.network.options
    if not options.block:
        return automatic_block(shape, network)
    size = max(network.step, options.block // network.step * network.step)
    return size, size, size


def _storage(block: Shape, model: Model) -> WriteOptions:
    """Chunks of at most 64 voxels along an axis that no two blocks share."""
    z, y, x = (next(b // n for n in range(1, b + 1) if b % n == 0 and b // n <= 64) for b in block)
    return WriteOptions(chunk=(z, y, x), resume=True, colours=COLOURS[: len(model.classes)])


def _input(core: Box, shape: Shape, network: _Runner) -> tuple[Box, Ends]:
    """Core grown to a multiple of the network's step, with as much around as the network needs.

    Returns
    -------
    Box, Ends
        What to read, and its voxels beyond the grown core at either end of each axis: less than
        the halo where the volume ends.
    """
    stop = tuple(
        a + -(-(b - a) // network.step) * network.step
        for a, b in zip(core.start, core.stop, strict=True)
    )
    z, y, x = (
        (network.margin if a == 0 else network.halo, network.margin if b >= n else network.halo)
        for a, b, n in zip(core.start, stop, shape, strict=True)
    )
    low, high = zip(z, y, x, strict=True)
    start = tuple(a - m for a, m in zip(core.start, low, strict=True))
    end = tuple(b + m for b, m in zip(stop, high, strict=True))
    return Box(start, end), (z, y, x)  # type: ignore[arg-type]


class _Runner:
    """The network as a function of numpy arrays, one at a time."""

    def __init__(self, model: Model, options: PredictOptions) -> None:
        self.device = training_device("")
        self.network = FastUNet(model.network).to(self.device)
        self.halo, self.step = model.network.halo, model.network.step
        self.margin = self.network.margin
        self.half = not options.precise and bfloat16_is_fast(self.device)
        self.precise = options.precise
        self.mirrorings = options.mirrorings
        self.busy = threading.Lock()

    def __call__(self, em: NDArray[np.float32], given: Ends) -> NDArray[np.uint8]:
        """Predict a block of EM in [-1, 1]; return stored values (class, z, y, x).

        Parameters
        ----------
        given
            As for `FastUNet.forward`.
        """
        x = torch.from_numpy(em)
        if self.device.type == "cuda":
            x = x.pin_memory().to(self.device, non_blocking=True)
        with self.busy, torch.inference_mode(), float32_as_it_is(self.precise):
            mean = self._view(x, given, self.mirrorings[0])
            for axes in self.mirrorings[1:]:
                mean += self._view(x, given, axes)
            if len(self.mirrorings) > 1:
                mean *= 1 / len(self.mirrorings)  # a power of two, so exact
            return np.asarray(_stored(mean).cpu().numpy())

    def _view(self, x: torch.Tensor, given: Ends, axes: tuple[int, ...]) -> torch.Tensor:
        """Predict a mirrored block and mirror the answer back."""
        z, y, x_ = (ends[::-1] if axis in axes else ends for axis, ends in enumerate(given))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            answer = self.network((x.flip(axes) if axes else x)[None, None], (z, y, x_))
        return mirrored(answer, axes).float()


@contextmanager
def float32_as_it_is(exact: bool) -> Iterator[None]:
    """Keep GPUs from rounding the factors of float32 products to 10 bits (TF32), if `exact`."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and not exact
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _stored(cubes: torch.Tensor) -> torch.Tensor:
    """Do as `clemreg.io.quantise.quantise`, where the values are, and put them in place."""
    stored = cubes.mul_(128).add_(127).round_().clamp_(0, 255).to(torch.uint8)
    return joined(stored)
