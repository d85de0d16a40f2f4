"""A small pair with known truth: curved tubes seen by EM and by a light microscope."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial.transform import Rotation

from clemreg.io.quantise import quantise
from clemreg.space.bspline import BSpline
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Transform
from clemreg.volume import Volume


@dataclass(frozen=True)
class PairOptions:
    """What the synthetic pair looks like; lengths in um, zyx."""

    seed: int = 0
    em_um: tuple[float, float, float] = (2.6, 6.4, 6.4)
    margin_um: tuple[float, float, float] = (1.2, 0.8, 0.8)
    angle_deg: float = 10.0
    turn_x_deg: float = 0.0
    tilt_deg: float = 3.0
    mirror: bool = False
    rms_um: float = 0.25
    scale: tuple[float, float, float] = (0.97, 1.08, 1.02)
    photons: float = 30.0
    em_spacing_nm: tuple[float, float, float] = (16.0, 16.0, 16.0)
    lm_spacing_nm: tuple[float, float, float] = (104.0, 52.0, 52.0)
    tubes: int = 14


@dataclass(frozen=True)
class Pair:
    """The two volumes, the true transform, and points (N, 3) in the LM inside the EM volume."""

    lm: Volume
    prediction: Volume
    truth: Transform
    points_lm_nm: np.ndarray

    def tre(self, transform: Transform) -> np.ndarray:
        return np.linalg.norm(transform(self.points_lm_nm) - self.truth(self.points_lm_nm), axis=1)


def make_pair(options: PairOptions | None = None) -> Pair:
    options = PairOptions() if options is None else options
    rng = np.random.default_rng(options.seed)
    distance, world = _tube_distance(options, rng)
    em_grid = _em_grid(options)
    truth = _truth(options, em_grid, rng)
    return Pair(
        _light(options, distance, world, truth, rng),
        _prediction(distance, world, em_grid),
        truth,
        _inner_points(truth, em_grid, rng),
    )


def _em_grid(options: PairOptions) -> Grid:
    spacing = np.asarray(options.em_spacing_nm)
    shape = np.round(np.asarray(options.em_um) * 1e3 / spacing).astype(int)
    return Grid(tuple(shape), tuple(spacing), (300.0, -200.0, 70.0), "em")


def _tube_distance(options: PairOptions, rng: np.random.Generator) -> tuple[np.ndarray, Grid]:
    """Signed distance (nm) to tube walls, negative inside, on a 32 nm grid beyond the EM volume."""
    em = _em_grid(options)
    grow = 1e3 * np.asarray(options.margin_um) + 600
    extent = em.extent_nm + 2 * grow
    step = 32.0
    shape = tuple(int(n) for n in np.ceil(extent / step))
    world = Grid(shape, (step,) * 3, tuple(np.asarray(em.origin_nm) - grow), "em")
    drawn = np.ones(shape, bool)
    size = np.asarray(shape) * step
    count = max(4, round(options.tubes * float(np.prod(size / 1e3)) / 250))
    for _ in range(count):
        place = rng.uniform(0, 1, 3) * size
        heading = rng.normal(size=3) * [0.4, 1, 1]
        for _ in range(rng.integers(60, 200)):
            heading = heading / np.linalg.norm(heading)
            place = place + heading * step
            heading = heading + rng.normal(size=3) * 0.12 * np.array([0.6, 1, 1])
            index = np.round(place / step).astype(int)
            if ((index < 0) | (index >= shape)).any():
                break
            drawn[tuple(index)] = False
    return distance_transform_edt(drawn).astype(np.float32) * step - 230.0, world


def _truth(options: PairOptions, em: Grid, rng: np.random.Generator) -> Transform:
    turn = Rotation.from_euler(
        "ZXY", [options.angle_deg, options.turn_x_deg, options.tilt_deg], degrees=True
    ).as_matrix()[::-1, ::-1]
    shear = np.eye(3)
    shear[1, 2] = 0.03
    flip = np.diag([-1.0, 1.0, 1.0]) if options.mirror else np.eye(3)
    linear = turn @ np.diag(options.scale) @ shear @ flip
    centre_lm = np.array([5000.0, -3000.0, 12000.0])
    affine = Affine.from_linear(linear, em.centre_nm - linear @ centre_lm, "lm", "em0")
    spacing = np.array([1800.0, 2200.0, 2200.0])
    shape = tuple(int(n) for n in np.ceil(em.extent_nm / spacing) + 8)
    noise = rng.normal(size=(3, *shape))
    noise = np.stack([gaussian_filter(c, 0.6) for c in noise])
    noise *= 1e3 * options.rms_um / np.sqrt((noise**2).sum(0).mean())
    start = em.centre_nm - (np.asarray(shape) - 1) / 2 * spacing
    return affine.then(BSpline(noise, start, spacing, "em0", "em"))


def _light(options, distance, world: Grid, truth: Transform, rng) -> Volume:
    from scipy.ndimage import map_coordinates

    spacing = np.asarray(options.lm_spacing_nm)
    extent = 1e3 * (np.asarray(options.em_um) + 2 * np.asarray(options.margin_um)) * 0.95
    shape = tuple(int(n) for n in np.ceil(extent / spacing))
    origin = np.array([5000.0, -3000.0, 12000.0]) - (np.asarray(shape) - 1) / 2 * spacing
    grid = Grid(shape, tuple(spacing), tuple(origin), "lm")
    wall = np.exp(-0.5 * (distance / 25.0) ** 2)
    wall = gaussian_filter(wall, np.array([65.0, 30.0, 30.0]) / 32.0)
    at = world.to_index(truth(grid.points_nm().reshape(-1, 3)))
    density = map_coordinates(wall, at.T, order=1, mode="constant").reshape(shape)
    density /= np.percentile(density, 99.5)
    counts = rng.poisson(options.photons * density + 1.0) + rng.normal(0, 0.7, shape)
    return Volume(counts.astype(np.float32), grid, name="mito")


def _prediction(distance, world: Grid, em: Grid) -> Volume:
    from scipy.ndimage import map_coordinates

    at = world.to_index(em.points_nm().reshape(-1, 3))
    d = map_coordinates(distance, at.T, order=1, mode="nearest").reshape(em.shape)
    mito = quantise(np.tanh(-d / 50.0))
    membrane = quantise(np.tanh((14.0 - np.abs(d + 14.0)) / 50.0))
    return Volume(np.stack([mito, membrane]), em, channels=("mito", "mito_mem"), name="prediction")


def _inner_points(truth: Transform, em: Grid, rng: np.random.Generator) -> np.ndarray:
    """2000 points of the LM that lie in the EM volume, found by sampling the LM side."""
    corners = em.corners_nm()
    low, high = corners.min(0), corners.max(0)
    centre = np.array([5000.0, -3000.0, 12000.0])
    reach = np.linalg.norm(high - low) / 2
    points = centre + rng.uniform(-reach, reach, (60000, 3))
    mapped = truth(points)
    inside = ((mapped > low + 100) & (mapped < high - 100)).all(1)
    return points[inside][:2000]


@pytest.fixture(scope="session")
def pair() -> Pair:
    return make_pair(PairOptions(em_um=(2.0, 4.5, 4.5), em_spacing_nm=(16.0, 16.0, 16.0)))


@pytest.fixture(scope="session")
def pair_of():
    """Make a pair from options: ``pair_of(seed=1, angle_deg=20)``."""
    return lambda **options: make_pair(PairOptions(**options))
