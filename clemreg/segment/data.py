"""Training patches: cut from volumes in memory, turned, rescaled and changed in appearance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, DataError
from clemreg.segment.targets import ORGANELLES

FloatVolume = NDArray[np.float32]

CLIP = 1.5
"""Grey values beyond black (-1) and white (1) are told apart up to here."""

_BOUNDED = (0.5, 0.3, 0.2)
"""How often a part of a volume ends across one axis, two or three: faces, edges, corners."""


@dataclass(frozen=True, eq=False)
class TrainingVolume:
    """EM and the distances to the organelles annotated in it, at one voxel size.

    Attributes
    ----------
    em
        Grey values (z, y, x), uint8 or float.
    distances_nm
        Signed distance to the surface of each annotated organelle, positive inside (z, y, x), by
        name (`clemreg.segment.targets.ORGANELLES`). What is not here is unknown, not absent.
    spacing_nm
        Voxel size zyx.
    weight
        How often this volume is drawn, relative to the others.
    name
        For messages and the model card.
    upright
        It was annotated slice by slice: patches are turned about z and mirrored, but z stays z,
        since outlines end otherwise across slices than within them.
    """

    em: NDArray[np.generic]
    distances_nm: Mapping[str, FloatVolume]
    spacing_nm: tuple[float, float, float]
    weight: float = 1.0
    name: str = ""
    upright: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.distances_nm) - set(ORGANELLES)
        if unknown or not self.distances_nm:
            raise DataError(
                f"{self.name}: distances to {sorted(unknown) or 'nothing'}; known organelles are "
                f"{', '.join(ORGANELLES)}"
            )
        for organelle, distance in self.distances_nm.items():
            if self.em.shape != distance.shape:
                raise DataError(
                    f"{self.name}: EM {self.em.shape} and distance to {organelle} "
                    f"{distance.shape} differ"
                )


@dataclass(frozen=True)
class PatchOptions:
    """Size and randomisation of patches.

    Attributes
    ----------
    spacing_nm
        Voxel size that the network sees (isotropic).
    scale
        Range of random magnification.
    output
        Output voxels along each axis.
    halo
        Extra input voxels on each side.
    slabs
        Share of patches of which only a part is seen, as if the volume ended at its faces: a slab
        across one axis, or what lies between two or three pairs of faces. Thin volumes are all
        border, and at an edge or a corner of a volume little is left to see.
    plain
        Share of the patches of volumes at `spacing_nm` that are taken as they are, neither
        magnified nor changed in appearance: what prediction will see of such data.
    """

    spacing_nm: float
    output: int
    halo: int
    scale: tuple[float, float] = (0.8, 1.25)
    slabs: float = 0.0
    plain: float = 0.0


def contrast_limits(em: NDArray[np.generic]) -> tuple[float, float]:
    """Grey values that become -1 and 1: the 0.5th and 99.5th percentile of a sample."""
    sample = np.asarray(em[:: max(1, em.shape[0] // 32), ::4, ::4], dtype=np.float32)
    low, high = np.percentile(sample, [0.5, 99.5])
    return float(low), float(max(high, low + 1e-6))


def normalise(em: NDArray[np.generic], limits: tuple[float, float]) -> FloatVolume:
    """Map grey values so that `limits` become -1 and 1, clipped at 1.5 times that."""
    low, high = limits
    x = em.astype(np.float32)
    x -= low
    x *= 2 / (high - low)
    x -= 1
    return np.clip(x, -CLIP, CLIP, out=x)


class PatchSampler:
    """Draws random patches: input in about [-1, 1], distances and where they are known.

    Raises
    ------
    DataError
        There is no volume.
    ConfigError
        Patches are to be taken as they are, and no volume has their voxel size.
    """

    def __init__(self, volumes: Sequence[TrainingVolume], options: PatchOptions) -> None:
        if not volumes:
            raise DataError("there is no training volume")
        self.volumes = [(v, contrast_limits(v.em)) for v in volumes]
        weights = np.array([v.weight for v in volumes], dtype=float)
        self.probabilities = weights / weights.sum()
        self.options = options
        self.places = [_places(v) for v in volumes]
        if options.plain and not any(map(self._at_spacing, volumes)):
            found = sorted({v.spacing_nm[::-1] for v in volumes})
            raise ConfigError(
                f"plain = {options.plain:g} asks for patches as they are, and no volume has voxels "
                f"of {options.spacing_nm:g} nm: x, y, z = {'; '.join(map(str, found))} nm",
                hint="leave plain away, or train at the voxel size of a volume",
            )

    def draw(self, rng: np.random.Generator) -> tuple[FloatVolume, FloatVolume, NDArray[np.bool_]]:
        """Return one patch: input (z, y, x) with halo; distances and where they are known without.

        Both are (organelle, z, y, x) in the order of `ORGANELLES`; unknown distances are 0.
        """
        chosen = rng.choice(len(self.volumes), p=self.probabilities)
        volume, limits = self.volumes[chosen]
        size = self.options.output + 2 * self.options.halo
        plain = self._is_plain(rng, volume)
        scale = np.ones(3) if plain else self._scale(rng, volume)
        low = self._corner(rng, volume, scale, self.places[chosen])
        if plain:
            low = np.floor(low)
        ends = self._ends(rng, volume, low, scale)
        em, distances, known = self._cut(volume, low, scale, size, ends)
        x = normalise(em, limits)
        if not plain:
            x = recolour(rng, x)
        x, distances, known = turn(rng, x, distances, known, upright=volume.upright)
        return x, distances, known

    def _is_plain(self, rng: np.random.Generator, volume: TrainingVolume) -> bool:
        if not self.options.plain or not self._at_spacing(volume):
            return False
        return bool(rng.random() < self.options.plain)

    def _at_spacing(self, volume: TrainingVolume) -> bool:
        return np.allclose(volume.spacing_nm, self.options.spacing_nm)

    def _scale(self, rng: np.random.Generator, volume: TrainingVolume) -> NDArray[np.float64]:
        """Voxels of the volume per voxel of the patch, along each axis."""
        step = self.options.spacing_nm * rng.uniform(*self.options.scale)
        return np.asarray(step * rng.uniform(0.95, 1.05, 3) / np.asarray(volume.spacing_nm))

    def _corner(
        self,
        rng: np.random.Generator,
        volume: TrainingVolume,
        scale: NDArray[np.float64],
        places: NDArray[np.intp],
    ) -> NDArray[np.float64]:
        """Lowest corner of the output cube in voxels: half of the cubes hold an organelle.

        The cube lies inside the volume as far as it fits.
        """
        shape = np.asarray(volume.em.shape)
        span = self.options.output * scale
        first, last = np.minimum(0, shape - span), np.maximum(shape - span, 1e-6)
        if len(places) and rng.random() < 0.5:
            about = places[rng.integers(len(places))] - span * rng.uniform(0.25, 0.75, 3)
            return np.asarray(np.clip(about, first, last))
        return np.asarray(rng.uniform(first, last))

    def _ends(
        self,
        rng: np.random.Generator,
        volume: TrainingVolume,
        low: NDArray[np.float64],
        scale: NDArray[np.float64],
    ) -> NDArray[np.intp]:
        """First and last voxel (2, zyx) that are seen; at times only those of a part."""
        ends = np.stack([np.zeros(3, np.intp), np.asarray(volume.em.shape) - 1])
        bounded = 0
        if self.options.slabs and rng.random() < self.options.slabs:
            bounded = rng.choice(3, p=_BOUNDED) + 1
        for axis in rng.permutation(3)[:bounded]:
            span = self.options.output * scale[axis]
            thickness = span * rng.uniform(0.2, 1.0)
            first = low[axis] + rng.uniform(0, span - thickness)
            seen = np.array([first, first + thickness]).astype(np.intp)
            ends[:, axis] = np.clip(seen, 0, ends[1, axis])
        return ends

    def _cut(
        self,
        volume: TrainingVolume,
        low: NDArray[np.float64],
        scale: NDArray[np.float64],
        size: int,
        ends: NDArray[np.intp],
    ) -> tuple[FloatVolume, FloatVolume, NDArray[np.bool_]]:
        """Resample a cube of `size` voxels; beyond the ends the last voxel goes on, not known."""
        start = low - self.options.halo * scale
        axes = [s + (np.arange(size) + 0.5) * k - 0.5 for s, k in zip(start, scale, strict=True)]
        known_axes = [(a >= f - 0.5) & (a <= b + 0.5) for a, f, b in zip(axes, *ends, strict=True)]
        held = [np.clip(a, f, b) for a, f, b in zip(axes, *ends, strict=True)]
        seen = volume.em[tuple(slice(f, b + 1) for f, b in ends.T)]
        em = _separable(
            seen, [a - f for a, f in zip(held, ends[0], strict=True)], scale, smooth=True
        )
        core = slice(self.options.halo, self.options.halo + self.options.output)
        # Distances in nm stretch with the magnification of this patch.
        stretch = self.options.spacing_nm / float(np.mean(scale * np.asarray(volume.spacing_nm)))
        inside = [k[core] for k in known_axes]
        here = inside[0][:, None, None] & inside[1][:, None] & inside[2]
        cube = (self.options.output,) * 3
        distances = np.zeros((len(ORGANELLES), *cube), dtype=np.float32)
        known = np.zeros(distances.shape, dtype=bool)
        for i, organelle in enumerate(ORGANELLES):
            if organelle in volume.distances_nm:
                full = volume.distances_nm[organelle]
                part = _separable(full, [a[core] for a in held], scale, smooth=False)
                distances[i], known[i] = part * np.float32(stretch), here
        return em, distances, known


def _places(volume: TrainingVolume, most: int = 20_000) -> NDArray[np.intp]:
    """Voxels (N, 3) inside an organelle, evenly thinned."""
    first = next(iter(volume.distances_nm.values()))
    inside = np.flatnonzero(first > 0)
    kept = inside[:: max(1, len(inside) // most)]
    return np.stack(np.unravel_index(kept, first.shape), axis=-1)


def _separable(
    array: NDArray[np.generic],
    axes: Sequence[NDArray[np.float64]],
    scale: NDArray[np.float64],
    *,
    smooth: bool,
) -> FloatVolume:
    """Interpolate linearly on the product of three axes; averages where voxels get coarser."""
    low = [max(0, int(np.floor(a.min() - k))) for a, k in zip(axes, scale, strict=True)]
    high = [
        min(n, int(np.ceil(a.max() + k)) + 2)
        for a, k, n in zip(axes, scale, array.shape, strict=True)
    ]
    part = array[low[0] : high[0], low[1] : high[1], low[2] : high[2]].astype(np.float32)
    shifted = [a - b for a, b in zip(axes, low, strict=True)]
    return separable_resample(part, shifted, scale if smooth else (1.0, 1.0, 1.0))


def separable_resample(
    part: FloatVolume, axes: Sequence[NDArray[Any]], widths: Sequence[float] | NDArray[Any]
) -> FloatVolume:
    """Interpolate on the product of three axes of fractional voxel positions.

    Parameters
    ----------
    part
        Values (z, y, x).
    axes
        Positions along each axis, in voxels of `part`.
    widths
        New voxel size in voxels of `part`, per axis; above 1 a triangle of that half width
        averages, so that coarser sampling does not alias.
    """
    # Each product in the order in which the values lie, so that nothing is copied in between.
    z, y, x = (_weights(a, n, w) for a, n, w in zip(axes, part.shape, widths, strict=True))
    return np.ascontiguousarray(weigh(part, z, y, x), dtype=np.float32)


def weigh(part: NDArray[Any], z: NDArray[Any], y: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Multiply values (z, y, x) by a matrix of weights (new, old) along each axis."""
    part = (z @ part.reshape(len(part), -1)).reshape(len(z), *part.shape[1:])
    return np.asarray((y @ part) @ x.T)


