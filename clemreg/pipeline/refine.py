"""``clemreg refine``: predictions of a cell in, organelles out, by a recipe; resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clemreg import __version__
from clemreg.blocks.executors import executor_named, started
from clemreg.blocks.run import Progress
from clemreg.blocks.stages import Blockwise, VolumeFile
from clemreg.errors import ConfigError, DataError, FormatError, MissingError, StorageError
from clemreg.io.atomic import atomic_write_json, remove
from clemreg.io.volumes import open_labels, open_volume
from clemreg.measure.gather import same_grid
from clemreg.pipeline.steps import Step, input_fingerprint, one_run_at_a_time, run_steps
from clemreg.refine.apply import Stage, Workplace, refine_organelle
from clemreg.refine.objects import count_voxels
from clemreg.refine.recipe import Organelle, Recipe, load_recipe
from clemreg.units import given_xyz_nm
from clemreg.volume import Labels, Volume

log = logging.getLogger(__name__)

# How a prediction called NAME may be called inside a folder or container.
ENDINGS = ("", "_pred", ".zarr", ".n5", ".tif", ".tiff", "_pred.zarr", "_pred.n5", "_pred.tif")


@dataclass(frozen=True)
class RefineOptions:
    """How to work.

    Attributes
    ----------
    organelles
        Only these and what they need; empty: all whose prediction is there.
    spacing
        Voxel size ``"x, y, z unit"`` that overrides the files'.
    block
        Voxels per block along each axis.
    executor, workers
        See `clemreg.blocks.executors.executor_named`.
    """

    organelles: tuple[str, ...] = ()
    spacing: str | None = None
    block: int = 128
    executor: str = "serial"
    workers: int = 1


def refine_cell(
    source: str,
    recipe_name: str,
    out: Path,
    *,
    options: RefineOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Refine every organelle of a recipe whose prediction is there.

    Parameters
    ----------
    source
        A volume with named channels, or a folder or container with one volume an organelle.
    recipe_name
        Preset or TOML file.
    out
        OME-Zarr group to write; each organelle appears in it, whole, as it is finished. Working
        files lie beside it in ``.NAME.work``; the same command goes on where it was stopped, and
        after a change of the recipe does again just what the change touches.

    Returns
    -------
    dict
        For each organelle the number of objects and their volume; and what was skipped, and why.

    Raises
    ------
    MissingError
        There is nothing at `source`, or no prediction of what is wanted.
    """
    options = options or RefineOptions()
    if options.block < 1:
        raise ConfigError(f"blocks of {options.block} voxels are none", hint="take 64 to 256")
    recipe = load_recipe(recipe_name)
    files = find_predictions(source, recipe, options)
    chosen, skipped = choose(recipe, files, options.organelles, source)
    open_predictions(chosen, files)
    executor = executor_named(options.executor, options.workers)
    with started(executor) as running, one_run_at_a_time(_work_folder(out)):
        job = _Job(out, files, Blockwise((options.block,) * 3, running, progress))
        _start_group(out)
        if (out / "clemreg.json").is_file():  # our own, come here without its working files
            (job.work / "steps").mkdir(exist_ok=True)
        steps = [job.step(name, organelle) for name, organelle in chosen.items()]
        seconds = run_steps(steps, job.work)
    report = {
        "recipe": recipe_name,
        "source": source,
        "version": __version__,
        "organelles": {name: job.counts(name) | {"seconds": seconds[name]} for name in chosen},
        "skipped": skipped,
        "steps": {name: o.model_dump(mode="json") for name, o in chosen.items()},
    }
    atomic_write_json(out / "clemreg.json", report)
    return report


