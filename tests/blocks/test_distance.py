from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from clemreg.blocks.distance import DistanceTo, halo_voxels
from clemreg.blocks.stages import Blockwise, map_volume
from clemreg.space.grid import Grid
from clemreg.testing import hostile_grid
from clemreg.volume import Volume


@pytest.mark.parametrize("block", [(11, 17, 23), (3, 4, 5), (1, 17, 2)])
@pytest.mark.parametrize("reach_nm", [9.0, 21.0, 300.0])
def test_distance_is_that_of_the_whole_volume_up_to_the_reach(tmp_path, block, reach_nm):
    grid = hostile_grid()
    mask = np.random.default_rng(2).random(grid.shape) < 0.004
    assert mask.any()
    read = DistanceTo(Volume(mask, grid).read, grid, reach_nm)
    got = map_volume(read, tmp_path / "d.zarr", grid, np.float32, Blockwise(block)).read()
    whole = ndimage.distance_transform_edt(~mask, sampling=grid.spacing_nm)
    np.testing.assert_allclose(got, np.minimum(whole, reach_nm), rtol=1e-5)


def test_an_empty_mask_is_far_from_everything():
    grid = Grid((1, 4, 5), (5.24, 4.0, 4.0))
    read = DistanceTo(Volume(np.zeros(grid.shape, bool), grid).read, grid, 50.0)
    assert (read(grid.box) == 50.0).all()


def test_the_halo_spans_the_reach():
    assert halo_voxels(30.0, (5.24, 4.0, 4.0)) == (6, 8, 8)
    assert halo_voxels(12.0, (4.0, 4.0, 4.0)) == (3, 3, 3)
    assert halo_voxels(0.0, (4.0, 4.0, 4.0)) == (0, 0, 0)
