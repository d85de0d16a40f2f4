"""OME-Zarr 0.4 (zarr v2) and 0.5 (zarr v3), read and written with zarr-python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.errors import FormatError, MissingError, VoxelSizeError
from clemreg.io.source import AxesView, Level, Source, require_spatial
from clemreg.space.grid import Grid
from clemreg.units import nm_per

MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


def matches(path: Path) -> bool:
    """Tell whether a folder is zarr."""
    return path.is_dir() and any((path / name).is_file() for name in MARKERS)


def open_source(path: Path, inner: str = "") -> Source:
    """Open an OME-Zarr image group, or one array of its pyramid.

    Raises
    ------
    FormatError
        No multiscales metadata, or axes that are not a volume.
    """
    import zarr

    target = path / inner if inner else path
    try:
        node = zarr.open(str(target), mode="r")
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{target} is not a readable zarr: {error}") from error
    if isinstance(node, zarr.Array):
        return _open_array(target, node)
    multiscales = _multiscales(node.attrs.asdict())
    if multiscales is None:
        children = sorted(child.name for child in target.iterdir() if matches(child))
        raise FormatError(
            f"{target} is a zarr group without OME multiscales metadata",
            hint=f"name what is inside it: {', '.join(children[:12]) or 'it is empty'}",
        )
    return _open_multiscale(target, node, multiscales)


def _multiscales(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    container = attributes.get("ome", attributes)
    found = container.get("multiscales")
    if not found:
        return None
    return {**found[0], "omero": container.get("omero", attributes.get("omero"))}


def finest_array(path: Path) -> str:
    """Return the path of the finest level inside an image; empty if `path` is that array itself."""
    import zarr

    node = zarr.open(str(path), mode="r")
    multiscales = None if isinstance(node, zarr.Array) else _multiscales(node.attrs.asdict())
    return "" if multiscales is None else str(multiscales["datasets"][0]["path"])


def _open_array(target: Path, array: Any) -> Source:
    """Take a single array's geometry from the multiscales of a group above it."""
    import zarr

    for parent in list(target.parents)[:3]:
        if not matches(parent):
            break
        group = zarr.open(str(parent), mode="r")
        multiscales = None if isinstance(group, zarr.Array) else _multiscales(group.attrs.asdict())
        if multiscales is None:
            continue
        wanted = target.relative_to(parent).as_posix()
        source = _open_multiscale(parent, group, multiscales)
        paths = [d["path"].strip("/") for d in multiscales["datasets"]]
        if wanted in paths:
            index = paths.index(wanted)
            return Source(source.format, source.levels[index:], source.channels, source.unit)
    axes = {3: "zyx", 4: "czyx"}.get(array.ndim)
    if axes is None:
        raise FormatError(f"{target}: a bare array with {array.ndim} axes is not a volume")
    channels = tuple(str(i) for i in range(array.shape[0])) if "c" in axes else ()
    level = Level(AxesView(array, axes, str(target)), None)
    return Source("zarr array", (level,), channels)


def _open_multiscale(target: Path, group: Any, meta: Mapping[str, Any]) -> Source:
    axes = _axis_letters(meta, target)
    units = {
        axis["name"]: axis.get("unit", "")
        for axis in meta.get("axes", [])
        if isinstance(axis, dict)
    }
    levels = []
    for dataset in meta["datasets"]:
        try:
            array = group[dataset["path"]]
        except KeyError as error:
            raise FormatError(
                f"{target}: its metadata names {dataset['path']!r}, which is not there",
                hint="the copy is incomplete",
            ) from error
        require_spatial(axes, array.shape, str(target))
        spacing, origin = _geometry(dataset, meta, axes, units)
        levels.append(Level(AxesView(array, axes, f"{target}/{dataset['path']}"), spacing, origin))
    count = dict(zip(axes, group[meta["datasets"][0]["path"]].shape, strict=True)).get("c", 0)
    version = "0.5" if "ome" in group.attrs.asdict() else str(meta.get("version", "0.4"))
    names = _channel_names(meta.get("omero"), count)
    return Source(f"OME-Zarr {version}", tuple(levels), names, units.get("x", ""))


def _axis_letters(meta: Mapping[str, Any], target: Path) -> str:
    axes = meta.get("axes")
    if not axes:
        raise FormatError(
            f"{target}: multiscales without axes", hint="OME-Zarr 0.4 or newer is read"
        )
    return "".join((a["name"] if isinstance(a, dict) else a)[0].lower() for a in axes)


def _geometry(
    dataset: Mapping[str, Any], meta: Mapping[str, Any], axes: str, units: Mapping[str, str]
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float]]:
    """Compose the dataset's transformations, then those of the whole multiscale."""
    scale, shift = np.ones(len(axes)), np.zeros(len(axes))
    transforms = [
        *dataset.get("coordinateTransformations", []),
        *meta.get("coordinateTransformations", []),
    ]
    for transform in transforms:
        if transform["type"] == "scale":
            factor = np.asarray(transform["scale"], dtype=float)
            scale, shift = scale * factor, shift * factor
        elif transform["type"] == "translation":
            shift = shift + np.asarray(transform["translation"], dtype=float)
    spatial = [axes.index(a) for a in "zyx"]
    if not transforms or not all(units.get(a) for a in "zyx"):
        return None, (0.0, 0.0, 0.0)
    factors = np.array([nm_per(units[a]) for a in "zyx"])
    z, y, x = (scale[spatial] * factors).tolist()
    oz, oy, ox = (shift[spatial] * factors).tolist()
    return (z, y, x), (oz, oy, ox)


def _channel_names(omero: Any, count: int) -> tuple[str, ...]:
    if not count:
        return ()
    labels = [str(c.get("label", "")) for c in (omero or {}).get("channels", [])]
    names = [labels[i] if i < len(labels) and labels[i] else f"channel {i}" for i in range(count)]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names)]
    return tuple(names)


def multiscales_metadata(
    name: str, grids: Sequence[Grid], channels: Sequence[Mapping[str, Any]], version: str
) -> dict[str, Any]:
    """Attributes of an image group whose levels ``s0, s1 ...`` lie on `grids`.

    Parameters
    ----------
    channels
        One mapping a channel with label, colour (hex) and window; empty without a channel axis.
    version
        ``"0.4"`` or ``"0.5"``.
    """
    lead = [1.0] if channels else []
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if channels else []
    axes += [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    datasets = [
        {
            "path": f"s{i}",
            "coordinateTransformations": [
                {"type": "scale", "scale": [*lead, *grid.spacing_nm]},
                {"type": "translation", "translation": [0.0] * len(lead) + [*grid.origin_nm]},
            ],
        }
        for i, grid in enumerate(grids)
    ]
    multiscale: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets}
    omero = {"omero": {"channels": list(channels)}} if channels else {}
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **multiscale}], **omero}
    return {"ome": {"version": version, "multiscales": [multiscale], **omero}}


def missing_voxel_size(name: str) -> VoxelSizeError:
    """Error for a file that does not state its voxel size."""
    return VoxelSizeError(
        f"{name} does not say its voxel size and unit",
        hint='give it: --spacing "8, 8, 8 nm" (x, y, z), or voxel_size in the configuration',
    )


def missing_path(path: Path) -> MissingError:
    """Error for a path that is not there, naming what is near."""
    folder = path.parent
    near = sorted(p.name for p in folder.iterdir())[:12] if folder.is_dir() else []
    hint = f"{folder} holds: {', '.join(near)}" if near else f"there is no folder {folder}"
    return MissingError(f"there is no {path}", hint=hint)