def find_predictions(source: str, recipe: Recipe, options: RefineOptions) -> dict[str, VolumeFile]:
    """Where the prediction of each organelle is, for those that are there.

    Of several names of an organelle the first that is there counts, and its own comes last.

    Raises
    ------
    MissingError
        There is nothing at `source`.
    """
    spacing = given_xyz_nm(options.spacing)
    names = {name: (*o.source, name) for name, o in recipe.organelles.items() if o.of is None}
    if Path(source).is_dir():
        found = {
            name: path
            for name, called in names.items()
            if (path := _inside(Path(source), called)) is not None
        }
        if found:
            return {name: VolumeFile(str(path), spacing) for name, path in found.items()}
    try:
        volume = open_volume(source, spacing_nm=spacing, frame="em")
    except FormatError as error:
        if not Path(source).is_dir():
            raise
        raise _nothing_found(source, recipe) from error
    if not volume.channels:
        return _single(source, recipe, options)
    first = {
        name: next((channel for channel in called if channel in volume.channels), None)
        for name, called in names.items()
    }
    return {
        name: VolumeFile(source, spacing, channel)
        for name, channel in first.items()
        if channel is not None
    }


def find_prediction(source: str, name: str, spacing: str | None) -> VolumeFile:
    """Where one prediction is, by its name.

    Raises
    ------
    MissingError
        It is not there.
    """
    size = given_xyz_nm(spacing)
    if Path(source).is_dir() and (path := _inside(Path(source), (name,))) is not None:
        return VolumeFile(str(path), size)
    try:
        channels = open_volume(source, spacing_nm=size, frame="em").channels
    except FormatError:  # a folder of volumes
        channels = ()
    if name in channels:
        return VolumeFile(source, size, name)
    raise MissingError(
        f"{source} holds no prediction called {name}",
        hint=f"a channel, folder or file of that name{f': {list(channels)}' if channels else ''}",
    )


def _inside(folder: Path, names: tuple[str, ...]) -> Path | None:
    paths = (folder / f"{name}{ending}" for name in names for ending in ENDINGS)
    return next((path for path in paths if path.exists()), None)


def _single(source: str, recipe: Recipe, options: RefineOptions) -> dict[str, VolumeFile]:
    """Take a volume without channels for the one organelle that is asked for."""
    if len(options.organelles) != 1:
        raise ConfigError(
            f"{source} has no channels, so it holds one organelle, but it does not say which",
            hint="name it: --organelle mito",
        )
    name = options.organelles[0]
    list(recipe.in_order((name,)))  # says so if the recipe does not have it
    spacing = given_xyz_nm(options.spacing)
    return {name: VolumeFile(source, spacing)}


def _nothing_found(source: str, recipe: Recipe) -> MissingError:
    return MissingError(
        f"{source} holds no prediction that the recipe names",
        hint=f"it looks for: {', '.join(recipe.organelles)} (as channels, folders or files)",
    )


def choose(
    recipe: Recipe, files: Mapping[str, VolumeFile], wanted: tuple[str, ...], source: str
) -> tuple[dict[str, Organelle], dict[str, str]]:
    """Organelles that can be made, in order; and why the others cannot.

    Raises
    ------
    MissingError
        One that is wanted cannot be made, or none can.
    """
    chosen: dict[str, Organelle] = {}
    skipped: dict[str, str] = {}
    for name, organelle in recipe.in_order(wanted):
        lacking = [needed for needed in organelle.needs if needed not in chosen]
        if lacking:
            skipped[name] = f"needs {', '.join(lacking)}"
        elif organelle.of is None and name not in files:
            skipped[name] = "no prediction"
        else:
            chosen[name] = organelle
    for name in wanted:
        if name in skipped:
            raise MissingError(
                f"{source}: {name} cannot be refined: {skipped[name]}",
                hint=f"predictions found: {', '.join(files) or 'none'}",
            )
    if not chosen:
        raise _nothing_found(source, recipe)
    for name, reason in skipped.items():
        log.info("%s is skipped: %s", name, reason)
    return chosen, skipped


