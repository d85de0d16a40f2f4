"""A piece of cell as labels on a grid: mitochondria, ER, nucleus, vesicles, plasma membrane.

Shapes are drawn in nm from implicit functions that are evaluated on a coarse grid and
interpolated, so that a finer grid shows the same shapes in more detail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clemreg.space.grid import Grid

FloatVolume = NDArray[np.float32]
LabelVolume = NDArray[np.uint8]

CLASSES: dict[str, int] = {
    "cytosol": 1,
    "ecs": 2,
    "pm": 3,
    "mito_lum": 4,
    "mito_mem": 5,
    "crista": 6,
    "er_lum": 7,
    "er_mem": 8,
    "nucleus": 9,
    "ne_mem": 10,
    "ves_lum": 11,
    "ves_mem": 12,
    "lysosome": 13,
    "lipid_droplet": 14,
}
MITO_CLASSES = ("mito_lum", "mito_mem", "crista")
ER_CLASSES = ("er_lum", "er_mem")

MITO_MEMBRANE_NM = 24.0  # outer and inner membrane with the space between them
MEMBRANE_NM = 10.0
_COARSE_NM = 36.0


@dataclass(frozen=True)
class PhantomOptions:
    """What the piece of cell looks like.

    Attributes
    ----------
    tissue
        ``"cell"``: the inside of one cultured cell with a nucleus at one side; ``"neuropil"``:
        packed processes of many cells.
    mito_spacing_nm
        Typical distance between mitochondria; their number follows from the volume.
    mito_radius_nm
        Range of the tubes' radii.
    mito_length_nm
        Range of the tubes' lengths.
    er_spacing_nm
        Mesh size of the ER network.
    flatness
        How much the mitochondria keep to the xy plane (0 none, 1 fully), as in a spread cell.
    """

    tissue: Literal["cell", "neuropil"] = "cell"
    mito_spacing_nm: float = 1100.0
    mito_radius_nm: tuple[float, float] = (130.0, 260.0)
    mito_length_nm: tuple[float, float] = (1000.0, 4500.0)
    er_spacing_nm: float = 750.0
    flatness: float = 0.5


@dataclass(frozen=True, eq=False)
class Phantom:
    """Labels and what only the drawer knows.

    Attributes
    ----------
    labels
        uint8 (z, y, x), values of `CLASSES`.
    grid
        Where the voxels are.
    mito_ids
        int32 (z, y, x): which mitochondrion, 0 elsewhere.
    mito_distance_nm
        float32 (z, y, x): signed distance to the outer membrane, positive inside, smooth.
    er_junctions_nm
        (N, 3) zyx nm: where ER tubes meet; recognisable places.
    """

    labels: LabelVolume
    grid: Grid
    mito_ids: NDArray[np.int32]
    mito_distance_nm: FloatVolume
    er_junctions_nm: NDArray[np.float64]

    def mask(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Voxels (z, y, x) of any of the named classes."""
        return np.isin(self.labels, [CLASSES[name] for name in names])


def draw_phantom(
    rng: np.random.Generator, grid: Grid, options: PhantomOptions | None = None
) -> Phantom:
    """Draw a piece of cell on `grid`; the same seed gives the same shapes at any voxel size.

    Parameters
    ----------
    rng
        Source of all randomness.
    grid
        Region and voxel size; at most about 1e8 voxels, since the work is done in memory.
    """
    options = options or PhantomOptions()
    canvas = _Canvas(rng, grid)
    labels = np.full(grid.shape, CLASSES["cytosol"], np.uint8)
    er, junctions = _er_network(canvas, options)
    _paint_shell(labels, er, ("er_lum", "er_mem"), MEMBRANE_NM)
    _paint_vesicles(canvas, labels)
    nucleus = _nucleus(canvas) if options.tissue == "cell" else None
    mito, ids = _mitochondria(canvas, options, keep_out=nucleus)
    clear = (mito < 45) & (mito >= 0) & np.isin(labels, [CLASSES["er_lum"], CLASSES["er_mem"]])
    labels[clear] = CLASSES["cytosol"]
    _paint_mitochondria(canvas, labels, mito)
    if nucleus is not None:
        _paint_nucleus(labels, nucleus)
    else:
        _paint_cell_borders(canvas, labels, mito)
    ids[~np.isin(labels, [CLASSES[name] for name in MITO_CLASSES])] = 0
    return Phantom(labels, grid, ids, -mito, _visible_junctions(junctions, labels, grid))


