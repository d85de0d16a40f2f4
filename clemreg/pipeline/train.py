"""``clemreg train``: training data from files and from the simulator, one network out."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from clemreg.blocks.run import Progress
from clemreg.errors import ConfigError, MissingError
from clemreg.io.volumes import open_labels, open_volume
from clemreg.segment.data import TrainingVolume
from clemreg.segment.journal import Journal
from clemreg.segment.models import ModelCard, save_model
from clemreg.segment.targets import signed_distance_nm
from clemreg.segment.training import TrainOptions, train
from clemreg.segment.validation import Validation
from clemreg.simulate.em import random_training_block
from clemreg.simulate.phantom import ER_CLASSES
from clemreg.space.grid import Box
from clemreg.space.resample import pool_mean
from clemreg.units import parse_xyz_nm


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulatedData(_Section):
    """Blocks drawn by the simulator, each with its own appearance."""

    blocks: int = 40
    shape: tuple[int, int, int] = (112, 144, 144)
    spacing_nm: tuple[float, float] = (12.0, 20.0)
    weight: float = 0.5
    seed: int = 1


class RealData(_Section):
    """A labelled volume; slices in `held_out` (first, end) are never trained on.

    It is averaged over `pool` voxels along each axis when it is loaded.
    """

    name: str
    em: str = ""
    labels: str = ""
    voxel_size: str
    held_out: tuple[int, int] = (0, 0)
    pool: int = 1
    weight: float = 0.5


class TrainConfig(_Section):
    """A training: what to learn from, how, and where the network goes."""

    name: str
    out: str
    options: dict[str, Any] = {}
    simulated: SimulatedData | None = SimulatedData()
    real: tuple[RealData, ...] = ()


def load_train_config(path: Path, data: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration; ``NAME=FOLDER`` in `data` says where a real volume lies.

    Raises
    ------
    MissingError, ConfigError
        The file is absent, or a key or value is wrong.
    """
    if not path.is_file():
        raise MissingError(f"no training configuration at {path}")
    try:
        config = TrainConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(f"invalid training configuration {path}:\n{error}") from error
    known = {field.name for field in fields(TrainOptions)}
    unknown = set(config.options) - known
    if unknown:
        raise ConfigError(f"{path}: unknown training options {sorted(unknown)}")
    folders = dict(item.split("=", 1) for item in data if "=" in item)
    real = tuple(_located(entry, path.parent, folders) for entry in config.real)
    return config.model_copy(update={"real": real})


def _located(entry: RealData, base: Path, folders: dict[str, str]) -> RealData:
    folder = Path(folders[entry.name]) if entry.name in folders else base
    return entry.model_copy(
        update={"em": str(folder / entry.em), "labels": str(folder / entry.labels)}
    )


def train_from_config(
    path: Path,
    data: Sequence[str] = (),
    *,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train and write the network beside its configuration.

    Parameters
    ----------
    path, data
        As in `load_train_config`.
    journal
        Folder to follow in TensorBoard.

    Returns
    -------
    Path
        The ``.safetensors`` file.
    """
    config = load_train_config(path, data)
    options = TrainOptions(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in config.options.items()}  # type: ignore[arg-type]
    )
    out = path.parent / config.out
    volumes = list(training_volumes(config, progress))
    held_out = [v for entry in config.real for v in held_out_volumes(entry)]
    with nullcontext() if journal is None else closing(Journal(journal)) as writer:
        trained = train(
            volumes,
            options,
            validation=Validation(held_out, options.spacing_nm, options.classes),
            checkpoint=out.with_suffix(".checkpoint"),
            journal=writer,
            progress=progress,
        )
    card = ModelCard(
        name=config.name,
        spacing_nm=(float(options.spacing_nm),) * 3,
        trained_on=tuple(dict.fromkeys(v.name for v in volumes)),
        steps=trained.steps,
    )
    save_model(trained.network, card, out)
    return out


def training_volumes(
    config: TrainConfig, progress: Progress | None = None
) -> Iterator[TrainingVolume]:
    """Load real volumes and draw simulated ones."""
    for entry in config.real:
        yield from real_volumes(entry)
    simulated = config.simulated
    if simulated is None:
        return
    for i in range(simulated.blocks):
        if progress is not None:
            progress(i, simulated.blocks, "simulating EM")
        rng = np.random.default_rng((simulated.seed, i))
        spacing = (float(rng.uniform(*simulated.spacing_nm)),) * 3
        em, phantom = random_training_block(rng, simulated.shape, spacing)
        distances = {
            "mito": phantom.mito_distance_nm,
            "er": np.clip(signed_distance_nm(phantom.mask(ER_CLASSES), spacing), -500, 500),
        }
        weight = simulated.weight / simulated.blocks
        yield TrainingVolume(em, distances, spacing, weight, "simulated")


def real_volumes(entry: RealData) -> Iterator[TrainingVolume]:
    """Yield the parts of a labelled volume before and after its held-out slices."""
    first, end = entry.held_out
    depth = _depth(entry)
    parts = [(a, b) for a, b in ((0, first), (end, depth)) if b - a >= 16]
    for a, b in parts:
        weight = entry.weight * (b - a) / sum(q - p for p, q in parts)
        yield _slices(entry, a, b, weight)


def held_out_volumes(entry: RealData) -> Iterator[TrainingVolume]:
    """Yield the held-out slices of a labelled volume, if there are any."""
    first, end = entry.held_out
    if end > first:
        yield _slices(entry, first, end, entry.weight)


def _depth(entry: RealData) -> int:
    return open_volume(entry.em, spacing_nm=parse_xyz_nm(entry.voxel_size), frame="em").shape[0]


def _slices(entry: RealData, first: int, end: int, weight: float) -> TrainingVolume:
    spacing = parse_xyz_nm(entry.voxel_size)
    em = open_volume(entry.em, spacing_nm=spacing, frame="em")
    labels = open_labels(entry.labels, spacing_nm=spacing, frame="em")
    box = Box((first, 0, 0), (end, *em.shape[1:]))
    distance = signed_distance_nm(labels.read(box) != 0, spacing)
    factor = (entry.pool,) * 3
    z, y, x = (s * entry.pool for s in spacing)
    return TrainingVolume(
        pool_mean(em.read(box), factor).astype(np.uint8),
        {"mito": pool_mean(np.clip(distance, -500, 500), factor)},
        (z, y, x),
        weight,
        entry.name,
    )
