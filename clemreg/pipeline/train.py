"""``clemreg train``: training data from files and from the simulator, one network out."""

from __future__ import annotations

import hashlib
import json
import logging
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from clemreg.blocks.run import Progress
from clemreg.config import Section, faults
from clemreg.errors import ClemregError, ConfigError, MissingError
from clemreg.export.replace import require_free
from clemreg.pipeline.train_crops import CellMapData, CosemData, open_crops
from clemreg.pipeline.train_volumes import (
    RealData,
    SimulatedData,
    held_out_volumes,
    real_volumes,
    simulated_volumes,
)
from clemreg.segment.augment import AugmentOptions
from clemreg.segment.checkpoints import CosemModel
from clemreg.segment.classes import category
from clemreg.segment.cosem import CosemUNet
from clemreg.segment.crops import CropOptions, CropPatches, TrainingCrop, digest, usable_crops
from clemreg.segment.data import TrainingVolume
from clemreg.segment.exchange import write_safetensors
from clemreg.segment.journal import Journal
from clemreg.segment.models import ModelCard, save_model
from clemreg.segment.network import UNet
from clemreg.segment.options import TrainOptions
from clemreg.segment.parallel import writes
from clemreg.segment.sampling import Mixture, Sampler
from clemreg.segment.setups import Setup, setup
from clemreg.segment.targets import CLASSES
from clemreg.segment.training import Outlets, device_of, train, volume_patches
from clemreg.segment.validation import Examiner, PatchValidation, Validation

log = logging.getLogger(__name__)

HINT = "docs/how-to/train.md lists every section with its keys"
# Keys of an entry that name files.
_FILES = {"em", "labels", "n5", "ids", "groundtruth"}


def _require_safetensors(out: str) -> str:
    if Path(out).suffix != ".safetensors":
        raise ValueError("the file of a network is NAME.safetensors")
    return out


class TrainConfig(Section):
    """A training: what to learn from, how, and where the network goes.

    `setup` names a setup of the paper, whose classes, network, loss, optimiser and sampling are
    then the defaults of `options`. `present` is the share of the patches of crops that come from
    crops where one of the classes occurs. Every `keep_every` steps the network is kept, to be
    scored and chosen from (`clemreg.pipeline.checkpoints`); 0: at the end only.
    """

    name: str
    out: Annotated[str, AfterValidator(_require_safetensors)]
    setup: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    present: Annotated[float, Field(ge=0, le=1)] = 0.0
    keep_every: int = Field(default=0, ge=0)
    augment: AugmentOptions = AugmentOptions()
    simulated: SimulatedData | None = None
    real: tuple[RealData, ...] = ()
    cosem: tuple[CosemData, ...] = ()
    cellmap: tuple[CellMapData, ...] = ()

    def train_options(self) -> TrainOptions:
        """Return the options, those of the setup where nothing else is said.

        Raises
        ------
        ConfigError
            There is no such option, or a value does not fit.
        """
        unknown = sorted(set(self.options) - {field.name for field in fields(TrainOptions)})
        if unknown:
            known = ", ".join(field.name for field in fields(TrainOptions))
            raise ConfigError(
                f"unknown training options {unknown}", hint=f"[options] may have: {known}"
            )
        chosen = (setup_options(setup(self.setup)) if self.setup else {}) | self.options
        try:
            return TypeAdapter(TrainOptions).validate_python(chosen)
        except ValidationError as error:
            found, hint = _fault(error)
            raise ConfigError(f"invalid training options:\n{found}", hint=hint) from error


def _fault(error: ValidationError) -> tuple[str, str]:
    """Say what is wrong and what to do: in the words of the options, if they refuse it."""
    for fault in error.errors():
        own = fault.get("ctx", {}).get("error")
        if isinstance(own, ClemregError):
            return f"  {own.message}", own.hint or HINT
    return faults(error), HINT


def setup_options(chosen: Setup) -> dict[str, Any]:
    """Return the options with which the paper trained a setup."""
    return {
        "architecture": "cosem",
        "loss": "paper",
        "optimiser": "adam",
        "betas": (0.95, 0.999),
        "learning_rate": 0.5e-4,
        "schedule": "constant",
        "batch": 1,
        "classes": chosen.classes,
        "spacing_nm": chosen.input_nm,
        "output": 36 if chosen.input_nm == 4.0 else 68,
        "steps": chosen.iterations,
        "checkpoint_every": 500,
        "average": 0.0,
    }


