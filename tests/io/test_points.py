from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from clemreg.errors import DataError, FormatError, MissingError
from clemreg.io.bigwarp import read_bigwarp
from clemreg.io.points import (
    read_landmarks,
    read_points,
    write_bigwarp,
    write_landmarks,
    write_points,
)
from clemreg.space.landmarks import Landmarks

COSEM = "Pt-index,Rater ID,em-x,em-y,em-z,lm-x,lm-y,lm-z\n"


def write(path, text, **kwargs):
    path.write_text(text, **kwargs)
    return path


def some_landmarks() -> Landmarks:
    rng = np.random.default_rng(7)
    lm, em = rng.normal(0, 5e3, (4, 3)), rng.normal(3e4, 5e3, (4, 3))
    em[1, 2] = np.nan
    return Landmarks(
        names=("1", "2", "1", 'say "a", b'),
        lm_nm=lm,
        em_nm=em,
        rater=("AW", "AW", "JB", "JB"),
        role=("held_out", "fit", "held_out", "held_out"),
        active=np.array([True, False, True, True]),
    )


def test_cosem_table_is_xyz_in_micrometres(tmp_path):
    path = write(tmp_path / "l.csv", COSEM + "7,AW,1.5,2.25,3.125,-4,5e-1,6\n")
    found = read_landmarks(path)
    assert found.names == ("7",)
    assert found.rater == ("AW",)
    assert found.em_nm.tolist() == [[3125.0, 2250.0, 1500.0]]
    assert found.lm_nm.tolist() == [[6000.0, 500.0, -4000.0]]


def test_cosem_table_of_the_paper(shared_data):
    found = read_landmarks(shared_data / "cosem-clem" / "clem-landmarks.csv")
    assert {name: found.rater.count(name) for name in set(found.rater)} == {
        "AW": 31,
        "JB": 31,
        "Auto": 31,
    }
    assert found.em_nm[0] == pytest.approx([7691.6872384554, 22140.2438013592, 49704.2971033622])
    assert len(found.usable) == 93


@pytest.mark.parametrize(
    ("delimiter", "end", "bom"), [(",", "\r\n", True), (";", "\n", False), ("\t", "\r\n", False)]
)
def test_spreadsheet_dialects(tmp_path, delimiter, end, bom):
    text = (COSEM + "7,AW,1,2,3,4,5,6\n\n").replace(",", delimiter).replace("\n", end)
    path = tmp_path / "l.csv"
    path.write_bytes(text.encode("utf-8-sig" if bom else "utf-8"))
    assert read_landmarks(path).em_nm.tolist() == [[3000.0, 2000.0, 1000.0]]


def test_units_in_column_names_win(tmp_path):
    head = "name,rater,em_x_nm,em_y_nm,em_z_nm,lm x (um),lm y (µm),lm z [micron]\n"
    with pytest.raises(FormatError, match="not the same"):
        read_landmarks(write(tmp_path / "a.csv", head + "p,A,1,2,3,4,5,6\n", encoding="utf-8"))
    head = head.replace("(µm)", "um").replace("[micron]", "um")
    found = read_landmarks(write(tmp_path / "b.csv", head + "p,A,1,2,3,4,5,6\n"), unit="mm")
    assert found.em_nm.tolist() == [[3.0, 2.0, 1.0]]
    assert found.lm_nm.tolist() == [[6000.0, 5000.0, 4000.0]]


