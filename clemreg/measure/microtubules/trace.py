"""Solve the program block by block, and put the chosen edges together to tracks."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.measure.microtubules.candidates import FloatArray, IntArray
from clemreg.measure.microtubules.graph import REACH_NM, Graph
from clemreg.measure.microtubules.program import END, Costs, Join, cost_of, solve

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TraceOptions:
    """How the program is cut and weighed (defaults: Heinrich et al. 2021).

    Attributes
    ----------
    block_nm
        Edge of the cubes that are decided at a time.
    context_nm
        Width around a cube that is solved with it and decided later.
    reach_nm
        Longest edge of the graph; the context must be longer.
    time_limit_s
        Per block.
    costs
        Of the program.
    """

    block_nm: float = 400.0
    context_nm: float = 400.0
    reach_nm: float = REACH_NM
    time_limit_s: float = 120.0
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        if self.block_nm <= 0 or self.context_nm < self.reach_nm:
            raise ConfigError(
                f"a block of {self.block_nm:g} nm with {self.context_nm:g} nm of context cannot be "
                f"solved with edges of {self.reach_nm:g} nm",
                hint="the context must be at least as long as the longest edge",
            )


@dataclass(frozen=True, eq=False)
class Tracks:
    """Traced microtubules.

    Attributes
    ----------
    lines_nm
        One array (n, 3) zyx nm a microtubule, in order along it; a ring ends where it starts.
    cost
        Of the program's solution.
    unproven
        Blocks in which the time was up before the optimum was proven.
    """

    lines_nm: tuple[FloatArray, ...]
    cost: float = 0.0
    unproven: int = 0

    @property
    def length_nm(self) -> FloatArray:
        """Length of each along its points."""
        return np.array([line_length_nm(line) for line in self.lines_nm])


def line_length_nm(line_nm: FloatArray) -> float:
    """Length of a line through points (n, 3)."""
    return float(np.linalg.norm(np.diff(line_nm, axis=0), axis=1).sum())


def trace(
    graph: Graph, options: TraceOptions | None = None, *, progress: Progress | None = None
) -> Tracks:
    """Trace the microtubules of a candidate graph.

    Cubes of `block_nm` are solved one after the other (z slowest), each with its context; the
    joins of its own points are then fixed for its neighbours. A block as large as the volume
    gives the optimum of the whole.

    Raises
    ------
    ConvergenceError
        A block had no solution within the time limit.
    """
    options = options or TraceOptions()
    decided: dict[int, Join | None] = {}
    unproven = 0
    blocks = _blocks(graph, options)
    for number, (own, around) in enumerate(blocks, start=1):
        answer = solve(
            graph, options.costs, around, _neighbours(graph, around, decided), options.time_limit_s
        )
        if not answer.proven:
            unproven += 1
            log.warning("block %d: no proven optimum in %g s", number, options.time_limit_s)
        decided.update({point: answer.joins.get(point) for point in own})
        if progress is not None:
            progress(number, len(blocks), "blocks")
    joins = {point: join for point, join in decided.items() if join is not None}
    return Tracks(assemble(graph, joins), cost_of(graph, joins, options.costs), unproven)


def _blocks(graph: Graph, options: TraceOptions) -> list[tuple[list[int], list[int]]]:
    """Points of each cube, and those not decided before of the cube and its context."""
    points = graph.points_nm
    if not len(points):
        return []
    cube = np.floor(points / options.block_nm).astype(np.intp)
    order = np.lexsort(cube.T[::-1])
    cuts = np.flatnonzero((np.diff(cube[order], axis=0) != 0).any(axis=1)) + 1
    blocks = []
    later = np.ones(len(points), dtype=bool)
    for own in np.split(order, cuts):
        low = cube[own[0]] * options.block_nm - options.context_nm
        high = low + options.block_nm + 2 * options.context_nm
        around = np.flatnonzero(later & ((points >= low) & (points < high)).all(axis=1))
        blocks.append(([int(p) for p in own], [int(p) for p in around]))
        later[own] = False
    return blocks


def _neighbours(
    graph: Graph, points: list[int], decided: dict[int, Join | None]
) -> dict[int, Join | None]:
    """Decided points that share an edge with `points`."""
    near: set[int] = set()
    for point in points:
        near.update(int(p) for p in graph.edges[graph.incident[point]].reshape(-1))
    return {point: decided[point] for point in near if point in decided}


def assemble(graph: Graph, joins: dict[int, Join]) -> tuple[FloatArray, ...]:
    """Order the points of chosen joins along their lines: those with ends first, then rings."""
    left = dict(joins)
    ends = sorted(point for point, join in joins.items() if END in join)
    lines = [_walk(graph, left, start) for start in ends if start in left]
    while left:  # what has no end is a ring
        start = min(left)
        ring = _walk(graph, left, start)
        lines.append(np.append(ring, start))
    return tuple(graph.points_nm[line] for line in lines)


def _walk(graph: Graph, left: dict[int, Join], start: int) -> IntArray:
    """Follow joins from a point until the end, taking them out of `left`."""
    line, came = [], END
    point = start
    while point in left:
        line.append(point)
        first, second = left.pop(point)
        came = second if first == came else first
        if came == END:
            break
        a, b = (int(p) for p in graph.edges[came])
        point = b if a == point else a
    return np.asarray(line, dtype=np.intp)
