"""Masks as views: another volume's voxels, tested and cut when they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, GridError
from clemreg.io.quantise import SURFACE
from clemreg.space.grid import Box, Grid, Shape, Triple
from clemreg.volume import LazyArray, Volume

Test = Callable[[NDArray[Any]], NDArray[Any]]
# Origins may differ by this part of a voxel: some files state corners, some centres.
_ORIGIN_TOLERANCE = 0.3
# Of voxels: which of two is taken for a place just between them is no matter of rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class MaskView:
    """Every `step`-th voxel of an array from `start` on, as the answer to a question.

    Attributes
    ----------
    data
        Array (z, y, x).
    test
        Turns a block of it into booleans.
    start, step, shape
        Voxel (0, 0, 0) of the view is `start` of the array; zyx.
    """

    data: LazyArray
    test: Test
    start: Shape
    step: Shape
    shape: Shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the answers: boolean for a test."""
        answer: np.dtype[Any] = self.test(np.zeros(1, dtype=self.data.dtype)).dtype
        return answer

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[Any]:
        """Read a box, given as three slices with start and stop."""
        fine = tuple(
            slice(first + k.start * step, first + (k.stop - 1) * step + 1, step)
            for k, first, step in zip(key, self.start, self.step, strict=True)
        )
        block = np.asarray(self.data[tuple(slice(f.start, f.stop) for f in fine)])
        return self.test(block[tuple(slice(None, None, f.step) for f in fine)])


def at_least(threshold: float) -> Test:
    """Test for values from `threshold` on."""
    return lambda values: np.asarray(values >= threshold)


