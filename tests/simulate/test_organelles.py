"""The drawn piece of cell is what it says it is, and the whole chain finds it again."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import cc3d
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from clemreg.cli.app import run_app
from clemreg.io.quantise import distance_nm
from clemreg.io.skeletons import read_skeleton
from clemreg.simulate.organelles import CHANNELS, GRID, draw_organelles
from clemreg.space.grid import Grid

COARSE = Grid((48, 100, 120), (10.48, 8.0, 8.0), (300.0, -200.0, 70.0), "em")


@pytest.fixture(scope="module")
def drawn():
    return draw_organelles(np.random.default_rng(1), COARSE)


def predicted(drawn, name, points_nm):
    """Signed distance in nm that a channel holds at points."""
    values = distance_nm(drawn.predictions.channel(name).read())
    return map_coordinates(values, COARSE.to_index(points_nm).T, order=1, mode="nearest")


def test_predictions_hold_the_distance_to_what_was_drawn(drawn):
    axis = np.concatenate(drawn.microtubules_nm)
    points = COARSE.points_nm().reshape(-1, 3)
    distance, _ = cKDTree(axis).query(points, distance_upper_bound=40)
    near = np.isfinite(distance)
    error = predicted(drawn, "mt", points[near]) - (12.5 - distance[near])
    assert abs(error.mean()) < 0.1
    assert error.std() == pytest.approx(1.5, abs=0.3)  # the noise
    mito = drawn.mitochondria.read()
    voxel = np.prod(COARSE.spacing_nm)
    for one, length in ((1, 0.47 * 960), (2, 0.47 * 960)):
        capsule = math.pi * 115**2 * length + 4 / 3 * math.pi * 115**3
        assert (mito == one).sum() * voxel == pytest.approx(capsule, rel=0.02)
    joined = cc3d.connected_components(drawn.predictions.channel("mito").read() >= 127)
    assert joined.max() == 1  # by the neck


def test_ribosomes_touch_what_they_are_said_to_sit_on(drawn):
    places = drawn.ribosomes_nm
    assert set(places) == {"sheet", "tube", "nuclear", "cytosolic"}
    assert min(map(len, places.values())) >= 5
    every = np.concatenate(list(places.values()))
    assert cKDTree(every).query(every, k=2)[0][:, 1].min() > 20
    for name in ("sheet", "tube", "nuclear"):
        assert np.median(predicted(drawn, "er", places[name])) == pytest.approx(-12, abs=4)
    assert np.median(predicted(drawn, "ne", places["nuclear"])) == pytest.approx(-12, abs=4)
    assert predicted(drawn, "ne", places["sheet"]).max() < -40
    assert max(predicted(drawn, name, places["cytosolic"]).max() for name in CHANNELS[:4]) < -30


def test_the_seed_decides(drawn):
    again = draw_organelles(np.random.default_rng(1), COARSE)
    np.testing.assert_array_equal(again.predictions.read(), drawn.predictions.read())
    other = draw_organelles(np.random.default_rng(2), COARSE)
    assert (other.predictions.read() != drawn.predictions.read()).any()


@pytest.mark.parametrize("kind", ["organelles", "clem"])
def test_a_seed_below_zero_is_refused(tmp_path, capsys, kind):
    assert run_app(["simulate", kind, "--out", str(tmp_path / "o"), "--seed", "-1"]) == 1
    assert "--seed -1: a whole number from 0" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_every_organelle_is_found_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_app(["simulate", "organelles", "--out", "cell"]) == 0
    assert "now: clemreg organelles cell/cell.toml" in capsys.readouterr().out
    assert not list((tmp_path / "cell").glob(".*"))
    assert run_app(["simulate", "organelles", "--out", "cell"]) == 1
    assert "exists already" in capsys.readouterr().err
    figures = tmp_path / "n.json"
    command = ["organelles", "cell/cell.toml", "--set", "measure.report=false"]
    assert run_app([*command, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["organelles"]
    assert found["mito"]["refine"]["objects"] == 2
    truth = read_skeleton(tmp_path / "cell" / "microtubules.nml").lines()
    assert found["mt"]["microtubules"]["objects"] == len(truth) == 5
    rows = _rows("cell/ribosomes.csv"), _rows("cell/organelles/ribosomes/ribo/ribosomes.csv")
    true, ours = (np.array([[float(r[f"{a}_nm"]) for a in "zyx"] for r in t]) for t in rows)
    distance, nearest = cKDTree(true).query(ours)
    assert sorted(nearest) == list(range(len(true)))
    assert distance.max() < 5
    assert [rows[0][i]["class"] for i in nearest] == [row["class"] for row in rows[1]]
    assert GRID.spacing_nm == (5.24, 4.0, 4.0)


def _rows(path):
    with Path(path).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
