"""Numbers that sum up errors, and their plain form for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import DataError
from clemreg.io.atomic import plain

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ErrorStats:
    """Distances between points that should coincide.

    Attributes
    ----------
    n
        Number of points.
    mean_nm, median_nm, p90_nm, p95_nm, max_nm, rms_nm
        Of the distances; percentiles interpolate linearly between neighbours.
    bias_nm
        Mean difference vector zyx: what is left if errors cancel, so a common shift.
    """

    n: int
    mean_nm: float
    median_nm: float
    p90_nm: float
    p95_nm: float
    max_nm: float
    rms_nm: float
    bias_nm: tuple[float, float, float]

    @classmethod
    def of(cls, differences_nm: ArrayLike) -> ErrorStats:
        """Sum up difference vectors (N, 3) zyx nm.

        Raises
        ------
        DataError
            There are none, or one is not finite.
        """
        vectors = np.asarray(differences_nm, dtype=np.float64).reshape(-1, 3)
        if len(vectors) == 0 or not np.isfinite(vectors).all():
            raise DataError(f"cannot sum up {len(vectors)} differences; all must be finite numbers")
        distance = np.linalg.norm(vectors, axis=1)
        median, p90, p95 = np.percentile(distance, [50, 90, 95])
        z, y, x = vectors.mean(axis=0)
        return cls(
            n=len(vectors),
            mean_nm=float(distance.mean()),
            median_nm=float(median),
            p90_nm=float(p90),
            p95_nm=float(p95),
            max_nm=float(distance.max()),
            rms_nm=float(np.sqrt(np.mean(distance**2))),
            bias_nm=(float(z), float(y), float(x)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; the keys are the attributes."""
        return to_plain({field.name: getattr(self, field.name) for field in fields(self)})


def to_plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a report into plain JSON values: NumPy to Python, NaN and infinity to None."""
    return {str(key): _plain(value) for key, value in record.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Mapping):
        return to_plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return plain(value)
