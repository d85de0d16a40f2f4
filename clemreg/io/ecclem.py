"""ec-CLEM (Icy): fiducials as CSV, one file an image, and as XML; the matrix of its result.

ec-CLEM moves its *source* image, usually the LM, onto its *target*, usually the EM.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clemreg.errors import DataError, FormatError, MissingError
from clemreg.io.atomic import atomic_write_text
from clemreg.io.tables import check_widths, read_rows
from clemreg.io.xyz import FloatArray, flip, flip_matrix
from clemreg.space.grid import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.space.transform import Affine
from clemreg.units import nm_per

Source = Literal["lm", "em"]
KINDS = ("RIGID", "SIMILARITY", "AFFINE", "SPLINE")
_COLUMNS = ("id", "dimension_1", "dimension_2", "dimension_3")


@dataclass(frozen=True)
class EcclemFile:
    """What an ec-CLEM transformation file says.

    Attributes
    ----------
    landmarks
        Pairs, zyx nm.
    kind
        One of `KINDS`: the transform that ec-CLEM makes of them.
    """

    landmarks: Landmarks
    kind: str


def write_fiducials(landmarks: Landmarks, lm: Path, em: Path, *, unit: str = "um") -> None:
    """Write the usable pairs as two fiducial tables, rows in the same order.

    Parameters
    ----------
    landmarks
        Pairs of one rater; those that are not active or not set are left out, since ec-CLEM pairs
        by row.
    lm, em
        The two ``.csv`` files.
    unit
        Unit of the coordinates.

    Raises
    ------
    DataError
        No pair is usable, or there are several raters.
    """
    usable = _usable(landmarks)
    for path, points in ((lm, usable.lm_nm), (em, usable.em_nm)):
        lines = [",".join(_COLUMNS)]
        for number, point in enumerate(flip(points) / nm_per(unit)):
            lines.append(",".join([str(number), *(repr(float(v)) for v in point)]))
        atomic_write_text(path, "\n".join(lines) + "\n")


def read_fiducials(lm: str | Path, em: str | Path, *, unit: str = "um") -> Landmarks:
    """Read two fiducial tables; points with the same id belong together.

    Raises
    ------
    FormatError
        A table is not one of ec-CLEM's, is 2-D, or the ids differ.
    MissingError
        A file is not there.
    """
    sides = [_fiducial_table(path) for path in (lm, em)]
    if set(sides[0]) != set(sides[1]):
        odd = sorted(set(sides[0]) ^ set(sides[1]))
        raise FormatError(
            f"{lm} and {em} do not pair: {', '.join(odd)} is only in one of them",
            hint="save both from the same ec-CLEM session",
        )
    names = tuple(sides[0])
    points = [np.array([side[n] for n in names]).reshape(-1, 3) * nm_per(unit) for side in sides]
    return Landmarks(names, flip(points[0]), flip(points[1]))


def _fiducial_table(path: str | Path) -> dict[str, list[float]]:
    head, *rows = read_rows(path, "ec-CLEM fiducial table")
    found = tuple(name.lower() for name in head.fields)
    if found != _COLUMNS:
        raise FormatError(
            f"{path}: columns {', '.join(head.fields)}, expected {', '.join(_COLUMNS)}",
            hint="clemreg needs fiducials in 3-D, saved by ec-CLEM as CSV",
        )
    check_widths(rows, len(_COLUMNS))
    table = {row.fields[0]: [row.number(i, _COLUMNS[i]) for i in (1, 2, 3)] for row in rows}
    if len(table) < len(rows):
        raise FormatError(f"{path}: an id is there twice")
    return table


def write_ecclem(
    landmarks: Landmarks,
    path: str | Path,
    grids: tuple[Grid, Grid],
    *,
    kind: str = "SIMILARITY",
    source: Source = "lm",
    date: datetime | None = None,
) -> None:
    """Write pairs as an ec-CLEM transformation file, in micrometres.

    Parameters
    ----------
    landmarks
        Pairs of one rater; only usable ones are written.
    path
        The ``.xml`` file.
    grids
        Grids of LM and EM: their sizes and voxel sizes stand in the file.
    kind
        One of `KINDS`: what ec-CLEM is to fit.
    source
        Which image ec-CLEM is to move.
    date
        Stands in the file; default: now.

    Raises
    ------
    DataError
        The kind is unknown, no pair is usable, or there are several raters.
    """
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise DataError(f"ec-CLEM has no transformation {kind!r}", hint=f"one of {known}")
    usable = _usable(landmarks)
    lm, em = (flip(points) / nm_per("um") for points in (usable.lm_nm, usable.em_nm))
    sides = [("source", grids[0], lm), ("target", grids[1], em)]
    if source == "em":
        sides = [("source", grids[1], em), ("target", grids[0], lm)]
    root = ET.Element("root")
    stamp = (date or datetime.now(UTC)).isoformat()
    attributes = {"type": kind, "noiseModel": "ISOTROPIC", "date": stamp}
    transformation = ET.SubElement(root, "transformation", attributes)
    for name, grid, _ in sides:
        _add_size(transformation, name, grid)
    for name, grid, _ in sides:
        ET.SubElement(transformation, "sequenceFileName", type=name).text = grid.frame
    for name, _, points in sides:
        _add_points(transformation, name, points)
    atomic_write_text(path, _text(root))


def _usable(landmarks: Landmarks) -> Landmarks:
    usable = landmarks.usable
    if not len(usable):
        raise DataError("no landmark pair is active and set on both sides")
    if len(usable.raters) > 1:
        raise DataError(
            f"ec-CLEM has no raters, but these landmarks have {sorted(usable.raters)}",
            hint="choose one, for example --rater AW",
        )
    return usable


def _add_size(parent: Any, side: str, grid: Grid) -> None:
    element = ET.SubElement(parent, "sequenceSize", dimension="3", type=side)
    for name, count, spacing in zip("XYZ", grid.shape[::-1], grid.spacing_nm[::-1], strict=True):
        size = ET.SubElement(element, "dimensionSize", name=name, pixelSize=repr(spacing / 1e3))
        size.text = str(count)


def _add_points(parent: Any, side: str, points: FloatArray) -> None:
    attributes = {"type": side, "n": str(len(points)), "dimension": "3", "pointType": "FIDUCIAL"}
    dataset = ET.SubElement(parent, "dataset", attributes)
    for number, point in enumerate(points):
        element = ET.SubElement(dataset, "point", id=str(number))
        for axis, value in enumerate(point):
            ET.SubElement(element, "coordinate", dimension=str(axis)).text = repr(float(value))


def _text(root: Any) -> str:
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def read_ecclem(path: str | Path, *, unit: str = "um", source: Source = "lm") -> EcclemFile:
    """Read the fiducials of an ec-CLEM transformation file.

    Parameters
    ----------
    path
        The ``.xml`` file.
    unit
        Unit of its coordinates.
    source
        Which image ec-CLEM moved.

    Raises
    ------
    FormatError
        It is no such file, 2-D, or its two point sets do not pair.
    MissingError
        There is no such file.
    """
    root = _parse(Path(path))
    transformation = root.find("transformation") if root.tag == "root" else None
    if transformation is None:
        raise FormatError(f"{path} is no ec-CLEM transformation file")
    kind = transformation.get("type", "")
    if kind not in KINDS:
        raise FormatError(f"{path}: unknown ec-CLEM transformation {kind!r}")
    sides = {name: _points(path, transformation, name) for name in ("source", "target")}
    if set(sides["source"]) != set(sides["target"]):
        raise FormatError(f"{path}: the points of source and target do not pair")
    names = tuple(sides["source"])
    moved, still = (
        flip(np.array([sides[s][n] for n in names]).reshape(-1, 3)) * nm_per(unit)
        for s in ("source", "target")
    )
    lm, em = (moved, still) if source == "lm" else (still, moved)
    return EcclemFile(Landmarks(names, lm, em), kind)


def _points(path: str | Path, transformation: Any, side: str) -> dict[str, list[float]]:
    dataset = transformation.find(f"dataset[@type='{side}']")
    if dataset is None or dataset.get("dimension") != "3":
        raise FormatError(f"{path}: there are no 3-D points of the {side}")
    table: dict[str, list[float]] = {}
    for point in dataset.findall("point"):
        try:
            values = {c.get("dimension"): float(c.text or "") for c in point.findall("coordinate")}
            table[str(point.get("id"))] = [values[axis] for axis in ("0", "1", "2")]
        except (KeyError, ValueError) as error:
            raise FormatError(
                f"{path}: point {point.get('id')} of the {side} is damaged: {error}"
            ) from error
    if not np.isfinite(list(table.values())).all():
        raise FormatError(f"{path}: a point of the {side} is not finite")
    return table


def is_ecclem_matrix(path: Path) -> bool:
    """Tell whether an XML file is the matrix of an ec-CLEM result."""
    return bool(_parse(path).tag == "MatrixTransformation")


def read_ecclem_matrix(path: str | Path, *, unit: str = "um", source: Source = "lm") -> Affine:
    """Read ``MatrixTransformation`` (4 x 4, source to target, x, y, z) as LM to EM.

    Raises
    ------
    FormatError
        An entry is missing, or the matrix is no affine or has no inverse.
    """
    root = _parse(Path(path))
    try:
        entries = [float(root.attrib[f"m{i}{j}"]) for i in range(4) for j in range(4)]
    except (KeyError, ValueError) as error:
        raise FormatError(f"{path} is no ec-CLEM matrix: {error}") from error
    matrix = np.array(entries).reshape(4, 4)
    plain = np.isfinite(matrix).all() and np.allclose(matrix[3], [0, 0, 0, 1])
    if not plain or abs(np.linalg.det(matrix)) < 1e-12:
        raise FormatError(f"{path}: the matrix is no affine that can be inverted")
    matrix[:3, 3] *= nm_per(unit)
    zyx = flip_matrix(matrix)
    if source == "lm":
        return Affine(zyx, "lm", "em")
    return Affine(zyx, "em", "lm").inverse()


def write_ecclem_matrix(
    affine: Affine, path: str | Path, *, unit: str = "um", source: Source = "lm"
) -> None:
    """Write an affine LM to EM as ec-CLEM's ``MatrixTransformation``."""
    used = affine if source == "lm" else affine.inverse()
    matrix = flip_matrix(used.matrix)
    matrix[:3, 3] /= nm_per(unit)
    entries = {f"m{i}{j}": repr(float(matrix[i, j])) for i in range(4) for j in range(4)}
    entries["process_date"] = datetime.now(UTC).isoformat()
    atomic_write_text(path, _text(ET.Element("MatrixTransformation", entries)))


def _parse(path: Path) -> Any:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    if not path.is_file():
        raise MissingError(f"{path} is not there", hint="check the path")
    try:
        return fromstring(path.read_bytes())
    except (ET.ParseError, DefusedXmlException, ValueError) as error:
        raise FormatError(f"{path} is not XML that can be trusted: {error}") from error
