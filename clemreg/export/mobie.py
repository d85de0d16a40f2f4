"""MoBIE: a collection table of images and spots, and a table of the transforms of the EM.

MoBIE takes the numbers of its files as they are, so everything here is in nm, as the OME-Zarr that
clemreg writes. Layout and direction as in MoBIE 6.5 (2026).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import DataError
from clemreg.export.sampled_field import FieldError, SampledField
from clemreg.io.atomic import atomic_path, atomic_write_json, atomic_write_text
from clemreg.io.bigwarp import write_bigwarp
from clemreg.io.elastix_files import write_elastix
from clemreg.io.names import one_line
from clemreg.io.volumes import WriteOptions, write_volume
from clemreg.io.xyz import flip, flip_matrix
from clemreg.space.bspline import BSpline
from clemreg.space.grid import Box, Grid, Triple
from clemreg.space.landmarks import Landmarks
from clemreg.space.tps import ThinPlateSpline
from clemreg.space.transform import Affine, Chain, FloatArray, Transform
from clemreg.volume import Labels, Volume

COLLECTION = "collection.csv"
TRANSFORMS = "em-transforms.csv"
_COLUMNS = (
    "uri", "name", "type", "channel", "color", "blend", "affine", "view", "exclusive",
    "contrast_limits", "display", "format", "spot_radius", "bounding_box",
)  # fmt: skip
_LONGEST_NAME = 60  # letters of up to four bytes, and an ending, fit into 255 bytes
_DEVICE = re.compile("con|prn|aux|nul|(com|lpt)[0-9¹²³]", re.IGNORECASE)  # to Windows, no file
_MOST_VALUES = 2**31 - 1  # MoBIE holds a field in one Java array


@dataclass(frozen=True, eq=False)
class MobieImage:
    """One image, or one channel of an image.

    Attributes
    ----------
    name
        Shown in MoBIE.
    uri
        OME-Zarr in nm; a relative path counts from the folder of the tables.
    channel
        Number of the channel; None if the image has none.
    kind
        Grey values, or labels.
    colour, window
        Display; red, green, blue, 0 to 255.
    in_em
        Whether it stands in the EM frame and so is moved by the transform.
    shift_nm
        Added (zyx) to where the file says that it is; of an image in the LM frame.
    """

    name: str
    uri: str
    channel: int | None = None
    kind: Literal["intensities", "labels"] = "intensities"
    colour: tuple[int, int, int] = (255, 255, 255)
    window: tuple[float, float] = (0.0, 255.0)
    in_em: bool = False
    shift_nm: Triple = (0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class MobieSpots:
    """Points, for example localisations or landmarks, in the LM frame.

    Attributes
    ----------
    name
        Shown in MoBIE, and name of the table.
    points_nm
        (N, 3) zyx.
    radius_nm
        Size of the spheres.
    labels
        A text for each point, or nothing.
    """

    name: str
    points_nm: FloatArray
    radius_nm: float = 50.0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class MobieCollection:
    """What MoBIE shows together.

    Attributes
    ----------
    images, spots
        What is listed.
    transform
        LM to EM.
    lm_grid
        Grid over which a transform that MoBIE has no equal for is sampled.
    stored
        Volumes to write into the folder, by the uri under which images name them.
    """

    images: tuple[MobieImage, ...]
    transform: Transform
    lm_grid: Grid
    spots: tuple[MobieSpots, ...] = ()
    stored: Mapping[str, Volume] = field(default_factory=dict)


def write_mobie(
    path: str | Path,
    collection: MobieCollection,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FieldError | None:
    """Write a folder with ``collection.csv`` and what it needs; EM is shown in the LM's frame.

    Parameters
    ----------
    path
        Folder, whole or not there. The tables name the files of the transform by their full path,
        as MoBIE opens them, so write it where it will be used.
    collection
        What it holds.
    overwrite
        Whether a folder of that name is replaced.
    progress
        Told of the blocks of a sampled field.

    Returns
    -------
    FieldError or None
        How well the sampled field reproduces the transform, if one was needed.

    Raises
    ------
    DataError
        Labels under a thin-plate spline, which MoBIE cannot show; a field too large for MoBIE;
        points that are not finite.
    StorageError
        It exists and must not be replaced, or cannot be written.

    Notes
    -----
    MoBIE looks up a voxel of the LM frame in the EM, so elastix B-splines, thin-plate splines and
    fields are written as they are (``invert`` empty), affines as their inverse. The first row of
    the transform table acts next to the image, that is last on a point of the LM.
    """
    transform = collection.transform
    _check_labels(collection.images, transform)
    with atomic_path(path, overwrite=overwrite) as folder:
        folder.mkdir(parents=True)
        for uri, volume in collection.stored.items():
            options = WriteOptions(labels=isinstance(volume, Labels))
            write_volume(folder / uri, volume, format="zarr2", options=options)
        cell, error = TRANSFORMS, None
        if isinstance(transform, Affine):
            cell = _affine_cell(transform)
        else:
            files = _TransformFiles(folder, Path(path).resolve(), collection.lm_grid)
            rows, error = files.rows(transform, progress)
            _write_table(folder / TRANSFORMS, ("type", "value", "name", "invert"), rows)
        listed = [_image_row(image, cell) for image in collection.images]
        listed += [_spots_row(_free_table(folder, spots.name), spots) for spots in collection.spots]
        listed = _with_names_apart(listed)
        table = [[row.get(column, "") for column in _COLUMNS] for row in listed]
        _write_table(folder / COLLECTION, _COLUMNS, table)
    return error


def _image_row(image: MobieImage, cell: str) -> dict[str, Any]:
    red, green, blue = image.colour
    row: dict[str, Any] = {
        "uri": image.uri,
        "name": one_line(image.name),
        "type": image.kind,
        "channel": "" if image.channel is None else image.channel,
        "blend": "alpha" if image.kind == "labels" else "sum",
        "affine": cell if image.in_em else _shift_cell(image.shift_nm),
        "view": "clemreg",
        "exclusive": "true",
        "format": "OmeZarr",
    }
    if image.kind == "intensities":
        low, high = (repr(float(v)) for v in image.window)
        row |= {
            "color": f"r({red})-g({green})-b({blue})-a(255)",
            "contrast_limits": f"({low},{high})",
        }
    return row


def _spots_row(path: Path, spots: MobieSpots) -> dict[str, Any]:
    """Write the table of the spots; return its row in the collection."""
    points = flip(spots.points_nm)
    if not len(points) or not np.isfinite(points).all():
        raise DataError(f"{spots.name}: there are no points, or some are not finite")
    labels = spots.labels or ("",) * len(points)
    rows = [
        [number, *map(repr, map(float, point)), one_line(label)]
        for number, (point, label) in enumerate(zip(points, labels, strict=True), start=1)
    ]
    _write_table(path, ("spot_id", "x", "y", "z", "label"), rows)
    margin = 2 * spots.radius_nm
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    row: dict[str, Any] = {
        "uri": path.name,
        "name": one_line(spots.name),
        "type": "spots",
        "view": "clemreg",
        "exclusive": "true",
        "spot_radius": repr(float(spots.radius_nm)),
    }
    corners = _join(low), _join(high)
    if not any("-" in corner for corner in corners):  # MoBIE splits the box at every minus sign
        row["bounding_box"] = "({})-({})".format(*corners)
    return row


def _with_names_apart(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose names are distinct, and text.

    MoBIE shows rows of one display in one colour and contrast, and cannot read a column of names
    in which all are numbers.
    """
    named: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["name"]
        if not any(c.isalpha() for c in name):
            name = f"{row['type']} {name}".strip()
        endings = chain([""], (f" ({i})" for i in count(2)))
        name = next(n for ending in endings if (n := name + ending) not in named)
        named[name] = row | {"name": name, "display": name}
    return list(named.values())


