"""Where a registration is probably wrong, without knowing the truth; and where a landmark helps.

Two sources: the scatter of landmarks, carried through the fit to any other place (Fitzpatrick,
West and Maurer 1998, here with noise that differs between axes, to first order as in Danilchenko
and Fitzpatrick 2011); and registrations of random halves of the mitochondria.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import DataError, FrameError
from clemreg.evaluate.lattice import Lattice
from clemreg.space.grid import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.space.transform import Transform, as_points
from clemreg.volume import Volume

_APART = 0.1  # of the diagonal of all places: how far suggested landmarks keep from each other

FloatArray = NDArray[np.float64]
Model = Literal["rigid", "similarity", "affine"]
_LEAST = {"rigid": 3, "similarity": 3, "affine": 4}


@dataclass(frozen=True, eq=False)
class LandmarkUncertainty:
    """What the noise of landmarks does to a transform fitted to them.

    Attributes
    ----------
    landmarks_nm
        (N, 3) zyx nm in the target (EM) frame.
    noise_nm
        (3,) zyx: standard deviation of a landmark along each axis, of both frames together.
    model
        Transform that is fitted by least squares.

    Raises
    ------
    DataError
        Too few landmarks, all in a line (or, for an affine, in a plane), or no noise given.
    """

    landmarks_nm: FloatArray
    noise_nm: FloatArray
    model: Model = "affine"

    def __post_init__(self) -> None:
        points = as_points(self.landmarks_nm)
        noise = np.asarray(self.noise_nm, dtype=np.float64)
        if noise.shape != (3,) or not (np.isfinite(noise).all() and (noise >= 0).all()):
            raise DataError(
                f"the noise must be three lengths of 0 nm or more (z, y, x), got {noise}"
            )
        if len(points) < _LEAST[self.model]:
            raise DataError(
                f"{len(points)} landmarks cannot determine a transform of kind {self.model}",
                hint=f"at least {_LEAST[self.model]} are needed",
            )
        design = self._design(points).reshape(-1, self._parameters)
        if np.linalg.matrix_rank(design, tol=1e-6 * np.linalg.norm(design, 2)) < self._parameters:
            raise DataError(
                f"these landmarks lie in a plane or a line: a transform of kind {self.model} is "
                "not determined",
                hint="add a landmark away from the others, or predict for a stiffer transform",
            )

    @property
    def _parameters(self) -> int:
        return {"rigid": 6, "similarity": 7, "affine": 12}[self.model]

    def covariance_nm2(self, points_nm: ArrayLike) -> FloatArray:
        """Covariance (M, 3, 3) zyx of where points (M, 3) of the target frame are put."""
        at_landmarks = self._design(self.landmarks_nm)
        normal = np.linalg.inv(np.einsum("nap,naq->pq", at_landmarks, at_landmarks))
        variance = np.asarray(self.noise_nm) ** 2
        middle = np.einsum("nap,a,naq->pq", at_landmarks, variance, at_landmarks)
        parameters = normal @ middle @ normal
        here = self._design(as_points(points_nm))
        return np.asarray(here @ parameters @ here.transpose(0, 2, 1))

    def error_nm(self, points_nm: ArrayLike) -> FloatArray:
        """Predicted error (M,) in nm: root of the expected squared distance."""
        return np.asarray(np.sqrt(np.trace(self.covariance_nm2(points_nm), axis1=1, axis2=2)))

    def with_landmark(self, point_nm: ArrayLike) -> LandmarkUncertainty:
        """Add a landmark (3,)."""
        points = np.append(self.landmarks_nm, np.reshape(point_nm, (1, 3)), axis=0)
        return replace(self, landmarks_nm=points)

    def _design(self, points_nm: FloatArray) -> FloatArray:
        """Derive the position by the parameters: (M, 3, P), in units near one."""
        centre = self.landmarks_nm.mean(axis=0)
        size = max(float(np.abs(self.landmarks_nm - centre).max()), 1e-12)
        z, y, x = ((points_nm - centre) / size).T
        shift = np.broadcast_to(np.eye(3), (len(z), 3, 3))
        if self.model == "affine":
            linear = np.zeros((len(z), 3, 9))
            for axis in range(3):
                linear[:, axis, 3 * axis : 3 * axis + 3] = np.stack([z, y, x], -1)
            return np.concatenate([shift, linear], axis=2)
        zero = np.zeros_like(z)
        turns = np.stack(
            [
                np.stack([zero, -x, y], -1),
                np.stack([x, zero, -z], -1),
                np.stack([-y, z, zero], -1),
            ],
            axis=2,
        )
        parts = [shift, turns]
        if self.model == "similarity":
            parts.append(np.stack([z, y, x], -1)[..., None])
        return np.concatenate(parts, axis=2)


def rater_noise_nm(landmarks: Landmarks, first: str, second: str) -> FloatArray:
    """Estimate the standard deviation (3,) zyx in nm of one person's EM positions, from two.

    The difference of two independent persons has twice the variance of one; its mean is a bias
    and not counted.

    Raises
    ------
    DataError
        Fewer than three points were marked by both.
    """
    table = {
        (name, rater): em
        for name, rater, em in zip(landmarks.names, landmarks.rater, landmarks.em_nm, strict=True)
    }
    both = [name for name, rater in table if rater == first and (name, second) in table]
    difference = np.array([table[name, first] - table[name, second] for name in both])
    difference = difference[np.isfinite(difference).all(axis=1)] if len(both) else difference
    if len(difference) < 3:
        raise DataError(
            f"{first} and {second} marked {len(difference)} points in common; three are needed"
        )
    return np.asarray(difference.std(axis=0, ddof=1) / np.sqrt(2))


def split_objects(
    labels: NDArray[Any], rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Divide objects (ids, 0 is background) at random into two masks of about equal volume.

    Raises
    ------
    DataError
        There are fewer than two objects.
    """
    ids, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    objects = np.flatnonzero(ids != 0)
    if len(objects) < 2:
        raise DataError(
            f"{len(objects)} objects cannot be halved", hint="label the mitochondria one by one"
        )
    side = np.full(len(ids), -1)
    volume = [0, 0]
    for k in rng.permutation(objects):
        lighter = int(volume[1] < volume[0]) if volume[0] != volume[1] else int(rng.integers(2))
        side[k] = lighter
        volume[lighter] += int(counts[k])
    halves = side[inverse.reshape(labels.shape)]
    return halves == 0, halves == 1


