"""Predictions as the paper stores them: uint8 of the tanh of the signed distance.

``v = clip(round(128 x + 127), 0, 255)`` with ``x = tanh(d / 50 nm)``, d positive inside; the
surface is at 127 (Heinrich et al., Nature 2021, Extended Data Fig. 6).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

SCALE_NM = 50.0
SURFACE = 127


def quantise(x: ArrayLike) -> NDArray[np.uint8]:
    """Store tanh distances (any shape, about -1 to 1) as uint8; halves round to even."""
    scaled = np.rint(np.asarray(x, dtype=np.float32) * 128 + 127)
    return np.clip(scaled, 0, 255).astype(np.uint8)


def dequantise(values: ArrayLike) -> NDArray[np.float32]:
    """Tanh distance of stored values: ``(v - 127) / 128``."""
    x = (np.asarray(values, dtype=np.float32) - 127) / 128
    return np.asarray(x, dtype=np.float32)


def distance_nm(values: ArrayLike) -> NDArray[np.float32]:
    """Signed distance in nm of stored values, positive inside; 255 is infinity."""
    with np.errstate(divide="ignore"):
        return np.asarray(SCALE_NM * np.arctanh(dequantise(values)), dtype=np.float32)


def threshold_for(distance: float) -> float:
    """Smallest stored value (not rounded) whose signed distance is at least `distance` nm."""
    return float(128 * np.tanh(distance / SCALE_NM) + 127)
