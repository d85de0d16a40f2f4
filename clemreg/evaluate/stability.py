"""How much a registration changes when it is repeated: spread between several transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import DataError, FrameError
from clemreg.evaluate.statistics import to_plain
from clemreg.space.transform import Transform, as_points

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StabilityReport:
    """Spread of several transforms of the same images.

    Attributes
    ----------
    seeds
        Number of transforms.
    rms_nm
        Root mean square over the points of `spread_nm`.
    p95_nm
        95th percentile over the points of `spread_nm`.
    spread_nm
        (N,) at each point: standard deviation of the mapped position over the transforms, as the
        length of the vector (divided by the number of transforms less one).
    """

    seeds: int
    rms_nm: float
    p95_nm: float
    spread_nm: FloatArray

    def to_json(self) -> dict[str, Any]:
        """Return the ``stability`` object of ``report.json``."""
        return to_plain({"seeds": self.seeds, "rms_nm": self.rms_nm, "p95_nm": self.p95_nm})


def evaluate_stability(transforms: Sequence[Transform], points_nm: ArrayLike) -> StabilityReport:
    """Measure how far several transforms scatter at given points.

    Parameters
    ----------
    transforms
        At least two, for example of registrations with other seeds; same frames.
    points_nm
        (N, 3) zyx nm in their source frame, for example in the cell.

    Returns
    -------
    StabilityReport

    Raises
    ------
    DataError
        There are fewer than two transforms, or no points.
    FrameError
        Their frames differ.
    """
    points = as_points(points_nm)
    if len(transforms) < 2 or len(points) == 0:
        raise DataError(
            f"stability needs two or more transforms and some points, "
            f"got {len(transforms)} and {len(points)}"
        )
    frames = {(t.source, t.target) for t in transforms}
    if len(frames) > 1:
        raise FrameError(f"the transforms map different frames: {sorted(frames)}")
    mapped = np.stack([transform(points) for transform in transforms])
    variance = mapped.var(axis=0, ddof=1).sum(axis=1)
    spread = np.sqrt(variance)
    return StabilityReport(
        seeds=len(transforms),
        rms_nm=float(np.sqrt(variance.mean())),
        p95_nm=float(np.percentile(spread, 95)),
        spread_nm=spread,
    )
