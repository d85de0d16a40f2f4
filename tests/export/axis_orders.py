"""OME-Zarr images as other programs write them."""

from __future__ import annotations

import numpy as np
import zarr


def write_in_order(path, pixels, grid, order):
    """An OME-Zarr 0.4 of zyx pixels whose axes stand in another order, t and c of length 1."""
    kinds = {"t": {"type": "time", "unit": "second"}, "c": {"type": "channel"}}
    space = {"type": "space", "unit": "nanometer"}
    sizes, starts = (
        dict(zip("zyx", values, strict=True)) for values in (grid.spacing_nm, grid.origin_nm)
    )
    full = np.einsum("zyx->" + "".join(a for a in order if a in "zyx"), pixels)
    full = full.reshape([pixels.shape["zyx".index(a)] if a in "zyx" else 1 for a in order])
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.create_array("0", data=full, chunk_key_encoding={"name": "v2", "separator": "/"})
    steps = [
        {"type": "scale", "scale": [sizes.get(a, 1.0) for a in order]},
        {"type": "translation", "translation": [starts.get(a, 0.0) for a in order]},
    ]
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "name": "image",
            "axes": [{"name": a, **kinds.get(a, space)} for a in order],
            "datasets": [{"path": "0", "coordinateTransformations": steps}],
        }
    ]
