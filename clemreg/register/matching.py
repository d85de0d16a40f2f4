"""How well two images agree under a transform, and in which direction they would agree better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clemreg.errors import DataError, RegistrationError
from clemreg.register.contrast import local_contrast
from clemreg.register.trusted import Image, Mask, blur, filled, trusted_at
from clemreg.space.transform import Affine, FloatArray
from clemreg.volume import Volume

_FEWEST = 500


@dataclass(frozen=True, eq=False)
class Channel:
    """One structure in both microscopes.

    Attributes
    ----------
    fixed, moving
        Prepared images of the light microscope and of the EM.
    weight
        How much it counts beside other channels.
    """

    fixed: Volume
    moving: Volume
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Masks:
    """Where the images can be trusted; None is everywhere.

    Attributes
    ----------
    fixed, moving
        Boolean arrays on the grids of the first channel.
    """

    fixed: NDArray[np.bool_] | None = None
    moving: NDArray[np.bool_] | None = None


EVERYWHERE = Masks()


@dataclass(frozen=True, eq=False)
class Match:
    """Residuals of the samples that both microscopes have imaged.

    Attributes
    ----------
    seen
        (N,) which samples these are.
    residual
        (M,) light minus EM, the EM's contrast and level fitted to the light's.
    slope
        (M, 3) by how much the fitted EM grows per nm, zyx.
    variance
        Mean squared residual.
    """

    seen: NDArray[np.bool_]
    residual: Image
    slope: Image
    variance: float


class Matcher:
    """Both images of a channel, smoothed.

    Samples that map outside the imaged EM are left out of the sum, and the sum's slope knows
    nothing of who is left out: sliding off a thin slab gains nothing, and structures that the
    slab's faces cut pull nowhere.

    Parameters
    ----------
    channel
        The images.
    masks
        Where they can be trusted.
    sigma_nm
        How much both are smoothed.
    contrast_nm
        Size of the neighbourhoods in which the contrast is fitted; None fits one for all samples.
    """

    def __init__(
        self, channel: Channel, masks: Masks, sigma_nm: float, contrast_nm: float | None = None
    ) -> None:
        self.fixed, self.moving = channel.fixed.grid, channel.moving.grid
        self.weight = channel.weight
        self._fixed = _smooth(channel.fixed, masks.fixed, sigma_nm)
        self._moving = _smooth(channel.moving, masks.moving, sigma_nm)
        self._slopes = [
            np.gradient(self._moving, step, axis=axis).astype(np.float32)
            for axis, step in enumerate(self.moving.spacing_nm)
        ]
        self._mask = masks.moving
        self._contrast_nm = contrast_nm

    def __call__(self, points_nm: FloatArray, there_nm: FloatArray) -> Match:
        """Compare samples (N, 3) of the light frame with where they map to in the EM.

        Raises
        ------
        RegistrationError
            Hardly any sample is inside the EM.
        """
        seen = self._seen(there_nm)
        if seen.sum() < _FEWEST:
            raise RegistrationError(
                f"the volumes hardly overlap: {int(seen.sum())} of {len(seen)} samples are in both",
                hint="check voxel sizes and orientation (`clemreg doctor`); or the fit has slid "
                "off: is it the right channel, and has it signal where the EM lies?",
            )
        at = self.moving.to_index(there_nm[seen]).T
        light = _sampled(self._fixed, self.fixed.to_index(points_nm[seen]).T)
        dark = _sampled(self._moving, at)
        overall, level = _line(dark, light)
        light = light - np.float32(level)
        contrast = self._contrast(there_nm[seen], dark, light, overall)
        slope = np.stack([_sampled(c, at) for c in self._slopes], axis=-1) * contrast[:, None]
        residual = light - contrast * dark
        return Match(seen, residual, slope, float(np.mean(residual**2)))

    def _contrast(self, places_nm: FloatArray, dark: Image, light: Image, overall: float) -> Image:
        if self._contrast_nm is None:
            return np.full(len(dark), overall, np.float32)
        return local_contrast(places_nm, dark, light, overall, self._contrast_nm)

    def _seen(self, there_nm: FloatArray) -> NDArray[np.bool_]:
        inside = self.moving.contains(there_nm)
        if self._mask is None:
            return inside
        inside[inside] = trusted_at(self._mask, self.moving.to_index(there_nm[inside]).T)
        return inside


def draw_samples(
    rng: np.random.Generator,
    channel: Channel,
    masks: Masks,
    affine: Affine,
    count: int,
    reach_nm: float,
) -> FloatArray:
    """Draw positions (N, 3) in the light volume that map into the EM or less than `reach_nm` away.

    Raises
    ------
    RegistrationError
        There are hardly any.
    """
    grid, em = channel.fixed.grid, channel.moving.grid
    low, high = em.corners_nm()[[0, -1]]
    corners = np.stack(np.meshgrid(*np.stack([low - reach_nm, high + reach_nm], 1), indexing="ij"))
    seen = grid.to_index(affine.inverse()(corners.reshape(3, -1).T))
    start = np.clip(seen.min(axis=0), -0.5, np.asarray(grid.shape) - 0.5)
    stop = np.clip(seen.max(axis=0), -0.5, np.asarray(grid.shape) - 0.5)
    index = rng.uniform(start, stop, (8 * count, 3))
    there = affine(grid.to_world(index))
    near = ((there > low - reach_nm) & (there < high + reach_nm)).all(axis=1)
    if masks.fixed is not None:
        near &= trusted_at(masks.fixed, index.T)
    index = np.clip(index[near][:count], 0, np.asarray(grid.shape) - 1)
    if len(index) < _FEWEST:
        raise RegistrationError(
            "the EM and the LM hardly overlap in the start pose",
            hint="check voxel sizes and which volumes belong together, or give a larger mask",
        )
    return grid.to_world(index)


def check_images(channels: Sequence[Channel]) -> None:
    """Refuse what cannot be registered.

    Raises
    ------
    DataError
        NaN, no contrast, or a volume thinner than four voxels.
    """
    for volume in (v for c in channels for v in (c.fixed, c.moving)):
        name, array = volume.name or "image", volume.read()
        if array.ndim != 3 or min(array.shape) < 4:
            raise DataError(
                f"{name}: shape {array.shape} cannot be registered in 3-D, "
                "each axis needs 4 voxels",
                hint="give a stack, not one slice; check that the axes were read as z, y, x",
            )
        if not np.isfinite(array).all():
            raise DataError(f"{name} holds NaN or infinity", hint="replace them before registering")
        if np.ptp(array) == 0:
            raise DataError(f"{name} is the same value everywhere", hint="is it the right channel?")


def _smooth(volume: Volume, mask: Mask, sigma_nm: float) -> Image:
    image = np.asarray(volume.read(), dtype=np.float32)
    if sigma_nm <= 0:
        return filled(image, mask)
    return blur(image, mask, sigma_nm / np.asarray(volume.grid.spacing_nm), 3.0)


def _sampled(image: Image, index: FloatArray) -> Image:
    values: Image = ndimage.map_coordinates(image, index, order=1, mode="nearest")
    return values


def _line(x: Image, y: Image) -> tuple[float, float]:
    """Slope and level of the line through (x, y) by least squares."""
    spread = float(x.var())
    slope = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread > 0 else 0.0
    return slope, float(y.mean()) - slope * float(x.mean())