def open_predictions(
    chosen: Mapping[str, Organelle], files: Mapping[str, VolumeFile]
) -> dict[str, Volume]:
    """Open what each organelle is made from, and say now what would be found late.

    Parameters
    ----------
    chosen
        Organelles in order, as from `choose`.

    Raises
    ------
    DataError
        A prediction is not uint8, or has channels.
    GridError
        An organelle has other voxels than one that it is masked with.
    """
    volumes: dict[str, Volume] = {}
    for name, organelle in chosen.items():
        of = organelle.of
        volumes[name] = volumes[of] if of is not None else _prediction(files[name])
        for needed in organelle.needs:
            same_grid(volumes[name], volumes[needed])
    return volumes


def _prediction(file: VolumeFile) -> Volume:
    volume = file.open()
    if volume.channels:
        raise DataError(f"{file.uri} has channels {list(volume.channels)}; one volume is expected")
    if volume.dtype != np.uint8:
        raise DataError(
            f"{file.uri} holds {volume.dtype}; predictions are uint8 signed distances",
            hint="store v = clip(round(128 tanh(d / 50 nm) + 127), 0, 255)",
        )
    return volume


def _start_group(out: Path) -> None:
    import zarr

    if out.exists() and not (out / "zarr.json").is_file():
        raise StorageError(f"{out} is there and is no OME-Zarr group", hint="choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    zarr.open_group(str(out), mode="a", zarr_format=3)


def _work_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.work")


@dataclass(frozen=True)
class _Job:
    """One output group and how its organelles are made."""

    out: Path
    files: Mapping[str, VolumeFile]
    how: Blockwise

    @property
    def work(self) -> Path:
        return _work_folder(self.out)

    def step(self, name: str, organelle: Organelle) -> Step:
        """Step that makes an organelle."""
        file = self.files.get(name)
        inputs = {
            "recipe": organelle.model_dump(mode="json"),
            "prediction": None if file is None else input_fingerprint(file.uri),
            "file": repr(file),
        }
        after = tuple(organelle.needs)
        path = self.out / name
        return Step(name, lambda: self.make(name, organelle, inputs), inputs, after, (path,))

    def make(self, name: str, organelle: Organelle, inputs: Mapping[str, Any]) -> None:
        """Make an organelle; its intermediate volumes go when it is whole."""
        before = {needed: self._identity(needed) for needed in organelle.needs}
        text = json.dumps([inputs, before, self.how.block], sort_keys=True)
        folder = self.work / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        for stale in self.work.glob(f"{name}-*"):
            if stale != folder and len(stale.name) == len(folder.name):
                remove(stale)
        if not folder.exists():
            remove(self.out / f".{name}.partial")
        remove(self.out / name)
        folder.mkdir(parents=True, exist_ok=True)
        others = {needed: open_labels(self.out / needed, frame="em") for needed in organelle.needs}
        place = Workplace(name, folder, self.how, others)
        labels = refine_organelle(organelle, self._first(name, organelle), place, self.out / name)
        self._count(name, labels, folder)
        remove(folder)

    def _first(self, name: str, organelle: Organelle) -> Stage:
        if organelle.of is not None:
            labels = open_labels(self.out / organelle.of, frame="em")
            return Stage(labels.read, labels.grid, "labels", labels.dtype)
        file = self.files[name]
        volume = _prediction(file)
        return Stage(file, volume.grid, "prediction", volume.dtype)

    def _count(self, name: str, labels: Labels, folder: Path) -> None:
        ids, voxels = count_voxels(labels.read, labels.grid, folder / "counts", self.how)
        nm3 = math.prod(labels.grid.spacing_nm)
        counts = {
            "objects": len(ids),
            "volume_um3": float(voxels.sum()) * nm3 / 1e9,
            "largest_um3": float(voxels.max(initial=0)) * nm3 / 1e9,
        }
        atomic_write_json(self.work / "counts" / f"{name}.json", counts)

    def counts(self, name: str) -> dict[str, Any]:
        """Objects and volume of a finished organelle."""
        path = self.work / "counts" / f"{name}.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _identity(self, name: str) -> str:
        """Marker of the organelle that another one is made with."""
        marker: dict[str, Any] = json.loads(
            (self.work / "steps" / f"{name}.json").read_text(encoding="utf-8")
        )
        return str(marker["fingerprint"])