def load_train_config(path: Path, data: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration; ``NAME=FOLDER`` in `data` says where a real volume lies.

    Raises
    ------
    MissingError, ConfigError
        The file is absent, or a key or value is wrong; or `data` names no entry of it.
    """
    if not path.is_file():
        raise MissingError(f"no training configuration at {path}")
    try:
        config = TrainConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(
            f"invalid training configuration {path}:\n{faults(error)}", hint=HINT
        ) from error
    config.train_options()
    folders = _folders(data, config)
    located = {
        "real": tuple(entry.located(path.parent, folders) for entry in config.real),
        "cosem": tuple(entry.located(path.parent, folders) for entry in config.cosem),
        "cellmap": tuple(entry.located(path.parent, folders) for entry in config.cellmap),
    }
    return config.model_copy(update=located)


def _folders(data: Sequence[str], config: TrainConfig) -> dict[str, str]:
    """Folder of each entry that `data` names."""
    names = [entry.name for entry in config.real] + [entry.name for entry in config.cellmap]
    names += [entry.sample for entry in config.cosem]
    hint = f"entries are: {', '.join(dict.fromkeys(names)) or 'none'}"
    folders = {}
    for item in data:
        name, equals, folder = item.partition("=")
        if not equals or not folder:
            raise ConfigError(f"--data {item!r} is not of the form NAME=FOLDER", hint=hint)
        if name not in names:
            raise ConfigError(f"--data {item!r}: no entry is called {name!r}", hint=hint)
        folders[name] = folder
    return folders


def train_from_config(
    path: Path,
    data: Sequence[str] = (),
    *,
    journal: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train and write the network beside its configuration.

    Parameters
    ----------
    path, data
        As in `load_train_config`.
    journal
        Folder to follow in TensorBoard.
    overwrite
        Replace a network that this training did not make: its checkpoint is not beside.

    Returns
    -------
    Path
        The ``.safetensors`` file.

    Raises
    ------
    StorageError
        Such a network is there, and must not be replaced.
    ConfigError
        There is nothing to train on, or none of the classes is annotated in it; or there is no
        such device.
    """
    config = load_train_config(path, data)
    options = config.train_options()
    device_of(options)  # so that what is not there is said before anything is read
    out = path.parent / config.out
    checkpoint = out.with_suffix(".checkpoint")
    require_free(out, overwrite=overwrite or checkpoint.exists())
    entries: list[CosemData | CellMapData] = [*config.cosem, *config.cellmap]
    crops = {entry: open_crops(entry) for entry in entries}
    _require_taught(config, options, crops)
    volumes = list(training_volumes(config, progress))
    learnt = [crop for entry, found in crops.items() for crop in entry.learnt(found)]
    names = [v.name for v in volumes] + [crop.name for crop in learnt]
    described = _Described(config.name, options, tuple(dict.fromkeys(names)))

    def keep(step: int, network: UNet | CosemUNet) -> None:
        described.save(network, step, kept_networks(out) / f"{step:08d}.safetensors")

    with nullcontext() if journal is None or not writes() else closing(Journal(journal)) as writer:
        trained = train(
            _source(config, options, volumes, crops),
            options,
            validation=_validation(config, options, crops),
            checkpoint=checkpoint,
            outlets=Outlets(writer, progress, keep, config.keep_every),
            data=_data(config) | {"voxels": _digest(volumes), "crops": digest(learnt)},
        )
    if writes():
        described.save(trained.network, trained.steps, out)
    return out


def kept_networks(out: Path) -> Path:
    """Folder of the networks that a training keeps, ``<steps>.safetensors``."""
    return out.with_suffix(".kept")


def _data(config: TrainConfig) -> dict[str, str]:
    """Say what is learnt from, section by section; files by name, for they may be moved."""
    sections = config.model_dump(
        mode="json", include={"augment", "present", "simulated", "real", "cosem", "cellmap"}
    )
    for entry in (*sections["real"], *sections["cosem"], *sections["cellmap"]):
        for key in _FILES & entry.keys():
            entry[key] = Path(entry[key]).name
    return {name: json.dumps(section, sort_keys=True) for name, section in sections.items()}


def _digest(volumes: Sequence[TrainingVolume]) -> str:
    """Tell the voxels that are learnt from from others, wherever their files lie."""
    known = hashlib.sha256()
    for volume in volumes:
        for array in (volume.em, *volume.distances_nm.values()):
            known.update(f"{array.shape} {array.dtype}".encode())
            known.update(np.ascontiguousarray(array).data)
    return known.hexdigest()[:16]


Crops = dict[CosemData | CellMapData, tuple[TrainingCrop, ...]]


def _require_taught(config: TrainConfig, options: TrainOptions, crops: Crops) -> None:
    """Refuse to learn what is annotated nowhere; say which of several classes it is."""
    simulated = () if config.simulated is None else (config.simulated,)
    volumes = [source for source in (*config.real, *simulated) if source.weight]
    drawn = {entry: found for entry, found in crops.items() if entry.weight}
    if not volumes and not drawn:
        raise ConfigError(
            "there is nothing to train on",
            hint="add [simulated], [[real]], [[cosem]] or [[cellmap]], with a weight above 0",
        )
    organelles = {organelle for source in volumes for organelle in source.organelles}
    told = {category(name).name for name, of in CLASSES.items() if of in organelles}
    learnt = [crop for entry, found in drawn.items() for crop in entry.learnt(found)]
    untaught = [
        name
        for name in options.classes
        if category(name).name not in told and not usable_crops(learnt, (name,))
    ]
    if len(untaught) == len(options.classes):
        raise ConfigError(
            f"nothing to train on has {', '.join(untaught)} annotated",
            hint="[[real]] has mito and mito_mem, [simulated] er too, crops what was looked for",
        )
    if untaught and writes():
        log.warning(
            "nothing to train on has %s annotated: what the network says of it is not learnt",
            ", ".join(untaught),
        )


def _source(
    config: TrainConfig, options: TrainOptions, volumes: Sequence[TrainingVolume], crops: Crops
) -> Sampler:
    """Volumes together, and the crops of each entry together, as often as they weigh."""
    drawn_from = [volume for volume in volumes if volume.weight]
    samplers: list[Sampler] = [volume_patches(drawn_from, options)] if drawn_from else []
    weights = [sum(v.weight for v in drawn_from)] if drawn_from else []
    present = 0.5 if config.setup and setup(config.setup).present_first else config.present
    drawn = CropOptions(options.patch(), options.classes, config.augment, present)
    for entry, found in crops.items():
        learnt = entry.learnt(found)
        if learnt and entry.weight:
            samplers.append(CropPatches(learnt, drawn))
            weights.append(entry.weight)
    return Mixture(samplers, weights)


def _validation(config: TrainConfig, options: TrainOptions, crops: Crops) -> Examiner:
    """Held-out crops if there are any, else held-out slices of volumes."""
    plain = CropOptions(options.patch(), options.classes)
    held_out = [crop for entry, found in crops.items() for crop in entry.kept_out(found)]
    held_out = usable_crops(held_out, options.classes)
    if held_out or options.architecture == "cosem":
        samplers = [CropPatches([crop], plain) for crop in held_out]
        return PatchValidation(samplers, options.patch(), options.classes)
    volumes = [v for entry in config.real for v in held_out_volumes(entry)]
    return Validation(volumes, options.spacing_nm, options.classes)


@dataclass(frozen=True)
class _Described:
    """What a network's file says beside its weights."""

    name: str
    options: TrainOptions
    data: tuple[str, ...]

    def save(self, network: UNet | CosemUNet, steps: int, out: Path) -> None:
        """Write a network."""
        spacing = float(self.options.spacing_nm)
        if isinstance(network, CosemUNet):
            made = Setup(self.name, spacing, self.options.classes, steps)
            write_safetensors(CosemModel(made, network, out), out)
        else:
            save_model(network, ModelCard(self.name, (spacing,) * 3, self.data, steps), out)


def training_volumes(
    config: TrainConfig, progress: Progress | None = None
) -> Iterator[TrainingVolume]:
    """Load real volumes and draw simulated ones."""
    for entry in config.real:
        yield from real_volumes(entry)
    if config.simulated is not None:
        workers = config.train_options().workers
        yield from simulated_volumes(config.simulated, workers, progress)