class _Canvas:
    """Coarse evaluation points of a grid, and smooth noise on them."""

    def __init__(self, rng: np.random.Generator, grid: Grid) -> None:
        self.rng = rng
        self.grid = grid
        coarse_nm = np.maximum(_COARSE_NM, np.asarray(grid.spacing_nm))
        last = np.asarray(grid.shape) - 1
        length = last * np.asarray(grid.spacing_nm)
        self.shape = np.maximum(2, np.ceil(length / coarse_nm).astype(int) + 1)
        axes = [
            o + np.linspace(0, span, n)
            for o, span, n in zip(grid.origin_nm, length, self.shape, strict=True)
        ]
        self.points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        self.low = np.asarray(grid.origin_nm)
        self.high = self.low + length

    def refine(self, coarse: NDArray[np.floating]) -> FloatVolume:
        """Interpolate values at the coarse points to every voxel, linearly."""
        volume = coarse.reshape(self.shape).astype(np.float32)
        for axis in range(3):
            volume = _stretch(volume, axis, self.grid.shape[axis])
        return volume

    def noise(self, wavelength_nm: float, amplitude: float) -> NDArray[np.float32]:
        """Smooth random values at the coarse points, standard deviation `amplitude`.

        Sums of plane waves, so that they do not depend on the voxel size.
        """
        waves = 24
        directions = self.rng.normal(size=(waves, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        k = directions * (2 * np.pi / (wavelength_nm * self.rng.uniform(0.7, 1.6, (waves, 1))))
        phase = self.rng.uniform(0, 2 * np.pi, waves)
        total = np.zeros(len(self.points), np.float32)
        points = self.points.astype(np.float32)
        for wave, shift in zip(k.astype(np.float32), phase.astype(np.float32), strict=True):
            total += np.cos(points @ wave + shift)
        return total * np.float32(amplitude * np.sqrt(2 / waves))

    def scatter(self, spacing_nm: float, margin_nm: float = 0.0) -> NDArray[np.float64]:
        """Random points, on average one per cube of `spacing_nm`, also in a margin around."""
        low, high = self.low - margin_nm, self.high + margin_nm
        count = max(1, round(float(np.prod((high - low) / spacing_nm))))
        return self.rng.uniform(low, high, (count, 3))

    def nearest(
        self, tree_points: NDArray[np.float64], k: int, bound_nm: float
    ) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Distances and indices (points, k) of the k nearest tree points within a bound."""
        from scipy.spatial import cKDTree

        tree = cKDTree(tree_points)
        k = min(k, len(tree_points))
        distance, index = tree.query(self.points, k=k, distance_upper_bound=bound_nm, workers=2)
        return distance.reshape(-1, k), index.reshape(-1, k)


def _stretch(volume: FloatVolume, axis: int, size: int) -> FloatVolume:
    n = volume.shape[axis]
    position = np.linspace(0, n - 1, size)
    low = np.minimum(position.astype(np.intp), n - 2)
    fraction = (position - low).astype(np.float32)
    fraction = fraction.reshape([-1 if a == axis else 1 for a in range(3)])
    first: FloatVolume = np.take(volume, low, axis=axis)
    second = np.take(volume, low + 1, axis=axis)
    second -= first
    second *= fraction
    first += second
    return first


def _walk(
    rng: np.random.Generator, start: NDArray[np.float64], options: PhantomOptions
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre line (N, 3) of a curved tube and the radius at each point."""
    step = 40.0
    count = int(rng.uniform(*options.mito_length_nm) / step)
    damp = np.array([1 - options.flatness, 1.0, 1.0])
    heading = rng.normal(size=3) * damp
    path = [start]
    for _ in range(count):
        heading = heading / (np.linalg.norm(heading) + 1e-9) + rng.normal(scale=0.22, size=3) * damp
        path.append(path[-1] + step * heading / np.linalg.norm(heading))
    points = np.array(path)
    mean = rng.uniform(*options.mito_radius_nm)
    wobble = np.cumsum(rng.normal(size=len(points))) * 0.05
    wobble -= wobble.mean()
    return points, mean * np.clip(1 + wobble, 0.6, 1.5)


def _mitochondria(
    canvas: _Canvas, options: PhantomOptions, keep_out: FloatVolume | None
) -> tuple[FloatVolume, NDArray[np.int32]]:
    """Signed distance to the outer membrane, negative inside, and the id of the nearest tube."""
    rng = canvas.rng
    starts = canvas.scatter(options.mito_spacing_nm, margin_nm=1000.0)
    centres, radii, owner = [], [], []
    for i, start in enumerate(starts):
        points, radius = _walk(rng, start, options)
        if rng.random() < 0.25 and len(points) > 20:  # a branch
            branch, thin = _walk(rng, points[len(points) // 2], options)
            points, radius = np.vstack([points, branch[:40]]), np.r_[radius, 0.8 * thin[:40]]
        centres.append(points)
        radii.append(radius)
        owner.append(np.full(len(points), i + 1))
    radius = np.concatenate(radii)
    distance, index = canvas.nearest(np.concatenate(centres), 4, 700.0)
    found = np.isfinite(distance)
    index = np.where(found, index, 0)
    signed = np.where(found, distance - radius[index], 500.0)
    best = signed.argmin(axis=1)
    rows = np.arange(len(best))
    sdf = signed[rows, best] + canvas.noise(700.0, 14.0)
    fine = canvas.refine(sdf)
    ids_coarse = np.concatenate(owner)[index[rows, best]]
    ids = _refine_nearest(canvas, ids_coarse)
    if keep_out is not None:
        fine = np.maximum(fine, 60.0 - keep_out)
    return fine, ids


def _refine_nearest(canvas: _Canvas, coarse: NDArray[np.integer]) -> NDArray[np.int32]:
    volume = coarse.reshape(canvas.shape).astype(np.int32)
    for axis, size in enumerate(canvas.grid.shape):
        position = np.rint(np.linspace(0, volume.shape[axis] - 1, size)).astype(np.intp)
        volume = np.take(volume, position, axis=axis)
    return volume


def _paint_mitochondria(canvas: _Canvas, labels: LabelVolume, sdf: FloatVolume) -> None:
    inside = sdf <= 0
    labels[inside] = CLASSES["mito_lum"]
    # Cristae: warped parallel sheets, in patches, touching the inner membrane.
    direction = canvas.rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    pitch = canvas.rng.uniform(70, 130)
    phase = canvas.points @ direction + canvas.noise(500.0, 120.0)
    thickness = max(9.0, 0.45 * max(canvas.grid.spacing_nm))
    sheet = np.abs(_fold(canvas.refine(phase), pitch)) < thickness
    patchy = canvas.refine(canvas.noise(450.0, 1.0)) > -0.6
    deep = sdf < -MITO_MEMBRANE_NM
    labels[deep & sheet & patchy] = CLASSES["crista"]
    labels[inside & ~deep] = CLASSES["mito_mem"]


def _fold(phase: FloatVolume, pitch: float) -> FloatVolume:
    """Signed distance to the nearest of parallel planes `pitch` apart."""
    return (phase + pitch / 2) % pitch - pitch / 2


def _er_network(
    canvas: _Canvas, options: PhantomOptions
) -> tuple[FloatVolume, NDArray[np.float64]]:
    """Signed distance to the ER surface: tubes along Voronoi edges, some faces as sheets."""
    from scipy.spatial import Voronoi

    seeds = canvas.scatter(options.er_spacing_nm, margin_nm=1.5 * options.er_spacing_nm)
    distance, _ = canvas.nearest(seeds, 4, np.inf)
    # Half the difference of two distances is the distance to the plane between two seeds.
    to_edge = (distance[:, 2] - distance[:, 0]) / 2
    to_face = (distance[:, 1] - distance[:, 0]) / 2
    radius = 38.0 + canvas.noise(900.0, 7.0)
    tubes = to_edge - radius
    sheets = np.where(canvas.noise(2500.0, 1.0) > 1.1, to_face - 24.0, 500.0)
    vertices = Voronoi(seeds).vertices
    return canvas.refine(np.minimum(tubes, sheets)), vertices


def _visible_junctions(
    junctions: NDArray[np.float64], labels: LabelVolume, grid: Grid
) -> NDArray[np.float64]:
    inside = junctions[grid.contains(junctions)]
    index = np.rint(grid.to_index(inside)).astype(int)
    classes = labels[tuple(np.clip(index, 0, np.asarray(grid.shape) - 1).T)]
    return inside[np.isin(classes, [CLASSES["er_lum"], CLASSES["er_mem"]])]


def _paint_shell(
    labels: LabelVolume, sdf: FloatVolume, names: tuple[str, str], thickness_nm: float
) -> None:
    labels[sdf <= 0] = CLASSES[names[1]]
    labels[sdf <= -max(thickness_nm, 10.0)] = CLASSES[names[0]]


def _paint_vesicles(canvas: _Canvas, labels: LabelVolume) -> None:
    for centre in canvas.scatter(600.0):
        radius = canvas.rng.uniform(25, 60)
        _ball(labels, canvas.grid, centre, radius, CLASSES["ves_mem"])
        _ball(labels, canvas.grid, centre, radius - MEMBRANE_NM, CLASSES["ves_lum"])
    for centre in canvas.scatter(2200.0):
        radius = canvas.rng.uniform(120, 320)
        kind = "lipid_droplet" if canvas.rng.random() < 0.3 else "lysosome"
        _ball(labels, canvas.grid, centre, radius, CLASSES["ves_mem"])
        _ball(labels, canvas.grid, centre, radius - MEMBRANE_NM, CLASSES[kind])


def _ball(
    labels: LabelVolume, grid: Grid, centre: NDArray[np.float64], radius_nm: float, value: int
) -> None:
    low = np.maximum(0, np.floor(grid.to_index(centre - radius_nm)).astype(int))
    high = np.minimum(grid.shape, np.ceil(grid.to_index(centre + radius_nm)).astype(int) + 1)
    if (high <= low).any() or radius_nm <= 0:
        return
    axes = [
        (o + np.arange(a, b) * s - c) ** 2
        for o, s, a, b, c in zip(grid.origin_nm, grid.spacing_nm, low, high, centre, strict=True)
    ]
    squared = axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :]
    part = labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    part[squared <= radius_nm**2] = value


def _nucleus(canvas: _Canvas) -> FloatVolume:
    """Signed distance (positive outside) to a large body beyond one side in x or y."""
    rng = canvas.rng
    size = canvas.high - canvas.low
    axis, side = rng.integers(1, 3), rng.integers(2)
    radius = rng.uniform(3500, 6000)
    centre = (canvas.low + canvas.high) / 2 + rng.uniform(-0.2, 0.2, 3) * size
    depth = rng.uniform(0.02, 0.16) * size[axis]
    centre[axis] = (
        (canvas.high[axis] - depth + radius) if side else (canvas.low[axis] + depth - radius)
    )
    distance = np.linalg.norm(canvas.points - centre, axis=1) - radius
    return canvas.refine(distance + canvas.noise(2500.0, 60.0))


def _paint_nucleus(labels: LabelVolume, sdf: FloatVolume) -> None:
    labels[sdf < 0] = CLASSES["ne_mem"]
    labels[sdf < -10] = CLASSES["er_lum"]
    labels[sdf < -30] = CLASSES["ne_mem"]
    labels[sdf < -42] = CLASSES["nucleus"]


def _paint_cell_borders(canvas: _Canvas, labels: LabelVolume, mito: FloatVolume) -> None:
    """Membranes between packed processes; never through a mitochondrion."""
    seeds = canvas.scatter(canvas.rng.uniform(400, 1200), margin_nm=1200.0)
    stretch = np.diag(canvas.rng.uniform(0.6, 1.6, 3))
    original = canvas.points
    canvas.points = (
        original + np.stack([canvas.noise(900.0, 110.0) for _ in range(3)], 1)
    ) @ stretch
    distance, _ = canvas.nearest(seeds @ stretch, 2, np.inf)
    canvas.points = original
    gap = canvas.refine((distance[:, 1] - distance[:, 0]) / 2)
    free = mito > 15
    half = max(18.0, 0.75 * max(canvas.grid.spacing_nm))
    labels[free & (gap < half)] = CLASSES["pm"]
    labels[free & (gap < 4)] = CLASSES["ecs"]
