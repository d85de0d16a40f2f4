"""The simple way to compare with: threshold, thin to a skeleton, prune, cut at the branches."""

from __future__ import annotations

import itertools

import numpy as np

from clemreg.errors import DataError
from clemreg.io.skeletons import Skeleton, unbranched_paths
from clemreg.measure.microtubules.candidates import FloatArray, IntArray, as_probability
from clemreg.measure.microtubules.trace import line_length_nm
from clemreg.volume import Volume

MAX_VOXELS = 512**3
SMOOTHING = 5.0
"""Standard deviation, in voxels along the line, that takes out the staircase."""


def skeleton_tracks(
    prediction: Volume, *, threshold: float = 0.5, min_length_nm: float = 80.0
) -> tuple[FloatArray, ...]:
    """Lines (n, 3) zyx nm of the thinned foreground, in memory: a baseline, not for whole cells.

    Parameters
    ----------
    prediction
        (z, y, x), uint8 signed distance or 0..1.
    threshold
        Foreground is at or above, of 0..1.
    min_length_nm
        Shorter side branches are pruned, and shorter pieces dropped.

    Raises
    ------
    DataError
        The volume is larger than 512 x 512 x 512 voxels.
    """
    from scipy.ndimage import gaussian_filter1d
    from scipy.spatial import cKDTree
    from skimage.morphology import skeletonize

    if prediction.grid.size > MAX_VOXELS:
        raise DataError(
            f"the baseline thins in memory; {prediction.shape} voxels are too many",
            hint="compare on a crop",
        )
    thin = np.argwhere(skeletonize(as_probability(prediction.read()) >= threshold))
    if not len(thin):
        return ()
    nodes = prediction.grid.to_world(thin)
    pairs = cKDTree(thin).query_pairs(1.01, p=np.inf, output_type="ndarray").astype(np.intp)
    edges = _without_spurs(nodes, _spanning_tree(nodes, pairs), min_length_nm)
    pieces = Skeleton(nodes, edges, np.full(len(nodes), np.nan)).lines()
    smooth = (gaussian_filter1d(line, SMOOTHING, axis=0, mode="nearest") for line in pieces)
    return tuple(line for line in smooth if line_length_nm(line) >= min_length_nm)


def _spanning_tree(nodes_nm: FloatArray, pairs: IntArray) -> IntArray:
    """Keep the shortest edges that join all: neighbouring voxels at a corner form triangles."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    n = len(nodes_nm)
    length = np.linalg.norm(nodes_nm[pairs[:, 0]] - nodes_nm[pairs[:, 1]], axis=1)
    graph = coo_array((length, (pairs[:, 0], pairs[:, 1])), shape=(n, n)).tocsr()
    return np.stack(minimum_spanning_tree(graph).nonzero(), -1).astype(np.intp)


def _without_spurs(nodes_nm: FloatArray, edges: IntArray, min_length_nm: float) -> IntArray:
    """Cut side branches that are too short, the shortest of each branch point first."""
    while True:
        degree = np.bincount(edges.reshape(-1), minlength=len(nodes_nm))
        shortest: dict[int, tuple[float, list[int]]] = {}
        for path in unbranched_paths(edges, len(nodes_nm)):
            ends = sorted((path[0], path[-1]), key=lambda node: degree[node])
            length = line_length_nm(nodes_nm[path])
            if degree[ends[0]] == 1 and degree[ends[1]] > 2 and length < min_length_nm:
                shortest[ends[1]] = min((length, path), shortest.get(ends[1], (np.inf, [])))
        if not shortest:
            return edges
        drop = {
            frozenset(pair) for _, path in shortest.values() for pair in itertools.pairwise(path)
        }
        edges = np.array([e for e in edges.tolist() if frozenset(e) not in drop], dtype=np.intp)
