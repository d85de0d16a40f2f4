from __future__ import annotations

import numpy as np
import pytest
import tifffile

from clemreg.io.tiff import write_tiff
from clemreg.io.volumes import open_volume
from clemreg.testing import hostile_grid
from clemreg.volume import Volume

GRID = hostile_grid()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_types_sizes_and_names_come_back(tmp_path, dtype):
    data = np.random.default_rng(0).uniform(0, 200, (2, *GRID.shape)).astype(dtype)
    write_tiff(tmp_path / "x.ome.tif", Volume(data, GRID, ("mito <1>", "er & co")))
    again = open_volume(tmp_path / "x.ome.tif")
    assert again.channels == ("mito <1>", "er & co")
    assert again.dtype == dtype
    np.testing.assert_allclose(again.grid.spacing_nm, GRID.spacing_nm)
    np.testing.assert_array_equal(again.read(), data)
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as tiff:
        assert tiff.is_ome
        assert tiff.series[0].axes == "CZYX"


def test_what_ome_does_not_know_becomes_float32(tmp_path):
    data = np.arange(GRID.size, dtype="uint64").reshape(GRID.shape)
    write_tiff(tmp_path / "x.OME.TIFF", Volume(data, GRID))
    again = open_volume(tmp_path / "x.OME.TIFF")
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again.read(), data.astype("f4"))
