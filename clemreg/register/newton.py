"""Affine and B-spline registration by Gauss-Newton steps: the fast engine.

The light image is explained as a line through the EM image under the transform; minimising the
squared residual over that line and the transform is maximising the normalised correlation
(Heinrich et al. 2021 use the same metric). The deformation fits the line's slope place by place,
so that what carries no label pulls nowhere. Each step solves the normal equations, so a level
needs a handful of steps instead of hundreds of stochastic ones, and no engine has to be loaded.

The deformation minimises ``|r|^2 / (variance density) + w * bending energy``; both terms are
integrals over um^3, so the weight does not depend on voxel sizes or on the number of samples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, RegistrationError
from clemreg.register.lattice import Lattice, NormalEquations
from clemreg.register.matching import Channel, Masks, Matcher, draw_samples
from clemreg.space.landmarks import Landmarks
from clemreg.space.transform import Affine, Chain, FloatArray, Transform

log = logging.getLogger(__name__)

_FADE = 6  # control points over which the deformation fades to nothing outside the EM
_MARGIN_NM = 800.0
_INDEPENDENT_UM3 = 0.1  # residuals farther apart than mitochondria are wide are independent
_WORSE = 1.02  # residual variance over that before, from which a level has gone astray


@dataclass(frozen=True)
class AffineFit:
    """Twelve degrees of freedom, coarse to fine.

    Attributes
    ----------
    smooth_um
        Gaussian sigma of each level, coarsest first.
    steps
        Most steps per level.
    samples
        Positions drawn per level.
    strain_sd
        Expected error of each entry of the start pose's matrix. A thin slab says little about its
        own thickness direction; this holds it there.
    """

    smooth_um: tuple[float, ...] = (0.2, 0.1, 0.0)
    steps: int = 10
    samples: int = 25_000
    strain_sd: float = 0.1

    def __post_init__(self) -> None:
        if not self.smooth_um or min(self.smooth_um) < 0 or self.steps < 1 or self.samples < 1000:
            raise ConfigError("an affine fit needs levels, steps and 1000 samples or more")
        if self.strain_sd <= 0:
            raise ConfigError(f"strain_sd must be positive, got {self.strain_sd}")


@dataclass(frozen=True)
class DeformableFit:
    """A cubic B-spline deformation, coarse to fine.

    Attributes
    ----------
    grid_spacing_um
        Control point spacing zyx at the finest level.
    grid_schedule
        Factor on it at each level, coarsest first.
    smooth_um, steps, samples
        As for `AffineFit`.
    bending_weight
        Weight of the bending energy, um. More is stiffer.
    landmark_um
        Expected error of one landmark, when landmarks are part of the metric.
    contrast_um
        Gaussian sigma of the neighbourhoods in which the contrast is fitted, so that mitochondria
        without label pull nowhere. None fits one contrast for the whole volume.
    """

    grid_spacing_um: tuple[float, float, float] = (1.6, 1.2, 1.2)
    grid_schedule: tuple[float, ...] = (2.0, 1.0, 1.0)
    smooth_um: tuple[float, ...] = (0.2, 0.1, 0.0)
    steps: int = 5
    samples: int = 60_000
    bending_weight: float = 2.0
    landmark_um: float = 0.05
    contrast_um: float | None = 0.2

    def __post_init__(self) -> None:
        if not self.smooth_um or len(self.smooth_um) != len(self.grid_schedule):
            raise ConfigError(
                f"every level needs a smoothing and a grid factor: got {len(self.smooth_um)} and "
                f"{len(self.grid_schedule)}"
            )
        if min(self.grid_spacing_um) <= 0 or min(self.grid_schedule) <= 0:
            raise ConfigError(f"control point spacing must be positive, got {self.grid_spacing_um}")
        if self.bending_weight < 0:
            raise ConfigError(f"bending_weight cannot be negative, got {self.bending_weight}")
        if self.contrast_um is not None and self.contrast_um <= 0:
            raise ConfigError(f"contrast_um must be positive or None, got {self.contrast_um}")


def fit_affine(
    channels: Sequence[Channel],
    masks: Masks,
    start: Affine,
    fit: AffineFit,
    seed: int,
) -> Affine:
    """Improve an affine LM to EM.

    A level that ends where the images of the finest one match less than before is left out:
    blurred, a slab not much thicker than mitochondria can be squeezed flat.

    Raises
    ------
    RegistrationError
        The volumes hardly overlap.
    """
    rng = np.random.default_rng(seed)
    finest = [Matcher(c, masks, 1e3 * fit.smooth_um[-1]) for c in channels]
    affine = start
    for sigma in fit.smooth_um:
        matchers = finest
        if sigma != fit.smooth_um[-1]:
            matchers = [Matcher(c, masks, 1e3 * sigma) for c in channels]
        reach = 200.0 + 1e3 * sigma
        points = draw_samples(rng, channels[0], masks, affine, fit.samples, reach)
        found = _stepped(matchers, points, affine, start, fit)
        if _residual_ratio(finest, points, found, affine) < _WORSE:
            affine = found
        else:
            log.info("affine: the level of %.2f um matches less than its start; left out", sigma)
    return affine


def _stepped(
    matchers: Sequence[Matcher], points: FloatArray, affine: Affine, start: Affine, fit: AffineFit
) -> Affine:
    """Take Gauss-Newton steps until nothing moves; the matrix is held near that of `start`."""
    centre = matchers[0].fixed.centre_nm
    offsets = np.column_stack([(points - centre) / 1e3, np.ones(len(points))])
    for _ in range(fit.steps):
        square, right = _affine_equations(matchers, points, offsets, affine(points))
        _hold(square, right, affine.linear - start.linear, fit.strain_sd)
        change = np.linalg.solve(square, right).reshape(3, 4)
        linear = affine.linear + change[:, :3] / 1e3
        shift = affine.offset_nm + change[:, 3] - change[:, :3] @ centre / 1e3
        affine = Affine.from_linear(linear, shift, start.source, start.target)
        moved = np.linalg.norm(offsets @ change.T, axis=1)
        if float(np.sqrt(np.mean(moved**2))) < 1.0:
            break
    return affine


def _residual_ratio(
    matchers: Sequence[Matcher], points: FloatArray, after: Affine, before: Affine
) -> float:
    """Residual variance after over that before, of samples in the EM in both; inf if too few."""
    total = np.zeros(2)
    ends = [affine(points) for affine in (after, before)]
    try:
        for matcher in matchers:
            both = np.logical_and(*(matcher(points, end).seen for end in ends))
            variances = [matcher(points[both], end[both]).variance for end in ends]
            total += matcher.weight * np.array(variances)
    except RegistrationError:
        return np.inf
    return float(total[0] / max(total[1], 1e-12))


def _affine_equations(
    matchers: Sequence[Matcher], points: FloatArray, offsets: FloatArray, there: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Equations (12, 12) and (12,) of the change: nm per um from the centre, and nm, per axis."""
    square, right = 1e-12 * np.eye(12), np.zeros(12)
    for matcher in matchers:
        match = matcher(points, there)
        slope = match.slope.astype(np.float64)[:, :, None] * offsets[match.seen][:, None, :]
        jacobian = slope.reshape(-1, 12)
        volume_um3 = float(np.prod(matcher.moving.extent_nm / 1e3))
        independent = volume_um3 / _INDEPENDENT_UM3 / len(jacobian)
        weight = matcher.weight * independent / max(match.variance, 1e-12)
        square += weight * jacobian.T @ jacobian
        right += weight * jacobian.T @ match.residual
    return square, right