def test_own_table_round_trip(tmp_path):
    given = some_landmarks()
    for unit in ("um", "nm"):
        path = tmp_path / f"{unit}.csv"
        write_landmarks(given, path, unit=unit)
        found = read_landmarks(path, unit="mm")
        for key in ("names", "rater", "role", "active"):
            assert list(getattr(found, key)) == list(getattr(given, key))
        np.testing.assert_allclose(found.lm_nm, given.lm_nm, rtol=1e-14)
        np.testing.assert_allclose(found.em_nm, given.em_nm, rtol=1e-14)
    row = next(csv.DictReader((tmp_path / "um.csv").read_text().splitlines()))
    assert float(row["em-x-um"]) == pytest.approx(given.em_nm[0, 2] / 1e3)
    assert float(row["lm-z-um"]) == pytest.approx(given.lm_nm[0, 0] / 1e3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (COSEM + "1,AW,1,2,3,4,5\n", r"line 2: 7 fields, expected 8"),
        (COSEM + "\n1,AW,1,2,3,4,5,abc\n", r"line 3, column 8 \(lm-z\): 'abc' is not a number"),
        (COSEM + "1,AW,1,2,3,4,5,0x10\n", r"'0x10' is not a number"),
        (COSEM + "1,AW,1,2,3,4,5,1_000\n", r"'1_000' is not a number"),
        (COSEM + "1,AW,1,2,3,4,5,6\n1,AW,1,2,3,4,5,6\n", r"line 3: point '1' of rater 'AW'"),
        (COSEM.replace("lm-y", "lm-q") + "1,AW,1,2,3,4,5,6\n", r"columns lm-y are missing"),
        (COSEM.replace("lm-y", "lm-x") + "1,AW,1,2,3,4,5,6\n", r"column 'lm-x' is there twice"),
        (COSEM.replace("\n", ",Role\n") + "1,AW,1,2,3,4,5,6,train\n", r"line 2 \(role\): 'train'"),
        (COSEM.replace("\n", ",Active\n") + "1,AW,1,2,3,4,5,6,maybe\n", r"\(active\): 'maybe'"),
        ("", r"is empty"),
        ('"a,b\n', r"line 1"),
    ],
)
def test_bad_tables_name_the_place(tmp_path, text, message):
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(FormatError, match=message) as caught:
        read_landmarks(path)
    assert "bad.csv" in str(caught.value)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(MissingError, match=r"nothing\.csv"):
        read_landmarks(tmp_path / "nothing.csv")
    with pytest.raises(MissingError):
        read_landmarks(tmp_path)
    (tmp_path / "b.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(FormatError, match="not UTF-8"):
        read_landmarks(tmp_path / "b.csv")


def test_unset_coordinates_are_not_usable(tmp_path):
    path = write(tmp_path / "l.csv", COSEM + "1,A,1,2,3,4,5,6\n2,A,,,,4,5,6\n3,A,nan,2,3,4,5,6\n")
    found = read_landmarks(path)
    assert found.usable.names == ("1",)


# ---- BigWarp


def test_bigwarp_table_moving_is_em(tmp_path):
    text = (
        '"Pt-0","true","1.5","2.5","3.5","10.0","20.0","30.0"\n'
        "Pt-1,TRUE,1,2,3,4,5,6\n"
        '"Pt-2","false","4.0","5.0","6.0","Infinity","Infinity","Infinity"\n'
        '"Pt-3","1","4.0","5.0","6.0","7","8","9"\n'
        '"Pt-4","true","4.0","5.0","6.0","","NaN","inf"\n'
    )
    found = read_landmarks(write(tmp_path / "b.csv", text))
    assert found.em_nm[0].tolist() == [3500.0, 2500.0, 1500.0]
    assert found.lm_nm[0].tolist() == [30000.0, 20000.0, 10000.0]
    assert list(found.active) == [True, True, False, False, False]
    assert np.isnan(found.lm_nm[[2, 4]]).all()
    assert found.usable.names == ("Pt-0", "Pt-1")


def test_bigwarp_table_of_a_t_cell(shared_data):
    found = read_landmarks(shared_data / "cosem-clem" / "tcell-roi2-bigwarp-landmarks.csv")
    assert len(found.names) == 23
    assert len(found.usable) == 22
    assert found.em_nm[0] == pytest.approx([9015.426617970443, 21070.965480405665, 12146.875859905])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,active,mx,my,mz,px,py,pz\nPt-0,true,1,2,3,4,5,6\n", "no header"),
        ("Pt-0,true,1,2,3,4\n", "2-D"),
        ("Pt-0,true,1,2,3,4,5,6\nPt-1,true,1,2,3\n", "line 2: 5 fields, expected 8"),
        ("Pt-0,true,1,2,3,4,5,six\n", r"column 8 \(target z\): 'six'"),
    ],
)
def test_bad_bigwarp_tables(tmp_path, text, message):
    with pytest.raises(FormatError, match=message):
        read_landmarks(write(tmp_path / "b.csv", text))


