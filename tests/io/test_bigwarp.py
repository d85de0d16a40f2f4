"""BigWarp files: what clemreg writes, read back by hand as BigWarp reads it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator

from clemreg.errors import DataError, FormatError
from clemreg.io.bigwarp import read_bigwarp, write_bigwarp
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import read_transform
from clemreg.space.landmarks import Landmarks

NASTY = 'a "b", ]]> ../c\n<µ>'


def marks(n=6):
    rng = np.random.default_rng(1)
    lm, em = rng.uniform(0, 9e3, (n, 3)), rng.uniform(0, 9e3, (n, 3))
    em[1] = np.nan
    active = np.array([True, True, False, *[True] * (n - 3)])
    return Landmarks((NASTY, *(f"Pt-{i}" for i in range(1, n))), lm, em, active=active)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_what_is_written_is_read(tmp_path, suffix):
    given = marks()
    path = tmp_path / f"l{suffix}"
    write_bigwarp(given, path, unit="nm")
    assert "nan" not in path.read_text().lower()
    assert path.read_text().count("Infinity") == 3
    again = read_bigwarp(path, unit="nm").landmarks
    np.testing.assert_array_equal(again.lm_nm, given.lm_nm)
    np.testing.assert_array_equal(again.em_nm, given.em_nm)
    assert list(again.active) == [True, False, False, True, True, True]
    assert again.names[1:] == given.names[1:]


def test_the_json_is_moving_em_then_fixed_lm(tmp_path):
    given = marks()
    write_bigwarp(given, tmp_path / "l.json")
    record = json.loads((tmp_path / "l.json").read_text())
    assert record["type"] == "Thin Plate Spline"
    table = record["landmarks"]
    assert (table["type"], table["numDimensions"]) == ("BigWarpLandmarks", 3)
    assert table["names"][0] == NASTY
    np.testing.assert_allclose(table["movingPoints"][0], given.em_nm[0, ::-1] / 1e3)
    np.testing.assert_allclose(table["fixedPoints"][0], given.lm_nm[0, ::-1] / 1e3)
    assert table["movingPoints"][1] == [np.inf] * 3


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_2d_landmarks_both_ways(tmp_path, suffix):
    lm = np.array([[70.0, 1.0, 2.0], [70.0, 3.0, 4.0], [70.0, 9.0, 8.0]])
    em = np.array([[50.0, 10.0, 20.0], [50.0, 30.0, 40.0], [np.nan] * 3])
    path = tmp_path / f"f{suffix}"
    write_bigwarp(Landmarks(tuple("abc"), lm, em), path, unit="nm", dimensions=2)
    if suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        assert rows[0] == ["a", "true", "20.0", "10.0", "2.0", "1.0"]
    with pytest.raises(FormatError, match="2-D"):
        read_landmarks(path)
    again = read_bigwarp(path, unit="nm", planes_nm=(50.0, 70.0)).landmarks
    np.testing.assert_array_equal(again.lm_nm, lm)
    np.testing.assert_array_equal(again.em_nm[:2], em[:2])
    assert list(again.active) == [True, True, False]


def test_landmarks_in_several_planes_are_not_2d(tmp_path):
    with pytest.raises(DataError, match="differ in z"):
        write_bigwarp(marks(), tmp_path / "f.csv", dimensions=2)
    assert not list(tmp_path.iterdir())


def test_a_masked_transform_is_not_its_spline(tmp_path):
    write_bigwarp(marks(9), tmp_path / "l.json")
    record = json.loads((tmp_path / "l.json").read_text())
    record["mask"] = {"interpolationType": "NONE"}
    (tmp_path / "l.json").write_text(json.dumps(record))
    assert len(read_landmarks(tmp_path / "l.json")) == 9
    with pytest.raises(FormatError, match="masked"):
        read_transform(tmp_path / "l.json")


def test_inactive_and_unset_rows_are_no_part_of_the_spline(tmp_path):
    given = marks(12)
    write_bigwarp(given, tmp_path / "l.csv")
    use = np.asarray(given.active) & np.isfinite(given.em_nm).all(axis=1)
    points = np.random.default_rng(0).uniform(0, 9e3, (30, 3))
    oracle = RBFInterpolator(
        given.lm_nm[use], given.em_nm[use], kernel="thin_plate_spline", degree=1
    )
    found = read_transform(tmp_path / "l.csv")(points)
    np.testing.assert_allclose(found, oracle(points), rtol=1e-9, atol=1e-6)


def test_landmarks_start_a_registration(tmp_path):
    """As initialisation they give the similarity they were made with."""
    from clemreg.space.fits import fit_similarity

    given = marks(8).usable
    turn = np.array([[0.0, 0.0, 1.3], [1.3, 0.0, 0.0], [0.0, 1.3, 0.0]])
    em = given.lm_nm @ turn.T + [10.0, 20.0, 30.0]
    write_bigwarp(Landmarks(given.names, given.lm_nm, em), tmp_path / "l.csv")
    user = read_landmarks(tmp_path / "l.csv").usable
    start = fit_similarity(user.lm_nm, user.em_nm, "lm", "em")
    np.testing.assert_allclose(start.linear, turn, atol=1e-9)


def test_an_empty_table_of_a_new_project(tmp_path):
    record = {"landmarks": {"movingPoints": [], "fixedPoints": [], "active": [], "names": []}}
    (tmp_path / "p.json").write_text(json.dumps({"Sources": {}, "Transform": record}))
    assert len(read_landmarks(tmp_path / "p.json")) == 0
    with pytest.raises(DataError, match="0 usable"):
        read_transform(tmp_path / "p.json")
