"""Patches from annotated crops, as the COSEM paper trained: placed, warped, toned, balanced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError, VoxelSizeError
from clemreg.segment.augment import (
    AugmentOptions,
    Deformation,
    draw_deformation,
    recolour,
    warp,
)
from clemreg.segment.blockwise import read_extended
from clemreg.segment.cellmap import CellMapCrop
from clemreg.segment.classes import CATEGORIES, Annotation, category
from clemreg.segment.data import turn
from clemreg.segment.groundtruth import AnnotatedCrop, CosemCrop
from clemreg.segment.reading import misfit
from clemreg.segment.sampling import BoolArray, FloatArray, Patch, PatchShape
from clemreg.segment.sdt import context_voxels, crop_targets, label_target, unknown_target
from clemreg.space.grid import Box, Grid, Shape
from clemreg.volume import Volume

Arrays = dict[str, NDArray[Any]]
# Voxel sizes may differ from the network's by this ratio: 5.24 nm counts as 4 nm, as in the paper.
TOLERATED_RATIO = 1.35
# Of the voxels of a patch, as many must be annotated (35000 of 36^3 in the paper).
LEAST_ANNOTATED = 0.75
_TRIES = 200
_MOST_EMPTY = 20
_MASK = "mask "
_SLAB = 32


class Annotations(Protocol):
    """What is annotated in a crop, as label arrays on one grid."""

    @property
    def crop(self) -> AnnotatedCrop:
        """The crop itself."""

    @property
    def grid(self) -> Grid:
        """Voxels of the annotation."""

    def read(self, box: Box) -> Arrays:
        """Labels in a box that lies inside; 0 is not annotated."""

    def targets(
        self, arrays: Arrays, classes: Sequence[str], stride: Shape
    ) -> tuple[FloatArray, BoolArray]:
        """Tanh targets and where they are known, on every `stride`-th voxel."""

    def of(self, name: str) -> Annotation:
        """Return what is known of a class."""


@dataclass(frozen=True, eq=False)
class CosemAnnotations:
    """A crop of atomic ids, with separate label sets and masks of single labels."""

    crop: CosemCrop

    @property
    def grid(self) -> Grid:
        """Voxels of the annotation."""
        return self.crop.grid

    def read(self, box: Box) -> Arrays:
        """Label sets and masks in a box."""
        masks = {_MASK + name: labels.read(box) for name, labels in self.crop.masks.items()}
        return self.crop.read(box) | masks

    def targets(
        self, arrays: Arrays, classes: Sequence[str], stride: Shape
    ) -> tuple[FloatArray, BoolArray]:
        """Targets as in the paper; where a mask says that a label was not drawn, unknown."""
        sets = {name: a for name, a in arrays.items() if not name.startswith(_MASK)}
        spacing = self.grid.spacing_nm
        target, known = crop_targets(sets, self.crop.ids, spacing, classes, stride=stride)
        thin = tuple(slice(None, None, s) for s in stride)
        for i, name in enumerate(classes):
            mask = arrays.get(_MASK + category(name).name)
            if mask is not None:
                known[i] &= mask[thin] > 0
        return target, known

    def of(self, name: str) -> Annotation:
        """Return what is known of a class."""
        return self.crop.of(name)


@dataclass(frozen=True, eq=False)
class CellMapAnnotations:
    """A crop with one label array a class, all on one grid.

    Raises
    ------
    DataError
        Their grids differ.
    """

    crop: CellMapCrop

    def __post_init__(self) -> None:
        _ = self.grid

    @property
    def grid(self) -> Grid:
        """Voxels of the annotation."""
        return self.crop.grid

    def read(self, box: Box) -> Arrays:
        """0 not annotated, 1 absent, 2 present, by class."""
        arrays = {}
        for name, label in self.crop.labels.items():
            inside, known = label.truth(box)
            arrays[name] = known.astype(np.uint8) + inside
        return arrays

    def targets(
        self, arrays: Arrays, classes: Sequence[str], stride: Shape
    ) -> tuple[FloatArray, BoolArray]:
        """Signed distances class by class; nothing of classes that the crop does not have."""
        shape = next(iter(arrays.values())).shape
        parts = []
        for name in classes:
            values = arrays.get(category(name).name)
            parts.append(
                unknown_target(shape, stride)
                if values is None
                else label_target(values == 2, values > 0, self.grid.spacing_nm, stride=stride)
            )
        return np.stack([p.tanh for p in parts]), np.stack([p.known for p in parts])

    def of(self, name: str) -> Annotation:
        """Return what is known of a class."""
        return self.crop.of(name)


@dataclass(frozen=True, eq=False)
class TrainingCrop:
    """EM and what is annotated in a part of it.

    Attributes
    ----------
    name
        For messages and the model card.
    em
        EM at several voxel sizes, or in several versions (eight phases of sub-sampling); of those
        with the network's voxels all are drawn alike.
    limits
        Grey values that become -1 and 1.
    annotations
        Labels, in the frame of the EM.
    """

    name: str
    em: tuple[Volume, ...]
    limits: tuple[float, float]
    annotations: Annotations


@dataclass(frozen=True)
class CropOptions:
    """How patches are drawn from crops.

    Attributes
    ----------
    shape
        Size of a patch.
    classes
        What to learn.
    augment
        Random changes; None: none at all.
    present
        Share of the patches that come from crops where one of the classes occurs.
    """

    shape: PatchShape
    classes: tuple[str, ...]
    augment: AugmentOptions | None = None
    present: float = 0.0


class CropPatches:
    """Draws patches from crops, larger ones more often.

    Crops where none of the classes was looked for are left out.

    Raises
    ------
    DataError
        Nobody looked for any of the classes in any crop.
    VoxelSizeError
        EM or annotation has other voxels than the network.

    References
    ----------
    Heinrich et al., Nature 599:141 (2021), published training code (``train_cell_generic``).
    """

    def __init__(self, crops: Sequence[TrainingCrop], options: CropOptions) -> None:
        self.options = options
        self.crops = usable_crops(crops, options.classes)
        if not self.crops:
            raise DataError(
                f"no crop has {', '.join(options.classes)} annotated",
                hint="ids = FILE: documents of the crop database say which ids were looked for",
            )
        self.strides = [_stride(c, options.shape) for c in self.crops]
        self.em = [_fitting(c, options.shape) for c in self.crops]
        self.sizes = np.array([c.annotations.grid.size for c in self.crops], dtype=float)
        self.present = np.array(
            [
                any(c.annotations.of(n) is Annotation.PRESENT for n in options.classes)
                for c in self.crops
            ]
        )

    def draw(self, rng: np.random.Generator) -> Patch:
        """Draw a patch in which at least one voxel of one class is known.

        Raises
        ------
        DataError
            No place with enough annotated voxels was found.
        """
        empty = 0
        for _ in range(_TRIES):
            chosen = self._choose(rng)
            crop, stride = self.crops[chosen], self.strides[chosen]
            em = self.em[chosen][rng.integers(len(self.em[chosen]))]
            start, box = self._place(rng, crop.annotations.grid, em.grid, stride)
            if _annotated(crop, start, stride, self.options.shape.outputs) >= self._least(
                crop, stride
            ):
                patch = self._patch(rng, crop, em, (start, box, stride))
                if patch[2].any():
                    return patch
                empty += 1
            if empty == _MOST_EMPTY:
                raise DataError(
                    f"in {empty} patches that are annotated nothing can be known of "
                    f"{', '.join(self.options.classes)}: the border of the annotation is nearer "
                    "than their surface may be",
                    hint="take larger crops, or a larger output",
                )
        raise DataError(
            f"{_TRIES} places were tried and in none were enough voxels annotated",
            hint="take a smaller output, or crops with more annotation",
        )

    def _choose(self, rng: np.random.Generator) -> int:
        sizes = self.sizes
        if self.options.present and self.present.any() and rng.random() < self.options.present:
            sizes = sizes * self.present
        return int(rng.choice(len(self.crops), p=sizes / sizes.sum()))

    def _least(self, crop: TrainingCrop, stride: Shape) -> float:
        """Share of annotated voxels that a patch needs; less where the crop is smaller."""
        edge = self.options.shape.outputs
        shape = crop.annotations.grid.shape
        return LEAST_ANNOTATED * float(
            np.prod([min(1.0, n / (edge * s)) for n, s in zip(shape, stride, strict=True)])
        )

    def _place(
        self, rng: np.random.Generator, labels: Grid, em: Grid, stride: Shape
    ) -> tuple[Shape, Box]:
        """First label voxel of the targets, and the EM around; their edges coincide."""
        shape = self.options.shape
        start, first = [], []
        for axis in range(3):
            free = labels.shape[axis] - shape.outputs * stride[axis]
            wanted = int(rng.integers(min(free, 0), max(free, 0) + 1))
            fine, coarse = labels.spacing_nm[axis], em.spacing_nm[axis]
            edge, em_edge = labels.origin_nm[axis] - fine / 2, em.origin_nm[axis] - coarse / 2
            voxel = round((edge + wanted * fine - em_edge) / coarse)
            start.append(round((em_edge + voxel * coarse - edge) / fine))
            first.append(voxel - shape.halo)
        z, y, x = start
        low = Box(tuple(first), tuple(f + shape.inputs for f in first))  # type: ignore[arg-type]
        return (z, y, x), low

    def _patch(
        self,
        rng: np.random.Generator,
        crop: TrainingCrop,
        em: Volume,
        place: tuple[Shape, Box, Shape],
    ) -> Patch:
        start, box, stride = place
        context = _context(crop.annotations.grid, stride)
        stop = tuple(a + self.options.shape.outputs * s for a, s in zip(start, stride, strict=True))
        labels = Box(start, stop).grow(context)  # type: ignore[arg-type]
        augment = self.options.augment
        if augment is None:
            grey = (_grey(read_extended(em, box), crop.limits) * 2 - 1).astype(np.float32)
            arrays = _padded(crop.annotations, labels)
        else:
            around = em.grid.crop(box.grow(_reach(em.grid, crop.annotations.grid, context)))
            deformation = draw_deformation(rng, around, augment)
            grey = recolour(rng, _warped_em(em, box, crop.limits, deformation), augment)
            arrays = _warped_labels(crop.annotations, labels, deformation)
        target, known = crop.annotations.targets(arrays, self.options.classes, stride)
        inner = tuple(
            slice(c // s, c // s + self.options.shape.outputs)
            for c, s in zip(context, stride, strict=True)
        )
        patch = grey, target[(slice(None), *inner)], known[(slice(None), *inner)]
        if augment is None:
            return patch
        turned = turn(rng, *patch)
        return turned[0], turned[1], turned[2]


def digest(crops: Iterable[TrainingCrop]) -> str:
    """Tell crops from others: what is annotated, and the EM that it lies in, voxel by voxel."""
    known = hashlib.sha256()
    for crop in crops:
        labels = crop.annotations.grid
        told = [crop.annotations.of(category.name).name for category in CATEGORIES]
        known.update(f"{crop.name} {crop.limits} {labels} {told}".encode())
        for box in _slabs(Box((0, 0, 0), labels.shape)):
            for name, array in crop.annotations.read(box).items():
                known.update(f"{name} {array.dtype}".encode() + np.ascontiguousarray(array).data)
        for em in crop.em:
            index = em.grid.to_index(labels.corners_nm())
            low, high = np.floor(index.min(axis=0)), np.ceil(index.max(axis=0)) + 1
            within = Box(tuple(low.astype(int)), tuple(high.astype(int))).clip(em.grid.shape)
            known.update(f"{em.grid} {em.dtype}".encode())
            for box in _slabs(within):
                known.update(np.ascontiguousarray(em.read(box)).data)
    return known.hexdigest()[:16]


def _slabs(box: Box) -> Iterator[Box]:
    """Parts of a box that fit into memory, along z."""
    (low, y, x), (high, *ends) = box.start, box.stop
    for z in range(low, high, _SLAB):
        yield Box((z, y, x), (min(z + _SLAB, high), ends[0], ends[1]))


def usable_crops(crops: Sequence[TrainingCrop], classes: Sequence[str]) -> list[TrainingCrop]:
    """Return the crops in which somebody looked for one of the classes."""
    return [
        crop
        for crop in crops
        if any(crop.annotations.of(name) is not Annotation.UNKNOWN for name in classes)
    ]


def _stride(crop: TrainingCrop, shape: PatchShape) -> Shape:
    """Label voxels in a voxel of the targets, zyx."""
    labels = np.asarray(crop.annotations.grid.spacing_nm)
    stride = np.maximum(1, np.rint(shape.output_nm / labels))
    if misfit(stride * labels, shape.output_nm) > TOLERATED_RATIO:
        raise VoxelSizeError(
            f"{crop.name}: labels of {tuple(labels.tolist())} nm (z, y, x) are too coarse for "
            f"targets of {shape.output_nm:g} nm"
        )
    z, y, x = (int(s) for s in stride)
    return z, y, x


def _fitting(crop: TrainingCrop, shape: PatchShape) -> tuple[Volume, ...]:
    """EM with the voxels that the network sees."""
    fit = tuple(
        em for em in crop.em if misfit(em.grid.spacing_nm, shape.input_nm) <= TOLERATED_RATIO
    )
    if not fit:
        raise VoxelSizeError(
            f"{crop.name}: EM of {[em.grid.spacing_nm for em in crop.em]} nm (z, y, x) cannot "
            f"teach a network for {shape.input_nm:g} nm",
            hint='choose the EM of a COSEM sample: em = "fine", "averaged" or "phases"',
        )
    return fit


def _context(labels: Grid, stride: Shape) -> Shape:
    """Label voxels around a patch on which its targets depend, in whole target voxels."""
    needed = context_voxels(labels.spacing_nm)
    z, y, x = (-(-n // s) * s for n, s in zip(needed, stride, strict=True))
    return z, y, x


def _reach(em: Grid, labels: Grid, context: Shape) -> Shape:
    """EM voxels that hold the context of the labels, with some to spare."""
    z, y, x = (
        int(np.ceil(c * fine / coarse)) + 2
        for c, fine, coarse in zip(context, labels.spacing_nm, em.spacing_nm, strict=True)
    )
    return z, y, x


def _annotated(crop: TrainingCrop, start: Shape, stride: Shape, outputs: int) -> float:
    """Share of the voxels of a patch where anything is annotated."""
    stop = tuple(a + outputs * s for a, s in zip(start, stride, strict=True))
    arrays = _padded(crop.annotations, Box(start, stop))  # type: ignore[arg-type]
    every = arrays.get("all")
    if every is None:
        return float(np.any([a > 0 for a in arrays.values()], axis=0).mean())
    return float((every > 0).mean())


def _padded(annotations: Annotations, box: Box) -> Arrays:
    """Labels in a box that may reach outside: 0 there."""
    inside = box.clip(annotations.grid.shape)
    if not inside.size:
        return _nothing(annotations, box.shape)
    width = [
        (low - a, b - high)
        for a, b, low, high in zip(box.start, box.stop, inside.start, inside.stop, strict=True)
    ]
    return {name: np.pad(a, width) for name, a in annotations.read(inside).items()}


def _nothing(annotations: Annotations, shape: Shape) -> Arrays:
    one = annotations.read(Box((0, 0, 0), (1, 1, 1)))
    return {name: np.zeros(shape, a.dtype) for name, a in one.items()}


def _grey(values: FloatArray, limits: tuple[float, float]) -> FloatArray:
    low, high = limits
    return np.asarray(np.clip((values - low) / (high - low), 0, 1), dtype=np.float32)


def _source(grid: Grid, target: Grid, deformation: Deformation) -> Box:
    """Voxels of `grid` from which the voxels of `target` are taken."""
    low, high = (grid.to_index(nm) for nm in deformation.reach_nm(target))
    start, stop = np.floor(low).astype(int) - 1, np.ceil(high).astype(int) + 2
    return Box(tuple(start), tuple(stop))


def _warped_em(
    em: Volume, box: Box, limits: tuple[float, float], deformation: Deformation
) -> FloatArray:
    target = em.grid.crop(box)
    source = _source(em.grid, target, deformation)
    values = _grey(read_extended(em, source), limits)
    return np.asarray(warp(values, em.grid.crop(source), target, deformation))


def _warped_labels(annotations: Annotations, box: Box, deformation: Deformation) -> Arrays:
    target = annotations.grid.crop(box)
    source = _source(annotations.grid, target, deformation).clip(annotations.grid.shape)
    if not source.size:
        return _nothing(annotations, box.shape)
    grid = annotations.grid.crop(source)
    return {
        name: warp(a, grid, target, deformation) for name, a in annotations.read(source).items()
    }
