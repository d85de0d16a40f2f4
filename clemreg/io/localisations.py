"""Single-molecule localisation tables: ThunderSTORM CSV, Picasso HDF5, PeakSelector text."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError, FormatError, MissingError, VoxelSizeError
from clemreg.io.atomic import atomic_write_text
from clemreg.io.tables import Row, check_widths, read_rows
from clemreg.io.xyz import FloatArray, flip
from clemreg.units import NM_PER_UNIT

PLAUSIBLE_PRECISION_NM = (0.2, 500.0)
_TITLE = re.compile(r"([^\[(]+?)\s*(?:[\[(]\s*([^\])]+?)\s*[\])])?")
_PIXELSIZE = re.compile(r"^\s*Pixelsize\s*:\s*([0-9.eE+-]+)\s*$", re.MULTILINE)
_PIXELS = ("px", "pixel", "pixels", "pix")
_NAMES: dict[str, tuple[str, ...]] = {
    "x": ("x", "x position"),
    "y": ("y", "y position"),
    "z": ("z", "unwrapped z", "z position"),
    "sx": ("uncertainty_xy", "uncertainty", "lpx", "sigma x pos full", "sigma x pos rtnph"),
    "sy": ("uncertainty_xy", "uncertainty", "lpy", "sigma y pos full", "sigma y pos rtnph"),
    "sz": ("uncertainty_z", "lpz", "unwrapped z error", "sigma z"),
    "photons": ("intensity", "photons", "6 n photons"),
    "label": ("label set",),
}
# interferometric z repeats every quarter micrometre: only its unwrapped form is a position
_UNWRAPPED = ("unwrapped z", "unwrapped z error")
HDF5 = (".hdf5", ".h5")
_AXES = {"x": 2, "y": 1, "z": 0}


@dataclass(frozen=True, eq=False)
class Localisations:
    """Single molecules.

    Attributes
    ----------
    points_nm
        (N, 3) zyx nm; z is 0 in a two-dimensional table.
    precision_nm
        (N, 3) zyx: standard deviation of each position in nm.
    photons
        (N,) photons, NaN where unknown.
    labels
        (N,) number of the fluorophore, for tables that hold several (PeakSelector's label set).
    """

    points_nm: FloatArray
    precision_nm: FloatArray
    photons: FloatArray
    labels: FloatArray | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.points_nm)

    def select(self, keep: NDArray[Any]) -> Localisations:
        """Keep some, by index or mask."""
        labels = None if self.labels is None else self.labels[keep]
        return Localisations(
            self.points_nm[keep], self.precision_nm[keep], self.photons[keep], labels
        )

    def shifted(self, offset_nm: Sequence[float]) -> Localisations:
        """Move all by `offset_nm` (zyx), for example against chromatic shift."""
        return replace(self, points_nm=self.points_nm + np.asarray(offset_nm, dtype=np.float64))


def looks_like_localisations(path: str | Path) -> bool:
    """Tell whether a table has positions and their uncertainty."""
    if Path(path).suffix.lower() in HDF5:
        return _has_locs(Path(path))
    titles = [_split(title)[0] for title in read_rows(path, "table")[0].fields]
    return all(any(name in titles for name in _NAMES[key]) for key in ("x", "y", "sx"))


def read_localisations(path: str | Path, *, pixel_nm: float | None = None) -> Localisations:
    """Read a localisation table.

    Three kinds are told apart by name and columns:

    - ThunderSTORM CSV: ``x [nm], y [nm], z [nm], uncertainty_xy [nm], uncertainty_z [nm]``;
    - Picasso HDF5 (``locs``): x, y, lpx, lpy in camera pixels, z in nm; the pixel size stands in
      the ``.yaml`` file beside;
    - PeakSelector text: ``X Position, Y Position, Sigma X Pos Full`` and so on in camera pixels, z
      in nm: ``Unwrapped Z``, or ``Z Position`` where nothing was unwrapped.

    Parameters
    ----------
    pixel_nm
        Camera pixel in nm, for tables in pixels; overrides the ``.yaml`` file.

    Raises
    ------
    FormatError
        It is none of these, or a cell is no number.
    VoxelSizeError
        Positions are in pixels of unknown size, or the precision cannot be right.
    DataError
        There is not one localisation.
    MissingError
        There is no such file.
    """
    file = Path(path)
    if file.suffix.lower() in HDF5:
        columns, units = _read_picasso(file)
        pixel_nm = pixel_nm or _picasso_pixel(file)
    else:
        columns, units = _read_text(file)
    found = _assemble(file, columns, units, pixel_nm)
    _check(found, file)
    return found


def write_localisations(localisations: Localisations, path: str | Path) -> None:
    """Write a ThunderSTORM table in nm; the lateral uncertainty is the rms of x and y."""
    xyz, precision = flip(localisations.points_nm), localisations.precision_nm
    lateral = np.sqrt((precision[:, 1] ** 2 + precision[:, 2] ** 2) / 2)
    rows = np.column_stack([xyz, localisations.photons, lateral, precision[:, 0]])
    text = io.StringIO()
    names = ["x [nm]", "y [nm]", "z [nm]", "intensity [photon]"]
    names += ["uncertainty_xy [nm]", "uncertainty_z [nm]"]
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(["id", *names])
    writer.writerows([i, *row] for i, row in enumerate(rows.tolist(), start=1))
    atomic_write_text(path, text.getvalue())


def _split(title: str) -> tuple[str, str]:
    """Name and unit of a column title, lower case: ``"x [nm]"``."""
    match = _TITLE.fullmatch(title.strip().lower())
    return (match[1], match[2] or "") if match else (title.strip().lower(), "")


def _read_text(path: Path) -> tuple[dict[str, FloatArray], dict[str, str]]:
    rows = read_rows(path, "localisation table")
    head, body = rows[0], rows[1:]
    check_widths(body, len(head.fields))
    titles = [_split(title) for title in head.fields]
    names = [name for name, _ in titles]
    peaks = "x position" in names  # PeakSelector: lateral columns are camera pixels
    if "z position" in names and _empty(body, names):
        names = [f"unused {name}" if name in _UNWRAPPED else name for name in names]
    columns, units = {}, {}
    for key, known in _NAMES.items():
        column = next((names.index(name) for name in known if name in names), None)
        if column is not None:
            columns[key] = _numbers(body, column, head.fields[column])
            default = ("px" if key in ("x", "y", "sx", "sy") else "nm") if peaks else ""
            units[key] = titles[column][1] or default
    return columns, units


def _empty(rows: Sequence[Row], names: Sequence[str]) -> bool:
    """Whether a table's unwrapped z is absent, or nowhere set: its columns are always written."""
    if "unwrapped z" not in names:
        return True
    column = names.index("unwrapped z")
    values = _numbers(rows, column, "unwrapped z")
    return not np.any(np.nan_to_num(values))


def _numbers(rows: Sequence[Row], column: int, title: str) -> FloatArray:
    return np.array([row.number_or_nan(column, title) for row in rows], dtype=np.float64)


def _read_picasso(path: Path) -> tuple[dict[str, FloatArray], dict[str, str]]:
    import h5py

    if not path.is_file():
        raise MissingError(f"localisation table {path} is not there", hint="check the path")
    try:
        with h5py.File(path, "r") as file:
            table = file["locs"][()]
    except (OSError, KeyError) as error:
        raise FormatError(
            f"{path} is no Picasso table: {error}", hint='it needs a dataset called "locs"'
        ) from error
    columns, units = {}, {}
    for key, known in _NAMES.items():
        name = next((n for n in known if n in (table.dtype.names or ())), None)
        if name is not None:
            columns[key] = np.asarray(table[name], dtype=np.float64)
            units[key] = "nm" if key in ("z", "sz") else "px"
    return columns, units


def _has_locs(path: Path) -> bool:
    import h5py

    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return isinstance(file.get("locs"), h5py.Dataset)


def _picasso_pixel(path: Path) -> float | None:
    yaml = path.with_suffix(".yaml")
    if not yaml.is_file():
        return None
    found = _PIXELSIZE.findall(yaml.read_text(encoding="utf-8", errors="replace"))
    return float(found[-1]) if found else None


def _assemble(
    path: Path, columns: dict[str, FloatArray], units: dict[str, str], pixel_nm: float | None
) -> Localisations:
    missing = [key for key in ("x", "y", "sx") if key not in columns]
    if missing:
        names = ", ".join(_NAMES[key][0] for key in missing)
        raise FormatError(
            f"{path} is no localisation table: no column {names}",
            hint="ThunderSTORM CSV, Picasso HDF5 and PeakSelector text are read",
        )
    count = len(columns["x"])
    points, precision = np.zeros((count, 3)), np.zeros((count, 3))
    for axis, place in _AXES.items():
        if axis in columns:
            points[:, place] = columns[axis] * _factor(path, units[axis], axis, pixel_nm)
        spread = f"s{axis}"
        if spread == "sy" and "sy" not in columns:
            spread = "sx"
        if spread in columns:
            factor = _factor(path, units[spread], spread, pixel_nm)
            precision[:, place] = columns[spread] * factor
    if "z" in columns and "sz" not in columns:
        precision[:, 0] = 2 * precision[:, 1:].mean(axis=1)  # axial is about twice the lateral
    photons = columns.get("photons", np.full(count, np.nan))
    good = np.isfinite(np.concatenate([points, precision], axis=1)).all(axis=1)
    labels = columns.get("label")
    return Localisations(points, precision, photons, labels).select(good)


def _factor(path: Path, unit: str, axis: str, pixel_nm: float | None) -> float:
    """Nanometres per unit of a column."""
    if unit in NM_PER_UNIT:
        return NM_PER_UNIT[unit]
    if unit in _PIXELS and pixel_nm is not None:
        return pixel_nm
    raise VoxelSizeError(
        f"{path}: {axis} is in {'camera pixels' if unit in _PIXELS else 'an unknown unit'}",
        hint='give the camera pixel: --pixel-size "133 nm"'
        if unit in _PIXELS
        else "name the unit in the column title, for example x [nm], or x [px] for camera pixels",
    )


def _check(found: Localisations, path: Path) -> None:
    if not len(found):
        raise DataError(f"{path} holds no localisation with finite position and uncertainty")
    if (found.precision_nm < 0).any():
        raise DataError(f"{path}: an uncertainty is negative")
    middle = float(np.median(found.precision_nm[:, 1:]))
    low, high = PLAUSIBLE_PRECISION_NM
    if not low <= middle <= high:
        raise VoxelSizeError(
            f"{path}: a median lateral uncertainty of {middle:.3g} nm cannot be right "
            f"(expected {low:g} to {high:g} nm)",
            hint="the unit, or the camera pixel, may be wrong",
        )
