"""Triangle meshes: read and write OBJ and PLY. Coordinates are x, y, z in the file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import FormatError, GridError, MissingError, VoxelSizeError
from clemreg.io.atomic import atomic_path, atomic_write_text
from clemreg.io.tables import read_text
from clemreg.io.xyz import FloatArray, flip
from clemreg.units import ascii_unit, nm_per

_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_PLY_END = re.compile(rb"end_header\r?\n")
_UNIT = re.compile(rb"^(?:#|comment) unit: *(?P<unit>\S+)", re.MULTILINE)
_COMMENTS = 4096  # bytes of a file in which its unit is looked for
_PLY_KINDS = {"ascii": "ascii", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles.

    Attributes
    ----------
    vertices_nm
        (V, 3) zyx nm.
    faces
        (F, 3) indices of vertices; counter-clockwise seen from outside, in x, y, z space.

    Raises
    ------
    GridError
        A face names a vertex that is not there, or the shapes are wrong.
    """

    vertices_nm: FloatArray
    faces: NDArray[np.intp]

    def __post_init__(self) -> None:
        v, f = self.vertices_nm, self.faces
        fits = v.ndim == f.ndim == 2 and v.shape[1] == f.shape[1] == 3
        if not fits or (f.size and not 0 <= f.min() <= f.max() < len(v)):
            raise GridError(f"vertices {v.shape} and faces {f.shape} do not make a mesh")

    def volume_nm3(self) -> float:
        """Enclosed volume in nm^3; negative if the faces are turned inside out."""
        a, b, c = (flip(self.vertices_nm)[self.faces[:, k]] for k in range(3))
        return float((a * np.cross(b, c)).sum() / 6)


def mesh_unit(path: str | Path) -> str | None:
    """Return the unit that a mesh file says in a comment, as `write_mesh` writes it, or None.

    Raises
    ------
    MissingError
        There is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingError(f"mesh {file} is not there", hint="check the path")
    with file.open("rb") as stream:
        said = _UNIT.search(stream.read(_COMMENTS))
    if said is None:
        return None
    unit = said["unit"].decode("utf-8", "replace")
    try:
        nm_per(unit)
    except VoxelSizeError:  # a comment like any other
        return None
    return unit


def read_mesh(path: str | Path, *, unit: str = "nm") -> Mesh:
    """Read an OBJ or PLY file (ASCII or binary); polygons are cut into triangles.

    Parameters
    ----------
    unit
        Unit of the coordinates in a file that does not say it, see `mesh_unit`.

    Raises
    ------
    FormatError
        It is neither, or damaged.
    MissingError
        There is no such file.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix == ".obj":
        xyz, faces = _read_obj(file)
    elif suffix == ".ply":
        xyz, faces = _read_ply(file)
    else:
        raise FormatError(f"{file}: no mesh format", hint="OBJ and PLY are read")
    if not np.isfinite(xyz).all():
        raise FormatError(f"{file}: a vertex is not finite")
    try:
        return Mesh(flip(xyz) * nm_per(mesh_unit(file) or unit), faces)
    except GridError as error:
        raise FormatError(f"{file}: {error.message}") from error


def write_mesh(mesh: Mesh, path: str | Path, *, unit: str = "nm") -> None:
    """Write OBJ (text) or PLY (binary, double), by the name of the file.

    Raises
    ------
    FormatError
        The name is neither.
    """
    file = Path(path)
    unit = ascii_unit(unit)
    xyz = flip(mesh.vertices_nm) / nm_per(unit)
    if file.suffix.lower() == ".obj":
        lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in xyz.tolist()]
        lines += [f"f {a} {b} {c}" for a, b, c in (mesh.faces + 1).tolist()]
        atomic_write_text(file, "\n".join([f"# unit: {unit}", *lines]) + "\n")
    elif file.suffix.lower() == ".ply":
        _write_ply(file, xyz, mesh.faces, unit)
    else:
        raise FormatError(f"{file}: no mesh format", hint="name it .obj or .ply")


def _triangles(polygon: Sequence[int]) -> list[list[int]]:
    return [[polygon[0], b, c] for b, c in itertools.pairwise(polygon[1:])]


def _read_obj(path: Path) -> tuple[FloatArray, NDArray[np.intp]]:
    vertices: list[list[float]] = []
    faces: list[list[int]] = []
    for number, line in enumerate(read_text(path, "OBJ mesh").splitlines(), start=1):
        kind, *fields = line.split() or [""]
        try:
            if kind == "v":
                vertices.append([float(v) for v in fields[:3]])
            elif kind == "f":
                given = [int(field.partition("/")[0]) for field in fields]
                faces += _triangles([i - 1 if i > 0 else len(vertices) + i for i in given])
        except ValueError as error:
            raise FormatError(f"{path}, line {number}: {line.strip()!r} is not OBJ") from error
        if kind == "v" and len(vertices[-1]) != 3:
            raise FormatError(f"{path}, line {number}: a vertex needs x, y and z")
    return _arrays(vertices, faces)


