"""Signed distance and ids of real labels, for placing fluorophores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clemreg.space.grid import Grid


def signed_distance_nm(
    mask: NDArray[np.bool_], grid: Grid
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Distance to the surface of a mask in nm, positive inside, smoothed; and object ids.

    The distance is smoothed by one voxel, since drawn outlines jump from slice to slice. Ids of
    voxels outside are those of the nearest object within two voxels, else 0.
    """
    import cc3d
    import edt
    from scipy.ndimage import gaussian_filter, grey_dilation

    spacing = grid.spacing_nm
    half = min(spacing) / 2
    solid = np.ascontiguousarray(mask)
    inside = edt.edt(solid, anisotropy=spacing, parallel=2)
    outside = edt.edt(~solid, anisotropy=spacing, parallel=2)
    distance = np.where(mask, inside - half, half - outside).astype(np.float32)
    ids = cc3d.connected_components(solid, connectivity=26).astype(np.int32)
    near = grey_dilation(ids, size=(5, 5, 5))
    return gaussian_filter(distance, 1.0), np.where(ids > 0, ids, near)
