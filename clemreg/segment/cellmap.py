"""Annotated crops as CellMap publishes them, in OME-NGFF: one label array a class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError, FormatError, MissingError
from clemreg.io.volumes import open_labels
from clemreg.segment.classes import ATOMS, CATEGORIES, Annotation, Category, category
from clemreg.segment.groundtruth import Truth
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import Labels

BoolArray = NDArray[np.bool_]
# A crop is looked through in pieces of so many voxels, for whether a class occurs.
_TILE = (64, 256, 256)


class ClassLabel(Protocol):
    """Annotation of one class in a crop."""

    @property
    def grid(self) -> Grid:
        """Voxels of the annotation."""

    @property
    def annotation(self) -> Annotation:
        """What its voxels say of the class."""

    def truth(self, box: Box | None = None) -> tuple[BoolArray, BoolArray]:
        """Where the class is, and where that is known (z, y, x)."""


@dataclass(frozen=True, eq=False)
class CellMapLabel:
    """Annotation of one class in a CellMap crop.

    Attributes
    ----------
    name
        Class, as CellMap calls it.
    labels
        Values as stored.
    unknown, absent, present
        Stored values that stand for not annotated, not there, there. In objects, every value
        other than `unknown` and `absent` is an object.
    instances
        Whether values tell objects apart.
    """

    name: str
    labels: Labels
    unknown: int | None
    absent: int
    present: int | None
    instances: bool

    @property
    def grid(self) -> Grid:
        """Voxels of the annotation."""
        return self.labels.grid

    @cached_property
    def annotation(self) -> Annotation:
        """What its voxels say of the class: it occurs, it was looked for only, or not even that."""
        return _look_through(self)

    def truth(self, box: Box | None = None) -> tuple[BoolArray, BoolArray]:
        """Where the class is, and where that is known (z, y, x)."""
        values = self.labels.read(box)
        known = np.ones(values.shape, bool) if self.unknown is None else values != self.unknown
        inside = known & (values != self.absent)
        if not self.instances and self.present is not None:
            inside &= values == self.present
        return inside, known


@dataclass(frozen=True, eq=False)
class JoinedLabel:
    """A class that is annotated as its parts: membrane, lumen and so on.

    It is where one of them is, and known where one of them is or all are known.
    """

    parts: tuple[CellMapLabel, ...]

    @property
    def grid(self) -> Grid:
        """Voxels of the annotation.

        Raises
        ------
        DataError
            The parts lie on different grids.
        """
        if len({part.grid for part in self.parts}) != 1:
            raise DataError(
                f"{', '.join(part.name for part in self.parts)} lie on different grids, so no "
                "class can be made of them",
                hint="leave that class out: name the others",
            )
        return self.parts[0].grid

    @cached_property
    def annotation(self) -> Annotation:
        """What the voxels of its parts say of the class."""
        return _look_through(self)

    def truth(self, box: Box | None = None) -> tuple[BoolArray, BoolArray]:
        """Where the class is, and where that is known (z, y, x)."""
        found = [part.truth(box) for part in self.parts]
        inside: BoolArray = np.any([i for i, _ in found], axis=0)
        known: BoolArray = np.all([k for _, k in found], axis=0)
        return inside, known | inside


def _look_through(label: ClassLabel) -> Annotation:
    looked_for = False
    for box in label.grid.box.tiles(_TILE):
        inside, known = label.truth(box)
        if inside.any():
            return Annotation.PRESENT
        looked_for = looked_for or bool(known.any())
    return Annotation.ABSENT if looked_for else Annotation.UNKNOWN


@dataclass(frozen=True, eq=False)
class CellMapCrop:
    """A crop with one label array a class.

    Attributes
    ----------
    name
        ``crop<number>``.
    labels
        By clemreg's name of the class.

    """

    name: str
    labels: Mapping[str, ClassLabel]

    @property
    def grid(self) -> Grid:
        """Voxels of all classes.

        Raises
        ------
        DataError
            There is no class, or their grids differ.
        """
        grids = {label.grid for label in self.labels.values()}
        if len(grids) != 1:
            raise DataError(
                f"{self.name}: classes {', '.join(self.labels) or 'none'} lie on {len(grids)} "
                "grids, not on one",
                hint="name the classes of a crop that have the same voxels",
            )
        return grids.pop()

    def grid_of(self, name: str) -> Grid:
        """Voxels of the annotation of a class.

        Raises
        ------
        DataError
            The crop does not have that class.
        """
        return self._label(name).grid

    def _label(self, name: str) -> ClassLabel:
        label = self.labels.get(category(name).name)
        if label is None:
            raise DataError(
                f"{self.name}: nobody annotated {category(name).name} here, so it cannot be scored",
                hint=f"it has: {', '.join(self.labels)}",
            )
        return label

    def of(self, name: str) -> Annotation:
        """Return what is known of a class in this crop."""
        label = self.labels.get(category(name).name)
        return Annotation.UNKNOWN if label is None else label.annotation

    def truth(self, name: str, stride: Shape = (2, 2, 2)) -> Truth:
        """Where a class is, where that is known, and the grid of both: every `stride`-th voxel.

        Raises
        ------
        DataError
            Nobody looked for that class in this crop.
        """
        label = self._label(name)
        thin = tuple(slice(None, None, s) for s in stride)
        inside, known = label.truth()
        return inside[thin], known[thin], label.grid.downsample(stride)


def find_cellmap_crops(groundtruth: str | Path) -> tuple[str, ...]:
    """Names of the crops in a group ``labels/groundtruth``, by number.

    Raises
    ------
    MissingError
        There are none.
    """
    root = Path(groundtruth)
    found = [
        path.name
        for path in (root.iterdir() if root.is_dir() else ())
        if re.fullmatch(r"crop\d+", path.name) and path.is_dir()
    ]
    if not found:
        raise MissingError(f"{root} holds no crops", hint="groundtruth is the group of crop<N>")
    return tuple(sorted(found, key=lambda name: int(name.removeprefix("crop"))))


def open_cellmap_crop(crop: str | Path, classes: Sequence[str] = ()) -> CellMapCrop:
    """Open a crop; voxels are read when asked for.

    Parameters
    ----------
    crop
        Its group, ``crop<number>``.
    classes
        What to read, by any of their names; none: all of the paper's classes that it has. A class
        that has no array of its own is made of its parts, if all of them are there.

    Raises
    ------
    MissingError
        It is not there, or does not have one of `classes`.
    FormatError
        An annotation does not say what its values mean.
    """
    names = find_cellmap_classes(crop)
    wanted = [category(name) for name in classes] or list(CATEGORIES)
    labels: dict[str, ClassLabel] = {}
    for kind in wanted:
        label = _label_of(crop, kind, names)
        if label is not None:
            labels[kind.name] = label
        elif classes:
            raise MissingError(
                f"{crop} has no class {kind.name} and not all of its parts",
                hint=f"it has: {', '.join(names)}",
            )
    if not labels:
        raise MissingError(
            f"{crop} has none of the paper's classes", hint=f"it has: {', '.join(names)}"
        )
    return CellMapCrop(Path(crop).name, labels)


def _label_of(crop: str | Path, kind: Category, names: Sequence[str]) -> ClassLabel | None:
    for name in (kind.cellmap, kind.paper, kind.name):
        if name in names:
            return open_cellmap_label(crop, name)
    ids = [i for i in kind.ids if i != kind.generic_id]
    parts = [atom.cellmap for atom in ATOMS if atom.id in ids]
    if not set(parts) <= set(names):
        return None
    return JoinedLabel(tuple(open_cellmap_label(crop, part) for part in parts))


def find_cellmap_classes(crop: str | Path) -> tuple[str, ...]:
    """Names of the classes annotated in a CellMap crop group.

    Raises
    ------
    FormatError
        It has no ``cellmap.annotation``.
    """
    annotation = _annotation(Path(crop))
    names = annotation.get("class_names")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise FormatError(
            f"{crop}: cellmap.annotation has no class_names", hint="name the crop group, crop<N>"
        )
    return tuple(names)


def open_cellmap_label(crop: str | Path, name: str) -> CellMapLabel:
    """Open the annotation of one class of a CellMap crop (OME-NGFF 0.4).

    Raises
    ------
    MissingError
        The crop does not have that class.
    FormatError
        The annotation does not say what its values mean.
    """
    folder = Path(crop) / name
    if not folder.is_dir():
        raise MissingError(
            f"{crop} has no class {name!r}",
            hint=f"it has: {', '.join(find_cellmap_classes(crop))}",
        )
    annotation = _annotation(folder)
    try:
        kind = annotation["annotation_type"]
        encoding = {k: int(v) for k, v in kind["encoding"].items() if v is not None}
        instances = {"semantic_segmentation": False, "instance_segmentation": True}[kind["type"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{folder}: cellmap.annotation does not say what its values mean ({error})"
        ) from error
    return CellMapLabel(
        str(annotation.get("class_name", name)),
        open_labels(folder, frame="em"),
        encoding.get("unknown"),
        encoding.get("absent", 0),
        encoding.get("present"),
        instances,
    )


def _annotation(folder: Path) -> Mapping[str, Any]:
    import zarr

    try:
        attributes = zarr.open_group(str(folder), mode="r").attrs.asdict()
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise MissingError(f"{folder} is not a zarr group") from error
    cellmap = attributes.get("cellmap")
    annotation = cellmap.get("annotation") if isinstance(cellmap, Mapping) else None
    if not isinstance(annotation, Mapping):
        raise FormatError(
            f"{folder} has no cellmap.annotation", hint="is it a crop of labels/groundtruth?"
        )
    return annotation
