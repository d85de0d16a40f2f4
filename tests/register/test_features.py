"""What of an EM segmentation is registered: which mitochondria, and how much of their membrane."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

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
