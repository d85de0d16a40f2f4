from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from clemreg.errors import GridError
from clemreg.space.resample import (
    pool_max,
    pool_mean,
    pool_mode,
    sample_array,
)
from clemreg.testing import hostile_grid


def test_linear_sampling_of_a_ramp_is_the_ramp():
    grid = hostile_grid()
    points = grid.points_nm()
    ramp = points @ [2.0, -3.0, 0.5]
    rng = np.random.default_rng(0)
    low, high = grid.corners_nm()[[0, -1]]
    anywhere = rng.uniform(low, high, (100, 3))
    np.testing.assert_allclose(sample_array(ramp, grid, anywhere), anywhere @ [2.0, -3.0, 0.5])


def test_outside_is_fill_and_the_half_voxel_rim_is_inside():
    grid = hostile_grid()
    ones = np.ones(grid.shape, np.float32)
    values = sample_array(ones, grid, grid.to_world([[-0.4, 0, 0], [-0.6, 0, 0]]), fill=7)
    assert values.tolist() == [1.0, 7.0]


def test_labels_are_never_mixed():
    grid = hostile_grid()
    ids = np.arange(grid.size, dtype=np.uint64).reshape(grid.shape) * 70_001
    points = grid.to_world([[0.4, 0.6, 1.2], [10.3, 15.6, 21.7]])
    values = sample_array(ids, grid, points, order=0)
    assert values.dtype == np.uint64
    assert values.tolist() == [ids[0, 1, 1], ids[10, 16, 22]]


def test_array_and_grid_must_agree():
    with pytest.raises(GridError):
        sample_array(np.zeros((3, 3, 3)), hostile_grid(), [[0, 0, 0]])


def test_means_of_the_brightest_bytes_do_not_overflow():
    for dtype, factor in (("u1", (8, 8, 4)), ("u1", (8, 8, 8)), ("u2", (2, 2, 2))):
        full = np.full((16, 16, 16), np.iinfo(dtype).max, dtype)
        assert (pool_mean(full, factor) == np.iinfo(dtype).max).all()


def test_pools_treat_the_partial_last_block_alike():
    rng = np.random.default_rng(1)
    array = rng.integers(0, 5, (11, 17, 23)).astype(np.uint16)
    factor = (2, 3, 5)
    mean, top, mode = (f(array, factor) for f in (pool_mean, pool_max, pool_mode))
    assert mean.shape == top.shape == mode.shape == hostile_grid().downsample(factor).shape
    for i, j, k in [(0, 0, 0), (5, 5, 4), (2, 5, 1), (5, 0, 3)]:
        block = array[2 * i : 2 * i + 2, 3 * j : 3 * j + 3, 5 * k : 5 * k + 5]
        assert mean[i, j, k] == pytest.approx(block.mean())
        assert top[i, j, k] == block.max()
    whole = array[4:6, 6:9, 10:15]
    assert mode[2, 2, 2] == stats.mode(whole, axis=None).mode


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (1, 1, 1), (2, 3, 5), (1, 1, 2)])
@pytest.mark.parametrize("kind", ["objects", "noise", "ties"])
def test_mode_is_the_most_frequent_value_of_every_block(factor, kind):
    """Block by block with a counter; among equals the smallest, edges repeated to whole blocks."""
    rng = np.random.default_rng(5)
    ids = {
        "objects": rng.integers(0, 3, (3, 4, 5)).repeat(4, 0).repeat(5, 1).repeat(5, 2)[:11],
        "noise": rng.integers(0, 4, (11, 17, 23)),
        "ties": np.arange(11 * 17 * 23).reshape(11, 17, 23)[::-1],
    }[kind].astype(np.uint64) * 2**40
    found = pool_mode(ids, factor)
    assert found.dtype == ids.dtype
    whole = np.pad(ids, [(0, -n % f) for n, f in zip(ids.shape, factor, strict=True)], mode="edge")
    for place in np.ndindex(found.shape):
        block = whole[tuple(slice(i * f, i * f + f) for i, f in zip(place, factor, strict=True))]
        values, counts = np.unique(block, return_counts=True)
        assert found[place] == values[counts == counts.max()].min()
