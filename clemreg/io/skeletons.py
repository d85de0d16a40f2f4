"""Skeletons (lines, trees, rings): read and write SWC and NML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clemreg.errors import FormatError, GridError
from clemreg.io.atomic import atomic_write_text
from clemreg.io.tables import read_text
from clemreg.io.xyz import FloatArray, flip
from clemreg.units import nm_per

IntArray = NDArray[np.intp]

_SWC_UNIT = "# unit: "


@dataclass(frozen=True, eq=False)
class Skeleton:
    """Nodes in space and the edges between them.

    Attributes
    ----------
    nodes_nm
        (N, 3) zyx nm.
    edges
        (E, 2) indices of nodes.
    radius_nm
        (N,) radius at each node; NaN where unknown.
    kinds
        (N,) SWC type of each node (1 soma, 2 axon, 3 dendrite ...); None: not told.

    Raises
    ------
    GridError
        The shapes do not fit, or an edge names a node that is not there.
    """

    nodes_nm: FloatArray
    edges: IntArray
    radius_nm: FloatArray
    kinds: IntArray | None = None

    def __post_init__(self) -> None:
        n = len(self.nodes_nm)
        fits = (
            self.nodes_nm.shape == (n, 3)
            and self.edges.ndim == 2
            and self.edges.shape[1] == 2
            and self.radius_nm.shape == (n,)
            and (self.kinds is None or self.kinds.shape == (n,))
        )
        if not fits or (self.edges.size and not 0 <= self.edges.min() <= self.edges.max() < n):
            raise GridError(
                f"nodes {self.nodes_nm.shape}, edges {self.edges.shape} and radii "
                f"{self.radius_nm.shape} do not make a skeleton"
            )

    @classmethod
    def of_lines(cls, lines_nm: Sequence[ArrayLike], radius_nm: float = np.nan) -> Skeleton:
        """Join the points (n, 3) of each line; one that ends where it starts becomes a ring."""
        nodes: list[FloatArray] = [np.zeros((0, 3))]
        edges: list[IntArray] = [np.zeros((0, 2), dtype=np.intp)]
        count = 0
        for line in lines_nm:
            points = np.asarray(line, dtype=np.float64)
            ring = len(points) > 2 and bool((points[0] == points[-1]).all())
            index = np.arange(len(points) - ring) + count
            pairs = np.stack([index[:-1], index[1:]], -1)
            nodes.append(points[: len(index)])
            edges.append(np.append(pairs, [[index[-1], index[0]]], axis=0) if ring else pairs)
            count += len(index)
        return cls(np.concatenate(nodes), np.concatenate(edges), np.full(count, float(radius_nm)))

    def parts(self) -> tuple[int, IntArray]:
        """Return the number of connected parts, and the part (N,) of each node, in node order."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        n = len(self.nodes_nm)
        ones = np.ones(len(self.edges))
        adjacency = coo_array((ones, (self.edges[:, 0], self.edges[:, 1])), shape=(n, n))
        count, label = connected_components(adjacency, directed=False)
        return int(count), np.asarray(label, dtype=np.intp)

    def lines(self) -> tuple[FloatArray, ...]:
        """Points of each unbranched piece, in order; rings end where they start."""
        return tuple(
            self.nodes_nm[path] for path in unbranched_paths(self.edges, len(self.nodes_nm))
        )


def unbranched_paths(edges: IntArray, count: int) -> list[list[int]]:
    """Cut a graph at its branch points into paths of nodes."""
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    used: set[tuple[int, int]] = set()
    paths = []
    ends = [n for n in range(count) if len(neighbours[n]) not in (0, 2)]
    for start in [*ends, *range(count)]:
        for step in neighbours[start]:
            if (start, step) in used:
                continue
            path = [start]
            here, ahead = start, step
            while (here, ahead) not in used:
                used |= {(here, ahead), (ahead, here)}
                path.append(ahead)
                if len(neighbours[ahead]) != 2:
                    break
                first, second = neighbours[ahead]
                here, ahead = ahead, second if first == here else first
            paths.append(path)
    return paths