def test_written_bigwarp_table_is_byte_exact(tmp_path):
    given = Landmarks(
        names=("Pt-0", 'a "b"', "Pt-2"),
        lm_nm=np.array([[30000.0, 20000.0, 10000.0], [1e-3, 2.0, 3.0], [np.nan] * 3]),
        em_nm=np.array([[3500.0, 2500.0, 1500.0], [6.0, 5.0, 4.0], [6.0, 5.0, 4.0]]),
        rater=("A",) * 3,
        active=np.array([True, False, True]),
    )
    write_bigwarp(given, tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_bytes() == (
        b'"Pt-0","true","1.5","2.5","3.5","10.0","20.0","30.0"\n'
        b'"a ""b""","false","0.004","0.005","0.006","0.003","0.002","1e-06"\n'
        b'"Pt-2","false","0.004","0.005","0.006","Infinity","Infinity","Infinity"\n'
    )
    again = read_landmarks(tmp_path / "b.csv")
    assert again.names == given.names
    np.testing.assert_allclose(again.lm_nm, given.lm_nm)


def test_real_bigwarp_table_is_written_as_bigwarp_did(tmp_path, shared_data):
    path = shared_data / "cosem-clem" / "tcell-roi2-bigwarp-landmarks.csv"
    write_bigwarp(read_landmarks(path, unit="nm"), tmp_path / "again.csv", unit="nm")
    assert (tmp_path / "again.csv").read_text() == path.read_text()


def test_bigwarp_has_no_raters(tmp_path):
    with pytest.raises(DataError, match="AW"):
        write_bigwarp(some_landmarks(), tmp_path / "b.csv")
    assert not list(tmp_path.iterdir())


def bigwarp_json(**changes):
    marks = {
        "type": "BigWarpLandmarks",
        "numDimensions": 3,
        "movingPoints": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        "fixedPoints": [[10.0, 20.0, 30.0], [float("inf")] * 3],
        "active": [True, False],
        "names": ["Pt-0", "Pt-1"],
    }
    return {"type": "Similarity", "landmarks": marks | changes}


def test_bigwarp_json_with_stale_bytes_behind_it(tmp_path):
    path = write(tmp_path / "t.json", json.dumps(bigwarp_json()) + '"old"]}}')
    found = read_bigwarp(path, unit="nm")
    assert found.kind == "Similarity"
    assert found.landmarks.em_nm[0].tolist() == [3.0, 2.0, 1.0]
    assert found.landmarks.lm_nm[0].tolist() == [30.0, 20.0, 10.0]
    assert found.landmarks.usable.names == ("Pt-0",)


def test_bigwarp_project(tmp_path):
    path = write(tmp_path / "p.json", json.dumps({"Sources": {}, "Transform": bigwarp_json()}))
    assert read_landmarks(path).em_nm[0].tolist() == [3000.0, 2000.0, 1000.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "no BigWarp landmarks"),
        (
            json.dumps(bigwarp_json() | {"type": "Moving Least Squares"}),
            "unknown BigWarp transform",
        ),
        (json.dumps(bigwarp_json(fixedPoints=[[1.0, 2.0, 3.0]])), r"must both be \(N, 3\)"),
        (json.dumps(bigwarp_json(movingPoints=[[1, 2]] * 2, fixedPoints=[[1, 2]] * 2)), "2-D"),
        (json.dumps(bigwarp_json(names=["a"])), "1 names"),
        (json.dumps(bigwarp_json(movingPoints="x")), "lists of x, y, z"),
    ],
)
def test_bad_bigwarp_json(tmp_path, content, message):
    with pytest.raises(FormatError, match=message):
        read_bigwarp(write(tmp_path / "t.json", content))


# ---- points


def test_points_round_trip(tmp_path):
    points = np.random.default_rng(3).normal(0, 1e4, (5, 3))
    write_points(points, tmp_path / "p.csv", names="abcde")
    np.testing.assert_allclose(read_points(tmp_path / "p.csv", unit="mm"), points, rtol=1e-14)
    row = next(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert row["name"] == "a"
    assert float(row["x_um"]) == pytest.approx(points[0, 2] / 1e3)


def test_points_take_the_unit_from_names_or_argument(tmp_path):
    path = write(tmp_path / "p.csv", "id,Z,X,Y,score\n1,3,1,2,0.5\n")
    assert read_points(path, unit="um").tolist() == [[3000.0, 2000.0, 1000.0]]
    with pytest.raises(FormatError, match="unit of x, y, z is not given"):
        read_points(path)
    path = write(tmp_path / "q.csv", "x [nm],y [nm],z [nm]\n1,2,3\n")
    assert read_points(path).tolist() == [[3.0, 2.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x_um,y_um\n1,2\n", "columns z are missing"),
        ("x_um,y_um,z_um\n1,2,\n", r"line 2, column 3 \(z\)"),
        ("x_um,y_um,z_um\n1,2,inf\n", "'inf' is not a number"),
        ("1,2,3\n4,5,6\n", "first line names the columns"),
    ],
)
def test_bad_points(tmp_path, text, message):
    with pytest.raises(FormatError, match=message):
        read_points(write(tmp_path / "p.csv", text), unit="um")
