"""Planarity of a thin organelle such as the ER: sheets against tubes, thickness, reconstruction."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clemreg.blocks.distance import DistanceTo, halo_voxels
from clemreg.blocks.plan import Block
from clemreg.blocks.stages import Blockwise, Part, Read, map_volume
from clemreg.errors import ConfigError
from clemreg.io.volumes import WriteOptions
from clemreg.measure.gather import gathered, same_grid
from clemreg.measure.sheetness import SheetnessOptions, sheetness
from clemreg.measure.surface import DIRECTIONS, crofton_weights, face_areas, neighbour_pairs
from clemreg.measure.tables import Table
from clemreg.measure.thin import thin_volume
from clemreg.space.grid import Box, Grid
from clemreg.volume import Labels, Volume

_LEVELS = 254


@dataclass(frozen=True)
class PlanarityOptions:
    """How planarity is measured.

    Attributes
    ----------
    sheetness
        Scales and weights.
    cut
        Planar at and above, tubular below; 0.6 in the paper, for its scale rule.
    largest_radius_nm
        No part of the object is thicker than twice this; bounds what a block must read.
    thickness_bin_nm
        Width of the thickness bins.

    Raises
    ------
    ConfigError
        A value is impossible.
    """

    sheetness: SheetnessOptions = field(default_factory=SheetnessOptions)
    cut: float = 0.6
    largest_radius_nm: float = 200.0
    thickness_bin_nm: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.cut < 1:
            raise ConfigError(f"planarity is cut at {self.cut}, expected between 0 and 1")
        if not (self.largest_radius_nm > 0 and self.thickness_bin_nm > 0):
            raise ConfigError("largest radius and thickness bin must be above 0 nm")


@dataclass(frozen=True, eq=False)
class Planarity:
    """What `measure_planarity` found.

    Attributes
    ----------
    medial
        1 on the medial surface.
    volume
        uint8: 0 where nothing is reconstructed, else ``ceil(254 S) + 1`` as in the paper.
    histogram
        By sheetness: volume and area.
    thickness
        By sheetness and thickness: volume of the medial surface's voxels.
    """

    medial: Volume
    volume: Volume
    histogram: Table
    thickness: Table


def quantise(value: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Store sheetness 0 to 1 as 1 to 255."""
    return np.asarray(np.ceil(np.clip(value, 0, 1) * _LEVELS) + 1, dtype=np.uint8)


def measure_planarity(
    mask: Volume,
    out: Path,
    scratch: Path,
    options: PlanarityOptions | None = None,
    *,
    how: Blockwise | None = None,
) -> Planarity:
    """Measure the planarity of a mask (not 0: object), block by block.

    1. thin the object to its medial surface (`thin_volume`);
    2. take the sheetness at each voxel of that (`sheetness`), and as radius the distance to the
       background;
    3. give every voxel the mean sheetness of the balls that cover it: the object is reconstructed
       from its medial surface, and each part knows whether it is sheet or tube.

    After Heinrich et al. 2021 (Extended Data Fig. 10h).

    Parameters
    ----------
    out
        OME-Zarr with the planarity.
    scratch
        Folder for what lies between; a killed job goes on from there.
    how
        Blocks, executor and progress; no choice here changes a voxel. A block is read with four
        times the largest sigma around it (360 nm): take blocks that are not much smaller.
    """
    options, how = options or PlanarityOptions(), how or Blockwise()
    grid = mask.grid
    medial = thin_volume(mask.read, grid, scratch / "thin", how)
    one = WriteOptions(levels=1)
    work = _Sheetness(mask.read, medial.read, grid, options.sheetness)
    stage = how.named("sheetness")
    sheets = map_volume(work, scratch / "sheetness.zarr", grid, np.float32, stage, one)
    radius = _Radius(mask.read, medial.read, grid, options.largest_radius_nm)
    stage = how.named("radius")
    radii = map_volume(radius, scratch / "radius.zarr", grid, np.float32, stage, one)
    fill = _Fill(sheets.read, radii.read, grid, options.largest_radius_nm)
    volume = map_volume(fill, out, grid, np.uint8, how.named("planarity"), one)
    histogram, thickness = _histograms(volume, sheets, radii, options, how, scratch)
    return Planarity(medial, volume, histogram, thickness)


@dataclass(frozen=True)
class _Sheetness:
    """Sheetness on the medial surface, -1 elsewhere."""

    mask: Read
    medial: Read
    grid: Grid
    options: SheetnessOptions

    def __call__(self, box: Box) -> NDArray[np.float32]:
        medial = self.medial(box) != 0
        points = np.argwhere(medial) + np.asarray(box.start)
        result = np.full(box.shape, -1, np.float32)
        result[medial] = sheetness(self.mask, self.grid, points, self.options)
        return result


@dataclass(frozen=True)
class _Radius:
    """Distance in nm from the medial surface to the background, 0 elsewhere."""

    mask: Read
    medial: Read
    grid: Grid
    reach_nm: float

    def __call__(self, box: Box) -> NDArray[np.float32]:
        medial = self.medial(box) != 0
        if not medial.any():
            return np.zeros(box.shape, np.float32)
        away = DistanceTo(self._background, self.grid, self.reach_nm)(box)
        return np.where(medial, away, np.float32(0))

    def _background(self, box: Box) -> NDArray[np.bool_]:
        return np.asarray(self.mask(box) == 0)