def read_skeleton(path: str | Path, *, unit: str = "um") -> Skeleton:
    """Read an SWC or NML file, told apart by its name.

    Parameters
    ----------
    unit
        Unit of an SWC file that does not say it (``# unit: nm``). NML carries its voxel size.

    Raises
    ------
    FormatError
        It is neither, or a line is wrong: the text names it.
    MissingError
        There is no such file.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".nml":
        return _read_nml(Path(path))
    if suffix == ".swc":
        return _read_swc(Path(path), unit)
    raise FormatError(f"{path}: no skeleton format", hint="SWC and NML are read")


def write_skeleton(skeleton: Skeleton, path: str | Path, *, unit: str = "um") -> None:
    """Write SWC (in `unit`; rings are cut) or NML (in nm, without `kinds`), by its name.

    Nodes of an SWC file that was read stay in their order, numbered from 1 on, and roots stay roots
    if parents came before children there.

    Raises
    ------
    FormatError
        The name is neither.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".swc":
        atomic_write_text(path, _swc_text(skeleton, unit))
    elif suffix == ".nml":
        atomic_write_text(path, _nml_text(skeleton))
    else:
        raise FormatError(f"{path}: no skeleton format", hint="name it .swc or .nml")


def _read_swc(path: Path, unit: str) -> Skeleton:
    ids: dict[int, int] = {}
    rows: list[tuple[int, list[float], float, int, int]] = []
    for number, line in enumerate(read_text(path, "SWC skeleton").splitlines(), start=1):
        if line.startswith(_SWC_UNIT):
            unit = line.removeprefix(_SWC_UNIT).strip()
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        node, kind, position, radius, parent = _swc_row(fields, path, number)
        if node in ids:
            raise FormatError(f"{path}, line {number}: node {node} is there twice")
        ids[node] = len(ids)
        rows.append((kind, position, radius, parent, number))
    edges = []
    for child, (*_, parent, number) in enumerate(rows):
        if parent == -1:
            continue
        if parent not in ids:
            raise FormatError(f"{path}, line {number}: parent {parent} is not in the file")
        edges.append((ids[parent], child))
    factor = nm_per(unit)
    radii = np.array([r if r > 0 else np.nan for _, _, r, _, _ in rows], dtype=np.float64)
    nodes = flip(np.array([p for _, p, *_ in rows], dtype=np.float64).reshape(-1, 3)) * factor
    pairs = np.array(edges, dtype=np.intp).reshape(-1, 2)
    return Skeleton(nodes, pairs, radii * factor, np.array([k for k, *_ in rows], dtype=np.intp))


def _swc_row(fields: list[str], path: Path, line: int) -> tuple[int, int, list[float], float, int]:
    try:
        node, kind, x, y, z, radius, parent = fields
        place = [float(x), float(y), float(z)]
        row = int(node), int(float(kind)), place, float(radius), int(parent)
    except ValueError:
        row = -1, 0, [np.nan], 0.0, -1
    if not np.isfinite(row[2]).all():
        raise FormatError(
            f"{path}, line {line}: {' '.join(fields)!r} is not an SWC node",
            hint="a node is: number, type, x, y, z, radius, parent",
        )
    return row


def _swc_text(skeleton: Skeleton, unit: str) -> str:
    order, parent = _forest(skeleton)
    place = {node: k for k, node in enumerate(order, start=1)}
    xyz = flip(skeleton.nodes_nm) / nm_per(unit)
    radius = np.nan_to_num(skeleton.radius_nm, nan=0.0) / nm_per(unit)
    kinds = np.zeros(len(order), int) if skeleton.kinds is None else skeleton.kinds
    lines = [_SWC_UNIT + unit, "# number type x y z radius parent"]
    for node in order:
        up = place[parent[node]] if parent[node] >= 0 else -1
        x, y, z = (repr(float(v)) for v in xyz[node])
        lines.append(f"{place[node]} {kinds[node]} {x} {y} {z} {float(radius[node])!r} {up}")
    return "\n".join(lines) + "\n"