def _free_table(folder: Path, name: str) -> Path:
    """Return where the table of some points goes: in the folder, whatever a user called them."""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    safe = plain[:_LONGEST_NAME].strip("-") or "spots"
    if _DEVICE.fullmatch(safe):
        safe = f"spots-{safe}"
    taken = {file.lower() for file in (COLLECTION, TRANSFORMS, *(p.name for p in folder.iterdir()))}
    endings = chain([""], (f"-{i}" for i in count(2)))
    files = (f"{safe}{ending}.csv" for ending in endings)
    return folder / next(file for file in files if file.lower() not in taken)


def _check_labels(images: Sequence[MobieImage], transform: Transform) -> None:
    parts = transform.parts if isinstance(transform, Chain) else (transform,)
    names = [image.name for image in images if image.in_em and image.kind == "labels"]
    if names and any(isinstance(part, ThinPlateSpline) for part in parts):
        raise DataError(
            f"MoBIE cannot bend labels ({', '.join(names)}) with a thin-plate spline",
            hint="write the transform as an N5 displacement field first, and export that",
        )


@dataclass(frozen=True)
class _TransformFiles:
    """Files of the transform: written to `folder`, found at `final` later."""

    folder: Path
    final: Path
    grid: Grid

    def rows(
        self, transform: Transform, progress: Progress | None
    ) -> tuple[list[list[str]], FieldError | None]:
        """Rows (type, value, name, invert); what MoBIE has no equal for becomes one field."""
        parts = transform.parts if isinstance(transform, Chain) else (transform,)
        if all(_has_equal(part) for part in parts):
            return [self._row(part, i) for i, part in enumerate(parts)][::-1], None
        sampled = SampledField(transform, self.grid)
        _write_field(self.folder / "em-field.json", sampled, progress)
        row = ["displacement_field_uri", self._at("em-field.json"), "field", ""]
        return [row], sampled.error()

    def _at(self, name: str) -> str:
        return (self.final / name).as_posix()

    def _row(self, part: Transform, number: int) -> list[str]:
        if isinstance(part, Affine):
            return ["affine", _affine_cell(part), "affine", ""]
        if isinstance(part, BSpline):
            beside = f"em-bspline-{number}"
            fixed = self.grid.with_frame(part.source)
            (path,) = write_elastix(part, self.folder / beside, fixed, unit="nm")
            return ["elastix_bspline_uri", self._at(f"{beside}/{path.name}"), "bspline", ""]
        assert isinstance(part, ThinPlateSpline)
        name = f"em-spline-{number}.json"
        points = part.source_points_nm, part.target_points_nm
        pairs = Landmarks(tuple(f"Pt-{i}" for i in range(len(points[0]))), *points)
        write_bigwarp(pairs, self.folder / name, unit="nm")
        return ["thin_plate_spline_uri", self._at(name), "thin-plate spline", ""]


