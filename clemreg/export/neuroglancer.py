"""A Neuroglancer state: layers that point at OME-Zarr served on this computer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from clemreg.export.ngff import Display, over_axes
from clemreg.io.atomic import atomic_write_json
from clemreg.space.grid import Grid, Triple
from clemreg.space.transform import Affine, FloatArray

_NM = [1e-9, "m"]
_LOCAL = [1, ""]


@dataclass(frozen=True, eq=False)
class NeuroglancerLayer:
    """One image; each of its channels becomes a layer of its own.

    Attributes
    ----------
    name
        Shown on the layer, before the name of a channel.
    source
        Path of the OME-Zarr below the folder that is served.
    displays
        One a channel; none for labels.
    axes
        A letter for each axis of the image, in the order in which they are stored.
    to_world
        Its frame to the world; None if it is there.
    is_labels
        Whether it is a segmentation.
    shifts_nm
        Added (zyx) to where the file says that a channel is, one a channel; none: nothing.
    """

    name: str
    source: str
    displays: tuple[Display, ...] = ()
    axes: str = "zyx"
    to_world: Affine | None = None
    is_labels: bool = False
    shifts_nm: tuple[Triple, ...] = ()


def neuroglancer_state(
    layers: Sequence[NeuroglancerLayer], view: Grid, server: str = "http://127.0.0.1:9000"
) -> dict[str, Any]:
    """Return the state that shows the layers in one world.

    Parameters
    ----------
    layers
        Bottom first.
    view
        Grid whose middle is looked at.
    server
        Where the folder with the images is served; it must allow cross-origin requests.

    Notes
    -----
    Matrices are the transform itself: from places in the image to axes z, y, x in nm. What the
    image says of its voxels stays in force; `inputDimensions` would take its place, and voxels of
    16 nm would be shown as 1 nm. A deformation cannot be shown and must be resampled.
    """
    z, y, x = (float(v) for v in view.centre_nm)
    return {
        "dimensions": dict.fromkeys("xyz", _NM),
        "position": [x, y, z],
        "crossSectionScale": min(view.spacing_nm),
        "projectionScale": float(max(view.extent_nm)),
        "layers": [record for layer in layers for record in _layers(layer, server.rstrip("/"))],
        "layout": "4panel",
    }


def write_neuroglancer(path: Path, state: dict[str, Any]) -> None:
    """Write a state as JSON, to be pasted into Neuroglancer's state editor (the {} button)."""
    atomic_write_json(path, state)


def state_link(state: dict[str, Any], viewer: str) -> str:
    """Return a link that opens the state in the Neuroglancer at `viewer`."""
    return f"{viewer.rstrip('/')}/#!{quote(json.dumps(state, separators=(',', ':')))}"


def _layers(layer: NeuroglancerLayer, server: str) -> Iterator[dict[str, Any]]:
    """Yield what Neuroglancer's layers are made of.

    Channels could share a layer only if each block held all of them (dimension ``c^``); with other
    blocks, such as clemreg's and most microscopes', nothing would be drawn.
    """
    if layer.is_labels:
        source = _source(layer, 0, server)
        yield {"type": "segmentation", "name": layer.name, "source": source, **_place(layer, 0)}
        return
    for number, display in enumerate(layer.displays):
        name = f"{layer.name} {display.name or number}" if "c" in layer.axes else layer.name
        yield {
            "type": "image",
            "name": name,
            "source": _source(layer, number, server),
            **_place(layer, number),
            "shader": _shader(display),
            "blend": "additive",
            "opacity": 1,
        }


def _others(layer: NeuroglancerLayer) -> dict[str, Any]:
    """Dimensions beside z, y, x; the mark keeps them out of the axes of the view."""
    return {f"{axis}'": _LOCAL for axis in layer.axes if axis not in "zyx"}


def _place(layer: NeuroglancerLayer, number: int) -> dict[str, Any]:
    """Which channel is shown, and of other axes their only position."""
    others = _others(layer)
    position = [number if name == "c'" else 0 for name in others]
    return {"localDimensions": others, "localPosition": position} if others else {}


def _source(layer: NeuroglancerLayer, number: int, server: str) -> dict[str, Any]:
    """Where the pixels of a channel are, and its transform if it is not where the file says."""
    source: dict[str, Any] = {"url": f"zarr://{server}/{quote(layer.source)}"}
    shift = layer.shifts_nm[number] if layer.shifts_nm else (0.0, 0.0, 0.0)
    if layer.to_world is None and not any(shift) and set(layer.axes) <= set("czyx"):
        return source
    moved = np.eye(4)
    moved[:3, 3] = shift
    matrix = moved if layer.to_world is None else layer.to_world.matrix @ moved
    return source | {"transform": _transform(layer, matrix)}


def _transform(layer: NeuroglancerLayer, matrix: FloatArray) -> dict[str, Any]:
    """Matrix (rows by columns and shift) over the stored axes; those beside z, y, x stay."""
    kept = np.eye(len(layer.axes), len(layer.axes) + 1)
    others = kept[[axis not in "zyx" for axis in layer.axes]]
    rows = np.vstack([others, over_axes(matrix[:3], layer.axes)])
    dimensions = {**_others(layer), **dict.fromkeys("zyx", _NM)}
    return {"matrix": rows.tolist(), "outputDimensions": dimensions}


def _shader(display: Display) -> str:
    """Its colour between the ends of its window."""
    low, high = (repr(float(v)) for v in display.window)
    colour = ", ".join(f"{c / 255:.4f}" for c in display.colour)
    return (
        f"#uicontrol invlerp normalized(range=[{low}, {high}])\n"
        f"void main() {{ emitRGB(vec3({colour}) * normalized()); }}\n"
    )