def _weights(position: NDArray[np.float64], n: int, width: float) -> FloatVolume:
    """Rows of triangle-filter weights of half width max(1, width) around each position."""
    reach = max(1.0, float(width))
    distance = np.abs(position[:, None] - np.arange(n)[None, :])
    weight = np.clip(1 - distance / reach, 0, None)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-6)
    return weight.astype(np.float32)


def recolour(rng: np.random.Generator, x: FloatVolume) -> FloatVolume:
    """Change contrast, brightness, gamma, noise, blur, slices, stripes; rarely invert."""
    from scipy.ndimage import gaussian_filter

    gamma = np.exp(rng.normal(scale=0.25))
    gain, shift = rng.uniform(0.7, 1.3), rng.uniform(-0.3, 0.3)
    toned = 3 * np.clip((x + 1.5) / 3, 0, 1) ** gamma
    # About the middle of the grey range, not the patch's mean: what is bright all over stays so.
    x = np.asarray((toned - 3 * 0.5**gamma) * gain + shift, dtype=np.float32)
    if rng.random() < 0.3:
        x = gaussian_filter(x, rng.uniform(0.3, 0.9, 3))
    if rng.random() < 0.5:
        strength = np.float32(rng.uniform(0, 0.2))
        x = x + strength * rng.standard_normal(x.shape, dtype=np.float32)
    if rng.random() < 0.3:
        x = x + rng.normal(scale=0.06, size=(len(x), 1, 1)).astype(np.float32)
    if rng.random() < 0.2:
        x = x + _curtain(rng, x.shape)
    if rng.random() < 0.5:
        x = x + _cloud(rng, x.shape)
    if rng.random() < 0.15:
        x = _jittered(rng, x)
    if rng.random() < 0.1:
        x = -x
    return np.clip(x, -1.5, 1.5).astype(np.float32)


