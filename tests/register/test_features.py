"""What of an EM segmentation is registered: which mitochondria, and how much of their membrane."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from clemreg.errors import ConfigError, DataError
from clemreg.register.features import MovingOptions, prepare_moving
from clemreg.space import Grid
from clemreg.volume import Volume

GRID = Grid((30, 44, 60), (52.4, 40.0, 40.0), (700.0, -300.0, 90.0), "em")
VOXEL_NM3 = 52.4 * 40 * 40
SHARP = {"psf_sigma_nm": (1.0, 1.0, 1.0), "smooth_voxels": 0.0}


def box(*slices):
    mask = np.zeros(GRID.shape, bool)
    mask[slices] = True
    return mask


INSIDE = box(slice(12, 24), slice(10, 22), slice(10, 30))  # 2880 voxels, 2.4e8 nm3
SMALL = box(slice(4, 8), slice(30, 36), slice(10, 18))  # 192 voxels, 1.6e7
CUT = box(slice(12, 16), slice(38, 44), slice(40, 48))  # as large, but on a face
SPECK = box(slice(0, 3), slice(10, 14), slice(40, 43))  # 36 voxels, 3e6, on a face


def seen(mask, **options):
    """Where the prepared image of a mask shows something, on the grid of the mask."""
    moving = prepare_moving(Volume(mask, GRID), GRID.spacing_nm, MovingOptions(**SHARP, **options))
    assert moving.grid == GRID
    return moving.read() > 0.5


def test_small_mitochondria_are_dropped_unless_a_face_cuts_them():
    """The light microscope shows the rest of a cut one, and would match it with a neighbour."""
    everything = INSIDE | SMALL | CUT | SPECK
    assert np.array_equal(seen(everything), INSIDE | CUT)
    assert np.array_equal(seen(everything, min_cut_volume_nm3=2e7), INSIDE)  # as in the paper
    assert np.array_equal(seen(everything, min_volume_nm3=1.5e7), INSIDE | SMALL | CUT)
    assert np.array_equal(seen(everything, min_volume_nm3=0.0), everything)


def test_only_enclosed_holes_are_filled():
    hole = box(slice(16, 19), slice(14, 17), slice(15, 20))
    open_hole = box(slice(16, 19), slice(14, 17), slice(15, 60))
    assert np.array_equal(seen(INSIDE & ~hole), INSIDE)
    assert np.array_equal(seen(INSIDE & ~open_hole), INSIDE & ~open_hole)


@pytest.mark.parametrize(("reach_nm", "steps"), [(16.0, 0), (41.0, 1), (81.0, 2)])
def test_membrane_is_kept_near_kept_mitochondria(reach_nm, steps):
    """A prediction whose membrane is everywhere: what is left lies within reach of `mito`."""
    grid = Grid(GRID.shape, (40.0, 40.0, 40.0), GRID.origin_nm, "em")
    stored = np.stack([np.where(INSIDE | SMALL, 200, 50), np.full(GRID.shape, 255)])
    prediction = Volume(stored.astype(np.uint8), grid, channels=("mito", "mito_mem"))
    options = MovingOptions(**SHARP, membrane_reach_nm=reach_nm)
    found = prepare_moving(prediction, grid.spacing_nm, options).read() > 0.5
    z, y, x = np.indices((7, 7, 7)) - 3
    ball = np.hypot(np.hypot(z, y), x) <= reach_nm / 40
    assert ball.sum() == (1, 7, 33)[steps]
    assert np.array_equal(found, ndimage.binary_dilation(INSIDE, ball))


CUBIC = Grid(GRID.shape, (50.0, 50.0, 50.0), GRID.origin_nm, "em")


def prediction_of(**masks):
    """Predictions of a cubic grid, well inside or well outside of the masks."""
    stored = np.stack([np.where(mask, 200, 50) for mask in masks.values()]).astype(np.uint8)
    return Volume(stored, CUBIC, channels=tuple(masks))


def membrane_left(prediction, **options):
    options = MovingOptions(**SHARP, **options)
    return prepare_moving(prediction, CUBIC.spacing_nm, options).read() > 0.5


def test_nothing_is_left_within_150_nm_of_the_outside():
    """Only of its largest component: extracellular specks in the cell are wrong predictions."""
    outside = box(slice(10, 30), slice(0, 12), slice(14, 60))
    speck = box(slice(8, 10), slice(14, 16), slice(12, 14))  # before the outside in any order
    far = ndimage.distance_transform_edt(~outside, CUBIC.spacing_nm) > 150
    assert (INSIDE & far).any()
    assert (INSIDE & ~far).any()
    both = {"mito": INSIDE, "mito_mem": INSIDE, "ecs": outside | speck}
    assert np.array_equal(membrane_left(prediction_of(**both)), INSIDE & far)
    alone = {"mito_mem": INSIDE, "ecs": outside}
    assert np.array_equal(membrane_left(prediction_of(**alone)), INSIDE & far)
    left = membrane_left(prediction_of(**alone), outside_reach_nm=0.0)
    assert np.array_equal(left, INSIDE & ~outside)


def test_a_mitochondrion_that_the_outside_shrinks_below_the_least_volume_is_dropped():
    outside = box(slice(0, 30), slice(0, 16))  # leaves planes y 19 to 21 of INSIDE: 9e7 nm3
    prediction = prediction_of(mito=INSIDE | SMALL, mito_mem=INSIDE | SMALL, ecs=outside)
    assert membrane_left(prediction, min_volume_nm3=8.9e7).sum() == 12 * 3 * 20
    left = membrane_left(prediction, min_volume_nm3=2.3e7)
    assert left.sum() == 12 * 3 * 20 + SMALL.sum()
    with pytest.raises(DataError, match="nothing is left"):
        membrane_left(prediction, min_volume_nm3=9.1e7)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [0, 0, 1 / 14, 0.5, 13 / 14, 1, 1]),
        ("published", [0, 0, 14 / 120, 7 * 14 / 120, 13 * 14 / 120, 1, 1]),
    ],
)
def test_the_ramp_and_the_slope_that_was_published(kind, expected):
    """Blocks of one value, so that nothing is blurred between them at their middles."""
    stored = np.repeat(np.array([0, 120, 121, 127, 133, 134, 255], np.uint8), 8)
    stored = np.broadcast_to(stored, (8, 8, 56)).copy()
    grid = Grid(stored.shape, (40.0, 40.0, 40.0), (0.0, 5.0, -3.0), "em")
    options = MovingOptions(**SHARP, ramp_kind=kind)
    image = prepare_moving(Volume(stored[None], grid, channels=("mito_mem",)), (40.0,) * 3, options)
    density = image.read()[4, 4, 4::8] ** 2  # scaled so that the brightest 0.5 % are 1
    np.testing.assert_allclose(density, np.array(expected) / max(expected), atol=1e-6)


def test_an_unknown_ramp_is_refused():
    with pytest.raises(ConfigError, match="no ramp 'steep'"):
        MovingOptions(ramp_kind="steep")


def test_ids_are_a_mask_and_bytes_that_go_up_to_255_a_probability():
    ids = np.where(INSIDE, 3, 0).astype(np.uint8)
    ids[box(slice(18, 24), slice(10, 22), slice(10, 30))] = 60
    assert np.array_equal(seen(ids), INSIDE)
    shades = np.where(INSIDE, 200, 0).astype(np.uint8)
    shades[box(slice(12, 24), slice(10, 22), slice(10, 12))] = 20
    bright = INSIDE & (shades == 200)
    assert np.array_equal(seen(shades), bright)
    assert np.array_equal(seen(shades, kind="mask"), INSIDE)


def test_a_volume_of_classes_is_no_mask():
    """Where everything is something, the mitochondria must be named."""
    with pytest.raises(DataError, match="without a voxel that is 0"):
        seen(np.where(INSIDE, 5, 1).astype(np.uint8))
    with pytest.raises(ConfigError, match="no kind 'labels'"):
        MovingOptions(kind="labels")
