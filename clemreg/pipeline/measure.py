"""Files in, tables out: what ``clemreg measure`` and its sisters share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from clemreg.blocks.executors import executor_named, started
from clemreg.blocks.run import Progress
from clemreg.blocks.stages import Blockwise, VolumeFile
from clemreg.errors import ConfigError, DataError, StorageError
from clemreg.export.replace import require_free_collection, require_free_output
from clemreg.io.atomic import (
    LEFT_BY_SYSTEMS,
    atomic_path,
    atomic_write_text,
    make_folder,
    partial_path,
    put_in_place,
    remove,
)
from clemreg.io.claims import is_noted, noted
from clemreg.io.meshes import Mesh, write_mesh
from clemreg.io.precomputed import write_neuroglancer_info, write_neuroglancer_mesh
from clemreg.io.skeletons import write_skeleton
from clemreg.io.volumes import open_labels
from clemreg.measure import mesh, skeleton
from clemreg.measure.contacts import ContactOptions, Method, Overlap
from clemreg.measure.mesh import MeshOptions, mesh_objects
from clemreg.measure.planarity import PlanarityOptions
from clemreg.measure.recipes import contact_recipe
from clemreg.measure.sheetness import ScaleRule, SheetnessOptions
from clemreg.measure.skeleton import SkeletonOptions, measure_skeleton, skeletonize
from clemreg.measure.tables import Table, write_table
from clemreg.pipeline.steps import input_fingerprint
from clemreg.units import given_xyz_nm, parse_length_nm
from clemreg.volume import Labels, Volume

MESH_FORMATS = ("obj", "ply", "neuroglancer")
WORK_MARK, PLACED = ".clemreg", ".placed"
"""In a working folder: what the work is, and which outputs have been put in place."""


def open_ids(uri: str, spacing: str | None = None) -> Labels:
    """Open a label volume; `spacing` is ``"x, y, z unit"`` where the file has none.

    Raises
    ------
    ConfigError
        It has several channels.
    """
    labels = open_labels(uri, spacing_nm=given_xyz_nm(spacing), frame="em")
    hint = "save the channel that is meant as a volume of its own"
    return _opened_anew(VolumeFile(uri, labels.grid.spacing_nm), labels, hint)


def open_mask(uri: str, spacing: str | None = None) -> Volume:
    """Open a mask or a map of values on the EM's voxels.

    Raises
    ------
    ConfigError
        It has several channels.
    """
    file = volume_file(uri, spacing)
    return _opened_anew(file, file.open(), "save the channel that is meant as a volume of its own")


def volume_file(uri: str, spacing: str | None = None, channel: str | None = None) -> VolumeFile:
    """Name a volume; `spacing` is ``"x, y, z unit"`` where the file has none."""
    return VolumeFile(uri, given_xyz_nm(spacing), channel)


def open_prediction(file: VolumeFile) -> Volume:
    """Open the channel of a prediction that `file` names, or the only one.

    Raises
    ------
    ConfigError
        There are several and none is named.
    MissingError
        There is none of that name.
    """
    volume = file.open()
    return _opened_anew(file, volume, f"choose one: --channel {(*volume.channels, '')[0]}")


_Opened = TypeVar("_Opened", bound=Volume)


def _opened_anew(file: VolumeFile, volume: _Opened, hint: str) -> _Opened:
    """Let each process open a volume for itself; of channels there must be one."""
    if len(volume.channels) > 1:
        raise ConfigError(
            f"{file.uri} has channels {', '.join(volume.channels)}; one volume is expected",
            hint=hint,
        )
    if volume.channels:
        file, volume = replace(file, channel=0), cast("_Opened", volume.channel(0))
    return replace(volume, data=_FileArray(file, volume), coarser=())


class _FileArray:
    """Pixels of a file that each process opens for itself: an open TIFF or HDF5 cannot travel."""

    def __init__(self, file: VolumeFile, volume: Volume) -> None:
        self.file = file
        self.shape = tuple(volume.data.shape)
        self.dtype = volume.dtype

    def __getitem__(self, key: Any, /) -> Any:
        values = self.file.open().data[key]
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DataError(f"{self.file.uri} holds NaN or infinite values")
        return values


@contextmanager
def working_folder(
    outputs: Sequence[Path | None], inputs: Sequence[str | None] = (), job: object = ""
) -> Iterator[Path | None]:
    """Yield a folder beside the first output for finished blocks; it goes when all is done.

    A killed run leaves it, and the same command goes on from there. So all that a command writes is
    written before the folder goes.

    Parameters
    ----------
    outputs
        Files or folders that will be written; None: not asked for.
    inputs, job
        What is read, and how it is worked on; other unfinished work is thrown away.

    Raises
    ------
    StorageError
        Something that is not ours has the name of the folder.
    """
    given = [path for path in outputs if path is not None]
    if not given:
        yield None
        return
    scratch = _work_folder(given[0])
    make_folder(scratch.parent)
    mark = scratch / WORK_MARK
    text = repr((job, [input_fingerprint(path) for path in inputs]))
    if scratch.exists() and not _is_work(scratch):
        raise StorageError(
            f"{scratch} is in the way: unfinished work has this name, but it is none",
            hint="rename or move it, or choose another output",
        )
    if not mark.is_file() or mark.read_text(encoding="utf-8") != text:
        _empty(scratch)
        atomic_write_text(mark, text)
    try:
        with noted(scratch / PLACED, given):
            yield scratch
    except BaseException:
        if [path.name for path in scratch.iterdir()] == [WORK_MARK]:
            remove(scratch)  # nothing to go on from
        raise
    _empty(scratch)
    remove(mark)
    remove(scratch)


def _work_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.work")


def _is_work(folder: Path) -> bool:
    """Tell whether a folder is ours, or what a kill leaves of one that comes or goes."""
    mark = folder / WORK_MARK
    if mark.is_file() or not folder.is_dir():
        return mark.is_file()
    ours = (PLACED, partial_path(mark).name, *LEFT_BY_SYSTEMS)
    return all(child.name in ours for child in folder.iterdir())


def _empty(folder: Path) -> None:
    """Take out what was worked on, and mark it first: nobody goes on from half of it after a kill.

    Which outputs are in place stays known.
    """
    mark = folder / WORK_MARK
    if mark.is_file():
        atomic_write_text(mark, "")
        for child in sorted(folder.iterdir()):
            if child.name not in (WORK_MARK, PLACED):
                remove(child)


def require_free_results(
    *outputs: Path | None, others: Sequence[Path | None] = (), overwrite: bool
) -> None:
    """Refuse to write over files or volumes, unless they are to be replaced, or are our own.

    Our own is what a killed run has put in place, as long as its working folder (see
    `working_folder`) lies beside one of the outputs and nobody has changed it since: to go on needs
    no leave.

    Parameters
    ----------
    outputs
        What is checked; None: not asked for.
    others
        Further outputs of the command, which are checked elsewhere.

    Raises
    ------
    StorageError
        One is there, and must not be replaced.
    """
    for path in outputs:
        if path is not None:
            own = _is_own(path, (*outputs, *others))
            require_free_output(path, overwrite=overwrite or own)


def _is_own(path: Path, outputs: Sequence[Path | None]) -> bool:
    """Tell whether a killed run has put just this in place."""
    folders = (_work_folder(output) for output in outputs if output is not None)
    return any(is_noted(folder / PLACED, path) for folder in folders)


def require_free_files(
    folder: Path | None,
    format: str,  # noqa: A002
    others: Sequence[Path | None] = (),
    *,
    overwrite: bool,
) -> None:
    """Refuse to write one file an object into a folder that holds anything else.

    Parameters
    ----------
    format
        ``"swc"``, or that of the meshes.
    others
        Further outputs of the command.

    Raises
    ------
    StorageError
        The folder is there, and must not be replaced.
    """
    if folder is None:
        return
    names = r"info|\d+:0|\d+\.mesh" if format == "neuroglancer" else rf"\d+\.{format}"
    own = _is_own(folder, (folder, *others))
    require_free_collection(folder, names, overwrite=overwrite or own)


@contextmanager
def blockwise(
    block: int, workers: int, executor: str, progress: Progress | None
) -> Iterator[Blockwise]:
    """Cubic blocks worked on by a named executor, whose workers stay for all passes.

    Raises
    ------
    ConfigError
        The executor is not known, or a block has no voxel.
    """
    if block < 1:
        raise ConfigError(f"blocks of {block} voxels are none", hint="take 64 to 256")
    with started(executor_named(executor, workers)) as running:
        yield Blockwise((block, block, block), running, progress)


def write_tables(table: Table, outputs: Sequence[Path | None]) -> list[Path]:
    """Write a table to every path that is given."""
    given = [path for path in outputs if path is not None]
    for path in given:
        write_table(path, table)
    return given


def summary(table: Table, columns: Sequence[str]) -> dict[str, Any]:
    """Return number of rows, and sum, mean, standard deviation and range of some columns."""
    report: dict[str, Any] = {"objects": len(table)}
    for name in columns:
        values = np.asarray(table[name], float)
        values = values[np.isfinite(values)]
        if len(values):
            report[name] = {
                "sum": float(values.sum()),
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
                "min": float(values.min()),
                "median": float(np.median(values)),
                "max": float(values.max()),
            }
    return report


def contact_options(
    recipe: str | None,
    distance: str | None,
    method: str,
    overlap: str | None,
    min_volume_nm3: float,
) -> ContactOptions:
    """Return the recipe's options, or the usual ones, with what was given changed."""
    options = contact_recipe(recipe).options if recipe else ContactOptions()
    return replace(
        options,
        distance_nm=parse_length_nm(distance) if distance else options.distance_nm,
        method=cast("Method", method),
        overlap=cast("Overlap", overlap) if overlap else options.overlap,
        min_volume_nm3=min_volume_nm3,
    )


