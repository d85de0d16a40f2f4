"""The integer program: which edges of the candidate graph are microtubules.

After Heinrich et al. 2021. At every point at most one *join* is chosen: two edges, or one edge
and an end. Both points of an edge must agree on it. The sum of the costs of the chosen joins is
least::

    two edges   100 (e1 + e2) + (22 angle)^2 - 200        angle between the edges, 0 is straight
    an end      100 e + 200 - 200

with the evidence e of an edge from 0 (full support) to 1. The numbers are those of the paper's
four cells. A point that is both ends would cost 200 and is never chosen. Solved by HiGHS.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConvergenceError
from clemreg.measure.microtubules.candidates import FloatArray, IntArray
from clemreg.measure.microtubules.graph import Graph

END = -1
"""In place of an edge: the microtubule ends here."""

Join = tuple[int, int]
"""Two edges, or an edge and END; the smaller last."""


@dataclass(frozen=True)
class Costs:
    """Weights of the program; defaults of Heinrich et al. 2021.

    Attributes
    ----------
    evidence
        Of the missing support of an edge (half at each of its points).
    angle
        Of the angle between two edges in radians; the product is squared.
    end
        Of an end.
    selection
        Of choosing any join: the reward that makes microtubules appear.
    """

    evidence: float = 200.0
    angle: float = 22.0
    end: float = 200.0
    selection: float = -200.0


@dataclass(frozen=True)
class Solution:
    """Joins chosen at points.

    Attributes
    ----------
    joins
        Point to join; points that are on no microtubule are absent.
    cost
        Sum of the costs of these joins.
    proven
        Whether nothing cheaper exists; False where the time was up.
    """

    joins: Mapping[int, Join]
    cost: float
    proven: bool


@dataclass(frozen=True, eq=False)
class Joins:
    """All joins that could be chosen, one entry each.

    Attributes
    ----------
    point, first, second
        (T,) point, edge, and edge or END.
    cost
        (T,).
    """

    point: IntArray
    first: IntArray
    second: IntArray
    cost: FloatArray


def possible_joins(graph: Graph, incident: Mapping[int, IntArray], costs: Costs) -> Joins:
    """List every join that the edges at some points (point to edges) allow."""
    rows = [_joins_at(graph, point, edges, costs) for point, edges in incident.items()]
    if not rows:
        none = np.zeros(0, dtype=np.intp)
        return Joins(none, none, none, np.zeros(0))
    point, first, second, cost = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Joins(point, first, second, cost)


def cost_of(graph: Graph, joins: Mapping[int, Join], costs: Costs) -> float:
    """Sum of the costs of chosen joins, point to join."""
    total = 0.0
    for point, join in joins.items():
        edges = np.array([edge for edge in join if edge != END], dtype=np.intp)
        total += float(_joins_at(graph, point, edges, costs)[3][0])
    return total


def _joins_at(
    graph: Graph, point: int, edges: IntArray, costs: Costs
) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    a, b = np.triu_indices(len(edges), k=1)
    evidence = graph.evidence[edges]
    ends = graph.edges[edges]
    other = np.where(ends[:, 0] == point, ends[:, 1], ends[:, 0])
    away = graph.points_nm[other] - graph.points_nm[point]
    unit = away / np.maximum(np.linalg.norm(away, axis=1), 1e-12)[:, None]
    # Straight on means opposite directions.
    angle = np.pi - np.arccos(np.clip((unit[a] * unit[b]).sum(axis=1), -1.0, 1.0))
    half = evidence * costs.evidence / 2
    through = half[a] + half[b] + (costs.angle * angle) ** 2 + costs.selection
    end = half + costs.end + costs.selection
    none = np.full(len(edges), END, dtype=np.intp)
    first, second = np.concatenate([edges[b], edges]), np.concatenate([edges[a], none])
    return np.full(len(first), point, dtype=np.intp), first, second, np.append(through, end)


def solve(
    graph: Graph,
    costs: Costs,
    points: Collection[int],
    fixed: Mapping[int, Join | None],
    time_limit_s: float = 120.0,
) -> Solution:
    """Choose the joins of `points`, given those of the points around them.

    Parameters
    ----------
    points
        Points to decide.
    fixed
        Points decided before: their join, or None for those on no microtubule. Edges to points
        that are in neither are left out.

    Raises
    ------
    ConvergenceError
        There is no solution: the fixed joins contradict each other, or the time was too short.
    """
    free = {int(p) for p in points}
    demanded = {edge for join in fixed.values() if join for edge in join if edge != END}

    def usable(point: int, edge: int) -> bool:
        a, b = (int(p) for p in graph.edges[edge])
        other = b if a == point else a
        return other in free or (other in fixed and edge in demanded)

    incident = {
        p: np.array([e for e in graph.incident[p] if usable(p, int(e))], dtype=np.intp)
        for p in sorted(free)
    }
    joins = _without_hopeless(possible_joins(graph, incident, costs), costs, demanded)
    return _optimise(graph, joins, free, time_limit_s)


def _without_hopeless(joins: Joins, costs: Costs, demanded: set[int]) -> Joins:
    """Leave out joins that cost more than the two ends that would replace them.

    Dropping such a join turns its neighbours into ends (or drops them too), which costs at most
    `worst` each; so no optimum contains it, unless a fixed neighbour asks for one of its edges.
    """
    worst = max(costs.end, -(costs.end + costs.selection), 0.0)
    asked = np.isin(joins.first, list(demanded)) | np.isin(joins.second, list(demanded))
    keep = (joins.cost <= 2 * worst) | asked
    return Joins(joins.point[keep], joins.first[keep], joins.second[keep], joins.cost[keep])


def _optimise(graph: Graph, joins: Joins, free: set[int], time_limit_s: float) -> Solution:
    from scipy.optimize import Bounds, LinearConstraint, milp

    if not len(joins.cost):
        return Solution({}, 0.0, proven=True)
    matrix, low, high = _constraints(graph, joins, free)
    answer = milp(
        joins.cost,
        integrality=np.ones(len(joins.cost)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, low, high),
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    if answer.x is None:
        raise ConvergenceError(
            f"the microtubule program of {len(free)} points has no solution: {answer.message}",
            hint="use smaller blocks, or a longer time limit",
        )
    chosen = np.flatnonzero(answer.x > 0.5)
    picked = {int(joins.point[t]): (int(joins.first[t]), int(joins.second[t])) for t in chosen}
    return Solution(picked, float(joins.cost[chosen].sum()), proven=answer.status == 0)


def _constraints(
    graph: Graph, joins: Joins, free: set[int]
) -> tuple[Any, NDArray[np.float64], NDArray[np.float64]]:
    """Build one row a point (at most one join) and one row an edge (its points agree)."""
    from scipy.sparse import csr_array

    used = np.concatenate([joins.first, joins.second])
    column = np.tile(np.arange(len(joins.cost)), 2)
    at = np.tile(joins.point, 2)
    real = used != END
    used, column, at = used[real], column[real], at[real]
    points, point_row = np.unique(joins.point, return_inverse=True)
    edges, edge_row = np.unique(used, return_inverse=True)
    sign = np.where(graph.edges[used, 0] == at, 1.0, -1.0)
    n = len(points)
    matrix = csr_array(
        (
            np.concatenate([np.ones(len(joins.cost)), sign]),
            (
                np.concatenate([point_row, n + edge_row]),
                np.concatenate([np.arange(len(joins.cost)), column]),
            ),
        ),
        shape=(n + len(edges), len(joins.cost)),
    )
    low, high = np.zeros(n + len(edges)), np.concatenate([np.ones(n), np.zeros(len(edges))])
    for row, edge in enumerate(edges):
        first, second = (int(p) in free for p in graph.edges[edge])
        if not (first and second):  # the fixed point at the other end uses this edge
            low[n + row] = high[n + row] = 1.0 if first else -1.0
    return matrix, low, high
