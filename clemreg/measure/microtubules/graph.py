"""The candidate graph: which points may follow each other, and how well the image supports it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from clemreg.blocks.plan import Block, plan_blocks
from clemreg.blocks.stages import Blockwise, Part
from clemreg.measure.gather import gather, read_padded
from clemreg.measure.microtubules.candidates import Candidates, FloatArray, IntArray, as_probability
from clemreg.volume import Volume

REACH_NM = 180.0
SUPPORTED = 0.5
"""Evidence up to which an edge counts as supported: on average the line lies in foreground."""


@dataclass(frozen=True, eq=False)
class Graph:
    """Candidate points and the edges between near ones.

    Attributes
    ----------
    points_nm
        (N, 3) zyx nm.
    edges
        (E, 2) indices of points, the smaller first, sorted.
    evidence
        (E,) mean over the voxels between the two of one minus the prediction: 0 is full support.
    """

    points_nm: FloatArray
    edges: IntArray
    evidence: FloatArray

    @cached_property
    def incident(self) -> list[IntArray]:
        """Edges at each point, ascending."""
        ends = self.edges.reshape(-1)
        order = np.argsort(ends, kind="stable")
        start = np.searchsorted(ends[order], np.arange(len(self.points_nm) + 1))
        return [order[a:b] // 2 for a, b in itertools.pairwise(start)]

    @cached_property
    def supported_neighbours(self) -> IntArray:
        """(N,) To how many others a supported edge joins each point.

        On a microtubule these are the points before and behind it, 2 to 4; in a sheet, or in a
        body thicker than the candidates' cells, 10 to 30. Also in dense bundles and in noise they
        stay few, since what lies between is background.
        """
        supported = self.edges[self.evidence <= SUPPORTED]
        return np.bincount(supported.reshape(-1), minlength=len(self.points_nm))


def build_graph(
    candidates: Candidates,
    prediction: Volume,
    reach_nm: float = REACH_NM,
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Graph:
    """Join candidates at most `reach_nm` apart; measure every edge along the voxel line.

    Parameters
    ----------
    candidates
        Of `prediction`.
    how
        Blocks, executor and progress; no choice here changes a digit.
    scratch
        Folder from which a killed run goes on.
    """
    from scipy.spatial import cKDTree

    how = how or Blockwise()
    tree = cKDTree(candidates.points_nm)
    pairs = np.sort(tree.query_pairs(reach_nm, output_type="ndarray"), axis=1).astype(np.intp)
    edges = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    start = candidates.voxel[edges[:, 0]]
    # Points are moved off their voxels by up to a radius, so lines may be longer than the reach.
    span = np.abs(candidates.voxel[edges[:, 1]] - start)
    halo = tuple(int(h) for h in span.max(axis=0, initial=0))
    work = _Evidence(prediction, candidates.voxel[edges])
    job = f"graph {prediction.name} {prediction.grid} {reach_nm} {len(edges)}"
    blocks = plan_blocks(prediction.shape, how.block, halo)
    found = gather(work, blocks, how.named("graph"), job=job, scratch=scratch)
    evidence = found["evidence"][np.argsort(found["which"])]
    return Graph(candidates.points_nm, edges, evidence)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """Evidence of the edges (E, 2, 3 voxels) that start in a block."""

    prediction: Volume
    ends: IntArray

    def __call__(self, block: Block) -> Part:
        start, core = self.ends[:, 0], block.core
        here = np.flatnonzero(((start >= core.start) & (start < core.stop)).all(axis=1))
        if not len(here):
            return {"which": here, "evidence": np.zeros(0)}
        values = as_probability(read_padded(self.prediction, block.read))
        return {
            "which": here,
            "evidence": _evidence(values, self.ends[here] - np.asarray(block.read.start)),
        }


def _evidence(values: FloatArray, ends: IntArray, at_once: int = 20_000) -> FloatArray:
    """Mean of one minus `values` over the voxel lines between pairs of voxels (n, 2, 3)."""
    pieces = [_line_means(values, ends[i : i + at_once]) for i in range(0, len(ends), at_once)]
    return 1.0 - np.concatenate(pieces)


def _line_means(values: FloatArray, ends: IntArray) -> FloatArray:
    first, delta = ends[:, 0], ends[:, 1] - ends[:, 0]
    steps = np.abs(delta).max(axis=1)
    longest = np.maximum(steps, 1)[:, None]
    total = np.zeros(len(ends))
    # Voxel by voxel along the lines: the sum is the same to the last bit in every block.
    for k in range(int(steps.max()) + 1):
        at = np.minimum(k, steps)[:, None]
        voxel = first + np.floor(delta * at / longest + 0.5).astype(np.intp)
        total += np.where(k <= steps, values[tuple(voxel.T)], 0.0)
    return np.asarray(total / (steps + 1))