def contact_names(names: str | None, recipe: str | None, volumes: Sequence[str]) -> tuple[str, str]:
    """Names of the two organelles: as given, else the recipe's, else the file names.

    Raises
    ------
    ConfigError
        Other than two names are given, or two volumes have one file name.
    """
    if names is not None:
        given = [name.strip() for name in names.split(",")]
        if len(given) != 2 or not all(given):
            raise ConfigError(f"--names {names!r}: expected two names, such as er,mito")
        return given[0], given[1]
    if recipe is not None:
        found = contact_recipe(recipe)
        return found.a, found.b
    first, second = (Path(volume).name.partition(".")[0] for volume in volumes)
    if first == second and volumes[0] != volumes[1]:
        raise ConfigError(
            f"{volumes[0]} and {volumes[1]} would both be called {first}",
            hint="name them: --names er,mito",
        )
    return first, second


def skeletons_of(
    labels: Labels,
    options: SkeletonOptions,
    how: Blockwise,
    scratch: Path | None,
    swc: Path | None,
) -> list[dict[str, Any]]:
    """Measure the centre line of every object; write each as ``ID.swc`` in nm, if asked for.

    The folder of the files is replaced as a whole.
    """
    found = skeletonize(labels, options, how=how, scratch=scratch)
    if swc is None:
        return [measure_skeleton(item) for item in found]
    rows = []
    with atomic_path(swc) as partial:
        partial.mkdir()
        for item in found:
            rows.append(measure_skeleton(item))
            write_skeleton(item.skeleton, partial / f"{item.object_id}.swc", unit="nm")
    return rows


