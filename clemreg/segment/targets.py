"""What the network learns: tanh of the signed distance in nm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clemreg.io.quantise import SCALE_NM

# Outer and inner membrane with the space between: the shell inside the outer surface.
MEMBRANE_NM = 24.0


def signed_distance_nm(mask: NDArray[np.bool_], spacing_nm: Sequence[float]) -> NDArray[np.float32]:
    """Distance to the boundary of a mask (z, y, x) in nm, positive inside.

    The boundary lies half way between an inside and an outside voxel, so the first voxel inside
    has about half a voxel. A mask without boundary gives plus or minus infinity.
    """
    import edt

    mask = np.ascontiguousarray(mask, dtype=bool)
    if mask.all() or not mask.any():
        return np.full(mask.shape, np.inf if mask.all() else -np.inf, dtype=np.float32)
    spacing = tuple(float(s) for s in spacing_nm)
    half = min(spacing) / 2
    inside = edt.edt(mask, anisotropy=spacing, parallel=1)
    outside = edt.edt(~mask, anisotropy=spacing, parallel=1)
    return np.where(mask, inside - half, half - outside).astype(np.float32)


def mito_targets(distance_nm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Targets (2, z, y, x) for ``("mito", "mito_mem")`` from the distance to the outer membrane.

    The membrane is the shell between the outer surface and `MEMBRANE_NM` inside it, so its own
    signed distance follows from that of the mitochondrion.
    """
    middle = MEMBRANE_NM / 2
    membrane = middle - np.abs(distance_nm - middle)
    return np.tanh(np.stack([distance_nm, membrane]) / SCALE_NM).astype(np.float32)
