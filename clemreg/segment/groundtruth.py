"""Annotated crops as COSEM publishes them, in N5."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import ConfigError, DataError, FormatError, MissingError
from clemreg.io.n5 import read_attributes
from clemreg.io.volumes import open_labels, open_volume
from clemreg.segment.classes import AnnotatedIds, Annotation, Category, category
from clemreg.segment.sdt import grow
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import Labels, LazyArray, Volume

SEPARATE_SETS = ("ribosomes", "nucleolus", "centrosome")
FINE_RAW, COARSE_RAW, PHASES = "volumes/raw/s0", "volumes/raw/s1", "volumes/subsampled/raw"
CROPS = "volumes/groundtruth/0003"
Truth = tuple[NDArray[np.bool_], NDArray[np.bool_], Grid]
"""Where a class is, where that is known (z, y, x), and the grid of both."""


class AnnotatedCrop(Protocol):
    """A crop as COSEM or CellMap publish them."""

    @property
    def name(self) -> str:
        """``crop<number>``."""

    def grid_of(self, name: str) -> Grid:
        """Voxels of the annotation of a class."""

    def of(self, name: str) -> Annotation:
        """Return what is known of a class."""

    def truth(self, name: str, stride: Shape = (2, 2, 2)) -> Truth:
        """Where a class is, where that is known, and the grid of both: every `stride`-th voxel."""


@dataclass(frozen=True, eq=False)
class CosemCrop:
    """A crop of ``volumes/groundtruth/0003``: atomic ids in voxels of half the EM's size.

    Attributes
    ----------
    name
        ``crop<number>``.
    sets
        Label sets by name: ``all`` (0: not annotated), and those drawn apart.
    masks
        Where single labels were annotated, by label name, if the crop says so.
    ids
        Which atomic ids were looked for.
    """

    name: str
    sets: Mapping[str, Labels]
    masks: Mapping[str, Labels]
    ids: AnnotatedIds

    @property
    def grid(self) -> Grid:
        """Voxels of the annotation."""
        return self.sets["all"].grid

    def grid_of(self, name: str) -> Grid:
        """Voxels of the annotation of a class."""
        return self.sets.get(category(name).separate, self.sets["all"]).grid

    def of(self, name: str) -> Annotation:
        """Return what is known of a class in this crop."""
        return self.ids.of(category(name))

    def truth(self, name: str, stride: Shape = (2, 2, 2)) -> Truth:
        """Where a class is, where that is known, and the grid of both: every `stride`-th voxel.

        Ribosomes and centrosomes are grown by what they are drawn too small. A class that was
        looked for and is not there is known to be nowhere.

        Raises
        ------
        DataError
            Nobody looked for that class in this crop.
        """
        kind = category(name)
        if self.ids.of(kind) is Annotation.UNKNOWN:
            raise DataError(
                f"{self.name}: nobody annotated {kind.name} here, so it cannot be scored",
                hint="leave this crop out for this class",
            )
        every = self.sets["all"].read()
        mask = self._mask(kind, every)
        known = every > 0
        if kind.name in self.masks:
            known = known & (self.masks[kind.name].read() > 0)
        thin = tuple(slice(None, None, s) for s in stride)
        # The voxel that stays is the first of its block; the block's centre is farther on.
        return mask[thin], known[thin], self.grid.downsample(stride)

    def _mask(self, kind: Category, every: NDArray[Any]) -> NDArray[np.bool_]:
        labels = self.sets[kind.separate].read() if kind.separate in self.sets else every
        mask: NDArray[np.bool_] = np.isin(labels, kind.ids)
        return grow(mask, kind.grown_nm, self.grid.spacing_nm)

    def read(self, box: Box) -> dict[str, NDArray[Any]]:
        """Label sets in a box, as `clemreg.segment.sdt.crop_targets` takes them.

        Where a mask says that a label was not annotated, nothing changes here: masks belong to
        single labels, see `masks`.
        """
        return {name: labels.read(box) for name, labels in self.sets.items()}


def find_cosem_crops(n5: str | Path, version: str = CROPS) -> tuple[str, ...]:
    """Names of the crops in a COSEM container, by number.

    Raises
    ------
    MissingError
        There are none.
    """
    folder = Path(n5) / version
    found = [
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if re.fullmatch(r"crop\d+", path.name) and (path / "labels" / "all").is_dir()
    ]
    if not found:
        raise MissingError(
            f"{n5} has no crops in {version}", hint="COSEM containers are called <dataset>.n5"
        )
    return tuple(sorted(found, key=lambda name: int(name.removeprefix("crop"))))


def open_cosem_crop(
    n5: str | Path, name: str, ids: AnnotatedIds | None = None, version: str = CROPS
) -> CosemCrop:
    """Open a crop; voxels are read when asked for.

    Parameters
    ----------
    n5
        The container, ``<dataset>.n5``.
    name
        ``crop<number>``.
    ids
        Which ids were looked for, from the crop database. None: what its voxels hold, which
        says what is present and, of everything else, nothing.

    Raises
    ------
    MissingError
        There is no such crop.
    FormatError
        A label set is not one of ids, or does not lie on the voxels of the others.
    """
    folder = Path(n5) / version / name
    if not (folder / "labels" / "all").is_dir():
        raise MissingError(
            f"{folder} is not there", hint=f"crops: {', '.join(find_cosem_crops(n5, version))}"
        )
    sets = {"all": _labels(folder / "labels" / "all")}
    for separate in SEPARATE_SETS:
        if (folder / "labels" / separate).is_dir():
            sets[separate] = _labels(folder / "labels" / separate, sets["all"].grid)
    masks = {}
    if (folder / "masks").is_dir():
        for path in sorted((folder / "masks").iterdir()):
            if "dimensions" in read_attributes(path):
                masks[category(path.name).name] = _mask(path, sets["all"].grid)
    return CosemCrop(name, sets, masks, ids if ids is not None else _present(sets))


def _labels(path: Path, like: Grid | None = None) -> Labels:
    labels = open_labels(path, frame="em")
    if like is not None and labels.grid != like:
        raise FormatError(
            f"{path} lies on {labels.grid}, labels/all on {like}",
            hint="label sets of one crop have the same voxels",
        )
    return labels


def _mask(path: Path, like: Grid) -> Labels:
    """Open a mask with the voxels of the labels, or of the EM, as the paper's training read it."""
    mask = open_labels(path, frame="em")
    factor = np.maximum(1, np.rint(np.divide(mask.grid.spacing_nm, like.spacing_nm))).astype(int)
    z, y, x = (int(f) for f in factor)
    fine = Grid(
        like.shape,
        tuple(np.divide(mask.grid.spacing_nm, factor)),
        tuple(np.subtract(mask.grid.origin_nm, (factor - 1) / 2 * like.spacing_nm)),
        like.frame,
    )
    covered = (np.multiply(mask.shape, factor) >= like.shape).all()
    if factor.max() == 1 or not covered or not _alike(fine, like):
        return _labels(path, like)
    return Labels(_Repeated(mask.data, (z, y, x), like.shape), like, name=mask.name)


