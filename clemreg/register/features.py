"""Make the two images comparable: what the light microscope would show of the EM segmentation.

The EM side follows Heinrich et al. 2021 (`cosem-lm-em-registration`): what lies within 150 nm of
the extracellular space is no mitochondrion, small components of the mitochondria dropped, holes
filled, membrane kept within 16 nm of a mitochondrion, predictions ramped between 120 and 134. The
result is blurred to the light microscope's point spread and averaged down to about its voxel size,
so that both images show the same thing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clemreg.blocks.stitch import face_planes
from clemreg.errors import ConfigError, DataError
from clemreg.io.quantise import SURFACE
from clemreg.register.structure import MITO, mitochondria
from clemreg.register.trusted import mask_onto
from clemreg.space.grid import Box, Grid, Triple
from clemreg.space.resample import pool_mean
from clemreg.volume import Volume

log = logging.getLogger(__name__)

Image = NDArray[np.float32]

LEAST_VOXELS = 4
"""Along each axis of an image that is registered."""
Kind = Literal["auto", "prediction", "probability", "mask"]
KINDS: tuple[Kind, ...] = ("auto", "prediction", "probability", "mask")
Ramp = Literal["linear", "published"]
RAMPS: tuple[Ramp, ...] = ("linear", "published")

_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
_FWHM_NM = (5.0, 10_000.0)
_MOST_IDS = 64  # bytes that are all below this are ids: no probability stays below a quarter
_SLAB = 64  # planes that are looked at together
_HALF = 0.5
_BRIGHT = 0.25  # mitochondria fill less than half of a cell, and a probability is low elsewhere
_WHY_NOTHING = "no mitochondrion is larger than min_volume_nm3; was the right channel given?"
LARGEST = 10**8  # voxels that are worked on whole; larger input is averaged down while reading


def sigma_from_fwhm(fwhm_nm: Sequence[float]) -> Triple:
    """Gaussian sigma zyx of a full width at half maximum zyx, both in nm.

    Raises
    ------
    ConfigError
        A width is none that a light microscope has.
    """
    low, high = _FWHM_NM
    if not all(low <= v <= high for v in fwhm_nm):
        x_y_z = ", ".join(f"{v:g}" for v in reversed(fwhm_nm))
        raise ConfigError(
            f"a point spread of {x_y_z} nm (x, y, z) cannot be right",
            hint=f"full widths of {low:g} to {high:g} nm; is the unit right?",
        )
    z, y, x = (float(v) / _FWHM for v in fwhm_nm)
    return z, y, x


PSF_SIGMA_NM: dict[str, Triple] = {
    # PALM: localisation precision about 20 nm laterally, 40 nm axially, label size and drift.
    "palm": (50.0, 25.0, 25.0),
    "sim": sigma_from_fwhm((300.0, 110.0, 110.0)),
    "confocal": sigma_from_fwhm((600.0, 250.0, 250.0)),
}


@dataclass(frozen=True)
class MovingOptions:
    """How the EM segmentation is turned into what the light microscope would see.

    Parameters
    ----------
    psf_sigma_nm
        Gaussian sigma zyx of the light microscope.
    kind
        ``"prediction"``: uint8 signed distances (`clemreg.io.quantise`) with the channels ``mito``
        and ``mito_mem``, or one of them, and perhaps ``ecs``; ``"probability"``: 0 to 1, or uint8
        0 to 255; ``"mask"``: not 0 is foreground; ``"auto"`` goes by channel names and
        values: bytes below 64 are ids, so a mask.
    ramp
        Stored values from which and up to which a prediction counts more and more.
    ramp_kind
        ``"linear"``: from 0 to 1; ``"published"``: with the slope of the paper's program,
        ``(high - low) / low`` instead of ``1 / (high - low)``, so that the values just below
        `high` count 1.6 times as much as those above.
    outside_reach_nm
        Mitochondria and membrane within this distance of the largest component of the channel
        ``ecs`` (extracellular space) are dropped (150 nm in the paper).
    min_volume_nm3
        Mitochondria smaller than this are dropped (2e7 in the paper).
    min_cut_volume_nm3
        The same for mitochondria that the faces of the volume cut: how large they are is not known,
        and what they show in the light image would be matched with a neighbour instead.
    membrane_reach_nm
        Membrane farther than this from a kept mitochondrion is dropped.
    smooth_voxels
        Gaussian sigma in LM voxels, to match the smoothing given to the LM.
    """

    psf_sigma_nm: Triple = PSF_SIGMA_NM["palm"]
    kind: Kind = "auto"
    ramp: tuple[float, float] = (120.0, 134.0)
    ramp_kind: Ramp = "linear"
    outside_reach_nm: float = 150.0
    min_volume_nm3: float = 2e7
    min_cut_volume_nm3: float = 4e6
    membrane_reach_nm: float = 16.0
    smooth_voxels: float = 0.6

    def __post_init__(self) -> None:
        if self.ramp_kind not in RAMPS:
            raise ConfigError(f"no ramp {self.ramp_kind!r}", hint=", ".join(RAMPS))
        if self.kind not in KINDS:
            raise ConfigError(f"no kind {self.kind!r} of segmentation", hint=", ".join(KINDS))


@dataclass(frozen=True)
class FixedOptions:
    """How the light image is brought to even contrast and noise.

    Parameters
    ----------
    background_um
        Background is what varies more slowly than this; 0 takes one level for the whole volume.
    background_percentile
        Percentile of a neighbourhood that counts as background.
    white_percentile
        Percentile of the signal that becomes 1.
    clip
        Brightest value kept.
    smooth_voxels
        Gaussian sigma in voxels before the square root.
    """

    background_um: float = 2.0
    background_percentile: float = 20.0
    white_percentile: float = 99.5
    clip: float = 1.5
    smooth_voxels: float = 0.6


def prepare_moving(
    prediction: Volume,
    lm_spacing_nm: Sequence[float],
    options: MovingOptions | None = None,
    outside: Volume | None = None,
) -> Volume:
    """EM segmentation as the light microscope would see it, float32 in [0, 1], near LM spacing.

    Parameters
    ----------
    prediction
        Prediction, mask or probability (see `MovingOptions.kind`).
    lm_spacing_nm
        LM voxel size zyx. The result's voxels are whole multiples of the EM's, at most about this.
    options
        Defaults if None.
    outside
        Extracellular space on any grid of the EM's frame, instead of a channel ``ecs``: a mask, all
        of which counts; or a prediction or probability, whose largest component does. Its channel
        ``ecs``, or the first one.

    Returns
    -------
    Volume
        Square root of the blurred membrane density, on the EM's frame; pooling has shifted its
        origin by half of what the voxels have grown.

    Raises
    ------
    DataError
        There is nothing in the segmentation, or it holds NaN.
    """
    options = MovingOptions() if options is None else options
    volume = _level(prediction)
    kind = _kind(volume) if options.kind == "auto" else options.kind
    log.info("%s is taken as a %s", prediction.name or "EM segmentation", kind)
    volume = _affordable(volume, kind)
    beyond = None if outside is None else _mask_of(outside, volume.grid)
    density, grid = _density(volume, kind, options, beyond), volume.grid
    if density.max() <= 0:
        raise DataError(
            f"{prediction.name or 'EM segmentation'}: nothing is left to register",
            hint=_WHY_NOTHING if outside is None else f"{_WHY_NOTHING} or is all of it outside?",
        )
    spacing = np.asarray(lm_spacing_nm, dtype=float)
    smooth = options.smooth_voxels * spacing
    sigma = np.hypot(np.asarray(options.psf_sigma_nm), smooth) / np.asarray(grid.spacing_nm)
    blurred = ndimage.gaussian_filter(density, sigma, mode="nearest", truncate=3.0)
    factor = _factor(grid, spacing)
    pooled = np.asarray(pool_mean(blurred, factor), dtype=np.float32)
    pooled /= max(float(np.percentile(pooled[pooled > 0.02 * pooled.max()], 99.5)), 1e-6)
    image = np.sqrt(np.clip(pooled, 0, None))
    return Volume(image, grid.downsample(factor), name="EM as seen by LM")


def prepare_fixed(lm: Volume, options: FixedOptions | None = None) -> Volume:
    """Light image with its background removed, scaled to about [0, 1], with even noise.

    Parameters
    ----------
    lm
        One channel (zyx).
    options
        Defaults if None.

    Returns
    -------
    Volume
        float32 on the same grid: the square root (variance of counts becomes constant) of the
        smoothed signal above background over its `white_percentile`.

    Raises
    ------
    DataError
        The channel is empty, has fewer than 4 slices, or holds NaN.
    """
    options = FixedOptions() if options is None else options
    name = lm.name or "LM"
    if lm.channels:
        raise DataError(
            f"{name} has channels {list(lm.channels)}; registration takes one",
            hint="choose the mitochondria channel, for example --channel mito",
        )
    image = np.array(lm.read(), dtype=np.float32)
    _check_image(image, name)
    smoothed = ndimage.gaussian_filter(image, options.smooth_voxels, mode="nearest", truncate=3.0)
    signal = np.clip(smoothed - _background(smoothed, lm.grid, options), 0, None)
    white = float(np.percentile(signal, options.white_percentile))
    if white <= 0:
        raise DataError(f"{name} has no signal above its background", hint="is it the channel?")
    return Volume(np.sqrt(np.clip(signal / white, 0, options.clip)), lm.grid, name=name)


def _check_image(image: Image, name: str) -> None:
    if min(image.shape) < LEAST_VOXELS:
        raise DataError(
            f"{name}: shape {image.shape} is too thin for registration in 3-D",
            hint=f"give a stack of at least {LEAST_VOXELS} slices; a single one has no place in z",
        )
    if not np.isfinite(image).all():
        bad = int((~np.isfinite(image)).sum())
        raise DataError(f"{name} holds {bad} NaN or infinite voxels", hint="replace them first")
    if np.ptp(image) == 0:
        raise DataError(
            f"{name} is {image.flat[0]:g} everywhere", hint="is it the right channel and level?"
        )


def _background(image: Image, grid: Grid, options: FixedOptions) -> Image | np.float32:
    """Low percentile of the surroundings, smooth on the scale of `background_um`."""
    level = np.float32(np.percentile(image, options.background_percentile))
    if options.background_um <= 0:
        return level
    size = np.asarray(grid.spacing_nm)
    step = np.maximum(1, np.round(options.background_um * 1e3 / 4 / size)).astype(int)
    if (np.asarray(image.shape) < 2 * step).any():
        return level
    coarse = np.asarray(pool_mean(image, tuple(int(s) for s in step)), dtype=np.float32)
    low = ndimage.percentile_filter(coarse, options.background_percentile, size=5, mode="nearest")
    low = ndimage.gaussian_filter(low, 1.0, mode="nearest")
    at = [(np.arange(n) - (s - 1) / 2) / s for n, s in zip(image.shape, step, strict=True)]
    index = np.meshgrid(*at, indexing="ij", sparse=False)
    spread = ndimage.map_coordinates(low, index, order=1, mode="nearest")
    return np.asarray(spread, dtype=np.float32)


def _factor(grid: Grid, lm_spacing_nm: NDArray[np.float64]) -> tuple[int, int, int]:
    ratio = lm_spacing_nm / np.asarray(grid.spacing_nm)
    z, y, x = (max(1, int(r + 0.2)) for r in ratio)
    return z, y, x


def _level(volume: Volume) -> Volume:
    """Return the finest level that fits in memory, or the coarsest."""
    fitting = (level for level in volume.levels if level.grid.size <= LARGEST)
    return next(fitting, volume.levels[-1])


def _affordable(volume: Volume, kind: Kind) -> Volume:
    """Average a level while reading if it does not fit in memory."""
    factor = math.ceil((volume.grid.size / LARGEST) ** (1 / 3))
    if factor == 1:
        return volume
    log.info("%s is averaged by %d before cleaning", volume.name or "segmentation", factor)
    return _pooled_while_reading(volume, factor, kind)


def _slabs(volume: Volume, planes: int) -> Iterator[NDArray[Any]]:
    for start in range(0, volume.shape[0], planes):
        stop = min(start + planes, volume.shape[0])
        yield volume.read(Box((start, 0, 0), (stop, *volume.shape[1:])))


def _pooled_while_reading(volume: Volume, factor: int, kind: Kind) -> Volume:
    """Average; of a mask, keep voxels that are half foreground or more."""
    slabs = []
    for slab in _slabs(volume, factor):
        parts = slab if volume.channels else slab[None]
        parts = parts != 0 if kind == "mask" else parts
        slabs.append(np.stack([pool_mean(p, (factor,) * 3) for p in parts]))
    means = np.concatenate(slabs, axis=1)
    array: NDArray[Any] = means >= _HALF if kind == "mask" else means.astype(volume.dtype)
    return Volume(
        array if volume.channels else array[0],
        volume.grid.downsample((factor,) * 3),
        channels=volume.channels,
        name=volume.name,
    )


def _density(
    volume: Volume, kind: Kind, options: MovingOptions, beyond: NDArray[np.bool_] | None
) -> Image:
    """How much membrane (or organelle) is in each voxel, 0 to 1."""
    if kind == "prediction":
        return _density_of_prediction(volume, options, beyond)
    volume = mitochondria(volume)
    image = volume.read()
    if not np.isfinite(image).all():
        raise DataError(f"{volume.name or 'EM segmentation'} holds NaN or infinity")
    if kind == "mask":
        if (image != 0).all():
            raise DataError(
                f"{volume.name or 'EM segmentation'} is a mask without a voxel that is 0",
                hint="a mask is 0 outside mitochondria: of a volume of classes keep those of "
                "mitochondria; or it is no mask: --kind probability",
            )
        kept = (image != 0) & ~_outside(beyond, volume.grid, options)
        return _large_enough(kept, volume.grid, options).astype(np.float32)
    scale = _probability_of_one(image, volume.name or "EM segmentation")
    result: Image = np.clip(image.astype(np.float32) / np.float32(scale), 0, 1)
    if options.kind == "auto":
        _check_probability(result, volume.name or "EM segmentation")
    result[_outside(beyond, volume.grid, options)] = 0
    return result


def _probability_of_one(image: Image, name: str) -> float:
    """Return the value that stands for a probability of 1."""
    if not np.issubdtype(image.dtype, np.integer):
        return 1.0
    most = int(image.max())
    if most <= 255:
        return 255.0
    if image.dtype.itemsize == 2 and image.dtype.kind == "u":
        return 65535.0
    raise DataError(
        f"{name} holds {image.dtype} up to {most}, no probability",
        hint="one is 0 to 1 as float, 0 to 255, or 0 to 65535 as uint16",
    )


def _check_probability(image: Image, name: str) -> None:
    """Refuse the grey values of an EM: where most of it is bright, nothing is segmented."""
    middle = float(np.median(image))
    if middle > _BRIGHT:
        raise DataError(
            f"{name} looks like the EM itself, not like mitochondria in it: half of its voxels are "
            f"above {middle:.2f} of full brightness, where a probability is near 0",
            hint="predict them first (`clemreg segment`), or give a mask; "
            "if it is a probability: --kind probability",
        )


def _kind(volume: Volume) -> Kind:
    if {*MITO} & {*volume.channels, volume.name} and volume.dtype == np.uint8:
        return "prediction"
    if volume.dtype == bool or (volume.dtype.kind in "iu" and volume.dtype.itemsize > 1):
        return "mask"
    if volume.dtype.kind == "f":
        return "probability"
    values = np.unique(np.concatenate([np.unique(slab) for slab in _slabs(volume, _SLAB)]))
    return "mask" if len(values) <= 2 or values[-1] < _MOST_IDS else "probability"


def _mask_of(outside: Volume, grid: Grid) -> NDArray[np.bool_]:
    """Bring the extracellular space that was given onto a grid."""
    if outside.channels:
        outside = outside.channel("ecs" if "ecs" in outside.channels else 0)
    kind = _kind(_level(outside))
    volume = _affordable(_level(outside), kind)
    stored = volume.read()
    if kind == "mask":
        marked = stored != 0
    else:
        marked = _largest(stored, SURFACE if stored.dtype.kind in "iu" else _HALF)
    if not marked.any():
        raise DataError(
            f"{outside.name or 'the extracellular space'}: there is none in it",
            hint="it is not 0, or 127 and more of 255, outside the cell",
        )
    mask = mask_onto(marked, volume.grid, grid)
    if not mask.any():
        raise DataError(
            f"{outside.name or 'the extracellular space'} and the EM segmentation do not overlap: "
            f"{volume.grid} and {grid}",
            hint="check its voxel size and origin",
        )
    return mask


def _outside(
    mask: NDArray[np.bool_] | None, grid: Grid, options: MovingOptions
) -> NDArray[np.bool_]:
    """Return what lies in the extracellular space or too near to it for a mitochondrion."""
    if mask is None:
        return np.zeros(grid.shape, dtype=bool)
    return _near(mask, grid, options.outside_reach_nm)


def _density_of_prediction(
    volume: Volume, options: MovingOptions, beyond: NDArray[np.bool_] | None
) -> Image:
    names = volume.channels or (volume.name,)
    stack = volume.read()
    if not volume.channels:
        stack = stack[None]
    by_name: dict[str, NDArray[Any]] = dict(zip(names, stack, strict=True))
    membrane = mitochondria(volume).read()
    density = _ramped(membrane, options)
    if beyond is None and "ecs" in by_name:
        beyond = _largest(by_name["ecs"], SURFACE)
    outside = _outside(beyond, volume.grid, options)
    density[outside] = 0
    if "mito" in by_name:
        mito = (by_name["mito"] >= SURFACE) & ~outside
        kept = _large_enough(mito, volume.grid, options)
        density[~_near(kept, volume.grid, options.membrane_reach_nm)] = 0
    return density


def _ramped(stored: NDArray[Any], options: MovingOptions) -> Image:
    """How much of a membrane a stored value stands for: 0 below the ramp, 1 above."""
    low, high = options.ramp
    density: Image = np.clip(stored.astype(np.float32) - np.float32(low), 0, None)
    if options.ramp_kind == "published":
        density *= np.float32((high - low) / low)
    else:
        density /= np.float32(high - low)
    density[stored >= high] = 1
    return density


def _largest(stored: NDArray[Any], least: float) -> NDArray[np.bool_]:
    """Largest component of values from `least` on; nothing if there is none."""
    import cc3d

    largest = cc3d.largest_k(np.asfortranarray(stored >= least), k=1, connectivity=6)
    return np.ascontiguousarray(largest > 0)


def _large_enough(mask: NDArray[np.bool_], grid: Grid, options: MovingOptions) -> NDArray[np.bool_]:
    """Components that are large enough, with their holes filled."""
    import cc3d

    components = cc3d.connected_components(np.asfortranarray(mask), connectivity=6)
    volumes = np.bincount(components.ravel()) * math.prod(grid.spacing_nm)
    kept = volumes >= options.min_volume_nm3
    cut = _touching_faces(components)
    kept[cut] |= volumes[cut] >= options.min_cut_volume_nm3
    kept[0] = False
    outside = cc3d.connected_components(~kept[components], connectivity=6)
    is_open = np.zeros(int(outside.max()) + 1, dtype=bool)
    is_open[_touching_faces(outside)] = True
    is_open[0] = False
    filled: NDArray[np.bool_] = np.ascontiguousarray(~is_open[outside])
    return filled


def _touching_faces(ids: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    """Ids on the outer planes of a volume, and 0."""
    planes = [plane.ravel() for plane in face_planes(ids).values()]
    return np.unique(np.concatenate([np.zeros(1, ids.dtype), *planes]))


def _near(mask: NDArray[np.bool_], grid: Grid, reach_nm: float) -> NDArray[np.bool_]:
    import edt

    if not mask.any():
        return mask
    distance = edt.edt(~mask, anisotropy=grid.spacing_nm, black_border=False, parallel=1)
    near: NDArray[np.bool_] = distance <= reach_nm
    return near