def _forest(skeleton: Skeleton) -> tuple[list[int], list[int]]:
    """Nodes with parents before children, and the parent of each (-1: root); rings are cut."""
    count, edges = len(skeleton.nodes_nm), skeleton.edges
    parent = [-1] * count
    if (edges[:, 0] < edges[:, 1]).all() and len(set(edges[:, 1].tolist())) == len(edges):
        for a, b in edges.tolist():  # a forest already, as read
            parent[b] = a
        return list(range(count)), parent
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    seen, order = [False] * count, []
    # Ends make better roots: a line then has its nodes in order.
    for root in sorted(range(count), key=lambda n: len(neighbours[n]) > 1):
        waiting = [] if seen[root] else [root]
        while waiting:
            node = waiting.pop()
            if seen[node]:
                continue
            seen[node] = True
            order.append(node)
            for near in neighbours[node]:
                if not seen[near]:
                    parent[near] = node
                    waiting.append(near)
    return order, parent


def _read_nml(path: Path) -> Skeleton:
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        root = fromstring(read_text(path, "NML skeleton"))
        scale = root.find("parameters/scale")
        if scale is None:
            raise FormatError(f"{path} has no <scale>", hint="an NML file names its voxel size")
        return _nml_skeleton(root, [float(scale.attrib[axis]) for axis in "xyz"], path)
    except (ParseError, KeyError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} is not an NML skeleton: {error}") from error


def _nml_skeleton(root: Any, scale_nm: list[float], path: Path) -> Skeleton:
    ids: dict[int, int] = {}
    positions, radii, edges = [], [], []
    for node in root.iter("node"):
        ids[int(node.attrib["id"])] = len(ids)
        positions.append([float(node.attrib[axis]) for axis in "xyz"])
        radii.append(float(node.attrib.get("radius", "nan")))
    for edge in root.iter("edge"):
        ends = [int(edge.attrib[end]) for end in ("source", "target")]
        if not all(end in ids for end in ends):
            raise FormatError(f"{path}: edge {ends} names a node that is not there")
        edges.append([ids[end] for end in ends])
    nodes = np.array(positions, dtype=np.float64).reshape(-1, 3) * scale_nm
    pairs = np.array(edges, dtype=np.intp).reshape(-1, 2)
    return Skeleton(flip(nodes), pairs, np.array(radii, dtype=np.float64) * min(scale_nm))


def _nml_text(skeleton: Skeleton) -> str:
    root = ElementTree.Element("things")
    parameters = ElementTree.SubElement(root, "parameters")
    ElementTree.SubElement(parameters, "experiment", name="clemreg")
    ElementTree.SubElement(parameters, "scale", x="1.0", y="1.0", z="1.0", unit="nanometer")
    count, part = skeleton.parts()
    xyz = flip(skeleton.nodes_nm)
    for k in range(count):
        thing = ElementTree.SubElement(root, "thing", id=str(k + 1), name=f"track {k + 1}")
        nodes = ElementTree.SubElement(thing, "nodes")
        for n in np.flatnonzero(part == k):
            x, y, z = (repr(float(v)) for v in xyz[n])
            node = ElementTree.SubElement(nodes, "node", id=str(n + 1), x=x, y=y, z=z)
            if np.isfinite(skeleton.radius_nm[n]):
                node.set("radius", repr(float(skeleton.radius_nm[n])))
        edges = ElementTree.SubElement(thing, "edges")
        for a, b in skeleton.edges[part[skeleton.edges[:, 0]] == k]:
            ElementTree.SubElement(edges, "edge", source=str(a + 1), target=str(b + 1))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"