def _alike(a: Grid, b: Grid) -> bool:
    return np.allclose(a.spacing_nm, b.spacing_nm) and np.allclose(a.origin_nm, b.origin_nm)


def _present(sets: Mapping[str, Labels]) -> AnnotatedIds:
    """Ids that occur; slabs, so that a large crop is never read at once."""
    found: set[int] = set()
    for labels in sets.values():
        for box in labels.grid.box.tiles((64, 256, 256)):
            found |= {int(i) for i in np.unique(labels.read(box))}
    return AnnotatedIds(frozenset(found - {0}))


def annotated_ids(document: Mapping[str, Any]) -> AnnotatedIds:
    """Which ids were looked for, from a document of the crop database.

    Parameters
    ----------
    document
        With ``labels: {present_annotated: [[id, ...], ...], absent_annotated: ...}``. What was
        annotated in part, or seen and not annotated, is not known.

    Raises
    ------
    FormatError
        There is no such entry, or it holds something else than ids.
    """
    labels = document.get("labels")
    if not isinstance(labels, Mapping) or "present_annotated" not in labels:
        raise FormatError(
            f"crop {document.get('number', '?')} has no labels.present_annotated",
            hint="this is a document of the crop database",
        )
    try:
        present, absent = (
            frozenset(int(i) for group in labels.get(key, ()) for i in _listed(group))
            for key in ("present_annotated", "absent_annotated")
        )
    except (TypeError, ValueError) as error:
        raise FormatError(f"crop {document.get('number', '?')}: {error}") from error
    return AnnotatedIds(present, absent)


