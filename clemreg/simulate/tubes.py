"""A quick pair with known truth: curved tubes, seen by EM as a prediction and by PALM.

No cell is drawn and no network is run, so that many starts can be tried: tubes are random curves
in the light frame, mapped to the EM by the true transform. The EM may be a thin tilted slab that
cuts them above and below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clemreg.io.quantise import quantise
from clemreg.simulate.light import PALM, LightOptions, render_light
from clemreg.space.grid import Grid, Triple
from clemreg.space.transform import FloatArray, Transform
from clemreg.volume import Volume

_STEP_NM = 40.0


@dataclass(frozen=True)
class TubeOptions:
    """What the cell looks like and how it is seen.

    Attributes
    ----------
    spacing_um
        One tube per cube of this size.
    radius_nm, length_um
        Ranges of the tubes.
    flatness
        How much tubes keep to the xy plane of the light frame (0 none, 1 fully).
    missing, spurious
        Share of the tubes that the light microscope does not show, and that the EM does not.
    light
        The microscope.
    em_spacing_nm
        Isotropic voxel size of the EM prediction.
    """

    spacing_um: float = 1.3
    radius_nm: tuple[float, float] = (130.0, 240.0)
    length_um: tuple[float, float] = (1.5, 5.0)
    flatness: float = 0.5
    missing: float = 0.2
    spurious: float = 0.05
    light: LightOptions = PALM
    em_spacing_nm: float = 24.0


@dataclass(frozen=True, eq=False)
class TubePair:
    """Both volumes and the truth.

    Attributes
    ----------
    lm
        The mitochondria channel.
    prediction
        EM prediction with the channels ``mito`` and ``mito_mem``.
    truth
        LM to EM.
    points_nm
        (N, 3) zyx nm: places in the LM that lie in the EM and in a tube or near one.
    """

    lm: Volume
    prediction: Volume
    truth: Transform
    points_nm: FloatArray

    def errors_nm(self, transform: Transform) -> FloatArray:
        """Distance (N,) from the truth at `points_nm`."""
        difference = transform(self.points_nm) - self.truth(self.points_nm)
        return np.asarray(np.linalg.norm(difference, axis=1))


@dataclass(frozen=True, eq=False)
class _Tubes:
    """Centre lines as points: position and derivative of the truth there, radius, which tube."""

    lm_nm: FloatArray
    em_nm: FloatArray
    jacobian: FloatArray
    radius_nm: FloatArray
    ids: NDArray[np.intp]

    def of(self, keep: NDArray[np.bool_]) -> _Tubes:
        return replace(
            self,
            lm_nm=self.lm_nm[keep],
            em_nm=self.em_nm[keep],
            jacobian=self.jacobian[keep],
            radius_nm=self.radius_nm[keep],
            ids=self.ids[keep],
        )


def simulate_tubes(
    rng: np.random.Generator,
    truth: Transform,
    lm: Grid,
    em_box_um: Triple,
    options: TubeOptions | None = None,
) -> TubePair:
    """Simulate a pair.

    Parameters
    ----------
    truth
        LM to EM.
    lm
        Grid of the light volume.
    em_box_um
        Size zyx of the imaged EM, whose centre is where `truth` brings the centre of `lm`.
    """
    options = options or TubeOptions()
    material = _reach(truth, lm, em_box_um)
    tubes = _draw(rng, truth, material, options)
    count = int(tubes.ids.max()) + 1
    dark, absent = (rng.random(count) < share for share in (options.missing, options.spurious))
    light = _emitters(rng, tubes.of(~dark[tubes.ids]), options.light.density)
    image = render_light(rng, light, lm, options.light)
    em = _em_grid(truth, lm, em_box_um, options)
    stack = _predict(tubes.of(~absent[tubes.ids]), em)
    inside = em.contains(tubes.em_nm) & lm.contains(tubes.lm_nm)
    chosen = np.flatnonzero(inside)
    chosen = rng.choice(chosen, size=min(2000, len(chosen)), replace=False)
    return TubePair(
        Volume(image, lm, name="mito"),
        Volume(stack, em, channels=("mito", "mito_mem"), name="prediction"),
        truth,
        tubes.lm_nm[chosen],
    )


def _em_grid(truth: Transform, lm: Grid, em_box_um: Triple, options: TubeOptions) -> Grid:
    step = options.em_spacing_nm
    z, y, x = (max(4, round(1e3 * v / step)) for v in em_box_um)
    centre = truth(lm.centre_nm[None])[0]
    origin = centre - (np.array((z, y, x)) - 1) / 2 * step
    return Grid((z, y, x), (step,) * 3, (origin[0], origin[1], origin[2]), truth.target)


def _reach(truth: Transform, lm: Grid, em_box_um: Triple) -> FloatArray:
    """Low and high corner (2, 3) in the light frame of all that either microscope may see."""
    half = np.asarray(em_box_um) * 500.0
    corners = np.stack(np.meshgrid(*([-1, 1],) * 3, indexing="ij"), -1).reshape(-1, 3) * half
    linear = truth.jacobian(lm.centre_nm[None])[0]
    of_em = corners @ np.linalg.inv(linear).T + lm.centre_nm
    both = np.concatenate([of_em, lm.corners_nm()])
    return np.stack([both.min(axis=0) - 300.0, both.max(axis=0) + 300.0])


def _draw(
    rng: np.random.Generator, truth: Transform, reach: FloatArray, options: TubeOptions
) -> _Tubes:
    size_um = (reach[1] - reach[0]) / 1e3
    count = max(3, round(float(np.prod(size_um)) / options.spacing_um**3))
    steps = np.round(rng.uniform(*options.length_um, size=count) * 1e3 / _STEP_NM).astype(int)
    bias = np.array([1.0 - options.flatness, 1.0, 1.0])
    place = rng.uniform(reach[0], reach[1], (count, 3))
    heading = rng.normal(size=(count, 3)) * bias
    lines, ids = [], []
    for step in range(int(steps.max())):
        heading /= np.linalg.norm(heading, axis=1, keepdims=True)
        place = place + heading * _STEP_NM
        heading = heading + rng.normal(size=heading.shape) * 0.12 * bias
        alive = (step < steps) & ((place > reach[0]) & (place < reach[1])).all(axis=1)
        lines.append(place[alive])
        ids.append(np.flatnonzero(alive))
    lm_nm, which = np.concatenate(lines), np.concatenate(ids)
    radius = rng.uniform(*options.radius_nm, size=count)[which]
    return _Tubes(lm_nm, truth(lm_nm), truth.jacobian(lm_nm), radius, which)


def _emitters(rng: np.random.Generator, tubes: _Tubes, per_um2: float) -> FloatArray:
    """Fluorophores (N, 3) zyx nm in the light frame, on the walls as they are in the EM.

    A wall point is brought to the light frame through the derivative of the truth at its centre.
    """
    area_um2 = 2 * np.pi * tubes.radius_nm / 1e3 * _STEP_NM / 1e3
    number = rng.poisson(per_um2 * area_um2)
    centre = np.repeat(np.arange(len(number)), number)
    direction = rng.normal(size=(len(centre), 3))
    along = _along(tubes)[centre]
    direction -= (direction * along).sum(axis=1, keepdims=True) * along
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    offset = direction * tubes.radius_nm[centre, None]
    offset += along * rng.uniform(-0.5, 0.5, (len(centre), 1)) * _STEP_NM
    back = np.linalg.inv(tubes.jacobian)[centre]
    return np.asarray(tubes.lm_nm[centre] + np.einsum("nij,nj->ni", back, offset))


def _along(tubes: _Tubes) -> FloatArray:
    """Direction (N, 3) of each tube in the EM; points of a tube are one step apart in order."""
    order = np.argsort(tubes.ids, kind="stable")
    line = tubes.em_nm[order]
    step = np.empty_like(line)
    step[:-1] = line[1:] - line[:-1]
    step[-1] = step[-2]
    last = np.append(np.diff(tubes.ids[order]) > 0, True)
    ends = np.flatnonzero(last)
    step[ends] = step[np.maximum(ends - 1, 0)]
    result = np.empty_like(step)
    result[order] = step / np.linalg.norm(step, axis=1, keepdims=True)
    return result


def _predict(tubes: _Tubes, em: Grid) -> NDArray[np.uint8]:
    """Prediction (2, z, y, x) of tubes and of their walls, quantised as the networks do."""
    import edt

    margin = 12
    wide = em.crop(em.box.grow(margin))
    index = np.rint(wide.to_index(tubes.em_nm)).astype(int)
    seen = ((index >= 0) & (index < wide.shape)).all(axis=1)
    distance = np.full(wide.shape, np.float32(1e4))
    classes = np.digitize(tubes.radius_nm, np.linspace(100, 260, 9))
    for one in np.unique(classes[seen]):
        chosen = seen & (classes == one)
        free = np.ones(wide.shape, dtype=bool)
        free[tuple(index[chosen].T)] = False
        radius = np.float32(tubes.radius_nm[chosen].mean())
        to_line = edt.edt(free, anisotropy=wide.spacing_nm, black_border=False, parallel=1)
        np.minimum(distance, to_line - radius, out=distance)
    inner = (slice(margin, -margin),) * 3
    distance = distance[inner]
    wall = 14.0 - np.abs(distance + 14.0)
    return np.stack([quantise(np.tanh(-distance / 50.0)), quantise(np.tanh(wall / 50.0))])
