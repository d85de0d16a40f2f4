"""What a light microscope makes of labelled structures: PALM localisations or a SIM image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.space.grid import Grid
from clemreg.space.transform import FloatArray

FloatVolume = NDArray[np.float32]


@dataclass(frozen=True)
class LightOptions:
    """A light microscope.

    Attributes
    ----------
    kind
        ``"palm"`` or ``"sim"``.
    spacing_nm
        Voxel size zyx.
    precision_nm
        Localisation precision (standard deviation) zyx; PALM only.
    fwhm_nm
        Point spread zyx; SIM only.
    density
        Localisations (PALM) or fluorophores (SIM) per square micrometre of membrane.
    background
        Spurious localisations per cubic micrometre (PALM), or haze relative to the signal (SIM).
    missing
        Share of mitochondria without label.
    bleaching
        Loss of signal from the first to the last plane (SIM).
    """

    kind: Literal["palm", "sim"] = "palm"
    spacing_nm: tuple[float, float, float] = (104.0, 52.0, 52.0)
    precision_nm: tuple[float, float, float] = (50.0, 20.0, 20.0)
    fwhm_nm: tuple[float, float, float] = (300.0, 110.0, 110.0)
    density: float = 700.0
    background: float = 4.0
    missing: float = 0.1
    bleaching: float = 0.3


PALM = LightOptions()
SIM = LightOptions(kind="sim", spacing_nm=(52.0, 26.0, 26.0), density=400.0, background=0.15)
MICROSCOPES = {"palm": PALM, "sim": SIM}


def render_light(
    rng: np.random.Generator, emitters_nm: FloatArray, grid: Grid, options: LightOptions
) -> FloatVolume:
    """Image (z, y, x) of emitters.

    Parameters
    ----------
    emitters_nm
        (N, 3) zyx nm in the LM frame: true positions.
    grid
        LM grid.
    """
    if options.kind == "palm":
        return _palm(rng, emitters_nm, grid, options)
    return _sim(rng, emitters_nm, grid, options)


def _palm(
    rng: np.random.Generator, emitters: FloatArray, grid: Grid, options: LightOptions
) -> FloatVolume:
    """Histogram of localisations: each molecule blinks 1 to 5 times with its own error."""
    blinks = rng.geometric(0.5, size=len(emitters)).clip(1, 5)
    found = np.repeat(emitters, blinks, axis=0)
    spread = np.asarray(options.precision_nm) * rng.gamma(4, 0.25, size=(len(found), 1))
    found = found + rng.normal(size=found.shape) * spread
    volume_um3 = float(np.prod(grid.extent_nm / 1e3))
    spurious = rng.poisson(options.background * volume_um3)
    low, high = grid.corners_nm()[[0, -1]]
    found = np.concatenate([found, rng.uniform(low, high, (spurious, 3))])
    return histogram(found, grid)


def _sim(
    rng: np.random.Generator, emitters: FloatArray, grid: Grid, options: LightOptions
) -> FloatVolume:
    from scipy.ndimage import gaussian_filter

    sigma = np.asarray(options.fwhm_nm) / 2.355 / np.asarray(grid.spacing_nm)
    counts = histogram(emitters, grid)
    image = gaussian_filter(counts, sigma)
    level = float(np.percentile(image, 99.5)) or 1.0
    haze = gaussian_filter(counts, sigma * [3, 12, 12])
    image += options.background * level * haze / (float(haze.max()) or 1.0)
    fade = np.linspace(1, 1 - options.bleaching, grid.shape[0], dtype=np.float32)
    photons = image / level * 60 * fade[:, None, None] + 4
    noisy = rng.poisson(photons) + rng.normal(scale=2.0, size=photons.shape)
    result: NDArray[np.float32] = np.clip(noisy, 0, None).astype(np.float32)
    return result


def histogram(points_nm: FloatArray, grid: Grid) -> FloatVolume:
    """Count of points in each voxel."""
    index = np.floor(grid.to_index(points_nm) + 0.5).astype(np.intp)
    inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
    flat = np.ravel_multi_index(tuple(index[inside].T), grid.shape)
    counts = np.bincount(flat, minlength=grid.size)
    return counts.reshape(grid.shape).astype(np.float32)


def surface_emitters(
    rng: np.random.Generator, mask: NDArray[np.bool_], grid: Grid, per_um2: float, shell_nm: float
) -> FloatArray:
    """Draw positions (N, 3) zyx nm uniformly in the voxels of a thin shell.

    Parameters
    ----------
    mask
        Voxels of the shell.
    per_um2
        Emitters per square micrometre of its surface.
    shell_nm
        Thickness of the shell, which turns its volume into an area.
    """
    voxels = np.flatnonzero(mask)
    area_um2 = len(voxels) * float(np.prod(np.asarray(grid.spacing_nm) / 1e3)) / (shell_nm / 1e3)
    count = rng.poisson(per_um2 * area_um2)
    chosen = rng.choice(voxels, size=count) if len(voxels) else np.zeros(0, np.intp)
    index = np.stack(np.unravel_index(chosen, grid.shape), axis=-1)
    return grid.to_world(index + rng.uniform(-0.5, 0.5, index.shape))
