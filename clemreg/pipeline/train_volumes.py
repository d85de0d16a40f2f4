"""Sections of a training configuration that name whole volumes: annotated ones, simulated ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from clemreg.blocks.run import Progress
from clemreg.config import Section, XyzLength
from clemreg.errors import ConfigError, DataError, GridError
from clemreg.io.volumes import open_labels, open_volume
from clemreg.pipeline.train_crops import Weight, one_channel
from clemreg.segment.data import TrainingVolume
from clemreg.segment.targets import signed_distance_nm
from clemreg.simulate.em import random_training_block
from clemreg.simulate.phantom import ER_CLASSES
from clemreg.space.grid import Box
from clemreg.space.resample import pool_mean
from clemreg.units import parse_xyz_nm

log = logging.getLogger(__name__)

LEAST_SLICES = 16
"""A part of a volume with fewer is not learnt from: patches would hardly show more."""
Side = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _require_order(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("expected the smaller number first")
    return pair


class SimulatedData(Section):
    """Blocks drawn by the simulator, each with its own appearance.

    A mitochondrion is outlined `inset_nm` inside the outer face of its membrane: as the people did
    who drew the outlines of the real data, so that both teach the same.
    """

    organelles: ClassVar[tuple[str, ...]] = ("mito", "er")

    blocks: Annotated[int, Field(ge=1)] = 40
    shape: tuple[Side, Side, Side] = (112, 144, 144)
    spacing_nm: Annotated[tuple[Size, Size], AfterValidator(_require_order)] = (12.0, 20.0)
    inset_nm: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    weight: Weight = 0.5
    seed: Annotated[int, Field(ge=0)] = 1


class RealData(Section):
    """A labelled volume; slices in `held_out` (first, end) are never trained on; (0, 0): none.

    Only `rows` along y and `columns` along x (first, end) are annotated; (0, 0): all. The volume is
    taken to end there, so that nothing is learnt where outlines are cut off or missing. It is
    averaged over `pool` voxels along each axis when it is loaded. `upright`: it was annotated slice
    by slice, and patches keep its z.
    """

    organelles: ClassVar[tuple[str, ...]] = ("mito",)

    name: str
    em: str = ""
    labels: str = ""
    voxel_size: XyzLength
    held_out: tuple[int, int] = (0, 0)
    rows: tuple[int, int] = (0, 0)
    columns: tuple[int, int] = (0, 0)
    pool: Annotated[int, Field(ge=1, le=32)] = 1
    upright: bool = False
    weight: Weight = 0.5

    def located(self, base: Path, folders: dict[str, str]) -> RealData:
        """Return it with paths from where the configuration, or a folder by name, lies."""
        folder = Path(folders.get(self.name, base))
        paths = {"em": str(folder / self.em), "labels": str(folder / self.labels)}
        return self.model_copy(update=paths)


def simulated_volumes(
    data: SimulatedData, workers: int = 0, progress: Progress | None = None
) -> Iterator[TrainingVolume]:
    """Draw simulated volumes, in so many processes; 0: in this one."""
    draw = partial(_simulated, data)
    with ProcessPoolExecutor(workers) if workers else nullcontext() as pool:
        drawn = (
            map(draw, range(data.blocks)) if pool is None else pool.map(draw, range(data.blocks))
        )
        for i, volume in enumerate(drawn):
            if progress is not None:
                progress(i + 1, data.blocks, "simulating EM")
            yield volume


def _simulated(data: SimulatedData, number: int) -> TrainingVolume:
    rng = np.random.default_rng((data.seed, number))
    spacing = (float(rng.uniform(*data.spacing_nm)),) * 3
    em, phantom = random_training_block(rng, data.shape, spacing)
    distances = {
        "mito": phantom.mito_distance_nm - np.float32(data.inset_nm),
        "er": np.clip(signed_distance_nm(phantom.mask(ER_CLASSES), spacing), -500, 500),
    }
    return TrainingVolume(em, distances, spacing, data.weight / data.blocks, "simulated")


def real_volumes(entry: RealData) -> Iterator[TrainingVolume]:
    """Yield the parts of a labelled volume before and after its held-out slices.

    Raises
    ------
    ConfigError
        There are no such slices, or too few beside them; a volume of which all slices are held
        out is for scores only.
    """
    depth = _depth(entry)
    first, end = _held_out(entry, depth)
    beside = [(a, b) for a, b in ((0, first), (end, depth)) if b > a]
    parts = [(a, b) for a, b in beside if b - a >= LEAST_SLICES]
    if beside and not parts:
        raise ConfigError(
            f"{entry.em}: no part with {LEAST_SLICES} slices to learn from: it has {depth}, and "
            f"held_out = {list(entry.held_out)}",
            hint=f"hold out fewer, or take more; held_out = [0, {depth}] is for scores only",
        )
    for a, b in beside:
        if b - a < LEAST_SLICES:
            log.warning("%s: too few to learn from: %s", entry.em, _slices_named(a, b))
    for a, b in parts:
        weight = entry.weight * (b - a) / sum(q - p for p, q in parts)
        yield _slices(entry, a, b, weight)


def held_out_volumes(entry: RealData) -> Iterator[TrainingVolume]:
    """Yield the held-out slices of a labelled volume, if there are any.

    Raises
    ------
    ConfigError
        There are no such slices.
    """
    if any(entry.held_out):
        first, end = _held_out(entry, _depth(entry))
        yield _slices(entry, first, end, entry.weight)


def _held_out(entry: RealData, depth: int) -> tuple[int, int]:
    """First and end of the slices held out; (0, 0): none."""
    if not any(entry.held_out):
        return 0, 0
    return _span("held_out", entry.held_out, ("slices", depth), entry.em)


def _slices_named(first: int, end: int) -> str:
    return f"slice {first}" if end == first + 1 else f"slices {first} to {end - 1}"


def _depth(entry: RealData) -> int:
    return open_volume(entry.em, spacing_nm=parse_xyz_nm(entry.voxel_size), frame="em").shape[0]


def _slices(entry: RealData, first: int, end: int, weight: float) -> TrainingVolume:
    spacing = parse_xyz_nm(entry.voxel_size)
    em = one_channel(open_volume(entry.em, spacing_nm=spacing, frame="em"), entry.em)
    labels = one_channel(open_labels(entry.labels, spacing_nm=spacing, frame="em"), entry.labels)
    if labels.shape != em.shape:
        raise GridError(
            f"{entry.labels} has {labels.shape} voxels, {entry.em} {em.shape} (z, y, x)",
            hint="EM and labels of [[real]] lie on the same voxels",
        )
    rows, columns = _annotated(entry, em.shape)
    box = Box((first, rows[0], columns[0]), (end, rows[1], columns[1]))
    distance = signed_distance_nm(labels.read(box) != 0, spacing)
    factor = (entry.pool,) * 3
    z, y, x = (s * entry.pool for s in spacing)
    return TrainingVolume(
        _averaged(em.read(box), factor, entry.em),
        {"mito": pool_mean(np.clip(distance, -500, 500), factor)},
        (z, y, x),
        weight,
        entry.name,
        upright=entry.upright,
    )


def _averaged(values: NDArray[Any], factor: Sequence[int], path: str) -> NDArray[np.generic]:
    """Mean of blocks: bytes stay bytes, other grey values keep their range as float32."""
    if not np.isfinite(values).all():
        raise DataError(
            f"{path} holds values that are not finite (NaN or infinite)",
            hint="replace them, or leave them out by held_out, rows and columns",
        )
    means = pool_mean(values, factor)
    return means.astype(np.uint8) if values.dtype == np.uint8 else means


def _annotated(entry: RealData, shape: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns (first, end) of a volume of that shape (z, y, x) to learn from."""
    rows, columns = (
        _span(name, part if any(part) else (0, n), (name, n), entry.em)
        for name, n, part in zip(
            ("rows", "columns"), shape[1:], (entry.rows, entry.columns), strict=True
        )
    )
    return rows, columns


def _span(key: str, part: tuple[int, int], there: tuple[str, int], path: str) -> tuple[int, int]:
    """First and end of a part, which must lie within what there is, by its name and number."""
    (first, end), (what, n) = part, there
    if not 0 <= first < end <= n:
        raise ConfigError(
            f"{key} = [{first}, {end}] of {path}: there are {n} {what}",
            hint=f"the first and the end, 0 <= first < end <= {n}; or leave it away",
        )
    return first, end
