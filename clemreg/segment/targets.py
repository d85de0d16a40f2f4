"""What the network learns: tanh of the signed distance in nm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clemreg.io.quantise import SCALE_NM

# What a training volume may have annotated.
ORGANELLES = ("mito", "er")
# Classes that can be predicted, with the organelle whose surface each follows from.
CLASSES = {"mito": "mito", "mito_mem": "mito", "er": "er"}
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
    result: NDArray[np.float32] = np.where(mask, inside - half, half - outside).astype(np.float32)
    return result


def class_targets(
    distances_nm: NDArray[np.float32], known: NDArray[np.bool_], classes: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Targets and where they are known, both (class, z, y, x).

    Parameters
    ----------
    distances_nm, known
        Signed distance to each of `ORGANELLES` and where it is annotated (organelle, z, y, x).
    classes
        Of `CLASSES`. The mitochondria membrane is the shell between the outer surface and
        `MEMBRANE_NM` inside it, so its own signed distance follows from the mitochondrion's.
    """
    rows = [ORGANELLES.index(CLASSES[name]) for name in classes]
    distance = distances_nm[rows]
    middle = np.float32(MEMBRANE_NM / 2)
    for i, name in enumerate(classes):
        if name == "mito_mem":
            distance[i] = middle - np.abs(distance[i] - middle)
    return np.tanh(distance / np.float32(SCALE_NM)), known[rows]
