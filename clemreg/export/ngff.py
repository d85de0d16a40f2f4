"""OME-Zarr images with display settings, and the transform as an NGFF 0.6 scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clemreg.blocks.run import Progress
from clemreg.errors import StorageError
from clemreg.export.sampled_field import SampledField
from clemreg.io.atomic import atomic_path, is_free
from clemreg.io.volumes import WriteOptions, write_volume
from clemreg.space.grid import Box, Grid
from clemreg.space.transform import Affine, FloatArray
from clemreg.volume import Labels, Volume

VERSION = "0.6"
FIELDS = "coordinateTransformations"
FIELD = f"{FIELDS}/dfield"
SYSTEM = "intrinsic"
_CHUNK = (64, 64, 64)


@dataclass(frozen=True)
class Display:
    """How viewers show a channel.

    Attributes
    ----------
    name
        Label of the channel.
    colour
        Red, green, blue, 0 to 255.
    window
        Grey values shown as black and as full colour.
    """

    name: str
    colour: tuple[int, int, int]
    window: tuple[float, float]


def write_ome_zarr(
    path: str | Path,
    volume: Volume,
    displays: Sequence[Display],
    *,
    version: Literal["0.4", "0.5"] = "0.5",
    overwrite: bool = False,
) -> Path:
    """Write an OME-Zarr whose ``omero`` metadata say channel names, colours and windows.

    Parameters
    ----------
    path
        Folder, whole or not there.
    volume
        With or without channels; one without becomes a volume with one channel, since viewers
        look for display settings by channel. `Labels` are written without.
    displays
        One a channel.
    version
        0.5 (zarr 3), or 0.4 (zarr 2) for older readers.
    overwrite
        Whether a folder of that name is replaced.

    Raises
    ------
    StorageError
        It exists and must not be replaced, or cannot be written.
    """
    shown = volume if volume.channels or isinstance(volume, Labels) else _as_channel(volume)
    if shown.channels:
        names = tuple(display.name for display in displays)
        shown = Volume(shown.data, shown.grid, names, name=shown.name)
    options = WriteOptions(
        labels=isinstance(volume, Labels),
        colours=tuple(bytes(display.colour).hex().upper() for display in displays),
        windows=tuple(display.window for display in displays),
    )
    if not (overwrite or is_free(Path(path))):
        raise StorageError(f"{path} exists already", hint="choose another name or remove it")
    write_volume(path, shown, format="zarr2" if version == "0.4" else "zarr", options=options)
    return Path(path)


def _as_channel(volume: Volume) -> Volume:
    return Volume(_OneChannel(volume), volume.grid, (volume.name or "0",), name=volume.name)


@dataclass(frozen=True, eq=False)
class _OneChannel:
    volume: Volume

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *self.volume.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.volume.dtype

    def __getitem__(self, key: Any, /) -> Any:
        return np.asarray(self.volume.data[key[1:]])[None][key[0]]


@dataclass(frozen=True)
class SceneImage:
    """An OME-Zarr image as a scene names it.

    Attributes
    ----------
    path
        Of the image, relative to the scene, or its URL.
    array
        Path of its finest level inside it.
    grid
        Where the voxels of that level are.
    axes
        A letter for each axis of the array, in the order in which they are stored.
    """

    path: str
    array: str
    grid: Grid
    axes: str = "zyx"


def write_scene(
    path: str | Path,
    registration: Affine | SampledField,
    images: tuple[SceneImage, SceneImage],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a zarr group whose NGFF 0.6 ``scene`` says how LM and EM lie to each other.

    Parameters
    ----------
    path
        Folder of the group.
    registration
        LM to EM; a field is stored in the group, displacements first, then its affine part.
    images
        LM and EM.
    overwrite
        Whether a folder of that name is replaced.
    progress
        Told of the blocks of a field.

    Raises
    ------
    StorageError
        It exists and must not be replaced, or cannot be written.

    Notes
    -----
    NGFF 0.6 (RFC-5): a transformation maps coordinates of ``input`` to those of ``output``, voxel
    centres at whole indices; matrices and vectors in the axis order z, y, x. The scene declares the
    two coordinate systems between which it maps, ``lm`` and ``em``. Images of OME-Zarr 0.4 and 0.5
    declare none, so each is tied to its system from the coordinate system that every array has
    without saying so: its indices, named by its path. Viewers that do not know scenes yet show the
    images as they are.
    """
    import zarr

    ends = {
        "input": {"name": "lm"},
        "output": {"name": "em"},
        "name": "clemreg registration, LM to EM",
    }
    with atomic_path(path, overwrite=overwrite) as partial:
        group = zarr.open_group(str(partial), mode="w", zarr_format=3)
        if isinstance(registration, Affine):
            step: dict[str, Any] = {**_affine(registration), **ends}
        else:
            group.create_group(FIELDS)  # zarr 3 knows no groups without metadata
            _write_field(partial / FIELD, registration, progress)
            steps: list[dict[str, Any]] = [
                {"type": "displacements", "path": FIELD, "interpolation": "linear"}
            ]
            if registration.affine is not None:
                steps.append(_affine(registration.affine))
            step = {"type": "sequence", "transformations": steps, **ends}
        ties = [_tie(i, name) for i, name in zip(images, ("lm", "em"), strict=True)]
        scene: dict[str, Any] = {
            "coordinateSystems": [{"name": name, "axes": _space_axes()} for name in ("lm", "em")],
            "coordinateTransformations": [step, *ties],
        }
        group.attrs.update({"ome": {"version": VERSION, "scene": scene}})
    return Path(path)


