from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from clemreg.blocks.executors import Threads
from clemreg.blocks.plan import plan_blocks
from clemreg.blocks.stages import Blockwise
from clemreg.measure import thin
from clemreg.measure.thin import is_simple, is_surface, medial_surface, thin_volume
from clemreg.space import Grid
from clemreg.testing import random_rotation
from clemreg.volume import Volume


def blobs(seed, shape=(23, 34, 41)):
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5)
    return field > 0.01


def oracle_simple(here):
    """Simple by definition: components with SciPy, one neighbourhood at a time."""
    from scipy.ndimage import generate_binary_structure, label

    cube = np.ones(27, bool)
    cube[[i for i in range(27) if i != 13]] = here
    cube = cube.reshape(3, 3, 3)
    around = cube.copy()
    around[1, 1, 1] = False
    _, pieces = label(around, np.ones((3, 3, 3)))
    distance = np.abs(np.indices((3, 3, 3)) - 1).sum(0)
    outside = ~cube & (distance <= 2)
    marks, _ = label(outside, generate_binary_structure(3, 1))
    faces = set(marks[distance == 1]) - {0}
    return pieces == 1 and len(faces) == 1


def test_simple_points_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    here = rng.random((600, 26)) < rng.uniform(0.1, 0.9, (600, 1))
    expected = [oracle_simple(row) for row in here]
    assert is_simple(here).tolist() == expected
    assert 30 < sum(expected) < 570


def test_a_plane_is_a_surface_in_any_of_its_directions_and_a_slab_is_not():
    index = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    index = index[np.any(index != 0, axis=1)]
    for normal in ([1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, -1], [1, -1, 0]):
        assert is_surface((index @ normal == 0)[None])[0]
    for normal in ([1, 0, 0], [0, 0, 1]):
        assert not is_surface(((index @ normal == 0) | (index @ normal == 1))[None])[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_thinning_keeps_the_topology(seed):
    from skimage.measure import euler_number, label

    mask = blobs(seed)
    surface = medial_surface(mask) > 0
    assert not (surface & ~mask).any()
    assert surface.sum() < 0.2 * mask.sum()
    assert euler_number(surface, 3) == euler_number(mask, 3)
    parts, surface_parts = label(mask, connectivity=3), label(surface, connectivity=3)
    assert surface_parts.max() == parts.max()
    assert set(np.unique(parts[surface])) == set(range(1, parts.max() + 1))


def test_a_slab_thins_to_its_middle_and_a_tube_to_its_axis():
    grid = Grid((46, 60, 64), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0))
    rotation = random_rotation(np.random.default_rng(2))
    local = (grid.points_nm() - grid.centre_nm) @ rotation
    middle = np.linalg.norm(local, axis=-1) < 60
    slab = medial_surface(np.abs(local[..., 0]) <= 20) > 0
    assert np.abs(local[slab & middle][:, 0]).max() < 5.24
    # One layer: about as many voxels as the disc has columns along its steepest axis.
    steepest = np.abs(rotation[:, 0]).argmax()
    column = np.prod(grid.spacing_nm) / grid.spacing_nm[steepest]
    columns = np.pi * 60**2 * np.abs(rotation[steepest, 0]) / column
    assert (slab & middle).sum() == pytest.approx(columns, rel=0.15)
    tube = medial_surface(np.hypot(local[..., 0], local[..., 1]) <= 20) > 0
    assert np.hypot(*local[tube & middle][:, :2].T).mean() < 5.24


@pytest.mark.parametrize("kept", ["surface", "line"])
@pytest.mark.parametrize("block", [(9, 13, 41), (23, 7, 15)])
def test_any_blocks_give_the_very_same_voxels(tmp_path, block, kept):
    from skimage.measure import euler_number

    mask = blobs(3)
    grid = Grid(mask.shape, (5.24, 4.0, 4.0), (300.0, -200.0, 70.0))
    volume = Volume(mask.astype("u1") * 255, grid)
    found = thin_volume(volume.read, grid, tmp_path, Blockwise(block, Threads(2)), kept).read()
    before, state = None, mask.astype("u1")
    while not np.array_equal(before, state):
        before, state = state, thin.thin_once(state, (0, 0, 0), kept)
    np.testing.assert_array_equal(found, state)
    if kept == "line":
        assert euler_number(found, 3) == euler_number(mask, 3)
        assert found.sum() < 0.5 * medial_surface(mask).sum()


def test_too_small_a_halo_would_be_noticed():
    """Thinning with less context than a round can hear gives another state: the halo is needed."""
    state = blobs(4).astype("u1")
    whole = thin.thin_once(state, (0, 0, 0))
    differs = 0
    for block in plan_blocks(state.shape, (6, 7, 8), 2):
        window = block.read.clip(state.shape)
        part = thin.thin_once(state[window.slices], window.start)
        inner = block.core.shift([-s for s in window.start]).slices
        differs += np.count_nonzero(part[inner] != whole[block.core.slices])
    assert differs > 0