def register_halves(
    labels: NDArray[Any],
    register: Callable[[NDArray[np.bool_]], Transform],
    *,
    splits: int = 4,
    seed: int = 0,
) -> list[tuple[Transform, Transform]]:
    """Register random halves of the objects.

    Parameters
    ----------
    labels
        Ids (z, y, x) of the mitochondria in the moving image.
    register
        Makes a transform from the mask of one half.
    splits
        Pairs of registrations.

    Returns
    -------
    list of pairs
        For `halves_error_nm`.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(splits):
        first, second = split_objects(labels, rng)
        pairs.append((register(first), register(second)))
    return pairs


def halves_error_nm(
    pairs: Sequence[tuple[Transform, Transform]], points_nm: ArrayLike
) -> FloatArray:
    """Predicted random error (N,) in nm of the registration of all objects, from pairs of halves.

    With twice the objects the variance halves. The difference of two halves has twice the variance
    of one half, so four times that of the whole: the error is half the rms difference. What both
    halves get wrong alike (a bias) is not seen.

    Raises
    ------
    DataError
        There are no pairs.
    FrameError
        Their frames differ.
    """
    points = as_points(points_nm)
    if not pairs:
        raise DataError("there are no pairs of registrations")
    frames = {(t.source, t.target) for pair in pairs for t in pair}
    if len(frames) > 1:
        raise FrameError(f"the transforms map different frames: {sorted(frames)}")
    squared = np.stack([((a(points) - b(points)) ** 2).sum(axis=1) for a, b in pairs])
    return np.asarray(np.sqrt(squared.mean(axis=0)) / 2)


def error_map(
    error: Callable[[FloatArray], FloatArray],
    grid: Grid,
    mask: NDArray[Any] | None = None,
    *,
    n: int = 100_000,
) -> Volume:
    """Map of a predicted error in nm, on about `n` regular points; NaN outside the mask.

    Parameters
    ----------
    error
        Points (M, 3) zyx nm of the grid's frame to errors (M,).
    mask
        zyx on `grid`, not 0 inside.
    """
    lattice = Lattice.choose(grid, mask, n)
    values = lattice.fill(error).astype(np.float32)
    return Volume(values, lattice.points_grid, name="predicted error (nm)")


def worst_places_nm(
    found: Volume, count: int, separation_nm: float
) -> tuple[FloatArray, FloatArray]:
    """Places (k, 3) zyx nm of the largest errors of a map, at least so far apart, and the errors.

    Raises
    ------
    DataError
        The map is empty.
    """
    values = np.array(found.read(), dtype=np.float64)
    values[~np.isfinite(values)] = -np.inf
    if not np.isfinite(values).any():
        raise DataError("the error map is empty")
    points = found.grid.points_nm()
    places: list[FloatArray] = []
    errors: list[float] = []
    while len(places) < count and np.isfinite(values).any():
        worst = np.unravel_index(int(values.argmax()), values.shape)
        places.append(points[worst])
        errors.append(float(values[worst]))
        values[np.linalg.norm(points - points[worst], axis=-1) < separation_nm] = -np.inf
    return np.array(places), np.array(errors)


def suggest_landmarks_nm(
    uncertainty: LandmarkUncertainty, places_nm: ArrayLike, count: int
) -> tuple[FloatArray, FloatArray]:
    """Choose where to mark landmarks next: each where the error is largest after those before.

    They keep a tenth of the diagonal of all places from each other: to mark one place twice would
    lower the error, too, but shows nothing new.

    Parameters
    ----------
    places_nm
        (M, 3) zyx nm of the target frame: where a landmark could be.
    count
        How many to suggest.

    Returns
    -------
    places, remaining
        (count, 3) zyx nm, fewer if no more have room; and the largest error in nm over all places
        after each.
    """
    places = as_points(places_nm)
    apart = _APART * float(np.linalg.norm(np.ptp(places, axis=0))) if len(places) else 0.0
    free = np.ones(len(places), dtype=bool)
    chosen: list[FloatArray] = []
    remaining: list[float] = []
    while free.any() and len(chosen) < count:
        worst = int(np.where(free, uncertainty.error_nm(places), -1.0).argmax())
        chosen.append(places[worst])
        free &= np.linalg.norm(places - places[worst], axis=1) > apart
        uncertainty = uncertainty.with_landmark(places[worst])
        remaining.append(float(uncertainty.error_nm(places).max()))
    return np.array(chosen).reshape(-1, 3), np.array(remaining)
