"""Training targets of the COSEM paper: tanh of the signed distance, and where it can be known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.errors import DataError, GridError
from clemreg.io.quantise import SCALE_NM
from clemreg.segment.classes import AnnotatedIds, Annotation, Category, category

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

LIMIT_NM = 2.76 * SCALE_NM
"""Longer distances count as this: where tanh cannot be told from 1 in uint8."""


@dataclass(frozen=True, eq=False)
class Target:
    """Signed distance of one class in one block.

    Attributes
    ----------
    distance_nm
        Positive inside (z, y, x), clipped.
    known
        Where it is certain (z, y, x): annotated, and no nearer to something unknown than to the
        surface.
    """

    distance_nm: FloatArray
    known: BoolArray

    @property
    def tanh(self) -> FloatArray:
        """What the network's output is compared with."""
        return np.asarray(np.tanh(self.distance_nm / np.float32(SCALE_NM)), dtype=np.float32)


def context_voxels(spacing_nm: Sequence[float]) -> tuple[int, int, int]:
    """Voxels zyx that a block of targets needs on each side, to be cut off afterwards.

    Examples
    --------
    >>> context_voxels((4.0, 4.0, 4.0))
    (35, 35, 35)
    """
    z, y, x = (int(LIMIT_NM // s) + 1 for s in spacing_nm)
    return z, y, x


def signed_distance_nm(mask: BoolArray, spacing_nm: Sequence[float]) -> FloatArray:
    """Signed distance as in the paper: 0 in the outermost layer inside, negative outside.

    Inside, the distance to the nearest voxel that is not wholly surrounded (26 neighbours);
    outside, minus the distance to the nearest voxel inside. A block that is all inside or all
    outside has plus the distance to its border, or minus that and 1 nm: the surface is at
    least so far away.

    Parameters
    ----------
    mask
        The structure (z, y, x).
    spacing_nm
        Voxel size zyx.

    References
    ----------
    Heinrich et al., Nature 599:141 (2021), published training code (``AddDistance``).
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.all():
        return _depth_nm(mask.shape, spacing_nm)
    if not mask.any():
        return -(_depth_nm(mask.shape, spacing_nm) + np.float32(1))
    # One transform for both sides: the voxel nearest to either lies in the layer between them.
    sides = np.where(mask, _eroded(mask), np.uint8(2)).astype(np.uint8)
    distance = _distance(sides, spacing_nm)
    return np.negative(distance, out=distance, where=~mask)


def grow(mask: BoolArray, grown_nm: float, spacing_nm: Sequence[float]) -> BoolArray:
    """Take in everything up to `grown_nm` away; nothing, if the mask is all or empty.

    This is the mask whose signed distance `label_target` makes of annotations drawn too small.
    """
    if not grown_nm or mask.all() or not mask.any():
        return mask
    return np.asarray(signed_distance_nm(mask, spacing_nm) + np.float32(grown_nm) >= 0)


def border_distance_nm(known: BoolArray, spacing_nm: Sequence[float]) -> FloatArray:
    """Distance to the nearest voxel beside something unknown, or beside the block's border."""
    box = _filled_box(known)
    if box is None:
        eroded = _eroded(np.pad(known, 1))
        return _distance(eroded, spacing_nm)[1:-1, 1:-1, 1:-1]
    distance = np.zeros(known.shape, dtype=np.float32)
    inside = distance[box]
    inside[...] = _depth_nm(inside.shape, spacing_nm)
    return distance


def _filled_box(mask: BoolArray) -> tuple[slice, ...] | None:
    """Box that a mask is, all of it; None if it has another shape."""
    spans = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        found = np.flatnonzero(mask.any(axis=others))
        spans.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0))
    box = tuple(spans)
    return box if mask[box].all() else None


def _depth_nm(shape: Sequence[int], spacing_nm: Sequence[float]) -> FloatArray:
    """Distance of each voxel of a block to its outermost layer."""
    depth = np.full(tuple(shape), np.inf, dtype=np.float32)
    for axis, (n, s) in enumerate(zip(shape, spacing_nm, strict=True)):
        index = np.arange(n)
        along = (np.minimum(index, index[::-1]) * s).astype(np.float32)
        np.minimum(depth, along.reshape([n if a == axis else 1 for a in range(3)]), out=depth)
    return depth


def _eroded(mask: BoolArray) -> BoolArray:
    """Voxels whose 26 neighbours are all inside; beyond the block is inside."""
    result = np.array(mask, dtype=bool)
    for axis in range(mask.ndim):
        along = np.moveaxis(result, axis, 0)
        before = along.copy()
        along[1:] &= before[:-1]
        along[:-1] &= before[1:]
    return result


def _distance(parts: NDArray[Any], spacing_nm: Sequence[float]) -> FloatArray:
    """Distance to the nearest voxel of another part; 0 in part 0."""
    import edt

    anisotropy = tuple(float(s) for s in spacing_nm)
    result: FloatArray = edt.edt(np.ascontiguousarray(parts), anisotropy=anisotropy, parallel=1)
    return result


