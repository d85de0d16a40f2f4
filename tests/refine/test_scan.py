"""The page of settings, its scores against skimage, and what it says of touching objects."""

from __future__ import annotations

import html
import json
import re
import tomllib

import numpy as np
import pytest
from skimage.metrics import variation_of_information

from clemreg.blocks.stages import Blockwise
from clemreg.cli.app import run_app
from clemreg.errors import DataError
from clemreg.io.volumes import write_volume
from clemreg.refine.overlap import find_overlap
from clemreg.refine.page import colours
from clemreg.space.grid import Grid
from clemreg.volume import Labels, Volume

from .conftest import GRID
from .test_watershed import sausages  # noqa: F401 - a fixture


@pytest.mark.parametrize("block", [(5, 9, 8), (64, 64, 64)])
def test_voi_is_that_of_skimage(tmp_path, block):
    rng = np.random.default_rng(9)
    found = rng.integers(0, 6, GRID.shape).astype(np.uint32)
    true = np.where(rng.random(GRID.shape) < 0.7, found // 2, rng.integers(0, 4, GRID.shape))
    overlap = find_overlap(
        Volume(found, GRID).read, Volume(true, GRID).read, GRID, tmp_path, Blockwise(block)
    )
    split, merge = overlap.variation_of_information()
    inside = true > 0
    expected = variation_of_information(true[inside], found[inside])
    assert sorted([split, merge]) == pytest.approx(sorted(expected))
    assert split > merge > 0  # objects were made by splitting


def test_split_and_merge_are_told_apart_and_f1_counts_matches(tmp_path):
    true = np.zeros(GRID.shape, np.int64)
    true[1:4, 2:6, 2:10] = 1
    true[5:8, 2:6, 2:10] = 2
    true[9:12, 2:6, 2:10] = 3
    how = Blockwise((6, 9, 9))

    def scores(found, name):
        overlap = find_overlap(
            Volume(found, GRID).read, Volume(true, GRID).read, GRID, tmp_path / name, how
        )
        return *overlap.variation_of_information(), overlap.matched_f1()

    assert scores(true * 70_000, "same") == (0.0, 0.0, 1.0)
    merged = np.where(true == 2, 1, true)
    split, merge, f1 = scores(merged, "merged")
    assert split == 0
    assert merge == pytest.approx(2 / 3)  # two of three equal objects are one bit uncertain
    assert f1 == pytest.approx(2 * 1 / (2 + 3))
    halves = true.copy()
    halves[1:4, 2:6, 2:6] = 9
    split, merge, f1 = scores(halves, "halves")
    assert split == pytest.approx(1 / 3)
    assert merge == 0
    assert f1 == pytest.approx(2 * 2 / (4 + 3))  # halves do not reach more than half
    nothing = scores(np.zeros_like(true), "nothing")
    assert nothing[2] == 0
    ids = np.array([0, 7, 7, 8])
    overlap = find_overlap(
        Volume(true, GRID).read, Volume(true, GRID).read, GRID, tmp_path / "r", how
    )
    assert overlap.renamed(ids).variation_of_information()[1] == pytest.approx(2 / 3)


def test_true_ids_may_be_as_large_as_they_like(tmp_path):
    rng = np.random.default_rng(3)
    true = rng.integers(0, 4, GRID.shape)
    large = np.array([0, 2**53 + 1, 2**53 + 2, 2**64 - 1], np.uint64)[true]
    found = Volume(np.where(rng.random(GRID.shape) < 0.8, true, 2), GRID)
    how = Blockwise((4, 7, 9))
    scores = [
        find_overlap(found.read, Volume(ids, GRID).read, GRID, tmp_path / str(i), how)
        for i, ids in enumerate((true, large))
    ]
    assert scores[0].matched_f1() == scores[1].matched_f1() > 0
    assert scores[0].variation_of_information() == scores[1].variation_of_information()
    negative = Volume(true.astype("i2") - 1, GRID)
    with pytest.raises(DataError, match="negative ids"):
        find_overlap(found.read, negative.read, GRID, tmp_path / "n", Blockwise())


def test_colours_are_those_of_the_id():
    ids = np.arange(50).reshape(5, 10)
    rgb = colours(ids)
    assert (rgb[0, 0] == 0).all()
    assert (rgb == colours(ids[:, ::-1])[:, ::-1]).all()
    assert len(np.unique(rgb.reshape(-1, 3), axis=0)) == 50


def test_the_command_shows_that_splitting_beats_components(tmp_path, sausages, capsys):  # noqa: F811
    grid, prediction, truth = sausages
    both = np.stack([np.zeros_like(prediction), prediction])
    write_volume(tmp_path / "p.zarr", Volume(both, grid, ("er", "mito")))
    write_volume(tmp_path / "t.zarr", Labels(truth, grid))
    code = run_app([
        "refine-scan", str(tmp_path / "p.zarr"), "--channel", "mito",
        "--out", str(tmp_path / "scan"), "--truth", str(tmp_path / "t.zarr"),
        "--quantiles", "0.25", "--thresholds", "0.2,0.95",
        "--min-volume-nm3", "20000", "--block", "32", "--json", str(tmp_path / "s.json"),
    ])  # fmt: skip
    assert code == 0
    assert (tmp_path / "s.json").read_text() == (tmp_path / "scan" / "scan.json").read_text()
    naive, low, good = json.loads((tmp_path / "s.json").read_text())["candidates"]
    assert naive["method"] == "components"
    assert naive["objects"] == 1
    assert naive["voi_merge"] > 0.9
    assert good["objects"] == 2
    assert good["voi_merge"] < 0.1
    assert good["f1"] == 1.0
    assert good["f1"] > naive["f1"]
    assert low["objects"] > 2
    assert low["voi_split"] > good["voi_split"]
    page = (tmp_path / "scan" / "scan.html").read_text()
    assert "<h1>Where to cut: p.zarr, channel mito</h1>" in page
    assert page.count("data:image/png;base64,") == 9
    lines = [html.unescape(code) for code in re.findall("<code>(.*)</code>", page)]
    found = [tomllib.loads(f"steps = [{line}]")["steps"] for line in lines]
    assert [steps[0].pop("threshold") for steps in found] == [1.0, 0.2, 0.95]
    same = {"do": "watershed", "quantile": 0.25, "sigma_nm": 12, "min_volume_nm3": 20_000}
    assert found == [[same]] * 3
    assert "http" not in page
    assert sorted(p.name for p in (tmp_path / "scan").iterdir()) == [
        ".lock", "scan.html", "scan.json",
    ]  # fmt: skip
    assert "objects 2" in capsys.readouterr().out


def test_the_line_of_each_row_makes_its_objects(tmp_path, monkeypatch):
    """Also where the balls are joined by voxels just below the surface: 126, 127 is on it."""
    monkeypatch.chdir(tmp_path)
    grid = Grid((34, 42, 92), (5.24, 4.0, 4.0), (300.0, -200.0, 70.0), "em")
    points = grid.points_nm() - np.asarray(grid.origin_nm)
    prediction = np.zeros(grid.shape, np.uint8)
    prediction[7:28, 8:33, 20:62] = 126
    for x in (80.0, 248.0):
        prediction[np.linalg.norm(points - (89.0, 82.0, x), axis=-1) <= 48.0] = 200
    write_volume("p.zarr", Volume(prediction, grid))
    words = ["refine-scan", "p.zarr", "--out", "scan", "--quantiles", "0.5", "--thresholds", "0.6"]
    assert run_app([*words, "--min-volume-nm3", "100000"]) == 0
    rows = json.loads((tmp_path / "scan" / "scan.json").read_text())["candidates"]
    assert [row["objects"] for row in rows] == [1, 2]
    page = (tmp_path / "scan" / "scan.html").read_text()
    for number, line in enumerate(re.findall("<code>(.*)</code>", page)):
        steps = f"[organelles.mito]\nsteps = [{html.unescape(line)}]\n"
        (tmp_path / "recipe.toml").write_text(steps)
        out = f"out{number}.zarr"
        words = ["refine", "p.zarr", "--recipe", "recipe.toml", "--organelle", "mito"]
        assert run_app([*words, "--out", out]) == 0
        made = json.loads((tmp_path / out / "clemreg.json").read_text())["organelles"]["mito"]
        for name in ("objects", "largest_um3"):
            assert made[name] == pytest.approx(rows[number][name], rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        (["--quantiles", "1.5"], "quantiles must lie between 0 and 1, got [1.5]", 1),
        (["--thresholds", "a,b"], "is not numbers with commas", 2),
        (["--truth", "t.zarr"], "t.zarr (shape (2, 3, 4)", 1),
        (["--truth", "other.zarr"], "do not have the same voxels", 1),
    ],
)
def test_scan_faults(tmp_path, capsys, monkeypatch, change, message, code):
    monkeypatch.chdir(tmp_path)
    write_volume(tmp_path / "p.zarr", Volume(np.zeros(GRID.shape, np.uint8), GRID))
    small = Grid((2, 3, 4), GRID.spacing_nm)
    write_volume(tmp_path / "t.zarr", Labels(np.zeros(small.shape, np.uint8), small))
    other = Grid(GRID.shape, GRID.spacing_nm[::-1], GRID.origin_nm)
    write_volume(tmp_path / "other.zarr", Labels(np.zeros(other.shape, np.uint8), other))
    assert run_app(["refine-scan", "p.zarr", "--out", "scan", *change]) == code
    assert message in capsys.readouterr().err