def nonzero(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Test for values that are not 0; NaN is nothing."""
    return np.asarray((values != 0) & (values == values))


def one_of(ids: Collection[int]) -> Test:
    """Test for ids."""
    wanted = np.asarray(sorted(ids))
    return lambda values: np.isin(values, wanted)


def foreground(volume: Volume, threshold: float | None = None) -> Test:
    """Test for the foreground of a prediction or a mask.

    From `threshold` on, if there is one. Else from 127 on in a uint8 signed distance, and
    everything that is not 0 in a mask (0 and one other value) or in ids.

    Raises
    ------
    ConfigError
        The values are fractions, and there is no threshold.
    """
    if threshold is not None:
        return at_least(threshold)
    if volume.dtype.kind == "f":
        raise ConfigError(
            f"{volume.name} holds {volume.dtype} values",
            hint="say where the foreground begins: --threshold 0.5",
        )
    return at_least(SURFACE) if volume.dtype == np.uint8 and _is_graded(volume) else nonzero


def _is_graded(volume: Volume) -> bool:
    """Tell a signed distance from a mask of 0 and 1 or 0 and any other value."""
    seen: set[int] = set()
    for box in volume.grid.box.tiles((64, 256, 256)):
        seen |= set(np.unique(volume.read(box)).tolist())
        if len(seen) > 2:
            return True
    return 0 not in seen and 1 not in seen


def require_clear(volume: Volume, written: Literal["distance", "anything"]) -> None:
    """Refuse uint8 values that may be either ids or a signed distance in which nothing is inside.

    Parameters
    ----------
    written
        ``distance``: it is called one, so only 0 and 1 look like something else.

    Raises
    ------
    ConfigError
        All values lie below the surface of a signed distance, and are no plain mask.
    """
    seen: set[int] = set()
    for box in volume.grid.box.tiles((64, 256, 256)):
        seen |= set(np.unique(volume.read(box)).tolist())
        if max(seen) >= SURFACE:
            return
    unclear = max(seen) == 1 if written == "distance" else len(seen) > 2
    if unclear:
        raise ConfigError(
            f"{volume.name} holds uint8 values from {min(seen)} to {max(seen)}: a mask or objects, "
            f"or a signed distance in which nothing is inside, as nothing reaches {SURFACE}",
            hint="say which: --threshold 1 for a mask or objects, "
            f"--threshold {SURFACE} for a signed distance",
        )


def mask_on(volume: Volume, grid: Grid, test: Test) -> MaskView:
    """Look at a volume on a grid whose voxels are whole multiples of its own.

    Raises
    ------
    GridError
        The voxel sizes do not fit, or the volume does not cover the grid.
    """
    own = volume.grid
    name = volume.name or "volume"
    step = _step(volume, grid)
    start = _voxel_at(own, grid.origin_nm, step)
    last = start + (np.asarray(grid.shape) - 1) * step
    if (start < 0).any() or (last >= own.shape).any():
        raise GridError(
            f"{name} (shape {own.shape}, origin {own.origin_nm} nm) does not cover the voxels "
            f"{grid.shape} from {grid.origin_nm} nm on",
            hint="check that both are in the same frame: `clemreg info` shows the origins",
        )
    return MaskView(volume.data, test, tuple(start), tuple(step), grid.shape)


def _step(volume: Volume, grid: Grid) -> NDArray[np.int64]:
    """How many voxels of a volume make one of a grid, along each axis."""
    ratio = np.asarray(grid.spacing_nm) / np.asarray(volume.grid.spacing_nm)
    step = np.asarray(np.rint(ratio), dtype=int)
    if (step < 1).any() or not np.allclose(ratio, step, rtol=1e-3):
        raise GridError(
            f"{volume.name or 'volume'} has voxels of {volume.grid.spacing_nm} nm (z, y, x), which "
            f"do not divide {grid.spacing_nm} nm",
            hint="resample one onto the voxels of the other",
        )
    return step


def _voxel_at(grid: Grid, place_nm: Triple, step: NDArray[np.int64]) -> NDArray[np.int64]:
    """Voxel that stands for one of `step` times the size around a place; it may lie outside.

    The nearest, or the lower of two in the middle: of voxels of half the size every second, from 0
    on.
    """
    tolerance = np.where(step % 2, 0.5, _ORIGIN_TOLERANCE) - _ROUNDING
    return np.asarray(np.floor(grid.to_index(place_nm) + tolerance), dtype=int)


def sampled(volume: Volume, grid: Grid) -> MaskView:
    """Look at the values of a volume, as they are, on a grid as for `mask_on`."""
    volume = volume.channel(0) if volume.channels else volume
    return mask_on(volume, grid, lambda values: values)


def same_voxels(a: Grid, b: Grid) -> bool:
    """Tell whether two grids differ in their origin at most."""
    return a.shape == b.shape and np.allclose(a.spacing_nm, b.spacing_nm, rtol=1e-3)


def common_grid(prediction: Volume, truth: Volume) -> Grid:
    """Voxels of the prediction that the truth covers; the truth's voxels may be finer.

    Two volumes of one shape and voxel size, one of which has no origin (0), are taken as the same
    voxels.

    Raises
    ------
    GridError
        They do not overlap, or the prediction leaves out part of the truth.
    """
    p, t = prediction.grid, truth.grid
    if same_voxels(p, t) and (not any(p.origin_nm) or not any(t.origin_nm)):
        return p
    step = _step(truth, p)
    near = np.rint(p.to_index(t.origin_nm)).astype(int)
    first = _voxel_at(t, tuple(p.to_world(near)), step)
    # Those that some voxel of the truth stands for: one that it half covers at an end is none.
    low = near - first // step
    high = near + (np.asarray(t.shape) - 1 - first) // step + 1
    wanted = Box(tuple(low), tuple(high))
    found = wanted.clip(p.shape)
    missing = np.asarray(wanted.shape) - np.asarray(found.shape)
    if found.size == 0 or (missing > 1).any():
        raise GridError(
            f"the prediction (shape {p.shape}, origin {p.origin_nm} nm) does not cover the truth "
            f"(shape {t.shape}, origin {t.origin_nm} nm)",
            hint="both must lie in one frame; cut the truth to what was predicted",
        )
    return p.crop(found)
