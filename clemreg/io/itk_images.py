"""NRRD, MetaImage and NIfTI through SimpleITK; stored x, y, z."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clemreg.errors import FormatError
from clemreg.io.source import AxesView, Level, Source, require_spatial
from clemreg.units import nm_per

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd", ".nii", ".nii.gz")
Triple = tuple[float, float, float]


def matches(path: Path) -> bool:
    """Tell whether a file is one of these formats by its name."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def open_source(path: Path, inner: str = "") -> Source:
    """Open the image; pixels are read a region at a time where the format allows it.

    NIfTI is in mm unless its header says otherwise. NRRD and MetaImage carry no unit that can be
    relied on, so a voxel size must be given with them, unless NRRD says ``space units``.

    Raises
    ------
    FormatError
        Not readable, not 3-D, or with a rotated direction matrix.
    """
    if inner:
        raise FormatError(f"{path} is an image; it has no inner dataset {inner!r}")
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise FormatError(f"{path} cannot be read: {_reason(error)}") from error
    axes = "zyx"
    if reader.GetDimension() != 3:
        require_spatial("yx", reader.GetSize()[::-1], str(path))
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    # ITK flips x and y of NIfTI into its own frame; that is a relabelling, not a rotation. Of one
    # axis alone it would be a mirror.
    signs = np.diag(direction)
    upright = np.allclose(np.abs(direction), np.eye(3), atol=1e-6)
    if upright and not (signs[0] == signs[1] and signs[2] > 0):
        flipped = ", ".join(axis for axis, sign in zip("xyz", signs, strict=True) if sign < 0)
        raise FormatError(
            f"{path} has voxels stored backwards along {flipped}: read as they lie they would be "
            "mirrored",
            hint="store it forwards, for example with SimpleITK.DICOMOrient(image, 'LPS')",
        )
    if not upright:
        raise FormatError(
            f"{path} has a rotated direction matrix",
            hint="resample it to an upright grid, for example with SimpleITK.Resample",
        )
    unit = _unit(path, reader)
    spacing, origin, voxels = _geometry(reader, signs, unit)
    reads = _Region(str(path), tuple(reader.GetSize()[::-1]), reader.GetPixelID())
    level = Level(AxesView(reads, axes, str(path)), spacing, origin, voxels)
    return Source(path.suffix.lstrip(".").upper(), (level,), (), unit)


def _geometry(reader: Any, signs: Any, unit: str) -> tuple[Triple | None, Triple, Triple]:
    """Voxel size if there is a unit; origin in nm, or in voxels if there is none; zyx."""
    z, y, x = (float(v) for v in reader.GetSpacing()[::-1])
    oz, oy, ox = (float(v) * s for v, s in zip(reader.GetOrigin()[::-1], signs[::-1], strict=True))
    nowhere = (0.0, 0.0, 0.0)
    if not unit:
        return None, nowhere, (oz / z, oy / y, ox / x)
    f = nm_per(unit)
    return (z * f, y * f, x * f), (oz * f, oy * f, ox * f), nowhere


def _unit(path: Path, reader: Any) -> str:
    keys = set(reader.GetMetaDataKeys())
    if "NRRD_space units" in keys:
        words = reader.GetMetaData("NRRD_space units").replace('"', " ").split()
        return words[0] if words else ""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        code = int(reader.GetMetaData("xyzt_units")) & 7 if "xyzt_units" in keys else 2
        return {1: "m", 3: "um"}.get(code, "mm")
    return ""


class _Region:
    """Reads sub-regions of an image file."""

    def __init__(self, path: str, shape: tuple[int, ...], pixel: int) -> None:
        import SimpleITK as sitk

        self._path = path
        self.shape = shape
        self.dtype = sitk.GetArrayViewFromImage(sitk.Image([1] * 3, pixel)).dtype

    def __getitem__(self, key: tuple[Any, ...], /) -> Any:
        import SimpleITK as sitk

        ranges = [
            k.indices(n) if isinstance(k, slice) else (k, k + 1, 1)
            for k, n in zip(key, self.shape, strict=True)
        ]
        reader = sitk.ImageFileReader()
        reader.SetFileName(self._path)
        reader.SetExtractIndex([int(r[0]) for r in ranges][::-1])
        reader.SetExtractSize([max(0, int(r[1] - r[0])) for r in ranges][::-1])
        block = sitk.GetArrayFromImage(reader.Execute())
        steps = tuple(
            slice(None, None, r[2]) if isinstance(k, slice) else 0
            for k, r in zip(key, ranges, strict=True)
        )
        return block[steps]


def _reason(error: RuntimeError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "unknown reason"
