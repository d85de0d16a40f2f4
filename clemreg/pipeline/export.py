"""Step ``export``, and ``clemreg export`` on its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError
from clemreg.export.bdv import Storage, data_path, write_bdv
from clemreg.export.bdv_append import append_bdv
from clemreg.export.bigwarp import write_sampled_landmarks
from clemreg.export.replace import N5, require_free, require_free_folder
from clemreg.io.atomic import atomic_path, atomic_write_json, is_unfinished
from clemreg.io.elastix_files import fits_elastix, write_elastix
from clemreg.pipeline.context import RunContext
from clemreg.pipeline.registration import read_result
from clemreg.pipeline.scene import (
    Scene,
    SceneFiles,
    bdv_setups,
    files_of_run,
    scene_of_files,
    scene_of_run,
)
from clemreg.register.apply import covering_box

log = logging.getLogger(__name__)


def export_run(context: RunContext) -> None:
    """Write ``export/``: whatever the configuration asks for."""
    wanted = context.config.export
    transform = read_result(context)
    lm = context.open_lm().grid
    with context.progress("export") as progress, atomic_path(context.path("export")) as folder:
        folder.mkdir(parents=True)
        if wanted.bdv:
            write_bdv(folder / "bdv.xml", bdv_setups(scene_of_run(context)), progress=progress)
        if wanted.bigwarp:
            em = context.open_em().grid
            covered = lm.crop(covering_box(transform, em, lm))
            error = write_sampled_landmarks(
                transform, covered, folder / "bigwarp-landmarks.csv", 800.0
            )
            atomic_write_json(folder / "bigwarp-landmarks.json", vars(error))
        if wanted.elastix and fits_elastix(transform):
            write_elastix(transform, folder / "elastix", lm)
        elif wanted.elastix:
            log.warning("no elastix files: they have no transform for a correction by landmarks")


@dataclass(frozen=True)
class BdvCommand:
    """What ``clemreg export bdv`` was told.

    Attributes
    ----------
    run
        Folder of a finished run, or None with `files`.
    files
        Images and transform that are no run.
    out
        XML file; None: ``export/bdv.xml`` of the run.
    storage, unit
        As in `write_bdv`.
    append
        Add to the dataset that is at `out`.
    overwrite
        Replace the dataset that is at `out`; one in the folder of the run always is.
    """

    run: Path | None
    files: SceneFiles | None
    out: Path | None = None
    storage: Storage = "hdf5"
    unit: str = "um"
    append: bool = False
    overwrite: bool = False


def export_bdv(command: BdvCommand, progress: Progress | None = None) -> Path:
    """Write or grow a BigDataViewer dataset.

    Raises
    ------
    ConfigError
        It is not said what to export, or where to; or both to add and to replace.
    StorageError
        A file of that name is there and must not be replaced.
    """
    scene = open_scene(command.run, command.files)
    out = _bdv_path(command)
    if command.append:
        return append_bdv(out, bdv_setups(scene), progress=progress)
    replaces = command.overwrite or command.out is None
    _require_free_dataset(out, command.storage, overwrite=replaces)
    return write_bdv(
        out,
        bdv_setups(scene),
        storage=command.storage,
        unit=command.unit,
        overwrite=replaces,
        progress=progress,
    )


def _require_free_dataset(xml: Path, storage: Storage, *, overwrite: bool) -> None:
    require_free(xml, overwrite=overwrite)
    replaces = overwrite or is_unfinished(xml)
    files, data = [xml.with_suffix(".settings.xml")], data_path(xml, storage)
    if storage == "n5":
        require_free_folder(data, N5, overwrite=replaces)
    else:
        files.append(data)
    require_free(*files, overwrite=replaces)


def _bdv_path(command: BdvCommand) -> Path:
    if command.append and command.overwrite:
        raise ConfigError("--append and --overwrite contradict each other", hint="choose one")
    if command.out is not None:
        return command.out
    if command.run is None:
        raise ConfigError("it is not said where to write", hint="add --out NAME.xml")
    return command.run / "export" / "bdv.xml"


def open_scene(run: Path | None, files: SceneFiles | None) -> Scene:
    """Open a finished run, or images and transform.

    Raises
    ------
    ConfigError
        Neither or both are given.
    """
    from clemreg.pipeline.run import open_finished

    if run is not None and files is None:
        return scene_of_run(open_finished(run))
    return scene_of_files(scene_files(run, files))


def scene_files(run: Path | None, files: SceneFiles | None) -> SceneFiles:
    """Return the files of a finished run, or those that are given.

    Raises
    ------
    ConfigError
        Neither or both are given.
    """
    from clemreg.pipeline.run import open_finished

    if run is not None and files is None:
        return files_of_run(open_finished(run))
    if files is not None and run is None:
        return files
    raise ConfigError(
        "give either the folder of a run, or images and a transform",
        hint="clemreg export ... FOLDER, or --em EM --lm LM --transform FILE",
    )