def _arrays(
    vertices: list[list[float]], faces: list[list[int]]
) -> tuple[FloatArray, NDArray[np.intp]]:
    xyz = np.array(vertices, dtype=np.float64).reshape(-1, 3)
    return xyz, np.array(faces, dtype=np.intp).reshape(-1, 3)


@dataclass(frozen=True)
class _Element:
    """One kind of row of a PLY file: its count, and its properties (name, type, list length)."""

    name: str
    count: int
    properties: tuple[tuple[str, str, str], ...]


def _read_ply(path: Path) -> tuple[FloatArray, NDArray[np.intp]]:
    if not path.is_file():
        raise MissingError(f"PLY mesh {path} is not there", hint="check the path")
    head, *rest = _PLY_END.split(path.read_bytes(), maxsplit=1)
    if not head.startswith(b"ply") or not rest:
        hint = 'it starts with "ply", and its header ends with a line "end_header"'
        raise FormatError(f"{path} is not a PLY mesh", hint=hint)
    (body,) = rest
    try:
        kind, elements = _ply_header(head.decode("ascii"))
        rows = _ply_ascii(body, elements) if kind == "ascii" else _ply_binary(body, elements, kind)
        vertices = [[row[axis] for axis in "xyz"] for row in rows["vertex"]]
        polygons: list[list[int]] = [
            row["vertex_indices" if "vertex_indices" in row else "vertex_index"]
            for row in rows.get("face", [])
        ]
        return _arrays(vertices, [t for p in polygons for t in _triangles(p)])
    except (ValueError, KeyError, IndexError, StopIteration, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is a damaged PLY mesh ({error!r})") from error


def _ply_header(text: str) -> tuple[str, list[_Element]]:
    kind, elements = "", []
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        if word == "format":
            kind = {"ascii": "ascii", "binary_little_endian": "<", "binary_big_endian": ">"}[
                rest[0]
            ]
        elif word == "element":
            elements.append(_Element(rest[0], int(rest[1]), ()))
        elif word == "property":
            last = elements[-1]
            length = _PLY_TYPES[rest[1]] if rest[0] == "list" else ""
            entry = (rest[-1], _PLY_TYPES[rest[-2]], length)
            elements[-1] = _Element(last.name, last.count, (*last.properties, entry))
    return kind, elements


def _ply_ascii(body: bytes, elements: list[_Element]) -> dict[str, list[dict[str, Any]]]:
    words = iter(body.split())
    rows: dict[str, list[dict[str, Any]]] = {}
    for element in elements:
        rows[element.name] = []
        for _ in range(element.count):
            row: dict[str, Any] = {}
            for name, kind, length in element.properties:
                number = float if kind[0] == "f" else int
                if length:
                    row[name] = [number(next(words)) for _ in range(int(next(words)))]
                else:
                    row[name] = number(next(words))
            rows[element.name].append(row)
    return rows


def _ply_binary(
    body: bytes, elements: list[_Element], order: str
) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    at = 0

    def take(kind: str, count: int) -> list[Any]:
        nonlocal at
        values = np.frombuffer(body, np.dtype(order + kind), count, at)
        at += values.nbytes
        return list(values.tolist())

    for element in elements:
        rows[element.name] = []
        for _ in range(element.count):
            row: dict[str, Any] = {}
            for name, kind, length in element.properties:
                if length:
                    row[name] = take(kind, int(take(length, 1)[0]))
                else:
                    (row[name],) = take(kind, 1)
            rows[element.name].append(row)
    return rows


def _write_ply(path: Path, xyz: FloatArray, faces: NDArray[np.intp], unit: str) -> None:
    head = [
        "ply", "format binary_little_endian 1.0", f"comment unit: {unit}",
        f"element vertex {len(xyz)}", *(f"property double {axis}" for axis in "xyz"),
        f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header",
    ]  # fmt: skip
    rows = np.zeros(len(faces), dtype=[("n", "u1"), ("v", "<i4", 3)])
    rows["n"], rows["v"] = 3, faces
    with atomic_path(path) as partial, partial.open("wb") as stream:
        stream.write(("\n".join(head) + "\n").encode("ascii"))
        stream.write(xyz.astype("<f8").tobytes())
        stream.write(rows.tobytes())
