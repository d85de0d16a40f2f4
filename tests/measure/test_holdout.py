from __future__ import annotations

import json

import numpy as np
import pytest

from clemreg.blocks.stages import Blockwise
from clemreg.cli.app import run_app
from clemreg.errors import DataError, GridError
from clemreg.io.volumes import open_labels, open_volume, write_volume
from clemreg.measure.holdout import half_regions, holdout_deviations
from clemreg.measure.sheetness import SheetnessOptions
from clemreg.measure.tables import read_table
from clemreg.space import Box, Grid
from clemreg.testing import hostile_grid
from clemreg.volume import Labels, Volume


def test_six_halves_cover_the_block_three_times():
    box = Box((1, 2, 3), (12, 19, 26))
    halves = half_regions(box)
    assert list(halves) == ["x low", "x high", "y low", "y high", "z low", "z high"]
    for axis, name in enumerate("zyx"):
        low, high = halves[f"{name} low"], halves[f"{name} high"]
        assert low.size + high.size == box.size
        assert low.stop[axis] == high.start[axis]
        assert low.start == box.start
        assert high.stop == box.stop
    with pytest.raises(DataError, match="halved"):
        half_regions(Box((0, 0, 0), (1, 5, 5)))


def test_deviations_of_a_box_that_is_too_long_at_one_end():
    grid = hostile_grid()
    truth = np.zeros(grid.shape, "u2")
    truth[2:9, 4:13, 4:18] = 300
    longer = np.zeros(grid.shape, "u8")
    longer[2:9, 4:13, 4:20] = 2**40
    table = holdout_deviations(
        Labels(truth, grid),
        {"longer": Labels(longer, grid), "same": Volume(truth > 0, grid)},
        how=Blockwise((6, 9, 23)),
    )
    rows = {(r["prediction"], r["region"]): r for r in table.rows()}
    assert len(rows) == 14
    assert rows["longer", "whole"]["volume_deviation"] == pytest.approx(16 / 14 - 1)
    assert rows["longer", "x low"]["volume_deviation"] == 0
    assert rows["longer", "x high"]["volume_deviation"] == pytest.approx(9 / 7 - 1)
    assert rows["longer", "z low"]["volume_deviation"] == pytest.approx(16 / 14 - 1)
    # In the lower half along x the cut face is no surface: 7 x 9 at one end, and four sides.
    half = rows["longer", "x low"]
    end, sides = 7 * 5.24 * 9 * 4, 7 * 4 * 2 * (7 * 5.24 + 9 * 4)
    assert half["true_surface_faces_nm2"] == pytest.approx(end + sides)
    assert all(rows["same", region]["surface_deviation"] == 0 for _, region in rows)
    with pytest.raises(GridError):
        holdout_deviations(Labels(truth, grid), {"x": Volume(truth, Grid(grid.shape, (4, 4, 4)))})


def test_nothing_in_the_truth_has_no_deviation():
    grid = hostile_grid()
    none, some = np.zeros((2, *grid.shape), "u1")
    some[3, 4, 5] = 1
    table = holdout_deviations(Volume(none, grid), {"p": Volume(some, grid)})
    assert np.isnan(table["volume_deviation"]).all()


def test_holdout_and_planarity_from_the_command_line(tmp_path, capsys):
    grid = Grid((20, 26, 30), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
    er = np.zeros(grid.shape, "u1")
    er[9:12, 2:24, 2:28] = 1
    sites = np.zeros(grid.shape, "u4")
    sites[12:13, 10:16, 10:20] = 70_001
    sites[10:12, 10:16, 10:20] = 70_001
    for name, array in (("er", er), ("sites", sites)):
        write_volume(tmp_path / f"{name}.zarr", Labels(array, grid))
    truth, out = str(tmp_path / "er.zarr"), str(tmp_path / "h.csv")
    words = ["holdout", truth, f"raw={truth}", f"refined={truth}", "--csv", out]
    assert run_app([*words, "--json", str(tmp_path / "h.json")]) == 0
    assert "volume_deviation" in capsys.readouterr().out
    assert read_table(out)["volume_deviation"].tolist() == [0] * 14
    assert run_app(["holdout", truth, "raw"]) == 1
    assert "expected NAME=PATH" in capsys.readouterr().err

    words = ["planarity", truth, "--out", str(tmp_path / "p.zarr"), "--scales", "6"]
    words += ["--largest-radius", "40 nm", "--medial", str(tmp_path / "m.zarr"), "--cut", "0.5"]
    words += ["--csv", str(tmp_path / "p.csv"), "--thickness", str(tmp_path / "t.csv")]
    words += ["--curvature", str(tmp_path / "c.csv"), "--contacts", str(tmp_path / "sites.zarr")]
    words += ["--sites", str(tmp_path / "s.csv"), "--json", str(tmp_path / "p.json")]
    words += ["--reconstructed", str(tmp_path / "r.zarr")]
    assert run_app(words) == 0
    report = json.loads((tmp_path / "p.json").read_text())["planarity"]
    assert report["planar"]["volume_fraction"] > 0.5
    assert report["sites"][0]["contact_id"] == 70_001
    assert 0.5 < report["sites"][0]["planarity"] < 1
    value = open_volume(tmp_path / "p.zarr").read()
    assert np.count_nonzero(value) * 83.84 == pytest.approx(
        read_table(tmp_path / "p.csv")["volume_nm3"].sum()
    )
    assert open_labels(tmp_path / "m.zarr").read()[10].any()
    np.testing.assert_array_equal(open_labels(tmp_path / "r.zarr").read(), value > 0)
    assert read_table(tmp_path / "c.csv")["voxels"].sum() > 0
    assert read_table(tmp_path / "t.csv")["thickness_from_nm"].max() == 16
    assert not list(tmp_path.glob(".*"))
    assert run_app([*words[:4], "--scale-rule", "other"]) == 1
    assert "heinrich2021 or exact" in capsys.readouterr().err
    assert SheetnessOptions().scale_rule == "heinrich2021"