def _tie(image: SceneImage, system: str) -> dict[str, Any]:
    """Map indices of an image's array to a coordinate system; only z, y, x count."""
    return {
        "type": "affine",
        "affine": over_axes(image.grid.index_to_world[:3], image.axes).tolist(),
        "input": {"path": image.path, "name": image.array},
        "output": {"name": system},
        "name": f"{system} image",
    }


def over_axes(matrix: FloatArray, axes: str) -> FloatArray:
    """Bring the columns z, y, x of a matrix into the order of stored axes; its shift stays last.

    Examples
    --------
    >>> over_axes(np.array([[1.0, 2.0, 3.0, 9.0]]), "xcyz").tolist()
    [[3.0, 0.0, 2.0, 1.0, 9.0]]
    """
    nothing = np.zeros(len(matrix))
    columns = [matrix[:, "zyx".index(a)] if a in "zyx" else nothing for a in axes]
    return np.column_stack([*columns, matrix[:, 3]])


def _space_axes() -> list[dict[str, Any]]:
    return [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]


def _affine(affine: Affine) -> dict[str, Any]:
    return {"type": "affine", "affine": affine.matrix[:3].tolist()}


def _write_field(folder: Path, field: SampledField, progress: Progress | None) -> None:
    """Write the displacements (component, z, y, x), components z, y, x in nm."""
    import zarr

    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    shape = (3, *field.grid.shape)
    array = group.create_array(
        "s0",
        shape=shape,
        chunks=tuple(min(n, c) for n, c in zip(shape, (3, *_CHUNK), strict=True)),
        dtype=np.float32,
        dimension_names=["d", "z", "y", "x"],
    )

    def store(box: Box, displacement: FloatArray) -> None:
        array[(slice(None), *box.slices)] = np.moveaxis(displacement, -1, 0).astype(np.float32)

    field.write(store, _CHUNK, progress)
    metadata: dict[str, Any] = {"version": VERSION, "multiscales": [_field_multiscale(field.grid)]}
    group.attrs.update({"ome": metadata})


def _field_multiscale(grid: Grid) -> dict[str, Any]:
    axes: list[dict[str, Any]] = [{"name": "d", "type": "displacement", "discrete": True}]
    axes += _space_axes()
    placement = {
        "type": "sequence",
        "input": {"path": "s0"},
        "output": {"name": SYSTEM},
        "transformations": [
            {"type": "scale", "scale": [1.0, *grid.spacing_nm]},
            {"type": "translation", "translation": [0.0, *grid.origin_nm]},
        ],
    }
    return {
        "name": "displacements",
        "coordinateSystems": [{"name": SYSTEM, "axes": axes}],
        "datasets": [{"path": "s0", "coordinateTransformations": [placement]}],
    }
