"""BigWarp's landmark files: the table (CSV) and the transform or project file (JSON).

BigWarp's "moving" image is the EM and its "target" (fixed) image is the LM. Its table has no
header, quotes every field, holds name, active, moving x, y, z, target x, y, z, and spells an unset
coordinate ``Infinity`` as Java does (``inf`` would crash BigWarp).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clemreg.errors import DataError, FormatError
from clemreg.io.atomic import atomic_write_text
from clemreg.io.bigwarp_images import NOTHING, Triple, left_out_of_sources
from clemreg.io.names import one_line
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
    masked
        Whether BigWarp lets the transform fade out away from a mask.
    """

    landmarks: Landmarks
    kind: str = TRANSFORM_TYPES[0]
    masked: bool = False


def looks_like_bigwarp(row: Row) -> bool:
    """Tell whether the first row of a table is one of BigWarp's, going by its active flag."""
    wide = len(row.fields) in (_WIDTH_2D, _WIDTH_3D)
    return wide and row.fields[1].lower() in ("true", "false", "1", "0", "active")


def read_bigwarp(
    path: str | Path, *, unit: str = "um", planes_nm: tuple[float, float] | None = None
) -> BigWarpFile:
    """Read a BigWarp landmark table, or a transform or project file by its suffix ``.json``.

    Parameters
    ----------
    path
        The file.
    unit
        Unit of its coordinates: that of the calibration of the images in BigWarp.
    planes_nm
        For landmarks that were placed in 2-D images: where these lie, z of the EM and of the LM.

    Returns
    -------
    BigWarpFile
        Landmarks with rater ``"BigWarp"``; coordinates that are not set are NaN, and such rows and
        those that BigWarp ignores are not active. A project file names its images, so the origin
        of a TIFF, which BigWarp leaves out, is added; a table does not: see `add_left_out`.

    Raises
    ------
    FormatError
        A header, a ragged row, 2-D landmarks without `planes_nm`, or text where a number should be.
    MissingError
        There is no such file.
    """
    if Path(path).suffix.lower() == ".json":
        return _read_json(Path(path), unit, planes_nm)
    rows = read_rows(path, "BigWarp landmark table")
    return BigWarpFile(landmarks_from_rows(rows, unit, planes_nm))


def landmarks_from_rows(
    rows: Sequence[Row], unit: str, planes_nm: tuple[float, float] | None = None
) -> Landmarks:
    """Landmarks of a BigWarp table that is read already; see `read_bigwarp`."""
    flat = len(rows[0].fields) == _WIDTH_2D
    if flat and planes_nm is None:
        raise _flat_error(f"{rows[0].path} holds 2-D BigWarp landmarks (6 columns)")
    check_widths(rows, _WIDTH_2D if flat else _WIDTH_3D)
    first = rows[0].fields
    if first[1].lower() not in ("true", "false", "1", "0"):
        raise FormatError(
            f"{rows[0].path}, line {rows[0].line}, column 2 (active): {first[1]!r}, "
            "expected true or false",
            hint="BigWarp tables have no header line; remove it",
        )
    axes = [axis for axis in _AXES if not (flat and axis.endswith("z"))]
    numbers = np.array([[row.number_or_nan(i + 2, a) for i, a in enumerate(axes)] for row in rows])
    if flat and planes_nm is not None:
        numbers = _raised(numbers, planes_nm, unit)
    names = tuple(row.fields[0] for row in rows)
    active = tuple(row.fields[1].lower() == "true" for row in rows)
    return _landmarks(names, numbers, active, unit)


def _flat_error(found: str) -> FormatError:
    return FormatError(
        f"{found}, expected 3-D",
        hint="place them in 3-D stacks; or in Python, read_bigwarp(path, planes_nm=(em_z, lm_z))",
    )


def _raised(flat: FloatArray, planes_nm: tuple[float, float], unit: str) -> FloatArray:
    """Put (N, 4) moving x, y, target x, y into their planes: (N, 6) in `unit`."""
    moving_z, target_z = (np.full(len(flat), z / nm_per(unit)) for z in planes_nm)
    return np.column_stack([flat[:, :2], moving_z, flat[:, 2:], target_z])


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


def _read_json(path: Path, unit: str, planes_nm: tuple[float, float] | None) -> BigWarpFile:
    text = read_text(path, "BigWarp transform file")
    try:
        # BigWarp overwrites without truncating, so the bytes of a longer old file may trail.
        document, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    left_out = (NOTHING, NOTHING)
    if isinstance(document, dict) and isinstance(document.get("Transform"), dict):
        left_out = left_out_of_sources(document, str(path))
        document = document["Transform"]
    if not isinstance(document, dict) or not isinstance(document.get("landmarks"), dict):
        raise FormatError(
            f"{path} has no BigWarp landmarks (no key 'landmarks')",
            hint="save it in BigWarp with File > Save transform, or export the landmark table",
        )
    kind = document.get("type", TRANSFORM_TYPES[0])
    if kind not in TRANSFORM_TYPES:
        raise FormatError(f"{path}: unknown BigWarp transform type {kind!r}")
    numbers, names, active = _table_from_json(path, document["landmarks"])
    if numbers.shape[1] == 4:
        if planes_nm is None:
            raise _flat_error(f"{path} holds 2-D BigWarp landmarks")
        numbers = _raised(numbers, planes_nm, unit)
        left_out = (_in_plane(left_out[0]), _in_plane(left_out[1]))  # z is that of `planes_nm`
    landmarks = add_left_out(_landmarks(names, numbers, active, unit), *left_out)
    return BigWarpFile(landmarks, kind, "mask" in document)


