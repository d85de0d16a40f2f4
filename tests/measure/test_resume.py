from __future__ import annotations

import numpy as np
import pytest
import tifffile

from clemreg.blocks.dask import Dask
from clemreg.blocks.executors import Processes
from clemreg.blocks.stages import Blockwise
from clemreg.cli.app import run_app
from clemreg.io.volumes import open_labels, write_volume
from clemreg.measure.contacts import ContactOptions, find_contacts
from clemreg.measure.skeleton import measure_skeleton, skeletonize
from clemreg.measure.tables import read_table
from clemreg.space import Grid
from clemreg.volume import Labels

SPACING = (5.24, 4.0, 4.0)


@pytest.fixture
def files(tmp_path):
    grid = Grid((21, 34, 46), SPACING, (300.0, -200.0, 70.0), "em")
    a, b = np.zeros((2, *grid.shape), "u8")
    a[2:9, 3:30, 3:40] = 70_001
    a[12:19, 3:30, 20:40] = 12
    b[10:12, 5:28, 6:44] = 2**40
    b[2:20, 31:34, 5:20] = 9
    for name, array in (("a", a), ("b", b)):
        write_volume(tmp_path / f"{name}.zarr", Labels(array, grid))
    return tmp_path


@pytest.mark.slow
def test_processes_and_dask_give_the_same_contacts_and_skeletons(files):
    a, b = open_labels(files / "a.zarr"), open_labels(files / "b.zarr")
    whole = find_contacts(a, b, ContactOptions(12))
    lines = [measure_skeleton(item) for item in skeletonize(a)]
    for executor in (Processes(2), Dask("local", 1)):
        how = Blockwise((13, 17, 46), executor)
        parts = find_contacts(a, b, ContactOptions(12), how=how)
        for name in whole.columns:
            np.testing.assert_array_equal(whole[name], parts[name])
        assert [measure_skeleton(item) for item in skeletonize(a, how=how)] == lines


def test_a_tiff_without_voxel_size_with_processes(files):
    labels = open_labels(files / "a.zarr")
    ids = (labels.read() > 0).astype("u2") * 300
    tifffile.imwrite(files / "a.tif", ids)
    out = str(files / "m.csv")
    words = ["measure", str(files / "a.tif"), "--csv", out, "--executor", "processes"]
    assert run_app(words) == 1  # no voxel size
    words += ["--spacing", "4, 4, 5.24 nm", "--workers", "2", "--block", "16"]
    assert run_app(words) == 0
    table = read_table(out)
    assert table["object_id"].tolist() == [300]
    assert table["volume_nm3"][0] == pytest.approx(np.count_nonzero(ids) * 83.84)
    assert table["box_max_z_nm"][0] == pytest.approx(18.5 * 5.24)