def _listed(group: Any) -> Sequence[Any]:
    return group if isinstance(group, (list, tuple)) else (group,)


def open_cosem_raw(n5: str | Path, phase: int | None = None, *, level: int = 0) -> Volume:
    """Open the EM of a COSEM container.

    Parameters
    ----------
    phase
        One of the eight ways to take every second voxel ("simulated 8 nm"), 0 to 7; None: the
        EM itself.
    level
        0: 4 nm, 1: averaged to 8 nm; without `phase`.

    Raises
    ------
    MissingError
        It is not there.
    ConfigError
        There is no such phase.
    """
    if phase is not None and not 0 <= phase < 8:
        raise ConfigError(f"sub-sampling has the phases 0 to 7, not {phase}")
    inner = (FINE_RAW, COARSE_RAW)[level] if phase is None else f"{PHASES}/{phase}"
    return open_volume(Path(n5) / inner, frame="em")


def contrast_limits(n5: str | Path) -> tuple[float, float]:
    """Grey values that become -1 and 1: ``contrastAdjustment`` of the EM.

    Raises
    ------
    FormatError
        The EM does not say.
    """
    attributes = read_attributes(Path(n5) / FINE_RAW)
    try:
        low, high = (float(attributes["contrastAdjustment"][key]) for key in ("min", "max"))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{Path(n5) / FINE_RAW} has no contrastAdjustment with min and max",
            hint="give the grey values of black and white yourself",
        ) from error
    if not high > low:
        raise FormatError(f"{n5}: contrastAdjustment from {low} to {high} is no range")
    return low, high


def subsample(volume: Volume, phase: int) -> Volume:
    """Every second voxel of a volume: EM as if the microscope had had twice the voxel size.

    Parameters
    ----------
    volume
        EM (z, y, x); it is not read here.
    phase
        0 to 7: ``4 z + 2 y + x`` of the first voxel taken.

    Raises
    ------
    ConfigError
        There is no such phase.
    DataError
        The volume is too small.
    """
    if not 0 <= phase < 8:
        raise ConfigError(f"sub-sampling has the phases 0 to 7, not {phase}")
    start = (phase >> 2 & 1, phase >> 1 & 1, phase & 1)
    if any(n <= s for n, s in zip(volume.shape, start, strict=True)):
        raise DataError(f"a volume of {volume.shape} voxels has no phase {phase}")
    z, y, x = ((n - s + 1) // 2 for n, s in zip(volume.shape, start, strict=True))
    sz, sy, sx = (2 * s for s in volume.grid.spacing_nm)
    oz, oy, ox = volume.grid.to_world(start)
    grid = Grid((z, y, x), (sz, sy, sx), (oz, oy, ox), volume.grid.frame)
    return Volume(_EverySecond(volume.data, start, (z, y, x)), grid, name=volume.name)


@dataclass(frozen=True)
class _EverySecond:
    """Every second voxel of an array from `start` on, read when asked for."""

    parent: LazyArray
    start: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def dtype(self) -> Any:
        return self.parent.dtype

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[Any]:
        fine = tuple(
            slice(s + 2 * k.start, s + 2 * k.stop - 1) for k, s in zip(key, self.start, strict=True)
        )
        return np.asarray(self.parent[fine])[::2, ::2, ::2]


@dataclass(frozen=True)
class _Repeated:
    """Each voxel of an array `factor` times along each axis, read when asked for."""

    parent: LazyArray
    factor: Shape
    shape: Shape

    @property
    def dtype(self) -> Any:
        return self.parent.dtype

    def __getitem__(self, key: tuple[slice, slice, slice], /) -> NDArray[Any]:
        coarse = tuple(
            slice(k.start // f, -(-k.stop // f)) for k, f in zip(key, self.factor, strict=True)
        )
        block = np.asarray(self.parent[coarse])
        for axis, f in enumerate(self.factor):
            block = block.repeat(f, axis)
        inner = (
            slice(k.start - c.start * f, k.stop - c.start * f)
            for k, c, f in zip(key, coarse, self.factor, strict=True)
        )
        return np.asarray(block[tuple(inner)])
