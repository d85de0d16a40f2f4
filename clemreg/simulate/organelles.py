"""A drawn piece of cell as a network predicts it: what the organelle pipeline can be tried on.

Two mitochondria that a neck joins, an ER of a sheet and tubes, a nuclear envelope, microtubules
that pass all of these, and ribosomes on them. Every shape is known, so every answer is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clemreg.io.quantise import quantise
from clemreg.space.grid import Grid
from clemreg.space.transform import FloatArray
from clemreg.volume import Labels, Volume

CHANNELS = ("mito", "er", "ne", "mt", "ribo")
GRID = Grid((96, 200, 240), (5.24, 4.0, 4.0), frame="em")
"""Voxels of jrc_hela-2: 5.24 x 4 x 4 nm."""

SCALE_NM = 50.0
NOISE_NM = 1.5
MITO_NM, NECK_NM, TUBE_NM, SHEET_NM = 115.0, 20.0, 30.0, 25.0  # radii, half thickness
MICROTUBULE_NM, RIBOSOME_NM = 12.5, 10.0
_FAR_NM = 150.0  # tanh(150 / 50) is 0.995
_ON_NM = RIBOSOME_NM + 2.0  # from the membrane to the centre of a ribosome on it


@dataclass(frozen=True, eq=False)
class DrawnOrganelles:
    """Predictions, and the truth.

    Attributes
    ----------
    predictions
        uint8 signed distances (c, z, y, x), one channel for each of `CHANNELS`.
    mitochondria
        True ids.
    cell
        Mask of the cell: it ends before the volume does.
    microtubules_nm
        Their axes, (n, 3) zyx nm each.
    ribosomes_nm
        Centres (n, 3) zyx nm, by what they sit on: sheet, tube, nuclear, cytosolic.
    """

    predictions: Volume
    mitochondria: Labels
    cell: Labels
    microtubules_nm: tuple[FloatArray, ...]
    ribosomes_nm: dict[str, FloatArray]


def draw_organelles(rng: np.random.Generator, grid: Grid = GRID) -> DrawnOrganelles:
    """Draw a piece of cell on `grid`, in memory; shapes fill it, whatever its size.

    Parameters
    ----------
    rng
        Decides the noise and the places of the ribosomes.
    """
    from scipy.ndimage import gaussian_filter

    scene = _Scene(np.asarray(grid.extent_nm))
    corner = np.asarray(grid.origin_nm)
    lines = scene.microtubules()
    centres = _place_ribosomes(rng, scene)
    points = grid.points_nm() - corner
    first, second = (scene.mitochondrion(points, which) for which in (0, 1))
    distances = {
        "mito": np.maximum(np.maximum(first, second), scene.neck(points)),
        "er": scene.er(points),
        "ne": scene.envelope(points),
        "mt": MICROTUBULE_NM - _from(points, np.concatenate(lines)),
        "ribo": RIBOSOME_NM - _from(points, np.concatenate(list(centres.values()))),
    }
    predictions = np.empty((len(CHANNELS), *grid.shape), np.uint8)
    for channel, name in enumerate(CHANNELS):
        noise = gaussian_filter(rng.normal(size=grid.shape).astype(np.float32), 1.0)
        noise *= NOISE_NM / noise.std()
        predictions[channel] = quantise(np.tanh((distances[name] + noise) / SCALE_NM))
    ids = np.where(first > 0, 1, np.where(second > 0, 2, 0)).astype(np.uint16)
    inside = points[..., 1] < 0.95 * scene.size_nm[1]
    return DrawnOrganelles(
        Volume(predictions, grid, CHANNELS),
        Labels(ids, grid),
        Labels(inside.astype(np.uint8), grid),
        tuple(line + corner for line in lines),
        {name: places + corner for name, places in centres.items()},
    )


@dataclass(frozen=True, eq=False)
class _Scene:
    """Signed distances in nm, positive inside, to shapes in a box that starts at 0.

    Attributes
    ----------
    size_nm
        zyx, of the box.
    mitochondria
        Ends of the axis of each, as parts of the box.
    """

    size_nm: FloatArray
    mitochondria: tuple[tuple[FloatArray, FloatArray], ...] = field(
        default=(
            (np.array([0.68, 0.28, 0.15]), np.array([0.68, 0.28, 0.62])),
            (np.array([0.68, 0.72, 0.35]), np.array([0.68, 0.72, 0.82])),
        )
    )

    def mitochondrion(self, points: FloatArray, which: int) -> FloatArray:
        a, b = self.mitochondria[which]
        return MITO_NM - _from_segment(points, a * self.size_nm, b * self.size_nm)

    def neck(self, points: FloatArray) -> FloatArray:
        ends = (np.array([0.68, y, 0.5]) * self.size_nm for y in (0.28, 0.72))
        return NECK_NM - _from_segment(points, *ends)

    def sheet_height(self, y: FloatArray, x: FloatArray) -> FloatArray:
        """Height of the middle of the ER's sheet; it bulges towards the first mitochondrion."""
        bulge_y, bulge_x = 0.28 * self.size_nm[1], 0.38 * self.size_nm[2]
        bulge = np.exp(-((y - bulge_y) ** 2 + (x - bulge_x) ** 2) / (2 * 110.0**2))
        wave = 12.0 * np.sin(2 * np.pi * y / self.size_nm[1])
        return np.asarray(0.2 * self.size_nm[0] + wave + 82.0 * bulge)

    def er(self, points: FloatArray) -> FloatArray:
        """Sheet, tubes that go on from its edge, and the nuclear envelope."""
        z, y, x = np.moveaxis(points, -1, 0)
        edge = 0.62 * self.size_nm[2]
        sheet = np.minimum(SHEET_NM - np.abs(z - self.sheet_height(y, x)), edge - x)
        tubes = [TUBE_NM - _from_segment(points, a, b) for a, b in self.tubes()]
        return np.asarray(np.max([sheet, *tubes, self.envelope(points)], axis=0))

    def tubes(self) -> list[tuple[FloatArray, FloatArray]]:
        """Return the ends of the axes of the ER's tubes."""
        starts = [np.array([0.2, y, 0.58]) * self.size_nm for y in (0.22, 0.5, 0.78)]
        return [(a, np.array([a[0], a[1], self.size_nm[2]])) for a in starts]

    def envelope(self, points: FloatArray) -> FloatArray:
        y, x = points[..., 1], points[..., 2]
        return np.asarray(SHEET_NM - np.abs(y - self.envelope_at(x)))

    def envelope_at(self, x: FloatArray) -> FloatArray:
        return np.asarray(0.05 * self.size_nm[1] + 20.0 * np.sin(np.pi * x / self.size_nm[2]))

    def microtubules(self) -> list[FloatArray]:
        """Axes, 4 nm from point to point: one bends along a mitochondrion, one lies on the ER."""
        t = np.linspace(0.02, 0.98, 240)
        one, arc = np.ones_like(t), np.sin(np.pi * t)
        parts = [
            (0.68 + 0.14 * one, 0.5 - 0.081 * arc, t),
            (0.35 + 0.15 * t, 0.9 * one, t),
            (0.5 - 0.05 * t, t, 0.85 + 0.07 * t),
            (0.92 * one, 0.2 + 0.6 * t, 0.2 + 0.75 * t),
        ]
        lines = [np.stack(line, -1) * self.size_nm for line in parts]
        y, x = 0.64 * self.size_nm[1] * one, t * 0.6 * self.size_nm[2]
        on_er = self.sheet_height(y, x) + SHEET_NM + MICROTUBULE_NM + 8.0
        return [*lines, np.stack([on_er, y, x], -1)]


