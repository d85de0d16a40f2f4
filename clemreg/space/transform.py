"""Maps of points between two named frames: the abstract `Transform`, `Affine` and `Chain`.

A transform maps *points* (N, 3) in nm, zyx, of frame `source` to frame `target`. To resample an
image that lives in `target` onto a grid in `source`, evaluate the transform at the grid's points.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import FrameError, GridError

FloatArray = NDArray[np.float64]


def as_points(points_nm: ArrayLike) -> FloatArray:
    """Check and return points as a float64 array (N, 3).

    Raises
    ------
    GridError
        The last axis is not three, or there are not two axes.
    """
    points = np.asarray(points_nm, dtype=np.float64)
    if points.ndim != 2 or points.shape[-1] != 3:
        raise GridError(f"points must have shape (N, 3) in z, y, x order, got {points.shape}")
    return points


class Transform(ABC):
    """Maps points of frame `source` to frame `target`, both zyx in nm."""

    source: str
    target: str

    @abstractmethod
    def __call__(self, points_nm: ArrayLike) -> FloatArray:
        """Map points (N, 3) zyx nm of `source` to points (N, 3) zyx nm of `target`."""

    @abstractmethod
    def jacobian(self, points_nm: ArrayLike) -> FloatArray:
        """Spatial derivative (N, 3, 3) at points: ``[n, i, j] = d target_i / d source_j``."""

    @abstractmethod
    def inverse(self) -> Transform:
        """Return the map from `target` to `source`."""

    def then(self, other: Transform) -> Transform:
        """Return this transform followed by `other`.

        Raises
        ------
        FrameError
            `other` does not start in the frame where this one ends.
        """
        return Chain((self, other))

    def determinant(self, points_nm: ArrayLike) -> FloatArray:
        """Jacobian determinant (N,) at points (N, 3): local volume ratio target / source."""
        result: FloatArray = np.linalg.det(self.jacobian(points_nm))
        return result


@dataclass(frozen=True, eq=False)
class Affine(Transform):
    """``y = A x + t`` from frame `source` to frame `target`, zyx, nm.

    Parameters
    ----------
    matrix
        Homogeneous 4 x 4 matrix, zyx, nm.
    source, target
        Frame names.

    Raises
    ------
    GridError
        The matrix is not a finite 4 x 4 with last row (0, 0, 0, 1).

    Examples
    --------
    >>> move = Affine.translation([10.0, 0.0, -5.0], "lm", "em")
    >>> move([[1.0, 2.0, 3.0]]).tolist()
    [[11.0, 2.0, -2.0]]
    """

    matrix: FloatArray
    source: str
    target: str

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise GridError(f"an affine needs a finite 4 x 4 matrix, got shape {matrix.shape}")
        if not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-12):
            raise GridError(f"the last row of an affine must be 0 0 0 1, got {matrix[3]}")
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls, source: str, target: str) -> Affine:
        """Rename the frame and move nothing."""
        return cls(np.eye(4), source, target)

    @classmethod
    def translation(cls, offset_nm: ArrayLike, source: str, target: str) -> Affine:
        """Shift by `offset_nm` (3,) zyx."""
        return cls.from_linear(np.eye(3), offset_nm, source, target)

    @classmethod
    def from_linear(
        cls, linear: ArrayLike, offset_nm: ArrayLike, source: str, target: str
    ) -> Affine:
        """``y = linear @ x + offset``, with a (3, 3) matrix and a (3,) offset in nm, zyx."""
        matrix = np.eye(4)
        matrix[:3, :3] = linear
        matrix[:3, 3] = offset_nm
        return cls(matrix, source, target)

    @property
    def linear(self) -> FloatArray:
        """The (3, 3) linear part, zyx."""
        return self.matrix[:3, :3]

    @property
    def offset_nm(self) -> FloatArray:
        """The (3,) translation zyx in nm."""
        return self.matrix[:3, 3]

    @property
    def singular_values(self) -> FloatArray:
        """Principal scale factors, largest first; all near 1 when voxel sizes are right."""
        return np.asarray(np.linalg.svd(self.linear, compute_uv=False), dtype=np.float64)

    @property
    def is_mirrored(self) -> bool:
        """Whether handedness changes (negative determinant)."""
        return bool(np.linalg.det(self.linear) < 0)

    def __call__(self, points_nm: ArrayLike) -> FloatArray:
        """Map points (N, 3) zyx nm."""
        return as_points(points_nm) @ self.linear.T + self.offset_nm

    def jacobian(self, points_nm: ArrayLike) -> FloatArray:
        """Return the linear part, once per point: (N, 3, 3)."""
        n = len(as_points(points_nm))
        return np.broadcast_to(self.linear, (n, 3, 3)).copy()

    def inverse(self) -> Affine:
        """Return the exact inverse.

        Raises
        ------
        GridError
            The matrix is singular.
        """
        try:
            inverted = np.array(np.linalg.inv(self.matrix), dtype=np.float64)
        except np.linalg.LinAlgError as error:
            raise GridError("this affine is singular and has no inverse") from error
        inverted[3] = [0, 0, 0, 1]
        return Affine(inverted, self.target, self.source)

    def then(self, other: Transform) -> Transform:
        """Compose; two affines become one affine."""
        _check_frames(self, other)
        if isinstance(other, Affine):
            return Affine(other.matrix @ self.matrix, self.source, other.target)
        return Chain((self, other))


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Transforms applied one after the other, first to last.

    Parameters
    ----------
    parts
        At least one transform; each starts in the frame where the one before ends. Nested chains
        are flattened.

    Raises
    ------
    FrameError
        Two neighbours do not meet in one frame.
    """

    parts: tuple[Transform, ...]

    def __post_init__(self) -> None:
        flat = tuple(_flatten(self.parts))
        if not flat:
            raise FrameError("a Chain needs at least one transform")
        for first, second in itertools.pairwise(flat):
            _check_frames(first, second)
        object.__setattr__(self, "parts", flat)

    @property
    def source(self) -> str:  # type: ignore[override]
        """Frame of the points that go in."""
        return self.parts[0].source

    @property
    def target(self) -> str:  # type: ignore[override]
        """Frame of the points that come out."""
        return self.parts[-1].target

    def __call__(self, points_nm: ArrayLike) -> FloatArray:
        """Map points (N, 3) zyx nm through every part in order."""
        points = as_points(points_nm)
        for part in self.parts:
            points = part(points)
        return points

    def jacobian(self, points_nm: ArrayLike) -> FloatArray:
        """Chain rule: the product of the parts' Jacobians, each at the point where it acts."""
        points = as_points(points_nm)
        total = np.broadcast_to(np.eye(3), (len(points), 3, 3))
        for part in self.parts:
            total = part.jacobian(points) @ total
            points = part(points)
        return np.ascontiguousarray(total)

    def inverse(self) -> Transform:
        """Return the inverses of the parts, last first."""
        return Chain(tuple(part.inverse() for part in reversed(self.parts)))


def _flatten(parts: Sequence[Transform]) -> list[Transform]:
    flat: list[Transform] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Chain) else (part,))
    return flat


def _check_frames(first: Transform, second: Transform) -> None:
    if first.target != second.source:
        raise FrameError(
            f"cannot chain {first.source!r} -> {first.target!r} with "
            f"{second.source!r} -> {second.target!r}",
            hint="the second transform must start where the first ends; one may need .inverse()",
        )