def _curtain(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatVolume:
    """Stripes along y, partly the same in all slices, as milling leaves them."""
    from scipy.ndimage import gaussian_filter1d

    profile = 0.6 * rng.standard_normal(shape[2]) + 0.8 * rng.standard_normal((shape[0], shape[2]))
    smooth = np.asarray(gaussian_filter1d(profile, rng.uniform(0.5, 2.0), axis=-1), np.float32)
    return smooth[:, None, :] * np.float32(rng.uniform(0, 0.15))


def _cloud(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatVolume:
    """Slow change of brightness, as from charging, staining depth or a thick edge."""
    coarse = rng.normal(scale=rng.uniform(0.02, 0.15), size=(4, 4, 4)).astype(np.float32)
    axes = [np.linspace(0, 3, n) for n in shape]
    return separable_resample(coarse, axes, (1.0, 1.0, 1.0))


def _jittered(rng: np.random.Generator, x: FloatVolume) -> FloatVolume:
    """Shift single slices by a voxel, as drift between milling steps does."""
    out = x.copy()
    for z in np.flatnonzero(rng.random(len(x)) < 0.15):
        out[z] = np.roll(x[z], rng.integers(-1, 2, 2), axis=(0, 1))
    return out


def turn(
    rng: np.random.Generator, *arrays: NDArray[Any], upright: bool = False
) -> tuple[NDArray[Any], ...]:
    """Mirror and transpose the last three axes (z, y, x) of all arrays alike.

    Each of the 48 ways; upright, each of the 16 in which z stays z.
    """
    order = np.array([-3, *rng.permutation(2) - 2]) if upright else rng.permutation(3) - 3
    mirrored = tuple(axis for axis in (-3, -2, -1) if rng.random() < 0.5)
    turned = (np.flip(np.moveaxis(a, order.tolist(), (-3, -2, -1)), mirrored) for a in arrays)
    return tuple(np.ascontiguousarray(a) for a in turned)
