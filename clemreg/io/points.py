"""Landmark tables (COSEM, clemreg, BigWarp) and plain tables of points.

Files say x, y, z; what comes back is z, y, x in nm.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from clemreg.errors import FormatError
from clemreg.io.atomic import atomic_write_text
from clemreg.io.bigwarp import (
    landmarks_from_rows,
    looks_like_bigwarp,
    read_bigwarp,
    write_bigwarp,
)
from clemreg.io.ecclem import read_ecclem
from clemreg.io.tables import Row, check_widths, read_rows
from clemreg.io.xyz import FloatArray, flip
from clemreg.space.landmarks import Landmarks
from clemreg.space.transform import as_points
from clemreg.units import NM_PER_UNIT, nm_per

__all__ = [
    "read_landmarks",
    "read_points",
    "write_bigwarp",
    "write_landmarks",
    "write_points",
]

_COORDINATE = re.compile(r"(?:(em|lm)[-_ ]*)?([xyz])(?:[-_ ]*[(\[]?\s*([^\s()\[\]]+?)\s*[)\]]?)?")
_NAME_COLUMNS = ("pt-index", "name", "point", "id")
_RATER_COLUMNS = ("rater id", "rater")
_ROLES = {"": "held_out", "held_out": "held_out", "held out": "held_out", "fit": "fit"}
_FLAGS = {"": True, "true": True, "1": True, "false": False, "0": False}
_SIDES = ("em", "lm")
_Value = TypeVar("_Value")


def read_landmarks(path: str | Path, *, unit: str = "um") -> Landmarks:
    """Read corresponding points of LM and EM.

    Four kinds of file are told apart by their content:

    - the COSEM table, columns ``Pt-index, Rater ID, em-x, em-y, em-z, lm-x, lm-y, lm-z``;
    - clemreg's own, the same with ``Role`` (fit or held_out), ``Active`` and the unit in the
      column names (``em-x-um``);
    - BigWarp's landmark table, and its JSON file;
    - ec-CLEM's XML of fiducials, the LM being its source.

    Parameters
    ----------
    path
        The file.
    unit
        Unit of the coordinates where the column names do not say it.

    Returns
    -------
    Landmarks
        zyx nm; a coordinate that is empty or ``Infinity`` is NaN.

    Raises
    ------
    FormatError
        The file is none of these, or a cell is wrong: the text names line and column.
    MissingError
        There is no such file.
    """
    if Path(path).suffix.lower() == ".json":
        return read_bigwarp(path, unit=unit).landmarks
    if Path(path).suffix.lower() == ".xml":
        return read_ecclem(path, unit=unit).landmarks
    rows = read_rows(path, "landmark table")
    if looks_like_bigwarp(rows[0]):
        return landmarks_from_rows(rows, unit)
    return _read_rater_table(rows, unit)


def _read_rater_table(rows: Sequence[Row], unit: str) -> Landmarks:
    head, body = rows[0], rows[1:]
    check_widths(body, len(head.fields))
    factors, columns = _coordinate_columns(head, unit)
    missing = [f"{side}-{axis}" for side in _SIDES for axis in "xyz" if (side, axis) not in columns]
    if missing:
        raise FormatError(
            f"{head.path}, line {head.line}: no landmark table; columns {', '.join(missing)} "
            f"are missing among {', '.join(head.fields)}",
            hint="columns are Pt-index, Rater ID, em-x, em-y, em-z, lm-x, lm-y, lm-z (um)",
        )
    points = {
        side: np.array([_xyz(row, columns, side) for row in body]).reshape(-1, 3) * factors[side]
        for side in _SIDES
    }
    names = tuple(_texts(head, body, _NAME_COLUMNS) or (str(i + 1) for i in range(len(body))))
    rater = tuple(_texts(head, body, _RATER_COLUMNS) or [""] * len(body))
    _check_unique(body, names, rater)
    return Landmarks(
        names=names,
        lm_nm=flip(points["lm"]),
        em_nm=flip(points["em"]),
        rater=rater,
        role=tuple(_choices(head, body, "role", _ROLES)),
        active=np.array(_choices(head, body, "active", _FLAGS), dtype=bool),
    )


def _xyz(row: Row, columns: dict[tuple[str, str], int], side: str) -> list[float]:
    return [row.number_or_nan(columns[side, axis], f"{side}-{axis}") for axis in "xyz"]


def _coordinate_columns(
    head: Row, unit: str | None
) -> tuple[dict[str, float], dict[tuple[str, str], int]]:
    """Find x, y, z columns: nm per unit of each side ("" without side), and (side, axis) -> column.

    `unit` holds for the columns that do not say theirs; None makes that an error.
    """
    columns: dict[tuple[str, str], int] = {}
    units: dict[str, set[str | None]] = {}
    for index, title in enumerate(head.fields):
        match = _COORDINATE.fullmatch(title.lower())
        if match is None or (match[3] and match[3] not in NM_PER_UNIT):
            continue
        side, axis = match[1] or "", match[2]
        if (side, axis) in columns:
            raise FormatError(f"{head.path}, line {head.line}: column {title!r} is there twice")
        columns[side, axis] = index
        units.setdefault(side, set()).add(match[3] or unit)
    factors = {}
    for side, found in units.items():
        if len(found) > 1 or None in found:
            raise FormatError(
                f"{head.path}, line {head.line}: the unit of x, y, z is "
                + ("not given" if found == {None} else "not the same in all columns"),
                hint="name the columns x_um, y_um, z_um, or give the unit",
            )
        factors[side] = nm_per(str(found.pop()))
    return factors, columns


def _texts(head: Row, body: Sequence[Row], titles: Sequence[str]) -> list[str]:
    """Cells of the first column with one of these titles; empty if there is none."""
    lower = [title.lower() for title in head.fields]
    index = next((lower.index(title) for title in titles if title in lower), None)
    return [] if index is None else [row.fields[index] for row in body]


def _choices(head: Row, body: Sequence[Row], title: str, known: dict[str, _Value]) -> list[_Value]:
    """Translate the cells of a column through `known`; the value of "" where it is absent."""
    cells = _texts(head, body, (title,)) or [""] * len(body)
    for row, cell in zip(body, cells, strict=True):
        if cell.lower() not in known:
            expected = ", ".join(key for key in known if key)
            raise FormatError(
                f"{row.path}, line {row.line} ({title}): {cell!r}, expected one of {expected}"
            )
    return [known[cell.lower()] for cell in cells]


def _check_unique(body: Sequence[Row], names: Sequence[str], rater: Sequence[str]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for row, key in zip(body, zip(names, rater, strict=True), strict=True):
        if key in seen:
            raise FormatError(
                f"{row.path}, line {row.line}: point {key[0]!r} of rater {key[1]!r} is there "
                f"already in line {seen[key]}",
                hint="give every point of a rater its own name",
            )
        seen[key] = row.line


def write_landmarks(landmarks: Landmarks, path: str | Path, *, unit: str = "um") -> None:
    """Write clemreg's landmark table: the columns of COSEM's, with role, active and the unit.

    Parameters
    ----------
    landmarks
        Any number of raters; NaN is written as an empty cell.
    path
        The ``.csv`` file.
    unit
        Unit of the coordinates in the file; it stands in the column names.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    head = ["Pt-index", "Rater ID", "Role", "Active"]
    head += [f"{side}-{axis}-{unit}" for side in _SIDES for axis in "xyz"]
    numbers = np.concatenate([flip(landmarks.em_nm), flip(landmarks.lm_nm)], axis=1) / nm_per(unit)
    active = np.asarray(landmarks.active)
    labels = zip(landmarks.names, landmarks.rater, landmarks.role, active, strict=True)
    rows = [
        [name, rater, role, "true" if on else "false", *_cells(row)]
        for (name, rater, role, on), row in zip(labels, numbers, strict=True)
    ]
    _write_csv(Path(path), [head, *rows])


