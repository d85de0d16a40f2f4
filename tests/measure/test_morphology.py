from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from clemreg.blocks.executors import Processes, Threads
from clemreg.blocks.stages import Blockwise
from clemreg.errors import DataError, GridError
from clemreg.measure.mesh import MeshOptions
from clemreg.measure.morphology import measure_objects
from clemreg.measure.surface import DIRECTIONS, crofton_weights
from clemreg.pipeline import objects
from clemreg.space import Grid
from clemreg.testing import hostile_grid, random_rotation
from clemreg.volume import Labels, Volume

BLOCKS = [(11, 17, 23), (4, 5, 6), (1, 17, 8), (3, 3, 3), (100, 100, 100)]


def hostile_labels(seed=0):
    grid = hostile_grid()
    rng = np.random.default_rng(seed)
    ids = np.array([0, 0, 3, 70_001, 2**40 + 5], np.uint64)
    coarse = rng.integers(0, len(ids), (4, 6, 8))
    picked = np.kron(coarse, np.ones((3, 3, 3), int))[: grid.shape[0], : grid.shape[1], :23]
    noise = rng.random(grid.shape) < 0.1
    return Labels(ids[np.where(noise, rng.integers(0, len(ids), grid.shape), picked)], grid)


def ball(radius_nm, spacing, offset=(0.3, 0.1, -0.2)):
    n = np.ceil(radius_nm / np.asarray(spacing)).astype(int) + 2
    grid = Grid(tuple(2 * n + 1), spacing, (300.0, -200.0, 70.0), "em")
    centre = grid.centre_nm + np.asarray(offset) * spacing
    inside = np.linalg.norm(grid.points_nm() - centre, axis=-1) <= radius_nm
    return Labels(inside.astype("u4") * 70_001, grid), centre


@pytest.mark.parametrize("spacing", [(5.24, 4.0, 4.0), (4.0, 4.0, 4.0), (8.0, 4.0, 5.0)])
def test_a_sphere_has_its_volume_area_and_radius(spacing):
    radius = 100.0
    labels, centre = ball(radius, spacing)
    row = next(measure_objects(labels).rows())
    assert row["object_id"] == 70_001
    assert row["volume_nm3"] == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.005)
    assert row["surface_nm2"] == pytest.approx(4 * np.pi * radius**2, rel=0.02)
    # The faces of a voxel sphere add up to six discs: 6 pi r^2 against 4 pi r^2.
    assert row["surface_faces_nm2"] == pytest.approx(6 * np.pi * radius**2, rel=0.02)
    got = [row[f"centre_{a}_nm"] for a in "zyx"]
    np.testing.assert_allclose(got, centre, atol=0.2)
    semi = [row[f"semi_axis_{i}_nm"] for i in (1, 2, 3)]
    np.testing.assert_allclose(semi, radius, rtol=0.01)
    assert row["sphericity"] == pytest.approx(1, rel=0.02)
    assert not row["cut_by_border"]


def test_a_turned_ellipsoid_shows_its_axes_and_direction():
    semi = np.array([120.0, 60.0, 40.0])
    turn = random_rotation(np.random.default_rng(3))
    grid = Grid((60, 72, 74), (5.24, 4.0, 4.0), (1e6, -2e6, 3e5), "em")
    local = (grid.points_nm() - grid.centre_nm) @ turn
    labels = Labels((((local / semi) ** 2).sum(-1) <= 1).astype("u2"), grid)
    row = next(measure_objects(labels, how=Blockwise((7, 31, 16))).rows())
    np.testing.assert_allclose([row[f"semi_axis_{i}_nm"] for i in (1, 2, 3)], semi, rtol=0.01)
    axis = np.array([row[f"long_axis_{a}"] for a in "zyx"])
    assert abs(axis @ turn[:, 0]) > 0.9999
    assert axis[np.abs(axis).argmax()] > 0
    p, (a, b, c) = 1.6075, semi
    area = 4 * np.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
    assert row["surface_nm2"] == pytest.approx(area, rel=0.03)


