from __future__ import annotations

import numpy as np
import pytest
import tifffile

from clemreg.errors import DataError
from clemreg.io.tiff import write_tiff
from clemreg.io.volumes import open_volume
from clemreg.testing import hostile_grid
from clemreg.volume import Labels, Volume

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


def test_the_origin_comes_back(tmp_path):
    data = np.arange(GRID.size, dtype="uint16").reshape(GRID.shape)
    write_tiff(tmp_path / "x.ome.tif", Volume(data, GRID))
    assert open_volume(tmp_path / "x.ome.tif").grid.origin_nm == GRID.origin_nm


@pytest.mark.parametrize(
    ("highest", "dtype"), [(200, "uint8"), (60_000, "uint16"), (2**32 - 1, "uint32")]
)
def test_ids_of_64_bits_are_not_rounded(tmp_path, highest, dtype):
    ids = np.zeros(GRID.shape, "uint64")
    ids[2:5, 3:9, 4:12], ids[0, 0, 0] = highest, highest - 1
    write_tiff(tmp_path / "x.ome.tif", Labels(ids, GRID))
    found = tifffile.imread(tmp_path / "x.ome.tif")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize("beyond", [2**32, -1])
def test_ids_that_ome_cannot_hold_are_refused(tmp_path, beyond):
    ids = np.zeros(GRID.shape, "int64")
    ids[3, 4, 5] = beyond
    with pytest.raises(DataError, match=str(beyond)):
        write_tiff(tmp_path / "x.ome.tif", Labels(ids, GRID))
    assert not any(tmp_path.iterdir())