def read_points(path: str | Path, *, unit: str | None = None) -> FloatArray:
    """Read a table of points with a header and columns x, y, z; other columns are left out.

    Parameters
    ----------
    path
        The file. The unit may stand in the column names: ``x_um``, ``x (nm)``, ``x [µm]``.
    unit
        Unit where the column names do not say it.

    Returns
    -------
    ndarray
        (N, 3) zyx nm.

    Raises
    ------
    FormatError
        A column or the unit is missing, or a cell is no number.
    MissingError
        There is no such file.
    """
    rows = read_rows(path, "table of points")
    head, body = rows[0], rows[1:]
    check_widths(body, len(head.fields))
    factors, columns = _coordinate_columns(head, unit)
    missing = [axis for axis in "xyz" if ("", axis) not in columns]
    if missing:
        raise FormatError(
            f"{head.path}, line {head.line}: columns {', '.join(missing)} are missing among "
            f"{', '.join(head.fields)}",
            hint="the first line names the columns, for example x_um,y_um,z_um",
        )
    points = [[row.number(columns["", axis], axis) for axis in "xyz"] for row in body]
    return flip(np.array(points, dtype=np.float64).reshape(-1, 3) * factors[""])


def read_point_names(path: str | Path) -> tuple[str, ...]:
    """Return what a table of points calls them, in its column ``name``; empty without one."""
    head, *body = read_rows(path, "table of points")
    known = [field.strip().lower() for field in head.fields]
    if "name" not in known:
        return ()
    column = known.index("name")
    return tuple(row.fields[column] for row in body)


def write_points(
    points_nm: ArrayLike, path: str | Path, *, unit: str = "um", names: Sequence[str] = ()
) -> None:
    """Write points (N, 3) zyx nm as a table ``name, x_unit, y_unit, z_unit``.

    Parameters
    ----------
    points_nm
        (N, 3) zyx nm.
    path
        The ``.csv`` file.
    unit
        Unit in the file; it stands in the column names.
    names
        One per point; default 1, 2, 3 and so on.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    points = flip(as_points(points_nm)) / nm_per(unit)
    labels = names or [str(i + 1) for i in range(len(points))]
    head = ["name", *(f"{axis}_{unit}" for axis in "xyz")]
    rows = [[name, *_cells(row)] for name, row in zip(labels, points, strict=True)]
    _write_csv(Path(path), [head, *rows])


def _cells(numbers: FloatArray) -> list[str]:
    return [repr(float(v)) if np.isfinite(v) else "" for v in numbers]


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    atomic_write_text(path, buffer.getvalue())
