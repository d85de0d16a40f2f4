from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from clemreg.register.apply import warp_block
from clemreg.register.sampling import linear, nearest
from clemreg.space import Affine, Grid
from clemreg.volume import Labels, Volume

SHAPES = [(11, 17, 23), (1, 5, 4), (2, 1, 1)]


def places(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Indices (3, y, x) inside and outside, among them exact voxels, halves and the very rim."""
    rng = np.random.default_rng(2)
    index = rng.uniform(-2, np.array(shape) + 1, (40, 7, 3)).T
    last = np.array(shape) - 1
    index[:, 0, :6] = np.array([[0] * 3, last, [-0.5] * 3, last + 0.5, [0, 0.5, 0], last - 0.5]).T
    return index


def sampled(sample, array, index, part=None):
    """Values found with the whole array at hand, or with the part in a box of it."""
    box = tuple(slice(0, n) for n in array.shape) if part is None else part
    first = np.array([s.start for s in box])
    out = np.full(index.shape[1:], 77, np.float64 if sample is linear else array.dtype)
    sample(np.ascontiguousarray(array[box]), first, index, np.array(array.shape), out)
    return out


def inside(index, shape):
    last = np.reshape(shape, (3, 1, 1)) - 1
    return ((index >= -0.5) & (index <= last + 0.5)).all(axis=0)


@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "u2", "i4", "u8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_what_scipy_gives_and_0_outside(shape, dtype):
    array = np.random.default_rng(3).normal(0, 99, shape).astype("i1").astype(dtype)
    index = places(shape)
    expected = ndimage.map_coordinates(array.astype(float), index, order=1, mode="nearest")
    expected[~inside(index, shape)] = 0
    found = sampled(linear, array, index)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert found[0, 0] == array[0, 0, 0]
    assert found[0, 1] == array[-1, -1, -1]
    assert 0 < np.count_nonzero(found) < found.size


@pytest.mark.parametrize("dtype", ["u1", "u2", ">i4", "f4"])
def test_whole_numbers_are_rounded_to_the_nearest_and_ids_are_not_mixed(dtype):
    grid = Grid((4, 5, 6), (8.0, 4.0, 4.0), (3.0, 2.0, 1.0), "em")
    onto = Grid((3, 5, 6), grid.spacing_nm, grid.origin_nm, "lm")
    pixels = np.random.default_rng(7).integers(0, 255, grid.shape).astype(dtype)
    part = np.sqrt(0.5)  # of a voxel: no ties
    move = Affine.translation((part * 8, 0.0, 0.0), "lm", "em")
    mixed = (1 - part) * pixels[:-1] + part * pixels[1:].astype(float)
    found = warp_block(move, Volume(pixels, grid), onto)
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_allclose(found, mixed if dtype == "f4" else np.rint(mixed), rtol=1e-6)
    if dtype != "f4":
        np.testing.assert_array_equal(warp_block(move, Labels(pixels, grid), onto), pixels[1:])


def test_a_tie_between_ids_goes_up_and_none_is_made_up():
    ids = np.arange(11 * 17 * 23, dtype=np.uint32).reshape(11, 17, 23) * 70_001
    index = np.array([[0.5, 3.2, -0.4, 10.4], [1.5, 7.7, 0.0, 16.5], [2.49, 22.0, 5.0, 22.5]])
    expected = [ids[1, 2, 2], ids[3, 8, 22], ids[0, 0, 5], ids[10, 16, 22]]
    assert sampled(nearest, ids, index[:, None]).tolist() == [expected]


@pytest.mark.parametrize("sample", [linear, nearest])
def test_a_part_gives_what_the_whole_gives(sample):
    array = np.random.default_rng(5).integers(0, 2**16, (11, 17, 23)).astype("u2")
    index = np.random.default_rng(6).uniform(
        [[[4]], [[6]], [[7]]], [[[8]], [[12]], [[15]]], (3, 9, 31)
    )
    part = (slice(4, 9), slice(6, 13), slice(7, 16))
    whole = sampled(sample, array, index)
    np.testing.assert_array_equal(sampled(sample, array, index, part), whole)
    assert len(np.unique(whole)) > 100


@pytest.mark.parametrize("sample", [linear, nearest])
def test_a_place_that_is_no_number_is_outside(sample):
    array = np.ones((3, 3, 3), np.float32)
    index = np.ones((3, 2, 3))
    for axis in range(3):
        index[axis, 0, axis] = np.nan
    assert sampled(sample, array, index).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_a_place_beyond_the_part_reads_nothing_beyond_it():
    """Compiled code would read foreign memory."""
    array = np.arange(4 * 4 * 4, dtype=np.float32).reshape(4, 4, 4)
    index = np.array([[[0.0, 3.0]]] * 3)
    part = (slice(1, 3),) * 3
    for sample in (linear, nearest):
        assert sampled(sample, array, index, part).tolist() == [[array[1, 1, 1], array[2, 2, 2]]]


@pytest.mark.parametrize("dtype", ["f2", ">f4", ">u2", ">i4", "?"])
def test_types_that_are_not_the_machines_own(dtype):
    grid = Grid((4, 5, 6), (8.0, 4.0, 4.0), (3.0, 2.0, 1.0), "em")
    pixels = (np.random.default_rng(7).random(grid.shape) * 9).astype(dtype)
    move = Affine.from_linear(np.eye(3), (8.0, 0.0, -4.0), "lm", "em")
    moved = warp_block(move, Volume(pixels, grid), grid.with_frame("lm"))
    expected = np.zeros_like(pixels)
    expected[:-1, :, 1:] = pixels[1:, :, :-1]
    assert moved.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(moved, expected)
