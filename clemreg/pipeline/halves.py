"""Random halves of the mitochondria: registered apart, they tell where the result is uncertain."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clemreg.blocks.run import Progress
from clemreg.errors import RegistrationError
from clemreg.evaluate.uncertainty import (
    error_map,
    halves_error_nm,
    register_halves,
    worst_places_nm,
)
from clemreg.io.transforms import read_transform, write_transform
from clemreg.io.xyz import flip
from clemreg.register.engines import NewtonStages, Task, engine_for
from clemreg.register.guides import Guides, corrected
from clemreg.register.matching import Channel, Masks
from clemreg.register.registration import RegisterOptions, RegistrationResult
from clemreg.space.grid import Grid
from clemreg.space.transform import FloatArray, Transform
from clemreg.volume import Volume

log = logging.getLogger(__name__)

FEWEST = 6
"""Mitochondria, or pieces of them, that are needed: fewer than three on a side say little."""
PIECE_NM = 1500.0
SUGGESTIONS = 5

Pair = tuple[Transform, Transform]


def mitochondria(moving: Volume) -> NDArray[np.int32]:
    """Label the mitochondria (z, y, x) of the prepared EM: components above Otsu's level.

    A network would be one component, and could not be halved: all are cut at the faces of cubes of
    `PIECE_NM`.
    """
    from skimage.filters import threshold_otsu

    image = moving.read()
    components, count = ndimage.label(image > threshold_otsu(image))
    cells = [
        (np.arange(n) * spacing / PIECE_NM).astype(np.int64)
        for n, spacing in zip(image.shape, moving.grid.spacing_nm, strict=True)
    ]
    z, y, x = np.ix_(*cells)
    cube = (z * (cells[1][-1] + 1) + y) * (cells[2][-1] + 1) + x
    pieces = np.where(components > 0, cube * (count + 1) + components, 0)
    labels = np.unique(pieces, return_inverse=True)[1].reshape(image.shape)
    return np.asarray(labels + (pieces.min() > 0), dtype=np.int32)


def find_halves(
    images: tuple[Volume, Volume],
    guides: Guides,
    result: RegistrationResult,
    options: RegisterOptions,
    splits: int,
    progress: Progress,
) -> list[Pair]:
    """Register random halves of the mitochondria from the start pose of the whole.

    Each half is the EM that is nearer to its own mitochondria than to the others; the rest is
    masked, not blackened: light mitochondria without a partner would pull.

    Parameters
    ----------
    images
        Light image and EM as they were registered.
    guides
        Further channels, masks and landmarks; every half is guided alike.
    result
        The registration of all; its start pose and its stiffness are taken.
    splits
        Pairs of registrations; 0 for none.

    Returns
    -------
    list of pairs
        LM to EM. Empty with the elastix engine, which knows no mask of the EM; with fewer than
        `FEWEST` mitochondria; and if a half cannot be registered.
    """
    fixed, moving = images
    if splits == 0 or not isinstance(options.stages, NewtonStages):
        return []
    labels = mitochondria(moving)
    if labels.max() < FEWEST:
        log.warning("%d mitochondria are too few to register halves of them", labels.max())
        return []
    nearest = ndimage.distance_transform_edt(
        labels == 0, moving.grid.spacing_nm, return_distances=False, return_indices=True
    )
    if any(c.moving.grid != moving.grid for c in guides.channels):
        log.warning("channels on different EM grids: no halves are registered")
        return []
    stages = options.stages.stiffer(max(len(result.attempts) - 1, 0))
    channels = (Channel(fixed, moving), *guides.channels)
    trusted = guides.masks.moving
    done = 0

    def register_half(half: NDArray[np.bool_]) -> Transform:
        nonlocal done
        progress(done, 2 * splits, "half of the mitochondria")
        done += 1
        near = half[tuple(nearest)]
        masks = Masks(guides.masks.fixed, near if trusted is None else near & trusted)
        task = Task(channels, masks, result.orientation.affine, guides.metric, Path())
        found = engine_for(task, stages).find(stages, options.seed)
        return corrected(found, guides, moving.grid)

    try:
        return register_halves(labels, register_half, splits=splits, seed=options.seed)
    except RegistrationError as error:
        log.warning("half of the mitochondria could not be registered: %s", error)
        return []


def write_halves(pairs: Sequence[Pair], folder: Path, fixed_grid: Grid) -> None:
    """Write ``half-<split>-<0 or 1>.json``; `fixed_grid` is that of the light volume."""
    for split, pair in enumerate(pairs):
        for side, transform in enumerate(pair):
            name = f"half-{split}-{side}.json"
            write_transform(transform, folder / name, fixed_grid=fixed_grid)


def read_halves(folder: Path) -> tuple[Pair, ...]:
    """Read what `write_halves` wrote; empty if it wrote nothing."""
    return tuple(_pairs(folder))


def _pairs(folder: Path) -> Iterator[Pair]:
    split = 0
    while (first := folder / f"half-{split}-0.json").is_file():
        yield read_transform(first), read_transform(folder / f"half-{split}-1.json")
        split += 1


def predicted_error(
    pairs: Sequence[Pair], seeds: Sequence[Transform], grid: Grid, inside: NDArray[np.bool_]
) -> Volume:
    """Map of the predicted random error in nm on (a part of) `grid`; NaN outside `inside`.

    The errors from halves and from seeds add in squares. Halves scatter with the sampler too, so
    the sum is a little too large rather than too small.

    Parameters
    ----------
    seeds
        The result and its repeats; fewer than two add nothing.
    """

    def error(points: FloatArray) -> FloatArray:
        squared = halves_error_nm(pairs, points) ** 2
        if len(seeds) > 1:
            squared += np.stack([t(points) for t in seeds]).var(axis=0, ddof=1).sum(axis=1)
        return np.asarray(np.sqrt(squared))

    return error_map(error, grid, inside)


def halves_summary(pairs: Sequence[Pair], points_nm: FloatArray) -> dict[str, float]:
    """Return ``stability.halves`` of ``report.json``: of the halves alone, over the points."""
    error = halves_error_nm(pairs, points_nm)
    return {
        "rms_nm": float(np.sqrt((error**2).mean())),
        "p95_nm": float(np.percentile(error, 95)),
    }


def suggested_landmarks(found: Volume) -> list[dict[str, Any]]:
    """Places in the LM where a landmark helps most: the largest errors of a map, well apart.

    Returns
    -------
    list
        At most `SUGGESTIONS` of ``x_um``, ``y_um``, ``z_um``, ``error_nm``, the largest error
        first. The outermost voxels are left out, where there is room: nothing to click is there.
    """
    values = found.read()
    known = np.isfinite(values)
    inner = ndimage.binary_erosion(known)
    kept = inner if inner.any() else known
    index = np.argwhere(kept)
    extent = (np.ptp(index, axis=0) + 1) * np.asarray(found.grid.spacing_nm)
    candidates = Volume(np.where(kept, values, np.nan), found.grid)
    places, errors = worst_places_nm(candidates, SUGGESTIONS, float(extent.max()) / 3)
    return [
        dict(zip(("x_um", "y_um", "z_um"), np.round(flip(place) / 1e3, 3).tolist(), strict=True))
        | {"error_nm": round(float(error), 1)}
        for place, error in zip(places, errors, strict=True)
    ]