def _hold(square: FloatArray, right: FloatArray, strain: FloatArray, strain_sd: float) -> None:
    """Add to the equations that the matrix is near that of the start, in place."""
    linear = np.array([4 * i + j for i in range(3) for j in range(3)])
    square[linear, linear] += (1e-3 / strain_sd) ** 2
    right[linear] -= 1e-3 * strain.ravel() / strain_sd**2


def fit_deformation(
    channels: Sequence[Channel],
    masks: Masks,
    affine: Affine,
    fit: DeformableFit,
    seed: int,
    landmarks: Landmarks | None = None,
) -> Transform:
    """Add a deformation to an affine: ``T(x) = B(A(x))``.

    Parameters
    ----------
    landmarks
        Pairs LM and EM that pull as well.

    Raises
    ------
    RegistrationError
        The volumes hardly overlap.
    """
    rng = np.random.default_rng(seed)
    low, high = channels[0].moving.grid.corners_nm()[[0, -1]]
    lattice, coefficients = None, np.zeros((0, 3))
    for sigma, factor in zip(fit.smooth_um, fit.grid_schedule, strict=True):
        spacing = 1e3 * factor * np.asarray(fit.grid_spacing_um)
        finer = Lattice.covering(low - _MARGIN_NM, high + _MARGIN_NM, spacing)
        coefficients = _carried(lattice, coefficients, finer)
        lattice = finer
        level = _Level(channels, masks, affine, lattice, fit, landmarks)
        level.draw(rng, sigma)
        coefficients = level.solve(coefficients)
    assert lattice is not None
    wide, padded = _faded(lattice, coefficients)
    return Chain((affine, wide.spline(padded, affine.target)))