@dataclass(frozen=True)
class _Fill:
    """Mean sheetness of the medial balls that cover a voxel."""

    sheets: Read
    radii: Read
    grid: Grid
    reach_nm: float

    def __call__(self, box: Box) -> NDArray[np.uint8]:
        halo = halo_voxels(self.reach_nm, self.grid.spacing_nm)
        window = box.grow(halo).clip(self.grid.shape)
        sheets, radii = self.sheets(window), self.radii(window)
        index = np.argwhere(sheets >= 0)
        place = tuple(index.T)
        total, count = _spread(
            index + halo, radii[place], sheets[place].astype(float), window.grow(halo), self.grid
        )
        inner = box.shift([-s for s in window.grow(halo).start]).slices
        total, count = total[inner], count[inner]
        mean = total / np.maximum(count, 1)
        return np.where(count > 0, quantise(mean), 0).astype(np.uint8)


def _spread(
    index: NDArray[np.int64],
    radius_nm: NDArray[np.float32],
    value: NDArray[np.float64],
    box: Box,
    grid: Grid,
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Sum and number, per voxel, of the values of the balls around `index` that cover it.

    Offsets are taken in one order, so that each voxel's sum is the same whatever the box.
    """
    total, count = np.zeros(box.size), np.zeros(box.size, np.int32)
    flat = np.ravel_multi_index(tuple(index.T), box.shape) if len(index) else np.zeros(0, int)
    order = np.argsort(-radius_nm, kind="stable")
    flat, radius_nm, value = flat[order], radius_nm[order], value[order]
    largest = float(radius_nm[0]) if len(radius_nm) else 0.0
    for step, away in _ball(largest, grid):
        # The nearest voxel of the background, at the radius itself, is not covered; the slack
        # makes up for the rounding of float32 distances.
        covered = int(np.searchsorted(-radius_nm, -np.float32(away * (1 + 1e-5)), side="left"))
        offset = (step[0] * box.shape[1] + step[1]) * box.shape[2] + step[2]
        # Voxels of one offset are all different, so that plain indexing adds each once.
        total[flat[:covered] + offset] += value[:covered]
        count[flat[:covered] + offset] += 1
    return total.reshape(box.shape), count.reshape(box.shape)


def _ball(radius_nm: float, grid: Grid) -> list[tuple[tuple[int, int, int], float]]:
    """Offsets closer than `radius_nm`, by distance, and their distances in nm."""
    z, y, x = halo_voxels(radius_nm, grid.spacing_nm)
    found = []
    for step in itertools.product(range(-z, z + 1), range(-y, y + 1), range(-x, x + 1)):
        away = float(np.linalg.norm(np.multiply(step, grid.spacing_nm)))
        if away < radius_nm:
            found.append((step, away))
    return sorted(found, key=lambda item: (item[1], item[0]))


def _histograms(
    volume: Volume,
    sheets: Volume,
    radii: Volume,
    options: PlanarityOptions,
    how: Blockwise,
    scratch: Path,
) -> tuple[Table, Table]:
    bins = int(np.ceil(2 * options.largest_radius_nm / options.thickness_bin_nm)) + 1
    work = _Histogram(volume, sheets, radii, options.thickness_bin_nm, bins)
    job = f"histogram {options}"
    blocks = how.blocks(volume.grid)
    with gathered(work, blocks, how.named("histogram"), job=job, scratch=scratch) as parts:
        names = ("voxels", "crossings", "thick")
        totals = {name: np.sum([part[name] for part in parts], axis=0) for name in names}
    spacing = volume.grid.spacing_nm
    voxel = float(np.prod(spacing))
    low = np.arange(_LEVELS + 1) / _LEVELS
    histogram = Table.of(
        sheetness=low,
        volume_nm3=totals["voxels"][1:] * voxel,
        area_nm2=(totals["crossings"][1:] * crofton_weights(spacing)).sum(1),
        area_faces_nm2=(totals["crossings"][1:] * face_areas(spacing)).sum(1),
    )
    level, thick = np.nonzero(totals["thick"])
    thickness = Table.of(
        sheetness=low[np.maximum(level - 1, 0)],
        thickness_from_nm=thick * options.thickness_bin_nm,
        thickness_to_nm=(thick + 1) * options.thickness_bin_nm,
        medial_volume_nm3=totals["thick"][level, thick] * voxel,
    )
    return histogram, thickness


@dataclass(frozen=True)
class _Histogram:
    volume: Volume
    sheets: Volume
    radii: Volume
    bin_nm: float
    bins: int

    def __call__(self, block: Block) -> Part:
        core = block.core
        window = core.grow(1).clip(self.volume.shape)
        array = self.volume.read(window)
        inner = array[core.shift([-s for s in window.start]).slices]
        crossings = np.zeros((_LEVELS + 2, len(DIRECTIONS)), np.int64)
        for number, direction in enumerate(DIRECTIONS):
            one, other = neighbour_pairs(core, window, direction)
            a, b = array[one], array[other]
            ends = np.maximum(a, b)[(a == 0) != (b == 0)]
            crossings[:, number] = np.bincount(ends, minlength=_LEVELS + 2)
        sheets, radii = self.sheets.read(core), self.radii.read(core)
        medial = sheets >= 0
        thick = np.minimum((2 * radii[medial] / self.bin_nm).astype(int), self.bins - 1)
        flat = quantise(sheets[medial]).astype(int) * self.bins + thick
        table = np.bincount(flat, minlength=(_LEVELS + 2) * self.bins)
        return {
            "voxels": np.bincount(inner.ravel(), minlength=_LEVELS + 2),
            "crossings": crossings,
            "thick": table.reshape(_LEVELS + 2, self.bins),
        }


def split(histogram: Table, cut: float) -> dict[str, dict[str, float]]:
    """Volume and area of what is planar (sheetness `cut` or more) and tubular."""
    planar = histogram["sheetness"] >= cut
    names = ("volume_nm3", "area_nm2", "area_faces_nm2")
    parts = {"planar": planar, "tubular": ~planar}
    report = {
        part: {name: float(histogram[name][rows].sum()) for name in names}
        for part, rows in parts.items()
    }
    for name in names:
        whole = report["planar"][name] + report["tubular"][name]
        for part in parts:
            report[part][name.partition("_nm")[0] + "_fraction"] = (
                report[part][name] / whole if whole else float("nan")
            )
    return report


def site_planarity(
    contacts: Labels,
    planarity: Volume,
    *,
    how: Blockwise | None = None,
    scratch: Path | None = None,
) -> Table:
    """Mean planarity over the voxels of every contact site that are part of the organelle.

    Parameters
    ----------
    contacts
        Site numbers, as `find_contacts` writes them.
    planarity
        As `measure_planarity` writes it; 0 does not count.

    Returns
    -------
    Table
        ``contact_id``, ``planarity`` (NaN where no voxel counts), ``planarity_volume_nm3``.
    """
    same_grid(contacts, planarity)
    how = how or Blockwise()
    job = f"site planarity {contacts.name} {planarity.name}"
    work = _SiteMeans(contacts, planarity)
    with gathered(work, how.blocks(contacts.grid), how, job=job, scratch=scratch) as parts:
        ids = np.unique(np.concatenate([part["ids"] for part in parts]))
        count, total = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
        for part in parts:
            place = np.searchsorted(ids, part["ids"])
            count[place] += part["count"]
            total[place] += part["total"]
    with np.errstate(invalid="ignore"):
        mean = (total / np.where(count, count, np.nan) - 1) / _LEVELS
    voxel = float(np.prod(contacts.grid.spacing_nm))
    return Table.of(contact_id=ids, planarity=mean, planarity_volume_nm3=count * voxel)


def planar_sites(contacts: Table, found: Table) -> Table:
    """Put planarity beside every contact site.

    Parameters
    ----------
    contacts
        Table of `find_contacts`.
    found
        Table of `site_planarity` for the volume that goes with it.

    Returns
    -------
    Table
        ``contact_id``, ``a_id``, ``b_id``, ``area_a_nm2``, ``area_b_nm2``, ``planarity`` (NaN
        where no voxel of the site is in the organelle), ``planarity_volume_nm3``.
    """
    ids = contacts["contact_id"].astype(np.uint64)
    mean, volume = np.full(len(ids), np.nan), np.zeros(len(ids))
    # A site whose voxels all belong to earlier sites, too, is not in the volume.
    _, row, other = np.intersect1d(ids, found["contact_id"], return_indices=True)
    mean[row], volume[row] = found["planarity"][other], found["planarity_volume_nm3"][other]
    return Table.of(
        contact_id=ids,
        **{n: contacts[n].astype(np.uint64) for n in ("a_id", "b_id")},
        **{n: contacts[n] for n in ("area_a_nm2", "area_b_nm2")},
        planarity=mean,
        planarity_volume_nm3=volume,
    )


def planar_areas(sites: Table, area: str, cut: float) -> dict[str, dict[str, float]]:
    """Count sites on sheets (planarity `cut` or more) and on tubes, and sum up their area."""
    planar = sites["planarity"] >= cut
    parts = {"planar": planar, "tubular": sites["planarity"] < cut}
    return {
        name: {"sites": int(rows.sum()), "area_nm2": float(sites[area][rows].sum())}
        for name, rows in parts.items()
    }


@dataclass(frozen=True)
class _SiteMeans:
    contacts: Labels
    planarity: Volume

    def __call__(self, block: Block) -> Part:
        sites = self.contacts.read(block.core).astype(np.uint64)
        ids, which = np.unique(sites, return_inverse=True)
        values = self.planarity.read(block.core).ravel()
        which = which.ravel()
        known = values > 0
        keep = ids > 0
        count = np.bincount(which[known], minlength=len(ids))
        total = np.bincount(which[known], values[known].astype(float), len(ids))
        return {"ids": ids[keep], "count": count[keep], "total": total[keep].astype(np.int64)}
