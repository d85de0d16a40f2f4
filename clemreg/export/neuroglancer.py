"""A Neuroglancer state: layers that point at OME-Zarr served on this computer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from clemreg.export.ngff import Display
from clemreg.io.atomic import atomic_write_json
from clemreg.space.grid import Grid
from clemreg.space.transform import Affine

_NM = [1e-9, "m"]
_CHANNEL = "c^"  # the mark makes it a channel, not an axis of the view


@dataclass(frozen=True, eq=False)
class NeuroglancerLayer:
    """One image.

    Attributes
    ----------
    name
        Shown on the layer.
    source
        Path of the OME-Zarr below the folder that is served.
    displays
        One a channel.
    has_channels
        Whether the image has a channel axis.
    to_world
        Its frame to the world; None if it is there.
    is_labels
        Whether it is a segmentation.
    """

    name: str
    source: str
    displays: tuple[Display, ...] = ()
    has_channels: bool = False
    to_world: Affine | None = None
    is_labels: bool = False


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
    Matrices are written for axes z, y, x in nm, as input and output, so that they are the
    transform itself; a deformation cannot be shown and must be resampled.
    """
    z, y, x = (float(v) for v in view.centre_nm)
    return {
        "dimensions": dict.fromkeys("xyz", _NM),
        "position": [x, y, z],
        "crossSectionScale": min(view.spacing_nm),
        "projectionScale": float(max(view.extent_nm)),
        "layers": [_layer(layer, server.rstrip("/")) for layer in layers],
        "layout": "4panel",
    }


def write_neuroglancer(path: Path, state: dict[str, Any]) -> None:
    """Write a state as JSON, to be pasted into Neuroglancer's state editor (the {} button)."""
    atomic_write_json(path, state)


def state_link(state: dict[str, Any], viewer: str) -> str:
    """Return a link that opens the state in the Neuroglancer at `viewer`."""
    return f"{viewer.rstrip('/')}/#!{quote(json.dumps(state, separators=(',', ':')))}"


def _layer(layer: NeuroglancerLayer, server: str) -> dict[str, Any]:
    source: dict[str, Any] = {"url": f"zarr://{server}/{quote(layer.source)}"}
    record: dict[str, Any] = {"name": layer.name, "source": source}
    if layer.to_world is not None or layer.has_channels:
        source["transform"] = _transform(layer)
    if layer.is_labels:
        return {"type": "segmentation", **record}
    if layer.has_channels:
        record["channelDimensions"] = {_CHANNEL: [1, ""]}
    return {
        "type": "image",
        **record,
        "shader": _shader(layer.displays),
        "blend": "additive",
        "opacity": 1,
    }


def _transform(layer: NeuroglancerLayer) -> dict[str, Any]:
    """Matrix (rows by columns and shift) over the image's axes; channels stay as they are."""
    matrix = np.eye(4) if layer.to_world is None else layer.to_world.matrix
    dimensions: dict[str, Any] = dict.fromkeys("zyx", _NM)
    if layer.has_channels:
        matrix = np.block([[np.eye(1), np.zeros((1, 4))], [np.zeros((4, 1)), matrix]])
        dimensions = {_CHANNEL: [1, ""], **dimensions}
    return {
        "matrix": matrix[:-1].tolist(),
        "inputDimensions": dimensions,
        "outputDimensions": dimensions,
    }


def _shader(displays: Sequence[Display]) -> str:
    """Sum of the channels, each in its colour between the ends of its window."""
    controls, terms = [], []
    for number, display in enumerate(displays):
        low, high = (repr(float(v)) for v in display.window)
        red, green, blue = (f"{c / 255:.4f}" for c in display.colour)
        controls.append(
            f"#uicontrol invlerp channel{number}(range=[{low}, {high}], channel=[{number}])"
        )
        terms.append(f"vec3({red}, {green}, {blue}) * channel{number}()")
    if len(displays) == 1:
        controls = [controls[0].replace(", channel=[0]", "")]
    return "\n".join([*controls, f"void main() {{ emitRGB({' + '.join(terms)}); }}"]) + "\n"
