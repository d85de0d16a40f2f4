"""N5 as COSEM / OpenOrganelle and n5-viewer write it, through tensorstore; stored x, y, z."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clemreg.errors import FormatError, StorageError
from clemreg.io.source import AxesView, Level, Source, require_spatial
from clemreg.space.grid import Grid
from clemreg.units import nm_per

Attributes = Mapping[str, Any]
Triple = tuple[float, float, float]


def matches(path: Path) -> bool:
    """Tell whether a folder is an N5 group or dataset."""
    return path.is_dir() and (path / "attributes.json").is_file()


def open_source(path: Path, inner: str = "") -> Source:
    """Open an N5 dataset, or a group whose children s0, s1 ... are a pyramid; never writes.

    Raises
    ------
    FormatError
        There is no dataset there, or its metadata contradict each other.
    """
    target = path / inner if inner else path
    attributes = read_attributes(target)
    if "dimensions" in attributes:
        level = _level(target, attributes, read_attributes(target.parent), target.name)
        return _source((level,), attributes)
    names = sorted(
        (p.name for p in target.glob("s[0-9]*") if "dimensions" in read_attributes(p)),
        key=lambda name: int(name[1:]),
    )
    if not names:
        children = sorted(p.name for p in target.iterdir() if p.is_dir())
        raise FormatError(
            f"{target} is an N5 group without a dataset s0",
            hint=f"name what is inside it: {', '.join(children[:12]) or 'it is empty'}",
        )
    levels = [_level(target / n, read_attributes(target / n), attributes, n) for n in names]
    return _source(tuple(levels), attributes)


def read_attributes(folder: Path) -> dict[str, Any]:
    """Read ``attributes.json`` of a group or dataset; empty where there is none."""
    path = folder / "attributes.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _source(levels: tuple[Level, ...], attributes: Attributes) -> Source:
    shape = levels[0].data.shape
    channels = tuple(f"channel {i}" for i in range(shape[0])) if len(shape) == 4 else ()
    return Source("N5", levels, channels, str(attributes.get("units", "")))


def _level(folder: Path, own: Attributes, group: Attributes, name: str) -> Level:
    import tensorstore

    dimensions = own["dimensions"]
    axes = {3: "xyz", 4: "xyzc", 5: "xyzct"}.get(len(dimensions), "")
    require_spatial(axes, dimensions if axes else (), str(folder))
    spec = {"driver": "n5", "kvstore": kvstore(folder)}
    try:
        array = tensorstore.open(spec, open=True, read=True).result()
    except ValueError as error:
        raise FormatError(f"{folder} is not a readable N5 dataset: {error}") from error
    spacing, origin = _geometry(own, group, name)
    if not own.keys() & {"transform", "pixelResolution"}:
        origin = _from_edges(folder, own, spacing, origin)
    return Level(AxesView(_Reader(array), axes, str(folder)), spacing, origin)


def _from_edges(folder: Path, own: Attributes, spacing: Triple | None, origin: Triple) -> Triple:
    """Origin in a container that COSEM trained from, whose ``offset`` says where voxel 0 begins.

    Voxels of all sizes begin together there: EM of 4 nm, its sub-samplings to 8 nm and labels of
    2 nm. The frame is that of the EM, ``volumes/raw/s0``, whose voxel 0 has its centre at its
    offset, as everywhere else.
    """
    root = next((p.parent for p in folder.parents if p.name == "volumes"), None)
    em = {} if root is None else read_attributes(root / "volumes/raw/s0")
    if spacing is None or "resolution" not in own or not em.keys() >= {"resolution", "offset"}:
        return origin
    em_spacing, _ = _geometry(em, {}, "s0")
    z, y, x = (
        o + (s - e) / 2 for o, s, e in zip(origin, spacing, em_spacing or spacing, strict=True)
    )
    return z, y, x


class _Reader:
    """Tensorstore handed over as something to index that gives numpy arrays."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = tuple(array.shape)
        self.dtype = array.dtype

    def __getitem__(self, key: Any, /) -> Any:
        return self._array[key].read().result()


