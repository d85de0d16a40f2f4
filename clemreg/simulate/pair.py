"""A CLEM pair with known truth: EM and light volumes, transform, landmarks, configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tomli_w
from numpy.typing import NDArray

from clemreg.blocks.run import Progress
from clemreg.errors import DataError
from clemreg.io.atomic import atomic_write_text
from clemreg.io.points import write_landmarks
from clemreg.io.transforms import read_transform, write_transform
from clemreg.io.volumes import WriteOptions, write_volume
from clemreg.simulate.deformation import DeformationOptions, random_transform
from clemreg.simulate.em import EmAppearance, render_em
from clemreg.simulate.light import MICROSCOPES, LightOptions, render_light, surface_emitters
from clemreg.simulate.phantom import CLASSES, ER_CLASSES, PhantomOptions, draw_phantom
from clemreg.space.grid import Box, Grid
from clemreg.space.landmarks import Landmarks
from clemreg.space.resample import pool_mean
from clemreg.space.transform import Affine, Chain, FloatArray, Transform
from clemreg.volume import Labels, Volume

log = logging.getLogger(__name__)

# 22 nm per axis per click: two people are then 32 nm apart on average in the plane, as measured.
CLICK_NM = (15.0, 14.0, 14.0)
MARGIN_NM = (600.0, 900.0, 900.0)


@dataclass(frozen=True)
class PairOptions:
    """What is simulated.

    Attributes
    ----------
    seed
        Seed of everything.
    em_shape, em_spacing_nm, em_origin_nm
        Imaged EM volume, zyx.
    microscope
        ``"palm"`` or ``"sim"``.
    phantom, appearance, deformation
        The cell, the look of the EM, the true transform.
    transform
        An existing transform file (um, LM to EM) instead of a random one.
    landmarks
        How many ER landmarks.
    """

    seed: int = 0
    em_shape: tuple[int, int, int] = (160, 384, 400)
    em_spacing_nm: tuple[float, float, float] = (16.0, 16.0, 16.0)
    em_origin_nm: tuple[float, float, float] = (800.0, -1200.0, 2400.0)
    microscope: str = "palm"
    phantom: PhantomOptions = field(default_factory=PhantomOptions)
    appearance: EmAppearance = field(default_factory=EmAppearance)
    deformation: DeformationOptions = field(default_factory=DeformationOptions)
    transform: str | None = None
    landmarks: int = 40


@dataclass(frozen=True, eq=False)
class _Structures:
    """Emitter positions in the EM frame, and places to put landmarks."""

    mito_nm: FloatArray
    er_nm: FloatArray
    places_nm: FloatArray
    place_kind: str


def simulate_clem(out: Path, options: PairOptions, progress: Progress | None = None) -> Transform:
    """Write a simulated pair to a folder and return the true transform LM to EM.

    Writes ``em.zarr``, ``lm.zarr`` (channels mito, er), ``em_labels.zarr``, ``truth.json``,
    ``landmarks.csv`` (raters AW, JB with human noise, and truth), ``config.toml``.
    """
    tell = _teller(progress, 6)
    rng = np.random.default_rng(options.seed)
    em_grid = Grid(options.em_shape, options.em_spacing_nm, options.em_origin_nm, "em")
    material = _with_margin(em_grid)
    tell("drawing the cell")
    phantom = draw_phantom(rng, material, options.phantom)
    imaged = _box_of(em_grid, material)
    tell("rendering the EM")
    em = render_em(rng, phantom.labels[imaged.slices], em_grid, options.appearance)
    _write(out / "em.zarr", Volume(em, em_grid))
    _write(out / "em_labels.zarr", Labels(phantom.labels[imaged.slices], em_grid))
    tell("placing fluorophores")
    light = MICROSCOPES[options.microscope]
    structures = _Structures(
        _mito_emitters(rng, phantom.mito_distance_nm, phantom.mito_ids, material, light),
        surface_emitters(
            rng,
            np.isin(phantom.labels, [CLASSES[name] for name in ER_CLASSES]),
            material,
            light.density * 0.5,
            45.0,
        ),
        phantom.er_junctions_nm,
        "ER junction",
    )
    return _write_light(out, options, rng, em_grid, structures, tell)


def simulate_from_labels(
    out: Path,
    em: Volume,
    labels: Volume,
    options: PairOptions,
    progress: Progress | None = None,
) -> Transform:
    """Make a pair whose EM and mitochondria are real; only the light side is simulated.

    There is no ER label in such data: the second channel holds background only, and the
    landmarks are random places in the EM, for which the truth is exact.

    Parameters
    ----------
    em, labels
        Real EM and mitochondria mask on the same grid.

    Raises
    ------
    DataError
        The grids differ, or the mask is empty.
    """
    if em.grid.shape != labels.grid.shape:
        raise DataError(f"EM {em.grid.shape} and labels {labels.grid.shape} differ in shape")
    away = np.abs(np.subtract(em.grid.origin_nm, labels.grid.origin_nm))
    stated = any(em.grid.origin_nm) and any(labels.grid.origin_nm)
    alike = np.allclose(em.grid.spacing_nm, labels.grid.spacing_nm, rtol=1e-3)
    # Some files state corners, some centres.
    if not alike or (stated and (away > 0.6 * np.asarray(em.grid.spacing_nm)).any()):
        raise DataError(
            f"EM has voxels of {em.grid.spacing_nm} nm from {em.grid.origin_nm} nm on, labels of "
            f"{labels.grid.spacing_nm} nm from {labels.grid.origin_nm} nm on (z, y, x)",
            hint="give the labels of just these voxels",
        )
    tell = _teller(progress, 6)
    rng = np.random.default_rng(options.seed)
    tell("copying the EM")
    grid = em.grid.with_frame("em")
    _write(out / "em.zarr", Volume(em.read(), grid))
    factor = tuple(max(1, round(10 / s)) for s in grid.spacing_nm)
    mask = pool_mean(labels.read() != 0, factor) >= 0.5
    if not mask.any():
        raise DataError(f"{labels.name or 'the label volume'} has no mitochondria")
    coarse = grid.downsample(factor)
    _write(out / "em_labels.zarr", Labels(mask.astype(np.uint8), coarse))
    tell("measuring distances")
    from clemreg.simulate.distance import signed_distance_nm

    distance, ids = signed_distance_nm(mask, coarse)
    light = MICROSCOPES[options.microscope]
    tell("placing fluorophores")
    low, high = grid.corners_nm()[[0, -1]]
    inset = np.minimum(400.0, (high - low) / 4)
    structures = _Structures(
        _mito_emitters(rng, distance, ids, coarse, light),
        np.zeros((0, 3)),
        rng.uniform(low + inset, high - inset, (options.landmarks * 2, 3)),
        "place",
    )
    return _write_light(out, options, rng, grid, structures, tell)


def _write_light(
    out: Path,
    options: PairOptions,
    rng: np.random.Generator,
    em_grid: Grid,
    structures: _Structures,
    tell: Callable[[str], None],
) -> Transform:
    light = MICROSCOPES[options.microscope]
    lm_grid = _lm_grid(em_grid, light)
    truth = _true_transform(rng, lm_grid, em_grid, options)
    tell("imaging with light")
    inverse = truth.inverse()
    channels = [
        render_light(rng, _mapped(inverse, points), lm_grid, light)
        for points in (structures.mito_nm, structures.er_nm)
    ]
    lm = np.clip(np.rint(np.stack(channels)), 0, 65535).astype(np.uint16)
    tops = tuple((0.0, max(1.0, float(np.percentile(c, 99.9)))) for c in lm)
    writing = WriteOptions(shard=(64, 256, 256), colours=("FF00FF", "00FF00"), windows=tops)
    write_volume(out / "lm.zarr", Volume(lm, lm_grid, ("mito", "er")), options=writing)
    tell("writing the truth")
    write_transform(truth, out / "truth.json")
    landmarks = _landmarks(rng, structures, em_grid, lm_grid, inverse, options)
    write_landmarks(landmarks, out / "landmarks.csv")
    atomic_write_text(out / "config.toml", tomli_w.dumps(_config(options)))
    return truth


def _teller(progress: Progress | None, total: int) -> Callable[[str], None]:
    done = 0

    def tell(message: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, message)
        done += 1

    return tell


def _with_margin(em: Grid) -> Grid:
    """Region of material: the EM block and what surrounds it in the light image."""
    margin = np.ceil(np.asarray(MARGIN_NM) / np.asarray(em.spacing_nm)).astype(int)
    return em.crop(em.box.grow(tuple(int(m) for m in margin)))


def _box_of(inner: Grid, outer: Grid) -> Box:
    start = np.rint(outer.to_index(inner.origin_nm)).astype(int)
    z, y, x = (int(v) for v in start)
    return Box.of_shape(inner.shape).shift((z, y, x))


def _mito_emitters(
    rng: np.random.Generator,
    distance_nm: NDArray[np.float32],
    ids: NDArray[np.int32],
    grid: Grid,
    light: LightOptions,
) -> FloatArray:
    """Fluorophores in the outer membrane; some mitochondria stay without."""
    shell = np.abs(distance_nm) < 10.0
    present = np.unique(ids[shell])
    dark = present[rng.random(len(present)) < light.missing]
    shell &= ~np.isin(ids, dark[dark > 0])
    return surface_emitters(rng, shell, grid, light.density, 20.0)


def _lm_grid(em: Grid, light: LightOptions) -> Grid:
    """LM field around the EM: its own frame, origin 0, a little larger than the EM block."""
    extent = em.extent_nm * 1.05 + 2 * np.asarray(MARGIN_NM) * [0.6, 1.2, 1.2]
    shape = np.ceil(extent / np.asarray(light.spacing_nm)).astype(int)
    z, y, x = (int(n) for n in shape)
    return Grid((z, y, x), light.spacing_nm, (0.0, 0.0, 0.0), "lm")


def _true_transform(
    rng: np.random.Generator, lm: Grid, em: Grid, options: PairOptions
) -> Transform:
    if options.transform is None:
        region = _with_margin(em)
        return random_transform(rng, lm.centre_nm, region, options.deformation)
    given = read_transform(options.transform, source="lm", target="em")
    # The file speaks of another field: look through it at a place inside, and bring its image
    # to the centre of this EM.
    from clemreg.io.transforms import read_fixed_grid

    whole = read_fixed_grid(options.transform)
    middle = (whole or lm).centre_nm
    to_file = Affine.translation(middle - lm.centre_nm, "lm", "lm")
    landed = given(middle[None])[0]
    to_here = Affine.translation(em.centre_nm - landed, "em", "em")
    return Chain((to_file, given, to_here))


def _mapped(transform: Transform, points_nm: FloatArray) -> FloatArray:
    if not len(points_nm):
        return points_nm
    parts = np.array_split(points_nm, max(1, len(points_nm) // 200_000))
    return np.concatenate([transform(part) for part in parts])


def _landmarks(
    rng: np.random.Generator,
    structures: _Structures,
    em: Grid,
    lm: Grid,
    inverse: Transform,
    options: PairOptions,
) -> Landmarks:
    """Places seen in both volumes, away from the borders; clicked by two people, and exact."""
    low, high = em.corners_nm()[[0, -1]]
    inset = np.minimum(250.0, (high - low) / 5)
    places = structures.places_nm
    places = places[((places > low + inset) & (places < high - inset)).all(axis=1)]
    there = _mapped(inverse, places)
    seen = lm.contains(there)
    places, there = places[seen][: options.landmarks], there[seen][: options.landmarks]
    names = tuple(str(i + 1) for i in range(len(places)))
    tables = []
    for rater in ("AW", "JB", "truth"):
        noise = 0.0 if rater == "truth" else rng.normal(size=places.shape) * CLICK_NM
        tables.append(Landmarks(names, there, places + noise, (rater,) * len(names)))
    log.info("%d landmarks at each %s", len(places), structures.place_kind)
    return Landmarks.concat(tables)


def _config(options: PairOptions) -> dict[str, dict[str, object]]:
    return {
        "em": {"path": "em.zarr"},
        "lm": {"path": "lm.zarr", "channel": "mito", "check_channel": "er"},
        "register": {"psf": options.microscope, "seed": 0},
        "proof": {
            "landmarks": "landmarks.csv",
            "raters": ["AW", "JB", "truth"],
            "truth": "truth.json",
        },
        "output": {"dir": "run", "title": "Simulated CLEM pair"},
    }


def _write(path: Path, volume: Volume) -> None:
    options = WriteOptions(shard=(64, 256, 256), labels=isinstance(volume, Labels))
    write_volume(path, volume, options=options)