def test_a_cut_object_has_no_sphericity():
    labels, _ = ball(60.0, (5.24, 4.0, 4.0))
    half = labels.read()[: labels.shape[0] // 2]
    row = next(measure_objects(Labels(half, Grid(half.shape, (5.24, 4.0, 4.0)))).rows())
    assert row["cut_by_border"]
    assert np.isnan(row["sphericity"])  # half a ball with half its surface would have 1.26


def test_a_box_has_its_edges_its_faces_and_its_border():
    grid = hostile_grid()
    array = np.zeros(grid.shape, "u8")
    array[2:5, 3:10, 4:6] = 2**40 + 5
    array[0:2, 16:, 22:] = 9
    nine, box = measure_objects(Labels(array, grid)).rows()
    assert (nine["object_id"], box["object_id"]) == (9, 2**40 + 5)
    assert box["volume_nm3"] == pytest.approx(3 * 7 * 2 * 5.24 * 16)
    z, y, x = 3 * 5.24, 7 * 4.0, 2 * 4.0
    assert box["surface_faces_nm2"] == pytest.approx(2 * (z * y + z * x + y * x))
    low = [box[f"box_min_{a}_nm"] for a in "zyx"]
    np.testing.assert_allclose(low, grid.to_world([1.5, 2.5, 3.5]))
    high = [box[f"box_max_{a}_nm"] for a in "zyx"]
    np.testing.assert_allclose(high, grid.to_world([4.5, 9.5, 5.5]))
    assert nine["cut_by_border"]
    assert not box["cut_by_border"]
    # Faces on the border of the volume do not count: 2 x 1 x 1 voxels in its corner show 3.
    assert nine["surface_faces_nm2"] == pytest.approx(16 + 2 * 2 * 5.24 * 4)


@pytest.mark.parametrize("block", BLOCKS[1:])
@pytest.mark.parametrize("workers", [1, 3])
def test_any_blocks_give_the_very_same_numbers(block, workers):
    labels = hostile_labels()
    whole = measure_objects(labels, how=Blockwise(BLOCKS[0]))
    how = Blockwise(block, Threads(workers))
    parts = measure_objects(labels, how=how)
    assert whole.columns.keys() == parts.columns.keys()
    for name in whole.columns:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


def test_agrees_with_scikit_image_and_cc3d():
    import cc3d
    from skimage.measure import regionprops

    labels = hostile_labels(1)
    ids, small = np.unique(labels.data, return_inverse=True)
    small = small.reshape(labels.shape).astype("u4")
    table = measure_objects(labels, how=Blockwise((5, 4, 9)))
    np.testing.assert_array_equal(table["object_id"], ids[1:])
    spacing = labels.grid.spacing_nm
    for row, props in zip(table.rows(), regionprops(small, spacing=spacing), strict=True):
        assert row["volume_nm3"] == pytest.approx(props.area)
        expected = np.asarray(props.centroid) + labels.grid.origin_nm
        np.testing.assert_allclose([row[f"centre_{a}_nm"] for a in "zyx"], expected)
    stats = cc3d.statistics(small)
    np.testing.assert_allclose(
        table["volume_nm3"] / np.prod(spacing), stats["voxel_counts"][1:].astype(float)
    )
    # cc3d counts faces between objects, and between object and background.
    areas = cc3d.contacts(small, connectivity=6, surface_area=True, anisotropy=spacing)
    for number, faces in enumerate(table["surface_faces_nm2"], 1):
        between = sum(v for pair, v in areas.items() if number in pair)
        background = background_faces(small, number, spacing)
        assert faces == pytest.approx(between + background, rel=1e-5)


def background_faces(array, number, spacing):
    total = 0.0
    for axis in range(3):
        a = np.moveaxis(array, axis, 0)
        pairs = ((a[:-1] == number) & (a[1:] == 0)) | ((a[1:] == number) & (a[:-1] == 0))
        total += pairs.sum() * np.prod(spacing) / spacing[axis]
    return total


def test_crofton_weights_measure_planes_right_on_average():
    rng = np.random.default_rng(0)
    normals = np.stack([random_rotation(rng)[0] for _ in range(400)])
    for spacing in [(5.24, 4.0, 4.0), (4.0, 4.0, 4.0)]:
        steps = np.asarray(DIRECTIONS) * np.asarray(spacing)
        pairs = np.abs(normals @ steps.T) / np.prod(spacing)  # per nm2 of plane
        estimate = pairs @ crofton_weights(spacing)
        assert estimate.mean() == pytest.approx(1, abs=0.005)
        assert np.abs(estimate - 1).max() < 0.1


def test_the_fraction_of_the_cell():
    labels = hostile_labels()
    cell = np.zeros(labels.shape, "u1")
    cell[1:9] = 255
    table = measure_objects(labels, cell=Volume(cell, labels.grid), how=Blockwise((4, 5, 6)))
    voxels = [np.count_nonzero(labels.data == i) for i in table["object_id"]]
    inside = [np.count_nonzero(labels.data[1:9] == i) for i in table["object_id"]]
    assert all(n < m for n, m in zip(inside, voxels, strict=True))
    # What lies outside of the cell fills nothing of it.
    np.testing.assert_allclose(table["fraction_of_cell"], np.array(inside) / (8 * 17 * 23))
    assert table["fraction_of_cell"].sum() < 1
    with pytest.raises(DataError, match="empty"):
        measure_objects(labels, cell=Volume(np.zeros(labels.shape, "u1"), labels.grid))
    with pytest.raises(GridError, match="do not have the same voxels"):
        measure_objects(labels, cell=Volume(cell, Grid(labels.shape, (4.0, 4.0, 4.0))))


def test_nothing_one_voxel_and_one_slice():
    grid = Grid((1, 4, 5), (5.24, 4.0, 4.0))
    empty = Labels(np.zeros(grid.shape, "u1"), grid)
    assert len(measure_objects(empty)) == 0
    one = np.zeros(grid.shape, "u1")
    one[0, 1, 2] = 1
    row = next(measure_objects(Labels(one, grid)).rows())
    assert row["volume_nm3"] == pytest.approx(5.24 * 16)
    assert row["surface_faces_nm2"] == pytest.approx(4 * 5.24 * 4)
    assert row["semi_axis_1_nm"] == pytest.approx(np.sqrt(5 / 12) * 5.24)
    with pytest.raises(DataError, match="negative ids"):
        measure_objects(Labels(one.astype("i2") - 1, grid))


def test_the_page_leaves_out_what_is_too_thin_for_its_picture(tmp_path, monkeypatch):
    """Drawn from every k-th voxel; of a line in the diagonal none is left."""
    grid = Grid((12, 12, 12), (5.24, 4.0, 4.0))
    ids = np.zeros(grid.shape, np.uint32)
    ids[np.arange(12), 11 - np.arange(12), np.arange(12)] = 7
    ids[1:3, 6:9, 6:9] = 70_001
    labels, seen = Labels(ids, grid), {}
    monkeypatch.setattr(objects, "MeshOptions", partial(MeshOptions, largest_box_voxels=60))
    monkeypatch.setattr(objects, "write_object_report", lambda *words: seen.update(words[3]))
    objects.report_objects(labels, measure_objects(labels), tmp_path / "r.html", Blockwise(), None)
    assert list(seen) == [70_001]


def test_a_stopped_measurement_goes_on(tmp_path):
    labels = hostile_labels()
    how, scratch = Blockwise((4, 5, 6)), tmp_path / "s"
    calls = []

    class Stops:
        shape, dtype = labels.data.shape, labels.data.dtype

        def __getitem__(self, key):
            calls.append(key)
            if len(calls) == 10:
                raise OSError("pulled the plug")
            return labels.data[key]

    with pytest.raises(OSError, match="plug"):
        measure_objects(Labels(Stops(), labels.grid), how=how, scratch=scratch)
    resumed = measure_objects(Labels(Stops(), labels.grid), how=how, scratch=scratch)
    assert len(calls) == 10 + (3 * 4 * 4 - 9)  # nine blocks were finished
    whole = measure_objects(labels)
    for name in whole.columns:
        np.testing.assert_array_equal(whole[name], resumed[name])
    # Other blocks in the same scratch folder start afresh.
    other = measure_objects(labels, how=Blockwise((5, 5, 5)), scratch=scratch)
    np.testing.assert_array_equal(whole["surface_nm2"], other["surface_nm2"])


def test_processes_give_the_same_numbers():
    labels = hostile_labels()
    whole = measure_objects(labels)
    parts = measure_objects(labels, how=Blockwise((6, 9, 23), Processes(2)))
    for name in whole.columns:
        np.testing.assert_array_equal(whole[name], parts[name])
