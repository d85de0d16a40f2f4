"""HDF5 datasets with voxel sizes in the attributes that the field uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clemreg.errors import FormatError, MissingError
from clemreg.io.source import AxesView, Level, Source, require_spatial
from clemreg.units import nm_per

SUFFIXES = (".h5", ".hdf5", ".hdf", ".ilp")
Triple = tuple[float, float, float]


def matches(path: Path) -> bool:
    """Tell whether a file is HDF5 by its name."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def open_source(path: Path, inner: str = "") -> Source:
    """Open one dataset; without `inner` the file must hold just one volume.

    Raises
    ------
    FormatError
        Not HDF5, or several datasets to choose from (they are listed).
    MissingError
        There is no such dataset.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FormatError(f"{path} is not a readable HDF5 file: {error}") from error
    volumes: list[str] = []
    file.visititems(
        lambda name, node: (
            volumes.append(name) if isinstance(node, h5py.Dataset) and node.ndim in (3, 4) else None
        )
    )
    name = inner or (volumes[0] if len(volumes) == 1 else "")
    if not name:
        raise FormatError(
            f"{path} holds {len(volumes)} volumes",
            hint=f"name one: {', '.join(f'{path.name}::{v}' for v in volumes[:8])}",
        )
    if name not in file or not isinstance(file[name], h5py.Dataset):
        raise MissingError(f"{path} has no dataset {name!r}", hint=f"it has: {', '.join(volumes)}")
    dataset = file[name]
    axes = {3: "zyx", 4: "czyx"}.get(dataset.ndim, "")
    require_spatial(axes, dataset.shape if axes else (), f"{path}::{name}")
    spacing, origin, unit = _geometry(dict(dataset.attrs))
    channels = tuple(f"channel {i}" for i in range(dataset.shape[0])) if dataset.ndim == 4 else ()
    level = Level(AxesView(dataset, axes, f"{path}::{name}"), spacing, origin)
    return Source("HDF5", (level,), channels, unit)


def _geometry(attributes: dict[str, Any]) -> tuple[Triple | None, Triple, str]:
    """``element_size_um`` (zyx), or ``resolution`` and ``offset`` (zyx, nm unless ``units``)."""
    origin: Triple = (0.0, 0.0, 0.0)
    if "element_size_um" in attributes:
        z, y, x = (float(v) * 1e3 for v in attributes["element_size_um"])
        return (z, y, x), origin, "um"
    if "resolution" not in attributes:
        return None, origin, ""
    unit = attributes.get("units", "nm")
    unit = unit.decode() if isinstance(unit, bytes) else str(unit)
    factor = nm_per(unit)
    z, y, x = (float(v) * factor for v in attributes["resolution"])
    oz, oy, ox = (float(v) * factor for v in attributes.get("offset", origin))
    return (z, y, x), (oz, oy, ox), unit
