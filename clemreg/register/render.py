"""Make a volume of localisations: each a Gaussian of its own precision, integrated over voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.run import Progress, run
from clemreg.errors import ConfigError, DataError
from clemreg.io.localisations import Localisations
from clemreg.io.volumes import WriteOptions, create_volume, open_volume
from clemreg.space.grid import Box, Grid, Shape
from clemreg.space.transform import FloatArray, Transform
from clemreg.volume import Volume

BLOCK: Shape = (64, 128, 128)
REACH_SIGMA = 4.0
_AT_ONCE = 2_000_000
_ALIKE = 0.3  # correlation of two channels of one structure, at least


@dataclass(frozen=True)
class RenderOptions:
    """Which localisations are drawn, and how wide.

    Attributes
    ----------
    max_precision_nm
        Less precise ones (laterally) are left out.
    min_photons
        Dimmer ones are left out; those of unknown brightness stay.
    min_neighbours, radius_nm
        Background: those with fewer others within the radius are left out.
    extra_blur_nm
        Added to every precision in quadrature: drift, linkage error, label size.
    """

    max_precision_nm: float = float("inf")
    min_photons: float = 0.0
    min_neighbours: int = 0
    radius_nm: float = 100.0
    extra_blur_nm: float = 0.0

    def __post_init__(self) -> None:
        if self.max_precision_nm <= 0 or self.radius_nm <= 0 or self.extra_blur_nm < 0:
            raise ConfigError(f"render options make no sense: {self}", hint="lengths are positive")


def choose(localisations: Localisations, options: RenderOptions) -> Localisations:
    """Leave out what is imprecise, dim or alone.

    Raises
    ------
    DataError
        Nothing is left.
    """
    from scipy.spatial import cKDTree

    lateral = localisations.precision_nm[:, 1:].mean(axis=1)
    keep = (lateral <= options.max_precision_nm) & ~(localisations.photons < options.min_photons)
    kept = localisations.select(keep)
    if options.min_neighbours > 0 and len(kept):
        tree = cKDTree(kept.points_nm)
        near = tree.query_ball_point(kept.points_nm, options.radius_nm, return_length=True)
        kept = kept.select(np.asarray(near) > options.min_neighbours)
    if not len(kept):
        raise DataError(
            f"none of {len(localisations)} localisations is left", hint="loosen the filters"
        )
    return kept


def covering_grid(
    channels: Mapping[str, Localisations], spacing_nm: FloatArray, extra_blur_nm: float = 0.0
) -> Grid:
    """Grid that holds every localisation with four standard deviations around."""
    reach = [REACH_SIGMA * _sigma_nm(one, extra_blur_nm) for one in channels.values()]
    pairs = list(zip(channels.values(), reach, strict=True))
    low = np.min([(one.points_nm - r).min(axis=0) for one, r in pairs], axis=0)
    high = np.max([(one.points_nm + r).max(axis=0) for one, r in pairs], axis=0)
    z, y, x = (int(n) for n in np.maximum(1, np.ceil((high - low) / spacing_nm)))
    return Grid((z, y, x), tuple(spacing_nm), tuple(low + spacing_nm / 2), "lm")


def render(
    channels: Mapping[str, Localisations],
    grid: Grid,
    out: Path,
    options: RenderOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Volume:
    """Draw localisations as a float32 volume, one channel a table, block by block.

    Every localisation adds one count: its Gaussian is integrated over the voxels within four
    standard deviations and scaled to a sum of one. What lies off the grid is lost.

    Parameters
    ----------
    channels
        Name to localisations.
    grid
        Where the voxels are.
    out
        OME-Zarr to write.
    """
    options = options or RenderOptions()
    drawn = [choose(one, options) for one in channels.values()]
    with create_volume(
        out, grid, np.float32, channels=tuple(channels), options=WriteOptions()
    ) as writer:

        def work(block: Block) -> None:
            parts = [render_box(one, grid, block.core, options.extra_blur_nm) for one in drawn]
            writer[block.core] = np.stack(parts)

        run(work, plan_blocks(grid.shape, BLOCK), progress=progress)
    return open_volume(out, frame=grid.frame)


def render_box(
    localisations: Localisations, grid: Grid, box: Box, extra_blur_nm: float = 0.0
) -> FloatArray:
    """Count (z, y, x) in the voxels of `box`; the same to the last bit in every box."""
    sigma = _sigma_nm(localisations, extra_blur_nm)
    index = grid.to_index(localisations.points_nm)
    spread = sigma / np.asarray(grid.spacing_nm)
    first = np.floor(index - REACH_SIGMA * spread + 0.5).astype(np.intp)
    last = np.floor(index + REACH_SIGMA * spread + 0.5).astype(np.intp)
    hit = ((last >= box.start) & (first < box.stop)).all(axis=1)
    index, spread, first, last = (values[hit] for values in (index, spread, first, last))
    result = np.zeros(box.size)
    # Equal widths together; within a width in the order of the table, as in any other box.
    widths, group = np.unique(last - first + 1, axis=0, return_inverse=True)
    for k, width in enumerate(widths):
        members = np.flatnonzero(group.reshape(-1) == k)
        at_once = max(1, _AT_ONCE // int(width.prod()))
        for begin in range(0, len(members), at_once):
            which = members[begin : begin + at_once]
            _add(result, box, first[which], _axis_weights(index, spread, first, which, width))
    return result.reshape(box.shape)


def _sigma_nm(localisations: Localisations, extra_blur_nm: float) -> FloatArray:
    return np.sqrt(localisations.precision_nm**2 + extra_blur_nm**2)


def _axis_weights(
    index: FloatArray,
    spread: FloatArray,
    first: NDArray[np.intp],
    which: NDArray[np.intp],
    width: NDArray[np.intp],
) -> list[FloatArray]:
    """Share of each localisation in the voxels along z, y and x: three arrays (n, width)."""
    from scipy.special import ndtr

    weights = []
    for axis in range(3):
        edges = first[which, axis, None] + np.arange(width[axis] + 1) - 0.5
        # A spread of zero (a table without z) is a step: all in one voxel.
        scale = np.maximum(spread[which, axis, None], 1e-9)
        share = np.diff(ndtr((edges - index[which, axis, None]) / scale), axis=1)
        weights.append(share / share.sum(axis=1, keepdims=True))
    return weights


def _add(result: FloatArray, box: Box, first: NDArray[np.intp], weights: list[FloatArray]) -> None:
    wz, wy, wx = weights
    values = wz[:, :, None, None] * wy[:, None, :, None] * wx[:, None, None, :]
    places = []
    inside = np.ones(values.shape, dtype=bool)
    for axis, weight in enumerate(weights):
        place = first[:, axis, None] + np.arange(weight.shape[1]) - box.start[axis]
        ok = (place >= 0) & (place < box.shape[axis])
        shape = [len(first), 1, 1, 1]
        shape[axis + 1] = weight.shape[1]
        inside &= ok.reshape(shape)
        places.append(place.reshape(shape))
    _, ny, nx = box.shape
    flat = (places[0] * ny + places[1]) * nx + places[2]
    np.add.at(result, flat[inside], values[inside])


def apply_to_localisations(transform: Transform, localisations: Localisations) -> Localisations:
    """Map positions, and their precision by the local derivative of the transform.

    The covariance ``J diag(p^2) J^T`` has the new variances on its diagonal.
    """
    points = localisations.points_nm
    jacobian = transform.jacobian(points)
    variance = (jacobian**2 @ (localisations.precision_nm**2)[..., None])[..., 0]
    return Localisations(transform(points), np.sqrt(variance), localisations.photons)


def chromatic_shift_nm(reference: Volume, other: Volume) -> FloatArray:
    """Offset (3,) zyx in nm to add to `other` so that it lies on `reference`.

    From the phase correlation of two volumes (z, y, x) of the same structure, such as beads, to a
    twentieth of a voxel.

    Raises
    ------
    ConfigError
        They are on different grids.
    DataError
        They hardly correlate then: these are different structures.
    """
    from scipy import ndimage
    from skimage.registration import phase_cross_correlation

    if reference.grid != other.grid:
        raise ConfigError(
            f"a shift needs one grid, got {reference.grid} and {other.grid}",
            hint="render both channels onto the same grid",
        )
    images = (reference.read().astype(np.float64), other.read().astype(np.float64))
    shift, _, _ = phase_cross_correlation(*images, upsample_factor=20, normalization=None)
    moved = ndimage.shift(images[1], shift, order=1, mode="nearest")
    spread = images[0].std() * moved.std()
    likeness = float(np.mean((images[0] - images[0].mean()) * (moved - moved.mean())))
    if spread == 0 or likeness < _ALIKE * spread:
        raise DataError(
            f"the channels do not show the same structure: they correlate by "
            f"{likeness / spread if spread else 0:.2f} at best",
            hint="measure the shift on beads, or on one structure with both labels",
        )
    return np.asarray(shift * np.asarray(reference.grid.spacing_nm), dtype=np.float64)
