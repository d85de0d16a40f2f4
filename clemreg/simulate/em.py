"""What a FIB-SEM makes of labels: grey values, texture, noise and the usual artefacts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clemreg.simulate.phantom import CLASSES, Phantom, PhantomOptions, draw_phantom
from clemreg.space.grid import Grid

# Mean grey value (0 black, 1 white) and strength of the fine texture, by class.
_LOOK: dict[str, tuple[float, float]] = {
    "cytosol": (0.68, 0.085),
    "ecs": (0.80, 0.03),
    "pm": (0.22, 0.05),
    "mito_lum": (0.45, 0.05),
    "mito_mem": (0.24, 0.05),
    "crista": (0.27, 0.05),
    "er_lum": (0.72, 0.035),
    "er_mem": (0.30, 0.05),
    "nucleus": (0.58, 0.09),
    "ne_mem": (0.25, 0.04),
    "ves_lum": (0.70, 0.04),
    "ves_mem": (0.28, 0.04),
    "lysosome": (0.36, 0.10),
    "lipid_droplet": (0.20, 0.015),
}


@dataclass(frozen=True)
class EmAppearance:
    """Contrast, blur, noise and artefacts; every strength in units of the grey range 0 to 1.

    Attributes
    ----------
    mito_lumen
        Mean grey of the mitochondrial matrix.
    class_spread
        Standard deviation of a random change of each class's mean.
    blur_nm
        Sigma of the beam and section blur.
    noise
        Standard deviation of the white noise.
    curtain
        Strength of vertical stripes (curtaining).
    slice_brightness, slice_jitter_nm
        Change of brightness and shift from slice to slice.
    charging
        Strength of slow bright clouds.
    gamma, contrast, brightness
        Final tone curve: ``brightness + contrast * (v ** gamma - 0.5)``.
    inverted
        Whether membranes are bright.
    """

    mito_lumen: float = 0.45
    class_spread: float = 0.0
    blur_nm: float = 7.0
    noise: float = 0.045
    curtain: float = 0.015
    slice_brightness: float = 0.01
    slice_jitter_nm: float = 2.0
    charging: float = 0.03
    gamma: float = 1.0
    contrast: float = 0.8
    brightness: float = 0.5
    inverted: bool = False

    @classmethod
    def random(cls, rng: np.random.Generator) -> EmAppearance:
        """Draw a hard one, as from another microscope and another staining."""
        return cls(
            mito_lumen=rng.uniform(0.32, 0.62),
            class_spread=0.05,
            blur_nm=rng.uniform(3, 13),
            noise=rng.uniform(0.01, 0.13),
            curtain=rng.uniform(0, 0.05),
            slice_brightness=rng.uniform(0, 0.04),
            slice_jitter_nm=rng.uniform(0, 8),
            charging=rng.uniform(0, 0.08),
            gamma=rng.uniform(0.7, 1.5),
            contrast=rng.uniform(0.5, 1.2),
            brightness=rng.uniform(0.4, 0.6),
            inverted=bool(rng.random() < 0.05),
        )


def render_em(
    rng: np.random.Generator, labels: NDArray[np.uint8], grid: Grid, look: EmAppearance
) -> NDArray[np.uint8]:
    """Grey values (z, y, x) of labels.

    Parameters
    ----------
    labels
        Values of `CLASSES` on `grid`.
    look
        Appearance.
    """
    from scipy.ndimage import gaussian_filter

    spacing = np.asarray(grid.spacing_nm)
    image, texture = _class_greys(rng, labels, look)
    image += _grain(rng, grid, 14.0) * texture
    image += _grain(rng, grid, 45.0) * texture * 0.6
    gaussian_filter(image, look.blur_nm / spacing, output=image, mode="nearest")
    _jitter(rng, image, look.slice_jitter_nm / spacing[2])
    image += _charging(rng, grid.shape, look.charging)
    image += look.curtain * _stripes(rng, grid.shape)
    image += rng.normal(scale=look.slice_brightness, size=(grid.shape[0], 1, 1)).astype(np.float32)
    image += (
        look.noise
        * rng.standard_normal(grid.shape, dtype=np.float32)
        * np.sqrt(np.clip(image, 0.15, 1) / 0.5)
    )
    np.clip(image, 0, 1, out=image)
    toned = look.brightness + look.contrast * (image**look.gamma - 0.5)
    if look.inverted:
        toned = 1 - toned
    result: NDArray[np.uint8] = np.clip(toned * 255 + 0.5, 0, 255).astype(np.uint8)
    return result


def random_training_block(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing_nm: tuple[float, float, float]
) -> tuple[NDArray[np.uint8], Phantom]:
    """Make a random piece of cell with a random, hard appearance, for training.

    Returns
    -------
    em, phantom
        uint8 grey values (z, y, x), and what they show.
    """
    phantom = random_piece(rng, Grid(shape, spacing_nm, frame="em"))
    look = EmAppearance.random(rng)
    return render_em(rng, phantom.labels, phantom.grid, look), phantom


def random_piece(rng: np.random.Generator, grid: Grid) -> Phantom:
    """Make a random piece of tissue or of a cell, with organelles of random number and size."""
    options = PhantomOptions(
        tissue="neuropil" if rng.random() < 0.6 else "cell",
        mito_spacing_nm=rng.uniform(800, 1400),
        mito_radius_nm=(rng.uniform(80, 150), rng.uniform(180, 330)),
        er_spacing_nm=rng.uniform(500, 1100),
        flatness=rng.uniform(0, 0.8),
    )
    return draw_phantom(rng, grid, options)


def _class_greys(
    rng: np.random.Generator, labels: NDArray[np.uint8], look: EmAppearance
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    grey = np.zeros(256, np.float32)
    texture = np.zeros(256, np.float32)
    for name, value in CLASSES.items():
        mean, strength = _LOOK[name]
        if name == "mito_lum":
            mean = look.mito_lumen
        if name == "crista":
            mean = min(mean, look.mito_lumen - 0.08)
        grey[value] = np.clip(mean + rng.normal(scale=look.class_spread), 0.05, 0.95)
        texture[value] = strength
    return grey[labels], texture[labels]


def _grain(rng: np.random.Generator, grid: Grid, size_nm: float) -> NDArray[np.float32]:
    """Correlated noise of unit variance; ribosomes and stain are grains of about `size_nm`."""
    from scipy.ndimage import gaussian_filter

    noise = rng.standard_normal(grid.shape, dtype=np.float32)
    sigma = size_nm / 2.355 / np.asarray(grid.spacing_nm)
    gaussian_filter(noise, sigma, output=noise, mode="wrap")
    return noise / max(float(noise.std()), 1e-6)


def _jitter(rng: np.random.Generator, image: NDArray[np.float32], sigma_voxels: float) -> None:
    """Shift each slice a little in x and y, as drift between milling steps does."""
    from scipy.ndimage import shift

    if sigma_voxels <= 0.02:
        return
    for z, offset in enumerate(rng.normal(scale=sigma_voxels, size=(len(image), 2))):
        image[z] = shift(image[z], offset, order=1, mode="nearest")


def _charging(
    rng: np.random.Generator, shape: tuple[int, int, int], strength: float
) -> NDArray[np.float32]:
    from scipy.ndimage import zoom

    coarse = rng.standard_normal([max(2, n // 64 + 2) for n in shape], dtype=np.float32)
    factors = [n / c for n, c in zip(shape, coarse.shape, strict=True)]
    cloud = zoom(coarse, factors, order=1, mode="nearest", grid_mode=True)
    return np.asarray(strength * cloud[: shape[0], : shape[1], : shape[2]], dtype=np.float32)


def _stripes(rng: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Vertical stripes (along y), different in every slice but with a common part."""
    from scipy.ndimage import gaussian_filter1d

    common = rng.standard_normal(shape[2])
    each = rng.standard_normal((shape[0], shape[2]))
    profile = gaussian_filter1d(0.6 * common + 0.8 * each, 1.5, axis=-1)
    return np.broadcast_to(profile[:, None, :], shape).astype(np.float32)