def _from_segment(points: FloatArray, start: FloatArray, end: FloatArray) -> FloatArray:
    """Distance from points (..., 3) to a straight line between two."""
    along = end - start
    share = np.clip((points - start) @ along / (along @ along), 0.0, 1.0)
    return np.asarray(np.linalg.norm(points - start - share[..., None] * along, axis=-1))


def _from(points: FloatArray, targets: FloatArray) -> FloatArray:
    """Distance from points (..., 3) to the nearest of (n, 3), as far as it matters."""
    from scipy.spatial import cKDTree

    tree = cKDTree(targets)
    found, _ = tree.query(points.reshape(-1, 3), distance_upper_bound=_FAR_NM)
    return np.asarray(np.minimum(found, _FAR_NM).reshape(points.shape[:-1]))


def _place_ribosomes(rng: np.random.Generator, scene: _Scene) -> dict[str, FloatArray]:
    """Centres on each kind of membrane, and in the open, none on top of another."""
    part = rng.uniform(size=(4, 40, 3))
    size = scene.size_nm
    y, x = (0.25 + 0.6 * part[0, :, 0]) * size[1], (0.15 + 0.37 * part[0, :, 1]) * size[2]
    below = np.stack([scene.sheet_height(y, x) - SHEET_NM - _ON_NM, y, x], -1)
    x = (0.15 + 0.7 * part[1, :, 0]) * size[2]
    beside = scene.envelope_at(x) + SHEET_NM + _ON_NM
    nuclear = np.stack([(0.5 + 0.35 * part[1, :, 1]) * size[0], beside, x], -1)
    axes = np.array(scene.tubes())[np.arange(40) % 3]
    along = axes[:, 0] + (0.35 + 0.4 * part[2, :, :1]) * (axes[:, 1] - axes[:, 0])
    angle = 2 * np.pi * part[2, :, 1]
    away = np.stack([np.cos(angle), np.sin(angle), np.zeros(40)], -1) * (TUBE_NM + _ON_NM)
    free = (0.1 + 0.8 * part[3]) * size
    kept: dict[str, FloatArray] = {}
    taken = np.zeros((0, 3))
    for name, places, room in (
        ("sheet", below, None),
        ("tube", along + away, None),
        ("nuclear", nuclear, None),
        ("cytosolic", free, 40.0),
    ):
        here = places if room is None else places[_in_the_open(scene, places, room)]
        kept[name] = _apart(here, taken)
        taken = np.concatenate([taken, kept[name]])
    return kept


def _in_the_open(scene: _Scene, places: FloatArray, room_nm: float) -> NDArray[np.bool_]:
    """Tell which places (n, 3) are at least `room_nm` from everything that is drawn."""
    solid = [scene.mitochondrion(places, which) for which in (0, 1)]
    tubes = MICROTUBULE_NM - _from(places, np.concatenate(scene.microtubules()))
    nearest = np.max([*solid, scene.er(places), scene.neck(places), tubes], axis=0)
    return np.asarray(nearest < -room_nm)


def _apart(places: FloatArray, taken: FloatArray, gap_nm: float = 34.0) -> FloatArray:
    """Those places that keep their distance from each other and from those that are taken."""
    kept = list(taken)
    for place in places:
        if not kept or np.linalg.norm(np.asarray(kept) - place, axis=1).min() > gap_nm:
            kept.append(place)
    return np.asarray(kept[len(taken) :]).reshape(-1, 3)