def _has_equal(part: Transform) -> bool:
    if isinstance(part, BSpline):
        return bool(np.allclose(part.direction, np.eye(3), atol=1e-12))
    return isinstance(part, (Affine, ThinPlateSpline))


def _affine_cell(affine: Affine) -> str:
    """EM to LM, row by row, x, y, z: where MoBIE puts the image."""
    rows = flip_matrix(affine.inverse().matrix)[:3]
    return f"({_join(rows.ravel())})"


def _shift_cell(shift_nm: Triple) -> str:
    rows = np.column_stack([np.eye(3), flip(shift_nm)])
    return f"({_join(rows.ravel())})" if any(shift_nm) else ""


def _write_field(path: Path, sampled: SampledField, progress: Progress | None) -> None:
    """Write a field as MoBIE's JSON and big-endian float32, component fastest, then x, y, z."""
    shape = (*sampled.grid.shape, 3)
    if np.prod(shape, dtype=float) > _MOST_VALUES:
        raise DataError(
            f"a field of {sampled.grid.shape} points is too large for MoBIE",
            hint="choose a coarser grid",
        )
    raw = path.with_suffix(".raw")
    with atomic_path(raw) as partial:
        stored = np.memmap(partial, dtype=">f4", mode="w+", shape=shape)

        def store(box: Box, displacement: FloatArray) -> None:
            stored[box.slices] = flip(displacement)

        sampled.write(store, progress=progress)
        stored.flush()
    record = {
        "type": "inverse_displacement_field",
        "version": 1,
        "numDimensions": 3,
        "componentAxis": 0,
        "size": list(sampled.grid.shape[::-1]),
        "spacing": flip(sampled.grid.spacing_nm),
        "origin": flip(sampled.grid.origin_nm),
        "dataType": "float32",
        "byteOrder": "BIG_ENDIAN",
        "convention": "x=y+d(y)",
        "rawPath": raw.name,
    }
    atomic_write_json(path, record)


def _join(values: FloatArray) -> str:
    return ",".join(repr(float(v)) for v in values)


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())
