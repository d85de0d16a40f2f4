"""A scene for MoBIE and other viewers that read OME-Zarr."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.export.mobie import MobieCollection, MobieImage, MobieSpots, write_mobie
from clemreg.export.neuroglancer import (
    NeuroglancerLayer,
    neuroglancer_state,
    write_neuroglancer,
)
from clemreg.export.replace import MOBIE, require_free, require_free_folder
from clemreg.export.sampled_field import FieldError, field_grid
from clemreg.io.points import read_landmarks, read_points
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import describe, open_labels, open_volume, place_of, stored_axes
from clemreg.pipeline.images import displays_of
from clemreg.pipeline.light import channel_shifts
from clemreg.pipeline.scene import (
    SceneFiles,
    affine_placement,
    channel_colour,
    channels_of,
    display_window,
    scene_of_files,
)
from clemreg.space.grid import Triple
from clemreg.space.transform import Affine, Transform
from clemreg.units import nm_per, parse_length_nm
from clemreg.volume import Volume


@dataclass(frozen=True)
class MobieCommand:
    """What ``clemreg export mobie`` was told.

    Attributes
    ----------
    files
        Images and transform. OME-Zarr in nm is named where it is, others are written beside.
    out
        Folder for the tables.
    spots
        Tables of points in the LM frame, for example localisations.
    landmarks
        Landmark table; the EM side is shown where the transform sends it.
    spot_radius
        Size of the spheres, with unit.
    field_spacing
        Distance between the points of a sampled field, with unit; None: the LM voxels.
    overwrite
        Replace a collection that is at `out`.
    """

    files: SceneFiles
    out: Path
    spots: tuple[str, ...] = ()
    landmarks: str | None = None
    spot_radius: str = "50 nm"
    field_spacing: str | None = None
    overwrite: bool = False


def export_mobie(command: MobieCommand, progress: Progress | None = None) -> FieldError | None:
    """Write a MoBIE collection; return the error of a sampled field, if there is one.

    Raises
    ------
    StorageError
        There is something at `out`, and it must not be replaced.
    """
    require_free_folder(command.out, MOBIE, overwrite=command.overwrite)
    files = command.files
    transform = read_transform(files.transform)
    lm, em = files.open_lm(), files.open_em()
    stored: dict[str, Volume] = {}
    lm_uri = _place(stored, files.lm, lm, files.lm_spacing)
    em_uri = _place(stored, files.em, em, files.em_spacing)
    shifts = channel_shifts(lm, files.lm_shifts_nm)
    images = [*_lm_images(lm, lm_uri, shifts), *_em_images(em, em_uri)]
    for path in files.labels:
        labels = open_labels(path, frame="em")
        uri = _place(stored, path, labels)
        images.append(MobieImage(labels.name, uri, kind="labels", in_em=True))
    step = None if command.field_spacing is None else parse_length_nm(command.field_spacing)
    collection = MobieCollection(
        tuple(images),
        transform,
        field_grid(lm.grid, step),
        tuple(_spots(command, transform)),
        stored,
    )
    return write_mobie(command.out, collection, overwrite=command.overwrite, progress=progress)


def _place(stored: dict[str, Volume], path: str, volume: Volume, spacing: str | None = None) -> str:
    """Return the uri of an image; one that has to be written joins `stored` under a free name."""
    info = describe(path)
    if spacing is None and info.format.startswith("OME-Zarr") and nm_per(info.unit or "um") == 1.0:
        return place_of(path).resolve().as_posix()
    name = Path(path).name.partition(".")[0]
    taken = {uri.lower() for uri in stored}
    names = (f"{name}{ending}.ome.zarr" for ending in chain([""], (f"-{i}" for i in count(2))))
    uri = next(name for name in names if name.lower() not in taken)
    stored[uri] = volume
    return uri


def _lm_images(lm: Volume, uri: str, shifts_nm: Sequence[Triple]) -> Iterator[MobieImage]:
    for number, (name, part) in enumerate(channels_of(lm)):
        yield MobieImage(
            f"LM {name}".strip(),
            uri,
            number if lm.channels else None,
            colour=channel_colour(name, number),
            window=display_window(part),
            shift_nm=shifts_nm[number],
        )


def _em_images(em: Volume, uri: str) -> Iterator[MobieImage]:
    for number, (name, part) in enumerate(channels_of(em)):
        yield MobieImage(
            f"EM {name}".strip(),
            uri,
            number if em.channels else None,
            window=display_window(part),
            in_em=True,
        )


def _spots(command: MobieCommand, transform: Transform) -> Iterator[MobieSpots]:
    radius = parse_length_nm(command.spot_radius)
    for path in command.spots:
        yield MobieSpots(Path(path).stem, read_points(path), radius)
    if command.landmarks is not None:
        marks = read_landmarks(command.landmarks).usable
        yield MobieSpots("landmarks LM", marks.lm_nm, radius, marks.names)
        back = transform.inverse()(marks.em_nm)
        yield MobieSpots("landmarks EM", back, radius, marks.names)


@dataclass(frozen=True)
class NeuroglancerCommand:
    """What ``clemreg export neuroglancer`` was told.

    Attributes
    ----------
    files
        Images (OME-Zarr) and transform; a deformation is shown by its affine part.
    out
        State file, ``.json``.
    warped
        OME-Zarr of the EM resampled onto the LM, shown as it is.
    server
        Address at which the folder with the images is served.
    root
        That folder; None: the deepest one that holds all images.
    overwrite
        Replace a state file that is at `out`.
    """

    files: SceneFiles
    out: Path
    warped: str | None = None
    server: str = "http://127.0.0.1:9000"
    root: Path | None = None
    overwrite: bool = False


def export_neuroglancer(command: NeuroglancerCommand) -> dict[str, Any]:
    """Write a Neuroglancer state; return it.

    Raises
    ------
    ConfigError
        An image is no OME-Zarr, or not below the folder that is served.
    StorageError
        A file of that name is there and must not be replaced.
    """
    require_free(command.out, overwrite=command.overwrite)
    scene = scene_of_files(command.files)
    paths = [command.files.lm, command.files.em, *command.files.labels]
    paths += [command.warped] if command.warped else []
    folders = [place_of(path).absolute().parent for path in paths]
    root = command.root or Path(os.path.commonpath(folders))
    to_lm = affine_placement(scene)
    em_name = "EM" if isinstance(scene.transform, Affine) else "EM (affine)"
    layers = [_layer(em_name, command.files.em, root, to_lm)]
    layers += [_label_layer(path, root, to_lm) for path in command.files.labels]
    if command.warped is not None:
        layers.append(_layer("EM warped", command.warped, root, None))
    shifts = channel_shifts(scene.lm, command.files.lm_shifts_nm)
    layers.append(replace(_layer("LM", command.files.lm, root, None), shifts_nm=shifts))
    state = neuroglancer_state(layers, scene.lm.grid, command.server)
    write_neuroglancer(command.out, state)
    return state


def _layer(name: str, path: str, root: Path, to_world: Affine | None) -> NeuroglancerLayer:
    volume = open_volume(path)
    displays = tuple(displays_of(volume))
    return NeuroglancerLayer(name, _below(path, root), displays, stored_axes(path), to_world)


def _label_layer(path: str, root: Path, to_world: Affine) -> NeuroglancerLayer:
    labels = open_labels(path)
    source, axes = _below(path, root), stored_axes(path)
    return NeuroglancerLayer(labels.name, source, (), axes, to_world, is_labels=True)


def _below(path: str, root: Path) -> str:
    info = describe(path)
    if not info.format.startswith("OME-Zarr"):
        raise ConfigError(
            f"{path} is no OME-Zarr, which Neuroglancer needs",
            hint="convert it: clemreg export omezarr IMAGE --out IMAGE.zarr",
        )
    if info.dtype == "float64":
        raise ConfigError(
            f"{path} holds float64, which Neuroglancer does not draw",
            hint="export it as TIFF (float32) and that as OME-Zarr: clemreg export imagej, omezarr",
        )
    try:
        return place_of(path).absolute().relative_to(root.absolute()).as_posix()
    except ValueError as error:
        raise ConfigError(
            f"{path} is not below {root}, the folder that is served", hint="choose another --root"
        ) from error