def test_thinning_goes_on_from_the_last_round(tmp_path):
    mask = blobs(5)
    grid = Grid(mask.shape, (5.24, 4.0, 4.0))
    volume = Volume(mask.astype("u1"), grid)
    rounds = []

    class Stop(Exception):
        pass

    def progress(_done, _total, message):
        rounds.append(message)
        if message.startswith("round 3"):
            raise Stop

    with pytest.raises(Stop):
        thin_volume(volume.read, grid, tmp_path, Blockwise((12, 17, 41), progress=progress))
    found = thin_volume(None, grid, tmp_path, Blockwise((12, 17, 41)))  # never reads the mask again
    np.testing.assert_array_equal(found.read(), medial_surface(mask))


HOSTILE = Grid((46, 60, 64), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0))


def ring(z, y, x, radius):
    return np.hypot(np.hypot(y, x) - radius, z)


def hostile_shapes():
    """Mask and distance in nm to its medial surface or axis, turned against the voxels."""
    turned = random_rotation(np.random.default_rng(2))
    points = (HOSTILE.points_nm() - HOSTILE.centre_nm) @ turned
    z, y, x = np.moveaxis(points, -1, 0)
    away = np.linalg.norm(points, axis=-1)
    sheet = np.abs(z - (y * y - x * x) / 300)
    holes = [np.hypot(y - a, x - b) for a, b in ((-45, -20), (40, 30), (20, -50))]
    t = np.linspace(0, 1, 300)[:, None]
    axis = np.hstack([60 * np.sin(4 * t), 180 * t - 90, 50 * np.cos(5 * t)])
    bent = cKDTree(axis).query(points)[0]
    links = np.minimum(ring(z, y, x + 32, 55), ring(y, z, x - 32, 55))
    along, across, disc = np.hypot(z, y), np.hypot(z, x), np.hypot(y, x)
    crossing = ((along <= 18) & (np.abs(x) < 100)) | ((across <= 18) & (np.abs(y) < 100))
    pin = ((np.abs(z) <= 16) & (disc < 90)) | ((disc <= 16) & (z > 0) & (z < 95))
    return {
        "bent sheet": ((sheet <= 18) & (away < 105), sheet),
        "sheet with three holes": (
            (sheet <= 16) & (away < 105) & (np.min(holes, axis=0) > 18), sheet
        ),
        "hollow ball": (np.abs(away - 75) <= 16, np.abs(away - 75)),
        "hollow ring": (np.abs(ring(z, y, x, 62) - 28) <= 9, np.abs(ring(z, y, x, 62) - 28)),
        "sheet and tube": (pin, np.minimum(np.abs(z), np.where(z > 0, disc, np.inf))),
        "bent tube": (bent <= 20, bent),
        "ring": (ring(z, y, x, 70) <= 22, ring(z, y, x, 70)),
        "two linked rings": (links <= 15, links),
        "tubes that cross": (crossing, np.minimum(along, across)),
    }  # fmt: skip


def topology(mask):
    """Euler number, parts, and parts of the background (cavities, and one)."""
    from skimage.measure import euler_number, label

    outside = label(~np.pad(mask, 1), connectivity=1)
    return euler_number(mask, 3), label(mask, connectivity=3).max(), outside.max()


def test_hostile_shapes_agree_with_lee_as_scikit_image_has_it():
    from skimage.morphology import skeletonize

    counts = set()
    for name, (mask, distance) in hostile_shapes().items():
        surface, line = medial_surface(mask) > 0, mask.astype("u1")
        before = None
        while not np.array_equal(before, line):
            before, line = line, thin.thin_once(line, (0, 0, 0), "line")
        lee = skeletonize(mask) > 0
        counts.add(topology(mask))
        for found in (surface, line > 0, lee):
            assert topology(found) == topology(mask), name
        # As near to the true axis as Lee's line, to half a voxel; a tube's surface has fins.
        limit = distance[lee].mean() + 2.0
        assert distance[line > 0].mean() < limit, name
        round_ = name in ("bent tube", "ring", "two linked rings", "tubes that cross")
        assert distance[surface].mean() < limit + (2.0 if round_ else 0.0), name
        spacing = np.asarray(HOSTILE.spacing_nm)
        for ours in (surface, line > 0):
            apart, _ = cKDTree(np.argwhere(ours) * spacing).query(np.argwhere(lee) * spacing)
            assert np.percentile(apart, 95) < np.linalg.norm(spacing), name
    assert counts == {(1, 1, 1), (-2, 1, 1), (2, 1, 2), (0, 1, 2), (0, 1, 1), (0, 2, 1)}


def test_nothing_one_voxel_and_one_slice():
    assert not medial_surface(np.zeros((1, 4, 5), bool)).any()
    one = np.zeros((3, 4, 5), bool)
    one[1, 2, 3] = True
    np.testing.assert_array_equal(medial_surface(one), one)
    slice_ = np.ones((1, 6, 7), bool)
    np.testing.assert_array_equal(medial_surface(slice_), slice_)
