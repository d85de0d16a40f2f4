"""BigWarp's landmark files: the table (CSV) and the transform or project file (JSON).

BigWarp's "moving" image is the EM and its "target" (fixed) image is the LM. Its table has no
header, quotes every field, holds name, active, moving x, y, z, target x, y, z, and spells an unset
coordinate ``Infinity`` as Java does (``inf`` would crash BigWarp).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.errors import DataError, FormatError
from clemreg.io.atomic import atomic_write_text
from clemreg.io.tables import Row, check_widths, read_rows, read_text
from clemreg.io.xyz import FloatArray, flip
from clemreg.space.landmarks import Landmarks
from clemreg.units import nm_per

RATER = "BigWarp"
TRANSFORM_TYPES = ("Thin Plate Spline", "Affine", "Similarity", "Rotation", "Translation")
_WIDTH_3D = 8
_WIDTH_2D = 6
_AXES = ("moving x", "moving y", "moving z", "target x", "target y", "target z")


@dataclass(frozen=True)
class BigWarpFile:
    """What a BigWarp file says.

    Attributes
    ----------
    landmarks
        Pairs, zyx nm.
    kind
        One of `TRANSFORM_TYPES`: the transform that BigWarp makes of them.
    """

    landmarks: Landmarks
    kind: str = TRANSFORM_TYPES[0]


def looks_like_bigwarp(row: Row) -> bool:
    """Tell whether the first row of a table is one of BigWarp's, going by its active flag."""
    wide = len(row.fields) in (_WIDTH_2D, _WIDTH_3D)
    return wide and row.fields[1].lower() in ("true", "false", "1", "0", "active")


def read_bigwarp(path: str | Path, *, unit: str = "um") -> BigWarpFile:
    """Read a BigWarp landmark table, or a transform or project file by its suffix ``.json``.

    Parameters
    ----------
    path
        The file.
    unit
        Unit of its coordinates: that of the calibration of the images in BigWarp.

    Returns
    -------
    BigWarpFile
        Landmarks with rater ``"BigWarp"``; coordinates that are not set are NaN, and such rows and
        those that BigWarp ignores are not active.

    Raises
    ------
    FormatError
        A header, a ragged row, a 2-D table, or text where a number should be.
    MissingError
        There is no such file.
    """
    if Path(path).suffix.lower() == ".json":
        return _read_json(Path(path), unit)
    return BigWarpFile(landmarks_from_rows(read_rows(path, "BigWarp landmark table"), unit))


def landmarks_from_rows(rows: Sequence[Row], unit: str) -> Landmarks:
    """Landmarks of a BigWarp table that is read already; see `read_bigwarp`."""
    width = len(rows[0].fields)
    if width == _WIDTH_2D:
        raise FormatError(
            f"{rows[0].path} holds 2-D BigWarp landmarks (6 columns), expected 3-D (8 columns)",
            hint="place the landmarks in 3-D stacks",
        )
    check_widths(rows, _WIDTH_3D)
    first = rows[0].fields
    if first[1].lower() not in ("true", "false", "1", "0"):
        raise FormatError(
            f"{rows[0].path}, line {rows[0].line}, column 2 (active): {first[1]!r}, "
            "expected true or false",
            hint="BigWarp tables have no header line; remove it",
        )
    numbers = [[row.number_or_nan(i + 2, axis) for i, axis in enumerate(_AXES)] for row in rows]
    names = tuple(row.fields[0] for row in rows)
    active = tuple(row.fields[1].lower() == "true" for row in rows)
    return _landmarks(names, np.asarray(numbers), active, unit)


def _landmarks(
    names: tuple[str, ...], moving_then_target: FloatArray, active: tuple[bool, ...], unit: str
) -> Landmarks:
    """Pairs from (N, 6) moving xyz, target xyz in `unit`."""
    nm = np.where(np.isfinite(moving_then_target), moving_then_target, np.nan) * nm_per(unit)
    nm = nm.reshape(len(names), 6)
    paired = np.isfinite(nm).all(axis=1)
    return Landmarks(
        names=names,
        lm_nm=flip(nm[:, 3:]),
        em_nm=flip(nm[:, :3]),
        rater=(RATER,) * len(names),
        active=np.asarray(active, dtype=bool) & paired,
    )


def _read_json(path: Path, unit: str) -> BigWarpFile:
    text = read_text(path, "BigWarp transform file")
    try:
        # BigWarp overwrites without truncating, so the bytes of a longer old file may trail.
        document, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    if isinstance(document, dict) and isinstance(document.get("Transform"), dict):
        document = document["Transform"]
    if not isinstance(document, dict) or not isinstance(document.get("landmarks"), dict):
        raise FormatError(
            f"{path} has no BigWarp landmarks (no key 'landmarks')",
            hint="save it in BigWarp with File > Save transform, or export the landmark table",
        )
    kind = document.get("type", TRANSFORM_TYPES[0])
    if kind not in TRANSFORM_TYPES:
        raise FormatError(f"{path}: unknown BigWarp transform type {kind!r}")
    return BigWarpFile(_landmarks_from_json(path, document["landmarks"], unit), kind)


def _landmarks_from_json(path: Path, record: dict[str, Any], unit: str) -> Landmarks:
    try:
        moving = np.asarray(record["movingPoints"], dtype=np.float64)
        target = np.asarray(record["fixedPoints"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: movingPoints and fixedPoints must be lists of x, y, z") from (
            error
        )
    n = len(moving)
    if moving.shape != target.shape or moving.shape != (n, 3):
        raise FormatError(
            f"{path}: movingPoints {moving.shape} and fixedPoints {target.shape} must both be "
            "(N, 3); 2-D landmarks cannot be used"
        )
    names = tuple(str(name) for name in record.get("names", [f"Pt-{i}" for i in range(n)]))
    active = tuple(value is True for value in record.get("active", [True] * n))
    if len(names) != n or len(active) != n:
        raise FormatError(f"{path}: {n} points, but {len(names)} names and {len(active)} flags")
    return _landmarks(names, np.concatenate([moving, target], axis=1), active, unit)


def write_bigwarp(landmarks: Landmarks, path: str | Path, *, unit: str = "um") -> None:
    """Write a landmark table that BigWarp opens (EM is moving, LM is target).

    Parameters
    ----------
    landmarks
        Pairs of one rater.
    path
        The ``.csv`` file.
    unit
        Unit of the coordinates: that of the calibration of the images in BigWarp.

    Raises
    ------
    DataError
        There is more than one rater: BigWarp has no column for that.
    StorageError
        It cannot be written.
    """
    if len(set(landmarks.rater)) > 1:
        raise DataError(
            f"BigWarp has no raters, but these landmarks have {sorted(set(landmarks.rater))}",
            hint="choose one, for example landmarks.select(rater='AW')",
        )
    numbers = np.concatenate([flip(landmarks.em_nm), flip(landmarks.lm_nm)], axis=1) / nm_per(unit)
    lines = []
    on_off = np.asarray(landmarks.active)
    for name, on, row in zip(landmarks.names, on_off, numbers, strict=True):
        active = "true" if on and np.isfinite(row).all() else "false"
        quoted = name.replace('"', '""')
        fields = [quoted, active, *(_java_double(value) for value in row)]
        lines.append(",".join(f'"{field}"' for field in fields) + "\n")
    atomic_write_text(Path(path), "".join(lines))


def _java_double(value: float) -> str:
    return repr(float(value)) if np.isfinite(value) else "Infinity"