def add_left_out(landmarks: Landmarks, em_nm: Triple, lm_nm: Triple) -> Landmarks:
    """Move landmarks that were placed in images without their origin to where these are.

    Parameters
    ----------
    landmarks
        As BigWarp has them.
    em_nm, lm_nm
        What it left out, zyx; see `clemreg.io.bigwarp_images.left_out_nm`.
    """
    return replace(landmarks, em_nm=landmarks.em_nm + em_nm, lm_nm=landmarks.lm_nm + lm_nm)


def _in_plane(left_out: Triple) -> Triple:
    return 0.0, left_out[1], left_out[2]


def _table_from_json(
    path: Path, record: dict[str, Any]
) -> tuple[FloatArray, tuple[str, ...], tuple[bool, ...]]:
    """Return moving and target side by side, (N, 6) or (N, 4); names; flags."""
    try:
        moving = np.asarray(record["movingPoints"], dtype=np.float64)
        target = np.asarray(record["fixedPoints"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: movingPoints and fixedPoints must be lists of x, y, z") from (
            error
        )
    n = len(moving)
    moving, target = (p.reshape(0, 3) if p.size == 0 else p for p in (moving, target))
    if moving.shape != target.shape or moving.shape not in ((n, 3), (n, 2)):
        raise FormatError(
            f"{path}: movingPoints {moving.shape} and fixedPoints {target.shape} must both be "
            "(N, 3), or (N, 2)"
        )
    names = tuple(str(name) for name in record.get("names", [f"Pt-{i}" for i in range(n)]))
    active = tuple(value is True for value in record.get("active", [True] * n))
    if len(names) != n or len(active) != n:
        raise FormatError(f"{path}: {n} points, but {len(names)} names and {len(active)} flags")
    return np.concatenate([moving, target], axis=1), names, active


def write_bigwarp(
    landmarks: Landmarks,
    path: str | Path,
    *,
    unit: str = "um",
    dimensions: Literal[2, 3] = 3,
) -> None:
    """Write landmarks that BigWarp opens (EM is moving, LM is target).

    Parameters
    ----------
    landmarks
        Pairs of one rater.
    path
        A landmark table, or, with the suffix ``.json``, a transform file (thin-plate spline).
    unit
        Unit of the coordinates: that of the calibration of the images in BigWarp.
    dimensions
        2 leaves z out, for landmarks that lie in one plane of each image.

    Raises
    ------
    DataError
        There is more than one rater: BigWarp has no column for that. Or there are two dimensions
        asked for, but the landmarks differ in z.
    StorageError
        It cannot be written.
    """
    if len(set(landmarks.rater)) > 1:
        raise DataError(
            f"BigWarp has no raters, but these landmarks have {sorted(set(landmarks.rater))}",
            hint="choose one, for example landmarks.select(rater='AW')",
        )
    moving, target = (flip(p) / nm_per(unit) for p in (landmarks.em_nm, landmarks.lm_nm))
    if dimensions == 2:
        moving, target = _flattened(moving), _flattened(target)
    if Path(path).suffix.lower() == ".json":
        record = bigwarp_transform(landmarks, moving, target)
        atomic_write_text(Path(path), json.dumps(record, indent=1) + "\n")
        return
    lines = []
    numbers = np.concatenate([moving, target], axis=1)
    for name, active, row in zip(landmarks.names, _paired(landmarks), numbers, strict=True):
        # BigWarp's CSV reader takes a backslash for an escape: one at the end would eat the quote.
        quoted = one_line(name).replace("\\", "/").replace('"', '""')
        flag = "true" if active else "false"
        fields = [quoted, flag, *(_java_double(value) for value in row)]
        lines.append(",".join(f'"{field}"' for field in fields) + "\n")
    atomic_write_text(Path(path), "".join(lines))


def bigwarp_transform(
    landmarks: Landmarks, moving: FloatArray, target: FloatArray
) -> dict[str, Any]:
    """Return BigWarp's JSON object of a thin-plate spline; unset points are infinite.

    Parameters
    ----------
    landmarks
        Names and flags.
    moving, target
        Their coordinates x, y(, z) as BigWarp will show them.
    """
    return {
        "type": TRANSFORM_TYPES[0],
        "landmarks": {
            "type": "BigWarpLandmarks",
            "numDimensions": moving.shape[1],
            "movingPoints": np.where(np.isfinite(moving), moving, np.inf).tolist(),
            "fixedPoints": np.where(np.isfinite(target), target, np.inf).tolist(),
            "active": _paired(landmarks),
            "names": list(landmarks.names),
        },
    }


def _paired(landmarks: Landmarks) -> list[bool]:
    """Tell which rows are active and have both points; BigWarp cannot use others."""
    both = np.isfinite(landmarks.lm_nm).all(axis=1) & np.isfinite(landmarks.em_nm).all(axis=1)
    flags: list[bool] = (both & np.asarray(landmarks.active)).tolist()
    return flags


def _flattened(points: FloatArray) -> FloatArray:
    heights = points[np.isfinite(points).all(axis=1), 2]
    if heights.size and np.ptp(heights) > 1e-9 * max(1.0, float(np.abs(heights).max())):
        raise DataError(
            f"the landmarks differ in z by {np.ptp(heights):g}, so they are not 2-D",
            hint="write them in 3-D",
        )
    return points[:, :2]


def _java_double(value: float) -> str:
    return repr(float(value)) if np.isfinite(value) else "Infinity"
