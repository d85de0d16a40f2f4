"""Where voxels are: `Grid`, a lattice in nanometres, and `Box`, a range of its voxels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import GridError, VoxelSizeError

FloatArray = NDArray[np.float64]
Triple = tuple[float, float, float]
Shape = tuple[int, int, int]


def _three(values: Sequence[float], name: str) -> Triple:
    triple = tuple(float(v) for v in values)
    if len(triple) != 3 or not all(math.isfinite(v) for v in triple):
        raise GridError(f"{name} must be three finite numbers (z, y, x), got {tuple(values)!r}")
    return triple


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open range of voxels, zyx: ``start <= index < stop``.

    Parameters
    ----------
    start, stop
        Voxel indices zyx; `start` may be negative (a halo that leaves the volume).
    """

    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", tuple(int(v) for v in self.start))
        object.__setattr__(self, "stop", tuple(int(v) for v in self.stop))
        if len(self.start) != 3 or len(self.stop) != 3:
            raise GridError(f"a Box needs three axes, got {self.start} to {self.stop}")

    @property
    def shape(self) -> Shape:
        """Voxels along z, y, x; 0 where the box is empty."""
        z, y, x = (max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that cut this box out of a zyx array (start must not be negative)."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        """Return the whole of an array of that zyx shape."""
        z, y, x = shape
        return cls((0, 0, 0), (z, y, x))

    def grow(self, margin: int | Sequence[int]) -> Box:
        """Add `margin` voxels (one number, or one per axis zyx) on every side."""
        m = (margin,) * 3 if isinstance(margin, int) else tuple(margin)
        return Box(
            tuple(a - k for a, k in zip(self.start, m, strict=True)),  # type: ignore[arg-type]
            tuple(b + k for b, k in zip(self.stop, m, strict=True)),  # type: ignore[arg-type]
        )

    def shift(self, offset: Sequence[int]) -> Box:
        """Move by `offset` voxels zyx."""
        return Box(
            tuple(a + k for a, k in zip(self.start, offset, strict=True)),  # type: ignore[arg-type]
            tuple(b + k for b, k in zip(self.stop, offset, strict=True)),  # type: ignore[arg-type]
        )

    def intersect(self, other: Box) -> Box:
        """Return the voxels in both; its `size` is 0 where there are none."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        stop = tuple(max(a, b) for a, b in zip(start, stop, strict=True))
        return Box(start, stop)  # type: ignore[arg-type]

    def clip(self, shape: Sequence[int]) -> Box:
        """Keep what lies inside an array of that shape."""
        return self.intersect(Box.of_shape(shape))

    def tiles(self, shape: Sequence[int]) -> Iterator[Box]:
        """Cut into boxes of at most `shape` voxels, z slowest, that cover it without overlap."""
        ranges = (range(a, b, int(s)) for a, b, s in zip(self.start, self.stop, shape, strict=True))
        for corner in itertools.product(*ranges):
            stop = tuple(
                min(c + int(s), b) for c, s, b in zip(corner, shape, self.stop, strict=True)
            )
            yield Box(corner, stop)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Grid:
    """A voxel lattice in a named world frame: ``world = origin + index * spacing``, zyx, nm.

    Parameters
    ----------
    shape
        Number of voxels along z, y, x.
    spacing_nm
        Voxel size along z, y, x in nm; positive, need not be whole.
    origin_nm
        World position (zyx, nm) of the *centre* of voxel (0, 0, 0).
    frame
        Name of the world frame, for example ``"em"`` or ``"lm"``.

    Raises
    ------
    GridError
        The shape is not three positive integers.
    VoxelSizeError
        A spacing is zero, negative or not finite.

    Examples
    --------
    >>> grid = Grid((11, 17, 23), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
    >>> grid.to_world([1, 0, 2]).tolist()
    [305.24, -200.0, 78.0]
    """

    shape: Shape
    spacing_nm: Triple
    origin_nm: Triple = (0.0, 0.0, 0.0)
    frame: str = "world"

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GridError(f"a Grid needs three positive sizes (z, y, x), got {self.shape!r}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "origin_nm", _three(self.origin_nm, "origin"))
        try:
            spacing = _three(self.spacing_nm, "spacing")
        except GridError as error:
            raise VoxelSizeError(error.message, hint="give the voxel size in nm") from error
        if min(spacing) <= 0:
            raise VoxelSizeError(
                f"voxel size must be positive, got {spacing} nm (z, y, x)",
                hint="give the voxel size of the microscope, for example 8 x 8 x 8 nm",
            )
        object.__setattr__(self, "spacing_nm", spacing)

    @property
    def box(self) -> Box:
        """All voxels."""
        return Box.of_shape(self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def extent_nm(self) -> FloatArray:
        """Edge-to-edge size zyx in nm: ``shape * spacing``."""
        result: FloatArray = np.asarray(self.shape) * np.asarray(self.spacing_nm)
        return result

    @property
    def centre_nm(self) -> FloatArray:
        """World position zyx of the middle of the volume."""
        return self.to_world((np.asarray(self.shape) - 1) / 2)

    @property
    def index_to_world(self) -> FloatArray:
        """4 x 4 matrix from voxel index to world, zyx, nm."""
        matrix = np.diag([*self.spacing_nm, 1.0])
        matrix[:3, 3] = self.origin_nm
        return matrix

    def to_world(self, index: ArrayLike) -> FloatArray:
        """World positions (..., 3) zyx nm of voxel indices (..., 3), which may be fractional."""
        result: FloatArray = np.asarray(self.origin_nm) + np.asarray(index, float) * np.asarray(
            self.spacing_nm
        )
        return result

    def to_index(self, points_nm: ArrayLike) -> FloatArray:
        """Fractional voxel indices (..., 3) of world positions (..., 3) zyx nm."""
        result: FloatArray = (np.asarray(points_nm, float) - self.origin_nm) / np.asarray(
            self.spacing_nm
        )
        return result

    def points_nm(self, box: Box | None = None) -> FloatArray:
        """World positions of the voxel centres of `box` (default all), shape (*box.shape, 3)."""
        box = self.box if box is None else box
        axes = [
            o + np.arange(a, b) * s
            for o, s, a, b in zip(self.origin_nm, self.spacing_nm, box.start, box.stop, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    def corners_nm(self) -> FloatArray:
        """World positions (8, 3) zyx of the outer voxel centres."""
        last = np.asarray(self.shape) - 1
        return self.to_world(np.array(list(itertools.product((0, 1), repeat=3))) * last)

    def contains(self, points_nm: ArrayLike) -> NDArray[np.bool_]:
        """Tell which points (N, 3) lie within half a voxel of the lattice."""
        index = self.to_index(points_nm)
        inside: NDArray[np.bool_] = np.all(
            (index >= -0.5) & (index <= np.asarray(self.shape) - 0.5), axis=-1
        )
        return inside

    def downsample(self, factor: Sequence[int]) -> Grid:
        """Grid after pooling blocks of `factor` (zyx) voxels; the last block may be partial.

        The centre of the first block is ``(factor - 1) / 2`` fine voxels from the old origin.
        """
        f = np.asarray(factor, dtype=float)
        spacing = np.asarray(self.spacing_nm)
        shape = tuple(-(-n // int(k)) for n, k in zip(self.shape, factor, strict=True))
        return replace(
            self,
            shape=shape,  # type: ignore[arg-type]
            spacing_nm=tuple(spacing * f),
            origin_nm=tuple(np.asarray(self.origin_nm) + (f - 1) / 2 * spacing),
        )

    def crop(self, box: Box) -> Grid:
        """Grid of a box of this grid's voxels (the box may reach outside)."""
        return replace(self, shape=box.shape, origin_nm=tuple(self.to_world(box.start)))

    def with_spacing(self, spacing_nm: Sequence[float]) -> Grid:
        """Cover the same extent with another voxel size; edges stay where they are.

        The number of voxels is rounded up, so the far edge may grow by less than a voxel.
        """
        new = np.asarray(_three(spacing_nm, "spacing"))
        shape = np.maximum(1, np.ceil(self.extent_nm / new - 1e-6)).astype(int)
        edge = np.asarray(self.origin_nm) - np.asarray(self.spacing_nm) / 2
        return Grid(tuple(shape), tuple(new), tuple(edge + new / 2), self.frame)

    def with_frame(self, frame: str) -> Grid:
        """Rename the world frame; no number changes."""
        return replace(self, frame=frame)