class _Level:
    """One resolution of the deformable fit."""

    def __init__(
        self,
        channels: Sequence[Channel],
        masks: Masks,
        affine: Affine,
        lattice: Lattice,
        fit: DeformableFit,
        landmarks: Landmarks | None,
    ) -> None:
        self._channels, self._masks, self._affine = channels, masks, affine
        self._lattice, self._fit, self._landmarks = lattice, fit, landmarks
        self._penalty = fit.bending_weight * lattice.bending() / 1e6  # um to nm

    def draw(self, rng: np.random.Generator, sigma_um: float) -> None:
        """Draw the samples."""
        points = draw_samples(
            rng, self._channels[0], self._masks, self._affine, self._fit.samples, 0.6 * _MARGIN_NM
        )
        after = self._affine(points)
        kept = self._lattice.supports(after)
        self._points, self._after = points[kept], after[kept]
        self._placed = self._lattice.place(self._after)
        contrast_nm = None if self._fit.contrast_um is None else 1e3 * self._fit.contrast_um
        self._matchers = [
            Matcher(c, self._masks, 1e3 * sigma_um, contrast_nm) for c in self._channels
        ]

    def solve(self, coefficients: FloatArray) -> FloatArray:
        """Step until the samples move by less than a nanometre."""
        for _ in range(self._fit.steps):
            equations = self._equations(coefficients)
            change = equations.solve(self._penalty, coefficients)
            coefficients = coefficients + change
            moved = np.linalg.norm(self._placed.displace(change), axis=1)
            if float(np.sqrt(np.mean(moved**2))) < 1.0:
                break
        return coefficients

    def _equations(self, coefficients: FloatArray) -> NormalEquations:
        there = self._after + self._placed.displace(coefficients)
        total = NormalEquations.empty(self._lattice)
        for matcher in self._matchers:
            match = matcher(self._points, there)
            placed = self._placed[match.seen]
            one = placed.normal_equations(match.residual, match.slope)
            total = total.plus(one, matcher.weight * self._um3_each(match.seen) / match.variance)
        if self._landmarks is not None:
            total = total.plus(self._pull(coefficients), 1.0)
        return total

    def _um3_each(self, seen: NDArray[np.bool_]) -> float:
        """Volume of EM that one sample stands for."""
        volume = float(np.prod(self._channels[0].moving.grid.extent_nm / 1e3))
        return volume / max(int(seen.sum()), 1)

    def _pull(self, coefficients: FloatArray) -> NormalEquations:
        assert self._landmarks is not None
        after = self._affine(self._landmarks.lm_nm)
        held = self._lattice.supports(after)  # far outside there is nothing to bend
        if not held.any():
            return NormalEquations.empty(self._lattice)
        after, goal = after[held], self._landmarks.em_nm[held]
        placed = self._lattice.place(after)
        wanted = goal - after - placed.displace(coefficients)
        return placed.pull(wanted, 1.0 / (1e3 * self._fit.landmark_um) ** 2)


def _carried(before: Lattice | None, coefficients: FloatArray, lattice: Lattice) -> FloatArray:
    """Bring a deformation to another lattice: the coefficients whose spline passes through it."""
    if before is None:
        return np.zeros((lattice.size, 3))
    if before.shape == lattice.shape:
        return coefficients
    from scipy import ndimage

    low = before.origin_nm + 1.0001 * before.spacing_nm
    high = before.origin_nm + (np.asarray(before.shape) - 2.0001) * before.spacing_nm
    at = np.clip(lattice.nodes_nm(), low, high)
    values = before.place(at).displace(coefficients).T.reshape(3, *lattice.shape)
    fitted = [ndimage.spline_filter(v, order=3, mode="mirror") for v in values]
    return np.stack(fitted, axis=-1).reshape(-1, 3)


def _faded(lattice: Lattice, coefficients: FloatArray) -> tuple[Lattice, FloatArray]:
    """Add control points around the lattice over which the deformation fades to nothing."""
    shape = np.asarray(lattice.shape) + 2 * _FADE
    values = coefficients.reshape(*lattice.shape, 3)
    values = np.pad(values, [(_FADE, _FADE)] * 3 + [(0, 0)], mode="edge")
    for axis, n in enumerate(shape):
        outside = np.maximum(_FADE - np.arange(n), np.arange(n) - (n - 1 - _FADE)).clip(0)
        fade = np.cos(0.5 * np.pi * np.minimum(1.0, outside / (_FADE - 3))) ** 2
        values = values * np.expand_dims(fade, [a for a in range(4) if a != axis])
    z, y, x = (int(n) for n in shape)
    wide = replace(
        lattice, shape=(z, y, x), origin_nm=lattice.origin_nm - _FADE * lattice.spacing_nm
    )
    return wide, values.reshape(-1, 3)