@dataclass(frozen=True)
class SaveMesh:
    """Write one mesh into a folder."""

    folder: Path
    format: str

    def __call__(self, number: int, mesh: Mesh) -> None:
        """Write the mesh of object `number`."""
        if self.format == "neuroglancer":
            write_neuroglancer_mesh(self.folder, number, mesh)
        else:
            write_mesh(mesh, self.folder / f"{number}.{self.format}")


def check_mesh_format(name: str) -> None:
    """Check the name of a mesh format.

    Raises
    ------
    ConfigError
        It is not known.
    """
    if name not in MESH_FORMATS:
        raise ConfigError(f"mesh format {name!r}, expected one of {', '.join(MESH_FORMATS)}")


def meshes_of(
    labels: Labels,
    out: Path,
    format: str,  # noqa: A002
    options: MeshOptions,
    how: Blockwise,
    scratch: Path | None,
) -> Table:
    """Mesh every object into a folder, which is replaced as a whole; see `check_mesh_format`."""
    made = (scratch or out.parent) / f".{out.name}.made"
    made.mkdir(parents=True, exist_ok=True)
    found = mesh_objects(labels, SaveMesh(made, format), options, how=how, scratch=scratch)
    if format == "neuroglancer":
        write_neuroglancer_info(made)
    put_in_place(made, out)
    return found


def planarity_options(
    cut: float, scale_rule: str, scales: int, largest_radius: str
) -> PlanarityOptions:
    """Return options as a user types them."""
    sheetness = SheetnessOptions(scales=scales, scale_rule=cast("ScaleRule", scale_rule))
    return PlanarityOptions(sheetness, cut, parse_length_nm(largest_radius))


def skeleton_options(shortest_branch: str, memory_gb: float) -> SkeletonOptions:
    """Return options as a user types them."""
    shortest_nm = parse_length_nm(shortest_branch)
    largest = int(memory_gb * 1e9 / skeleton.BYTES_PER_VOXEL)
    return SkeletonOptions(shortest_nm, largest_box_voxels=largest)


def mesh_options(smoothing: int, keep: float, memory_gb: float) -> MeshOptions:
    """Return options as a user types them."""
    return MeshOptions(smoothing, keep, int(memory_gb * 1e9 / mesh.BYTES_PER_VOXEL))


def named_masks(entries: Sequence[str], spacing: str | None) -> dict[str, Volume]:
    """Open ``NAME=PATH`` entries.

    Raises
    ------
    ConfigError
        An entry has no name, or two have one.
    """
    volumes: dict[str, Volume] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not (name and equals and path) or name in volumes:
            raise ConfigError(f"{entry!r}: expected NAME=PATH, each name once")
        volumes[name] = open_mask(path, spacing)
    return volumes