def label_target(
    mask: BoolArray,
    annotated: BoolArray,
    spacing_nm: Sequence[float],
    *,
    grown_nm: float = 0.0,
    stride: Sequence[int] = (2, 2, 2),
    border_nm: FloatArray | None = None,
) -> Target:
    """Target of one class from its annotation, on every `stride`-th voxel.

    Parameters
    ----------
    mask
        Where the class is annotated to be (z, y, x).
    annotated
        Where it was looked for (z, y, x).
    spacing_nm
        Voxel size zyx of the annotation.
    grown_nm
        Added to the distance, for annotations that are drawn too small; not where the block is
        all inside or all outside.
    stride
        Annotations have 2 nm voxels, targets 4 nm: every second voxel counts.
    border_nm
        `border_distance_nm` of `annotated`, if it is at hand: many classes share one.

    Raises
    ------
    GridError
        The shapes differ.
    """
    if mask.shape != annotated.shape or mask.ndim != 3:
        raise GridError(f"mask {mask.shape} and annotated {annotated.shape} are not one (z, y, x)")
    thin = tuple(slice(None, None, int(s)) for s in stride)
    low, high = np.float32(-LIMIT_NM - grown_nm), np.float32(LIMIT_NM - grown_nm)
    distance = np.clip(signed_distance_nm(mask, spacing_nm)[thin], low, high)
    if border_nm is None:
        border_nm = border_distance_nm(annotated, spacing_nm)
    border = np.clip(border_nm[thin], low, high)
    size = np.abs(distance)
    doubtful = np.where(
        distance >= 0,
        (size >= border) & (border < high),
        (size >= border + 1) & (border + 1 < high),
    )
    if grown_nm and mask.any() and not mask.all():
        distance = distance + np.float32(grown_nm)
    return Target(distance, annotated[thin] & ~doubtful)


def unknown_target(shape: Sequence[int], stride: Sequence[int] = (2, 2, 2)) -> Target:
    """Target of a class that nobody looked for: known nowhere, as far away as can be."""
    thin = tuple(-(-n // int(s)) for n, s in zip(shape, stride, strict=True))
    far = np.full(thin, -LIMIT_NM, dtype=np.float32)
    return Target(far, np.zeros(thin, dtype=bool))


def crop_targets(
    label_sets: Mapping[str, NDArray[Any]],
    ids: AnnotatedIds,
    spacing_nm: Sequence[float],
    classes: Sequence[str],
    *,
    stride: Sequence[int] = (2, 2, 2),
) -> tuple[FloatArray, BoolArray]:
    """Targets of a block of annotations: tanh distances and where they are known.

    Parameters
    ----------
    label_sets
        Atomic ids (z, y, x): ``all`` with 0 where nothing is annotated, and the separate sets
        (``ribosomes``, ``nucleolus``, ``centrosome``) where the crop has them.
    ids
        Which ids were looked for.
    spacing_nm
        Voxel size zyx of the annotation.
    classes
        Names of the outputs.

    Returns
    -------
    tuple
        (class, z, y, x) float32 and bool. A class that absorbs others has the largest of the
        distances, and is known where any of them is.

    Raises
    ------
    DataError
        There is no label set ``all``.
    """
    if "all" not in label_sets:
        raise DataError(
            f"annotations have the label sets {sorted(label_sets)}, but not 'all'",
            hint="labels/all says which voxels are annotated",
        )
    names = [category(name).name for name in classes]
    needed = {name: _absorbed(name) for name in names}
    border = border_distance_nm(label_sets["all"] > 0, spacing_nm)

    def target_of(kind: Category) -> Target:
        if ids.of(kind) is Annotation.UNKNOWN:
            return unknown_target(border.shape, stride)
        every = label_sets["all"]
        labels = label_sets.get(kind.separate, every) if kind.separate else every
        return label_target(
            np.isin(labels, kind.ids),
            every > 0,
            spacing_nm,
            grown_nm=kind.grown_nm,
            stride=stride,
            border_nm=border,
        )

    own = {name: target_of(category(name)) for name in sorted(set().union(*needed.values()))}
    combined = [combine([own[part] for part in needed[name]]) for name in names]
    return np.stack([t.tanh for t in combined]), np.stack([t.known for t in combined])


def combine(parts: Sequence[Target]) -> Target:
    """Join classes: the largest distance, known where any is; exact if they do not touch."""
    if len(parts) == 1:
        return parts[0]
    return Target(
        np.max([p.distance_nm for p in parts], axis=0), np.any([p.known for p in parts], axis=0)
    )


def _absorbed(name: str) -> tuple[str, ...]:
    """Return a class with all that is joined to it; a microtubule takes the centrosome alone."""
    return (name, *category(name).absorbs)
