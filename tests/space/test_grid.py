from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clemreg.errors import GridError, VoxelSizeError
from clemreg.space import Box, Grid
from clemreg.testing import hostile_grid


def test_world_is_origin_plus_index_times_spacing_in_zyx():
    grid = hostile_grid()
    assert grid.to_world([2, 3, 5]).tolist() == pytest.approx([310.48, -188.0, 90.0])
    assert grid.to_index([310.48, -188.0, 90.0]).tolist() == pytest.approx([2, 3, 5])
    assert (grid.index_to_world @ [2, 3, 5, 1])[:3].tolist() == pytest.approx([310.48, -188, 90])


def test_points_of_a_box_are_its_voxel_centres():
    grid = hostile_grid()
    points = grid.points_nm(Box((1, 2, 3), (3, 4, 6)))
    assert points.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(points[1, 0, 2], grid.to_world([2, 2, 5]))


def test_pooling_keeps_block_centres():
    grid = hostile_grid()
    coarse = grid.downsample((2, 3, 1))
    assert coarse.shape == (6, 6, 23)
    np.testing.assert_allclose(coarse.spacing_nm, (10.48, 12.0, 4.0))
    np.testing.assert_allclose(coarse.to_world([1, 1, 4]), grid.to_world([2.5, 4, 4]))


def test_a_new_spacing_keeps_the_near_edge_and_covers_the_far_one():
    grid = hostile_grid()
    new = grid.with_spacing((3.0, 7.0, 4.0))
    edge = np.asarray(grid.origin_nm) - np.asarray(grid.spacing_nm) / 2
    new_edge = np.asarray(new.origin_nm) - np.asarray(new.spacing_nm) / 2
    np.testing.assert_allclose(new_edge, edge)
    assert (new.extent_nm >= grid.extent_nm - 1e-9).all()
    assert (new.extent_nm < grid.extent_nm + new.spacing_nm).all()


def test_crop_follows_the_voxels_even_outside():
    grid = hostile_grid()
    part = grid.crop(Box((-1, 2, 3), (4, 9, 8)))
    assert part.shape == (5, 7, 5)
    np.testing.assert_allclose(part.to_world([1, 0, 0]), grid.to_world([0, 2, 3]))


def test_contains_reaches_half_a_voxel_beyond_the_centres():
    grid = hostile_grid()
    inside = grid.contains(grid.to_world([[-0.49, 0, 0], [-0.51, 0, 0], [10.4, 16.4, 22.6]]))
    assert inside.tolist() == [True, False, False]


@pytest.mark.parametrize("spacing", [(0, 4, 4), (-4, 4, 4), (float("nan"), 4, 4), (4, 4)])
def test_impossible_spacings_are_refused(spacing):
    with pytest.raises(VoxelSizeError):
        Grid((3, 3, 3), spacing)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 3), (3, 3, 3, 3)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(GridError):
        Grid(shape, (4, 4, 4))


def test_corners_are_the_outer_centres():
    grid = hostile_grid()
    expected = [grid.to_world(c) for c in itertools.product((0, 10), (0, 16), (0, 22))]
    np.testing.assert_allclose(grid.corners_nm(), expected)


boxes = st.tuples(st.tuples(*[st.integers(-5, 20)] * 3), st.tuples(*[st.integers(0, 12)] * 3)).map(
    lambda t: Box(t[0], tuple(a + b for a, b in zip(*t, strict=True)))
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(boxes, boxes)
def test_intersection_is_what_set_arithmetic_says(a, b):
    def voxels(box):
        return set(itertools.product(*map(range, box.start, box.stop)))

    both = a.intersect(b)
    assert voxels(both) == voxels(a) & voxels(b)
    assert both.size == len(voxels(both))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(boxes, st.tuples(*[st.integers(1, 7)] * 3))
def test_tiles_cover_a_box_once(box, shape):
    seen = [v for t in box.tiles(shape) for v in itertools.product(*map(range, t.start, t.stop))]
    assert sorted(seen) == sorted(itertools.product(*map(range, box.start, box.stop)))