def _geometry(own: Attributes, group: Attributes, name: str) -> tuple[Triple | None, Triple]:
    """Voxel size and origin, zyx nm, from whichever metadata dialect is there.

    In order: COSEM ``transform`` (names its axes), the same in the group's ``multiscales``,
    ``pixelResolution`` (x, y, z), ``resolution`` and ``offset`` (x, y, z; nm unless ``units``).
    """
    transform = own.get("transform") or _from_multiscales(group, name)
    if transform:
        return _named(transform)
    factors = np.asarray(own.get("downsamplingFactors", _group_factor(group, name)), dtype=float)
    pixel = own.get("pixelResolution") or group.get("pixelResolution")
    if isinstance(pixel, Mapping):
        own_pixel = "pixelResolution" in own and "downsamplingFactors" not in own
        spacing = np.asarray(pixel["dimensions"], dtype=float) * nm_per(pixel.get("unit", "nm"))
        scale = np.ones(3) if own_pixel else factors
        return _flip(spacing * scale), _flip((scale - 1) / 2 * spacing)
    if "resolution" in own:
        unit = nm_per(_first(own.get("units") or group.get("units") or "nm"))
        offset = np.asarray(own.get("offset", (0, 0, 0)), dtype=float)
        return _flip(np.asarray(own["resolution"], dtype=float) * unit), _flip(offset * unit)
    if "resolution" in group:
        unit = nm_per(_first(group.get("units") or "nm"))
        spacing = np.asarray(group["resolution"], dtype=float) * unit
        return _flip(spacing * factors), _flip((factors - 1) / 2 * spacing)
    return None, (0.0, 0.0, 0.0)


def _first(units: Any) -> str:
    return str(units[0] if isinstance(units, list) else units)


def _group_factor(group: Attributes, name: str) -> Any:
    scales = group.get("scales") or group.get("downsamplingFactors")
    number = int(name[1:]) if name[1:].isdigit() else 0
    return scales[number] if scales and number < len(scales) else (1, 1, 1)


def _from_multiscales(group: Attributes, name: str) -> Any:
    for multiscale in group.get("multiscales", []):
        for dataset in multiscale.get("datasets", []):
            if dataset.get("path") == name and "transform" in dataset:
                return dataset["transform"]
    return None


def _named(transform: Mapping[str, Any]) -> tuple[Triple, Triple]:
    """COSEM transform: axes are named, so their order is what it says."""
    axes = [str(a)[0].lower() for a in transform["axes"]]
    scale, shift = transform["scale"], transform.get("translate", [0.0] * len(axes))
    units = transform.get("units", ["nm"] * len(axes))
    index = [axes.index(a) for a in "zyx"]
    sz, sy, sx = (float(scale[i]) * nm_per(units[i]) for i in index)
    oz, oy, ox = (float(shift[i]) * nm_per(units[i]) for i in index)
    return (sz, sy, sx), (oz, oy, ox)


def can_name(folder: Path) -> bool:
    """Tell whether tensorstore can name a folder: on no system does it bear backslashes."""
    return os.sep == "\\" or "\\" not in str(folder.resolve())


def kvstore(folder: Path) -> dict[str, str]:
    """Return tensorstore's name for the folder of a dataset.

    Raises
    ------
    StorageError
        It has a backslash, which tensorstore takes for a separator on every system: it would read
        and write in another folder.
    """
    if not can_name(folder):
        raise StorageError(
            f"{folder}: N5 cannot be where a folder has a backslash in its name",
            hint="choose a folder without backslash",
        )
    # Without `..`, which tensorstore refuses.
    return {"driver": "file", "path": str(folder.resolve())}


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn tensorstore's ValueError of a failed write into the OSError it was."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number)) from error


def _flip(xyz: Any) -> Triple:
    x, y, z = (float(v) for v in xyz)
    return z, y, x


def dataset_attributes(grid: Grid) -> dict[str, Any]:
    """Geometry attributes of a dataset on `grid`, in every dialect that readers know."""
    spacing, origin = list(grid.spacing_nm), list(grid.origin_nm)
    return {
        "transform": {
            "axes": ["z", "y", "x"],
            "scale": spacing,
            "translate": origin,
            "units": ["nm", "nm", "nm"],
        },
        "pixelResolution": {"dimensions": spacing[::-1], "unit": "nm"},
        "resolution": spacing[::-1],
        "offset": origin[::-1],
    }
