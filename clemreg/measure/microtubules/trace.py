"""Solve the program block by block, and put the chosen edges together to tracks."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Part
from clemreg.errors import ConfigError
from clemreg.measure.gather import gathered
from clemreg.measure.microtubules.candidates import FloatArray, IntArray
from clemreg.measure.microtubules.graph import REACH_NM, Graph
from clemreg.measure.microtubules.program import END, Costs, Join, cost_of, solve
from clemreg.space.grid import Box

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
        lengths = (self.block_nm, self.context_nm, self.reach_nm)
        if not (all(0 < x < math.inf for x in lengths) and self.context_nm >= self.reach_nm):
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
    graph: Graph,
    options: TraceOptions | None = None,
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Tracks:
    """Trace the microtubules of a candidate graph.

    Cubes of `block_nm` are solved in order (z slowest), each with its context; the joins of its
    own points are then fixed for its neighbours. A block as large as the volume gives the optimum
    of the whole. Cubes that are too far apart to know of each other are solved at the same time;
    the result is that of one after the other.

    Parameters
    ----------
    how
        Executor and progress; neither changes the result.
    scratch
        Folder from which a killed run goes on.

    Raises
    ------
    ConvergenceError
        A block had no solution within the time limit.
    """
    options, how = options or TraceOptions(), how or Blockwise()
    decided: dict[int, Join | None] = {}
    unproven = 0
    cubes = _cubes(graph, options)
    if how.progress is not None:
        how.progress(0, len(cubes), "cubes")  # the first may take minutes
    job = f"trace {_fingerprint(graph)} {options}"
    for number, (wave, stage) in enumerate(_in_waves(cubes, options, how.named("cubes"))):
        tasks = [(c.around, _neighbours(graph, c.around, decided)) for c in wave]
        work = _Solve(graph, options, tasks)
        blocks = [Block(i, c.box, c.box) for i, c in enumerate(wave)]
        with gathered(work, blocks, stage, job=f"{job} {number}", scratch=scratch) as parts:
            for cube, part in zip(wave, parts, strict=True):
                unproven += int(part["unproven"])
                joins = dict(zip(part["point"].tolist(), part["join"].tolist(), strict=True))
                for point in cube.own:
                    decided[point] = (joins[point][0], joins[point][1]) if point in joins else None
    joins = {point: join for point, join in decided.items() if join is not None}
    return Tracks(assemble(graph, joins), cost_of(graph, joins, options.costs), unproven)


@dataclass(frozen=True)
class _Cube:
    """What is decided at a time.

    Attributes
    ----------
    box
        Its place, in cubes.
    own, around
        Its points; those of it and its context that no cube before it decides.
    """

    box: Box
    own: list[int]
    around: list[int]


@dataclass(frozen=True, eq=False)
class _Solve:
    """Solve the program around a cube."""

    graph: Graph
    options: TraceOptions
    tasks: Sequence[tuple[list[int], dict[int, Join | None]]]

    def __call__(self, block: Block) -> Part:
        around, known = self.tasks[block.number]
        limit = self.options.time_limit_s
        answer = solve(self.graph, self.options.costs, around, known, limit)
        if not answer.proven:
            log.warning("cube %s: no proven optimum in %g s", block.core.start, limit)
        return {
            "point": np.array(list(answer.joins), dtype=np.int64),
            "join": np.array(list(answer.joins.values()), dtype=np.int64).reshape(-1, 2),
            "unproven": np.array(not answer.proven),
        }


def _cubes(graph: Graph, options: TraceOptions) -> list[_Cube]:
    """All cubes with points, in order."""
    points = graph.points_nm
    if not len(points):
        return []
    cube = np.floor(points / options.block_nm).astype(np.intp)
    order = np.lexsort(cube.T[::-1])
    cuts = np.flatnonzero((np.diff(cube[order], axis=0) != 0).any(axis=1)) + 1
    cubes = []
    later = np.ones(len(points), dtype=bool)
    for own in np.split(order, cuts):
        place = cube[own[0]]
        low = place * options.block_nm - options.context_nm
        high = low + options.block_nm + 2 * options.context_nm
        around = np.flatnonzero(later & ((points >= low) & (points < high)).all(axis=1))
        box = Box(tuple(place), tuple(place + 1))
        cubes.append(_Cube(box, own.tolist(), around.tolist()))
        later[own] = False
    return cubes


def _in_waves(
    cubes: Sequence[_Cube], options: TraceOptions, how: Blockwise
) -> Iterator[tuple[list[_Cube], Blockwise]]:
    """Yield cubes that can be solved at once, each after all before it that it depends on.

    A cube sees its context and what an edge joins to that; so do those that it depends on. With
    each come executor, and progress that counts all cubes.
    """
    seen = int((options.context_nm + options.reach_nm) / options.block_nm) + 1
    wave_of = _waves(np.array([c.box.start for c in cubes]).reshape(-1, 3), seen)
    done = 0
    for number in range(int(wave_of.max(initial=-1)) + 1):
        wave = [cubes[i] for i in np.flatnonzero(wave_of == number).tolist()]
        yield wave, _counted(how, done, len(cubes))
        done += len(wave)


def _waves(places: IntArray, reach: int) -> IntArray:
    """Give each cube (n, 3) of an order its wave: after all near ones before it."""
    from scipy.spatial import cKDTree

    waves = np.zeros(len(places), np.intp)
    if len(places):
        near = cKDTree(places).query_ball_point(places, reach + 0.5, p=np.inf)
        for i, others in enumerate(near):
            before = [waves[j] for j in others if j < i]
            waves[i] = max(before) + 1 if before else 0
    return waves


def _counted(how: Blockwise, done: int, total: int) -> Blockwise:
    """Let progress count from `done` on, up to `total`."""
    progress = how.progress
    if progress is None:
        return how
    return replace(how, progress=lambda n, _total, message: progress(done + n, total, message))


def _fingerprint(graph: Graph) -> str:
    """Identify a graph by its content."""
    arrays: tuple[NDArray[Any], ...] = (graph.points_nm, graph.edges, graph.evidence)
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


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
