"""Shapes whose measures are known, on the paper's voxels and on cubes, turned at random."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from clemreg.blocks.stages import Blockwise
from clemreg.measure.contacts import ContactOptions, find_contacts
from clemreg.measure.mesh import MeshOptions, area_nm2, mesh_mask
from clemreg.measure.morphology import measure_objects
from clemreg.measure.planarity import PlanarityOptions, measure_planarity
from clemreg.measure.sheetness import SheetnessOptions
from clemreg.measure.skeleton import SkeletonOptions, measure_skeleton, skeletonize
from clemreg.space import Grid
from clemreg.testing import random_rotation
from clemreg.volume import Labels, Volume

SPACINGS = pytest.mark.parametrize("spacing", [(5.24, 4.0, 4.0), (4.0, 4.0, 4.0)], ids=str)
HOW = Blockwise((25, 31, 40))


def cube(spacing, side_nm):
    """Grid around a cube, with an origin that is not 0."""
    shape = tuple(math.ceil(side_nm / s) + 1 for s in spacing)
    return Grid(shape, spacing, (300.0, -200.0, 70.0), "em")


def turned(grid, seed):
    """Points in nm in a turned frame, off the middle by a part of a voxel."""
    rng = np.random.default_rng(seed)
    off = rng.uniform(-0.5, 0.5, 3) * grid.spacing_nm
    return (grid.points_nm() - grid.centre_nm - off) @ random_rotation(rng)


def sphere(spacing):
    grid, radius = cube(spacing, 210), 95.0
    mask = np.linalg.norm(turned(grid, 1), axis=-1) <= radius
    return mask, grid, 4 / 3 * np.pi * radius**3, 4 * np.pi * radius**2


def torus(spacing):
    grid, ring, tube = cube(spacing, 270), 90.0, 35.0
    points = turned(grid, 2)
    mask = np.hypot(points[..., 0], np.hypot(points[..., 1], points[..., 2]) - ring) <= tube
    return mask, grid, 2 * np.pi**2 * ring * tube**2, 4 * np.pi**2 * ring * tube


RADIUS, LENGTH = 30.0, 360.0


def bent_tube(spacing):
    """An arc of 3.6 rad about a radius of 100 nm, with round ends."""
    grid = cube(spacing, 280)
    t = np.linspace(-1.8, 1.8, 3000)
    line = np.stack([np.zeros_like(t), 100 * np.sin(t), 100 * np.cos(t)], 1)
    away, _ = cKDTree(line).query(turned(grid, 3).reshape(-1, 3), distance_upper_bound=RADIUS)
    mask = np.isfinite(away).reshape(grid.shape)
    caps = np.array([4 / 3 * RADIUS, 4]) * np.pi * RADIUS**2
    return mask, grid, np.pi * RADIUS**2 * LENGTH + caps[0], 2 * np.pi * RADIUS * LENGTH + caps[1]


@SPACINGS
@pytest.mark.parametrize("shape", [sphere, torus, bent_tube])
def test_volume_and_area(shape, spacing):
    mask, grid, volume, area = shape(spacing)
    row = next(measure_objects(Labels(mask.astype("u4") * 70_001, grid), how=HOW).rows())
    assert row["volume_nm3"] == pytest.approx(volume, rel=0.01)
    assert row["surface_nm2"] == pytest.approx(area, rel=0.02)
    mesh = mesh_mask(mask, grid, MeshOptions(keep=1))
    assert mesh.volume_nm3() == pytest.approx(volume, rel=0.02)
    assert area_nm2(mesh) == pytest.approx(area, rel=0.02)


@SPACINGS
@pytest.mark.parametrize("largest", [10**9, 10], ids=["whole", "in blocks"])
def test_length_and_radius_of_a_bent_tube_and_of_a_ring(spacing, largest):
    """Thinning ends up to one radius before the tips; a ring may lie one voxel beside its axis."""
    options = SkeletonOptions(largest_box_voxels=largest)
    mask, grid, _, _ = bent_tube(spacing)
    row = measure_skeleton(next(skeletonize(Labels(mask.astype("u4"), grid), options, how=HOW)))
    assert row["smooth_length_nm"] == pytest.approx(LENGTH, abs=RADIUS)
    assert row["radius_mean_nm"] == pytest.approx(RADIUS, rel=0.05)
    assert (row["branches"], row["ends"], row["rings"]) == (1, 2, 0)
    mask, grid, _, _ = torus(spacing)
    row = measure_skeleton(next(skeletonize(Labels(mask.astype("u4"), grid), options, how=HOW)))
    assert row["smooth_length_nm"] == pytest.approx(np.pi * 90, abs=np.pi * max(spacing))
    assert row["radius_mean_nm"] == pytest.approx(35, rel=0.05)
    assert (row["ends"], row["rings"]) == (0, 1)


@SPACINGS
@pytest.mark.parametrize("shape", [torus, bent_tube])
def test_thinning_in_blocks_finds_the_line_of_scikit_image(shape, spacing):
    """Two methods, one axis: nodes are at most two voxels from those of the other."""
    from skimage.morphology import skeletonize as lee

    mask, grid, _, _ = shape(spacing)
    options = SkeletonOptions(largest_box_voxels=10)
    ours = next(skeletonize(Labels(mask.astype("u4"), grid), options, how=HOW)).skeleton.nodes_nm
    theirs = grid.to_world(np.argwhere(lee(mask)))
    # Without their last radius: where a line ends, the methods may differ by that much.
    if shape is bent_tube:
        ours, theirs = (p[_along_the_arc(p, grid)] for p in (ours, theirs))
    limit = 2 * float(np.linalg.norm(spacing))
    assert cKDTree(theirs).query(ours)[0].max() <= limit
    assert cKDTree(ours).query(theirs)[0].max() <= limit


def _along_the_arc(nodes_nm, grid):
    rng = np.random.default_rng(3)
    off = rng.uniform(-0.5, 0.5, 3) * grid.spacing_nm
    local = (nodes_nm - grid.centre_nm - off) @ random_rotation(rng)
    return np.abs(np.arctan2(local[:, 1], local[:, 2])) < 1.8 - 1.2 * RADIUS / 100


@SPACINGS
def test_a_sheet_is_planar_a_tube_is_not_and_a_junction_is_both(spacing, tmp_path):
    """A slab 32 nm thick in one half goes over into a tube as thick in the other."""
    grid = cube(spacing, 224)
    points = turned(grid, 4)
    behind = points[..., 2] >= 0
    slab = (np.abs(points[..., 0]) <= 16) & ~behind
    tube = (np.hypot(points[..., 0], points[..., 1]) <= 16) & behind
    options = PlanarityOptions(SheetnessOptions(scales=8), largest_radius_nm=30.0)
    mask = Volume((slab | tube).astype("u1"), grid)
    found = measure_planarity(mask, tmp_path / "p.zarr", tmp_path / "s", options, how=HOW)
    value = found.volume.read()
    inner = (np.linalg.norm(points, axis=-1) < 90) & (value > 0)
    planar = value >= 1 + 254 * 0.6
    assert planar[inner & slab & (points[..., 2] < -30)].mean() > 0.95
    assert planar[inner & tube & (points[..., 2] > 30)].mean() < 0.05
    thick = found.thickness
    middle = (thick["thickness_from_nm"] + thick["thickness_to_nm"]) / 2
    mean = np.average(middle, weights=thick["medial_volume_nm3"])
    assert mean == pytest.approx(32, abs=0.5 * max(spacing) + 4)  # half a voxel, half a bin


@SPACINGS
@pytest.mark.parametrize(("gap_nm", "sites"), [(9.0, 1), (12.0, 1), (26.0, 0)])
def test_contacts_of_turned_plates(spacing, gap_nm, sites):
    """Two discs, one above the other: one site at 16 nm or none, with its area and gap.

    Voxels are boxes, so the gap between them is up to the diagonal of a voxel smaller than that of
    the plates, which lies between centres. One plane comes out up to 9 % too small.
    """
    grid, radius = cube(spacing, 190), 70.0
    points = turned(grid, 5)
    disc = np.hypot(points[..., 1], points[..., 2]) <= radius
    height = points[..., 0]
    a = disc & (height > gap_nm / 2) & (height < 40)
    b = disc & (height < -gap_nm / 2) & (height > -40)
    ids = (Labels(m.astype("u4") * n, grid) for m, n in ((a, 70_001), (b, 65_537)))
    table = find_contacts(*ids, ContactOptions(16.0), how=HOW)
    assert len(table) == sites
    for row in table.rows():
        for side in "ab":
            assert 0.87 < row[f"area_{side}_nm2"] / (np.pi * radius**2) < 1.02
        assert row["cleft_volume_nm3"] == pytest.approx(np.pi * radius**2 * gap_nm, rel=0.15)
        between = distance_transform_edt(~b, sampling=grid.spacing_nm)[a].min()
        assert row["gap_nm"] <= between <= row["gap_nm"] + float(np.linalg.norm(spacing))
        assert row["gap_nm"] <= gap_nm <= row["gap_nm"] + float(np.linalg.norm(spacing))
