"""A page on which two predictions are judged without knowing which is which."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clemreg.evaluate.blinded import Pair
from clemreg.report.html import fill
from clemreg.space.grid import Triple

GREEN = (70, 255, 90, 255)
Bytes = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]
Shown = tuple[Pair, Bytes, BoolArray, BoolArray]


def render_pairs(title: str, shown: Sequence[Shown], spacing_nm: Triple, identity: str) -> str:
    """Return the page; what is on which side is not in it.

    Parameters
    ----------
    shown
        For each place: the pair, the EM as grey levels, and the masks of predictions a and b,
        each (z, y, x) of its box.
    spacing_nm
        Voxel size zyx; flat voxels are drawn as such.
    identity
        What tells this comparison from others; it stands in the table of choices.
    """
    pairs = []
    for pair, em, mask_a, mask_b in shown:
        left, right = (mask_a, mask_b) if pair.left == "a" else (mask_b, mask_a)
        pictures = {"em": montage(em, spacing_nm)}
        pictures |= {"left": outlines(left, spacing_nm), "right": outlines(right, spacing_nm)}
        uris = {name: data_uri(picture) for name, picture in pictures.items()}
        pairs.append({"number": pair.number} | uris)
    return fill("blinded.html", title=title, pairs=pairs, identity=identity)


def montage(volume: NDArray[Any], spacing_nm: Triple) -> NDArray[Any]:
    """Three planes through the middle (xy, xz, yz), one below the other."""
    return _below_each_other(_planes(volume, spacing_nm))


def outlines(mask: BoolArray, spacing_nm: Triple) -> Bytes:
    """Outline of a mask in the same three planes: green, and transparent elsewhere; RGBA."""
    edges = _below_each_other([_outline(plane) for plane in _planes(mask, spacing_nm)])
    rgba = np.zeros((*edges.shape, 4), dtype=np.uint8)
    rgba[edges] = GREEN
    return rgba


def _planes(volume: NDArray[Any], spacing_nm: Triple) -> list[NDArray[Any]]:
    """Planes with square pixels as large as the voxel's shortest edge."""
    pixel = min(spacing_nm)
    seen = [
        ((np.arange(max(1, round(n * s / pixel))) + 0.5) * pixel / s).astype(int).clip(0, n - 1)
        for n, s in zip(volume.shape, spacing_nm, strict=True)
    ]
    middle = [volume.take(n // 2, axis) for axis, n in enumerate(volume.shape)]
    return [
        plane[np.ix_(*(rows for other, rows in enumerate(seen) if other != axis))]
        for axis, plane in enumerate(middle)
    ]


def _below_each_other(planes: Sequence[NDArray[Any]]) -> NDArray[Any]:
    width = max(plane.shape[1] for plane in planes)
    padded = []
    for plane in planes:
        missing = width - plane.shape[1]
        padded.append(np.pad(plane, ((0, 2), (missing // 2, missing - missing // 2))))
    return np.concatenate(padded)


def _outline(mask: BoolArray) -> BoolArray:
    """Pixels of the mask with a neighbour outside of it; the picture's border is no edge."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    result: BoolArray = mask & ~inside
    return result


def data_uri(picture: Bytes) -> str:
    """Return a grey (y, x) or RGBA (y, x, 4) picture as an inline PNG address."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def as_grey(values: NDArray[Any], limits: tuple[float, float]) -> Bytes:
    """Map grey values so that `limits` become black and white."""
    low, high = limits
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.asarray(np.clip(scaled, 0, 255), dtype=np.uint8)
