"""N5 displacement fields (BigWarp, JRC2018) as transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clemreg.errors import FormatError, GridError
from clemreg.io.n5 import kvstore, read_attributes
from clemreg.io.xyz import flip, flip_matrix
from clemreg.space.field import DisplacementField
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine, Chain, FloatArray, Transform
from clemreg.units import nm_per

FORWARD = "dfield"
INVERSE = "invdfield"


def is_n5_field(path: Path) -> bool:
    """Tell whether a folder is an N5 displacement field, or a container that has one."""
    return any("spacing" in read_attributes(folder) for folder in (path, path / FORWARD))


def read_n5_field(
    path: str | Path, *, source: str = "lm", target: str = "em", unit: str = "um"
) -> Transform:
    """Read a displacement field: ``x + d(x)``, then the affine, if it has one.

    Parameters
    ----------
    path
        The dataset, or a container with the dataset ``dfield``.
    source, target
        Frames of the fixed (BigWarp: target) and of the moving image.
    unit
        Unit of the images, where the field does not say it.

    Returns
    -------
    Transform
        Maps points zyx nm of `source` to `target`. Beyond the field its edge value holds.

    Raises
    ------
    FormatError
        It is no 3-D field, an attribute is damaged, or it is the field of the inverse.
    """
    folder = _dataset(Path(path))
    attributes = read_attributes(folder)
    scale = nm_per(str(attributes.get("unit", unit)))
    has_affine = "affine" in attributes
    middle = f"{source}:field" if has_affine else target
    grid = read_n5_field_grid(path, frame=source, unit=unit)
    field = DisplacementField(_displacement(folder, attributes) * scale, grid, middle)
    if not has_affine:
        return field
    rows = _numbers(folder, attributes, "affine", 12).reshape(3, 4)
    linear, shift = flip_matrix(rows[:, :3]), flip(rows[:, 3]) * scale
    return Chain((field, Affine.from_linear(linear, shift, middle, target)))


def read_n5_field_grid(path: str | Path, *, frame: str = "lm", unit: str = "um") -> Grid:
    """Return the grid on which a displacement field is sampled; errors as in `read_n5_field`."""
    folder = _dataset(Path(path))
    attributes = read_attributes(folder)
    dimensions = attributes.get("dimensions", ())
    if len(dimensions) != 4 or dimensions[0] != 3:
        raise FormatError(
            f"{folder} has dimensions {list(dimensions)}, a displacement field has (3, x, y, z)"
        )
    scale = nm_per(str(attributes.get("unit", unit)))
    spacing = _numbers(folder, attributes, "spacing", 3) * scale
    offset = _numbers(folder, {"offset": [0.0] * 3} | attributes, "offset", 3) * scale
    x, y, z = (int(n) for n in dimensions[1:])
    try:
        return Grid((z, y, x), tuple(flip(spacing)), tuple(flip(offset)), frame)
    except GridError as error:
        raise FormatError(f"{folder}: {error.message}") from error


def _dataset(path: Path) -> Path:
    """Return the dataset itself, where a container is given."""
    folder = path if "spacing" in read_attributes(path) else path / FORWARD
    if folder.name == INVERSE:
        raise FormatError(
            f"{folder} leads from the moving to the fixed image, the other way is expected",
            hint=f"give the dataset {FORWARD!r} of the same container",
        )
    return folder


def _displacement(folder: Path, attributes: dict[str, Any]) -> FloatArray:
    """Components zyx first, (3, z, y, x), in the unit of the file."""
    import tensorstore

    spec = {"driver": "n5", "kvstore": kvstore(folder)}
    try:
        stored = tensorstore.open(spec, open=True, read=True).result().read().result()
    except ValueError as error:
        raise FormatError(f"{folder} is not a readable N5 dataset: {error}") from error
    values = np.asarray(stored, dtype=np.float64).transpose(0, 3, 2, 1)[::-1]
    if "quantization_multiplier" in attributes:
        values = values * _numbers(folder, attributes, "quantization_multiplier", 1)[0]
    if not np.isfinite(values).all():
        raise FormatError(f"{folder} holds NaN or infinity")
    return np.ascontiguousarray(values)


def _numbers(folder: Path, attributes: dict[str, Any], key: str, count: int) -> FloatArray:
    try:
        numbers = np.atleast_1d(np.asarray(attributes[key], dtype=np.float64))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder}: {key} must be {count} numbers") from error
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise FormatError(
            f"{folder}: {key} must be {count} finite numbers, got {attributes[key]!r}"
        )
    return numbers


def field_attributes(grid: Grid, affine: Affine | None, unit: str) -> dict[str, Any]:
    """Attributes of a field on `grid`, xyz in `unit`; `affine` follows the field."""
    scale = nm_per(unit)
    attributes: dict[str, Any] = {
        "spacing": (flip(grid.spacing_nm) / scale).tolist(),
        "offset": (flip(grid.origin_nm) / scale).tolist(),
        "unit": unit,
    }
    if affine is not None:
        shift = flip(affine.offset_nm) / scale
        attributes["affine"] = np.column_stack([flip_matrix(affine.linear), shift]).ravel().tolist()
    return attributes
