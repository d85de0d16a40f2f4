"""clemreg's own transform file: JSON that names its frames, unit, axis order and version.

Arrays are base64 of little-endian float64, so what is read equals what was written to the last bit.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clemreg.errors import FormatError
from clemreg.io.xyz import FloatArray
from clemreg.space.bspline import BSpline
from clemreg.space.field import DisplacementField
from clemreg.space.grid import Grid
from clemreg.space.inverse import Inverse
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import Affine, Chain, Transform

FORMAT = "clemreg transform"
VERSION = 1


def transform_to_json(transform: Transform, *, fixed_grid: Grid | None = None) -> dict[str, Any]:
    """Describe a transform as plain JSON values; `transform_from_json` gives it back exactly.

    Raises
    ------
    FormatError
        It is of a class that clemreg does not know.
    """
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "unit": "nanometer",
        "axes": "zyx",
        "maps": "points of source to points of target",
        "source": transform.source,
        "target": transform.target,
        "transform": _encode(transform),
    }
    if fixed_grid is not None:
        record["fixed_grid"] = grid_to_json(fixed_grid)
    return record


def transform_from_json(record: Mapping[str, Any], *, where: str = "transform") -> Transform:
    """Make the transform that `transform_to_json` described.

    Parameters
    ----------
    record
        The JSON object.
    where
        File name for messages.

    Raises
    ------
    FormatError
        Something is missing or wrong, or a newer clemreg wrote it.
    """
    if record.get("format") != FORMAT:
        raise FormatError(f"{where} is no clemreg transform (no 'format': {FORMAT!r})")
    expected = {"version": VERSION, "unit": "nanometer", "axes": "zyx"}
    for key, value in expected.items():
        if record.get(key) != value:
            raise FormatError(
                f"{where}: {key} is {record.get(key)!r}, this clemreg reads {value!r}",
                hint="a newer clemreg may have written it",
            )
    try:
        transform = _decode(record["transform"])
    except FormatError as error:
        raise FormatError(f"{where}: {error.message}", hint=error.hint) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{where} is damaged: {type(error).__name__}: {error}") from error
    if (transform.source, transform.target) != (record.get("source"), record.get("target")):
        raise FormatError(f"{where}: the frames outside and inside the transform differ")
    return transform


def _array_to_json(array: Any) -> dict[str, Any]:
    values = np.ascontiguousarray(array, dtype="<f8")
    encoded = base64.b64encode(values.tobytes()).decode("ascii")
    return {"dtype": "<f8", "shape": list(values.shape), "base64": encoded}


def _array_from_json(record: Mapping[str, Any]) -> FloatArray:
    if record["dtype"] != "<f8":
        raise FormatError(f"arrays must be '<f8' (float64), found {record['dtype']!r}")
    shape = tuple(int(n) for n in record["shape"])
    try:
        data = base64.b64decode(record["base64"], validate=True)
    except binascii.Error as error:
        raise FormatError(f"an array is not base64: {error}") from error
    if min(shape, default=0) < 0 or len(data) != 8 * math.prod(shape):
        raise FormatError(f"an array of shape {shape} has {len(data)} bytes; the file is cut off")
    values = np.frombuffer(data, dtype="<f8").astype(np.float64).reshape(shape)
    if not np.isfinite(values).all():
        raise FormatError("an array holds NaN or infinity")
    return values


def grid_to_json(grid: Grid) -> dict[str, Any]:
    """Describe a grid as plain JSON values."""
    return {
        "shape": list(grid.shape),
        "spacing_nm": list(grid.spacing_nm),
        "origin_nm": list(grid.origin_nm),
        "frame": grid.frame,
    }


def grid_from_json(record: Mapping[str, Any]) -> Grid:
    """Make the grid that `grid_to_json` described; FormatError if something is missing."""
    try:
        return Grid(
            tuple(record["shape"]),
            tuple(record["spacing_nm"]),
            tuple(record["origin_nm"]),
            str(record["frame"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"a grid is damaged: {type(error).__name__}: {error}") from error


def _encode(transform: Transform) -> dict[str, Any]:
    frames = {"source": transform.source, "target": transform.target}
    if isinstance(transform, Affine):
        return {"type": "affine", **frames, "matrix": transform.matrix.tolist()}
    if isinstance(transform, Chain):
        return {"type": "chain", "parts": [_encode(part) for part in transform.parts]}
    if isinstance(transform, BSpline):
        return {
            "type": "bspline",
            **frames,
            "order": 3,
            "grid_origin_nm": np.asarray(transform.grid_origin_nm).tolist(),
            "grid_spacing_nm": np.asarray(transform.grid_spacing_nm).tolist(),
            "direction": np.asarray(transform.direction).tolist(),
            "coefficients_nm": _array_to_json(transform.coefficients_nm),
        }
    if isinstance(transform, DisplacementField):
        return {
            "type": "displacement_field",
            "grid": grid_to_json(transform.grid),
            "target": transform.target,
            "displacement_nm": _array_to_json(transform.displacement_nm),
        }
    if isinstance(transform, ThinPlateSpline):
        return {
            "type": "thin_plate_spline",
            **frames,
            "source_points_nm": _array_to_json(transform.source_points_nm),
            "target_points_nm": _array_to_json(transform.target_points_nm),
        }
    if isinstance(transform, Inverse):
        return {"type": "inverse", "of": _encode(transform.forward)}
    raise FormatError(f"cannot write a {type(transform).__name__} as a clemreg transform")


def _decode(record: Mapping[str, Any]) -> Transform:
    kind = record["type"]
    if kind not in _DECODERS:
        raise FormatError(f"unknown transform type {kind!r}", hint="update clemreg")
    return _DECODERS[kind](record)


def _decode_bspline(record: Mapping[str, Any]) -> BSpline:
    if record["order"] != 3:
        raise FormatError(f"only cubic B-splines can be read, found order {record['order']!r}")
    return BSpline(
        coefficients_nm=_array_from_json(record["coefficients_nm"]),
        grid_origin_nm=np.asarray(record["grid_origin_nm"], dtype=np.float64),
        grid_spacing_nm=np.asarray(record["grid_spacing_nm"], dtype=np.float64),
        source=record["source"],
        target=record["target"],
        direction=np.asarray(record["direction"], dtype=np.float64),
    )


_DECODERS: dict[str, Callable[[Mapping[str, Any]], Transform]] = {
    "affine": lambda r: Affine(np.asarray(r["matrix"], dtype=float), r["source"], r["target"]),
    "chain": lambda r: Chain(tuple(_decode(part) for part in r["parts"])),
    "bspline": _decode_bspline,
    "displacement_field": lambda r: DisplacementField(
        _array_from_json(r["displacement_nm"]), grid_from_json(r["grid"]), r["target"]
    ),
    "thin_plate_spline": lambda r: ThinPlateSpline(
        _array_from_json(r["source_points_nm"]),
        _array_from_json(r["target_points_nm"]),
        r["source"],
        r["target"],
    ),
    "inverse": lambda r: Inverse(_decode(r["of"])),
}
