from __future__ import annotations

import numpy as np
import pytest
import tifffile

from clemreg.cli.app import run_app
from clemreg.measure.tables import read_table


def test_a_tiff_without_voxel_size_with_processes(tmp_path):
    ids = np.zeros((21, 34, 46), "u2")
    ids[2:9, 3:30, 3:40] = 300
    ids[12:19, 3:30, 20:40] = 300
    tifffile.imwrite(tmp_path / "a.tif", ids)
    out = str(tmp_path / "m.csv")
    words = ["measure", str(tmp_path / "a.tif"), "--csv", out, "--executor", "processes"]
    assert run_app(words) == 1  # no voxel size
    words += ["--spacing", "4, 4, 5.24 nm", "--workers", "2", "--block", "16"]
    assert run_app(words) == 0
    table = read_table(out)
    assert table["object_id"].tolist() == [300]
    assert table["volume_nm3"][0] == pytest.approx(np.count_nonzero(ids) * 83.84)
    assert table["box_max_z_nm"][0] == pytest.approx(18.5 * 5.24)
