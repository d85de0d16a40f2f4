"""ec-CLEM files, read by hand as the plugin's schema says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime

import numpy as np
import pytest

from clemreg.errors import DataError, FormatError, MissingError
from clemreg.io.ecclem import (
    read_ecclem,
    read_ecclem_matrix,
    read_fiducials,
    write_ecclem,
    write_ecclem_matrix,
    write_fiducials,
)
from clemreg.io.points import read_landmarks
from clemreg.io.transforms import read_transform
from clemreg.space import Affine, Grid
from clemreg.space.landmarks import Landmarks
from clemreg.testing import hostile_grid, random_affine, random_rotation

RNG = np.random.default_rng(5)
EM = hostile_grid("em")
LM = Grid((9, 14, 8), (104.0, 52.0, 60.0), (40.0, 30.0, -20.0), "lm")


def marks(transform=None, n=7):
    lm = RNG.uniform(0, 900, (n, 3))
    em = RNG.uniform(0, 900, (n, 3)) if transform is None else transform(lm)
    em[2] = np.nan
    return Landmarks(tuple(f"<{i}&]]>" for i in range(n)), lm, em)


def test_fiducial_tables(tmp_path):
    given = marks()
    write_fiducials(given, tmp_path / "lm.csv", tmp_path / "em.csv")
    head, first, *_ = (tmp_path / "em.csv").read_text().splitlines()
    assert head == "id,dimension_1,dimension_2,dimension_3"
    np.testing.assert_allclose(
        [float(v) for v in first.split(",")], [0, *given.em_nm[0, ::-1] / 1e3], rtol=1e-14
    )
    again = read_fiducials(tmp_path / "lm.csv", tmp_path / "em.csv")
    np.testing.assert_allclose(again.lm_nm, given.usable.lm_nm, rtol=1e-14)
    np.testing.assert_allclose(again.em_nm, given.usable.em_nm, rtol=1e-14)
    assert again.names == tuple("012345")


def test_fiducials_pair_by_id_not_by_row(tmp_path):
    head = "id,dimension_1,dimension_2,dimension_3\n"
    (tmp_path / "a.csv").write_text(head + "7,1,2,3\n8,4,5,6\n")
    (tmp_path / "b.csv").write_text(head + "8,40,50,60\n7,10,20,30\n")
    found = read_fiducials(tmp_path / "a.csv", tmp_path / "b.csv", unit="nm")
    assert found.lm_nm.tolist() == [[3, 2, 1], [6, 5, 4]]
    assert found.em_nm.tolist() == [[30, 20, 10], [60, 50, 40]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,dimension_1,dimension_2\n0,1,2\n", "3-D"),
        ("x,y,z\n1,2,3\n", "expected id"),
        ("id,dimension_1,dimension_2,dimension_3\n0,1,2,x\n", "'x' is not a number"),
        ("id,dimension_1,dimension_2,dimension_3\n0,1,2,3\n0,1,2,3\n", "twice"),
        ("id,dimension_1,dimension_2,dimension_3\n1,1,2,3\n", "do not pair: 0, 1"),
    ],
)
def test_bad_fiducials(tmp_path, text, words):
    (tmp_path / "a.csv").write_text("id,dimension_1,dimension_2,dimension_3\n0,1,2,3\n")
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(FormatError, match=words):
        read_fiducials(tmp_path / "a.csv", tmp_path / "b.csv")


def test_the_xml_says_sizes_sides_and_points(tmp_path):
    given = marks()
    date = datetime(2020, 1, 2, tzinfo=UTC)
    write_ecclem(given, tmp_path / "t.xml", (LM, EM), kind="AFFINE", date=date)
    transformation = ET.parse(tmp_path / "t.xml").getroot().find("transformation")
    assert transformation.attrib == {
        "type": "AFFINE", "noiseModel": "ISOTROPIC", "date": "2020-01-02T00:00:00+00:00"
    }  # fmt: skip
    source, target = transformation.findall("sequenceSize")
    assert (source.get("type"), target.get("type")) == ("source", "target")
    assert [d.text for d in source] == ["8", "14", "9"]
    assert [float(d.get("pixelSize")) for d in target] == [0.004, 0.004, 0.00524]
    dataset = transformation.find("dataset[@type='target']")
    assert (dataset.get("n"), dataset.get("pointType")) == ("6", "FIDUCIAL")
    first = [float(c.text) for c in dataset[0]]
    np.testing.assert_allclose(first, given.em_nm[0, ::-1] / 1e3)


@pytest.mark.parametrize("source", ["lm", "em"])
def test_xml_round_trip(tmp_path, source):
    given = marks()
    write_ecclem(given, tmp_path / "t.xml", (LM, EM), source=source)
    again = read_ecclem(tmp_path / "t.xml", source=source)
    assert again.kind == "SIMILARITY"
    np.testing.assert_allclose(again.landmarks.lm_nm, given.usable.lm_nm, rtol=1e-14)
    np.testing.assert_allclose(again.landmarks.em_nm, given.usable.em_nm, rtol=1e-14)
    if source == "lm":
        assert len(read_landmarks(tmp_path / "t.xml").usable) == 6


@pytest.mark.parametrize("kind", ["RIGID", "SIMILARITY", "AFFINE", "SPLINE"])
def test_fiducials_as_a_transform(tmp_path, kind):
    scale = 1.0 if kind == "RIGID" else 1.2
    known = random_affine(RNG) if kind in ("AFFINE", "SPLINE") else None
    known = known or Affine.from_linear(scale * random_rotation(RNG), [5, 6, 7], "lm", "em")
    write_ecclem(marks(known, 12), tmp_path / "t.xml", (LM, EM), kind=kind)
    points = RNG.uniform(0, 900, (20, 3))
    found = read_transform(tmp_path / "t.xml")
    assert (found.source, found.target) == ("lm", "em")
    np.testing.assert_allclose(found(points), known(points), atol=1e-6)


@pytest.mark.parametrize("source", ["lm", "em"])
def test_matrix_both_ways(tmp_path, source):
    affine = random_affine(RNG, mirror=True)
    write_ecclem_matrix(affine, tmp_path / "m.xml", source=source)
    element = ET.parse(tmp_path / "m.xml").getroot()
    assert element.tag == "MatrixTransformation"
    matrix = np.array([[float(element.get(f"m{i}{j}")) for j in range(4)] for i in range(4)])
    point = np.array([0.3, 0.2, 0.1])
    used = affine if source == "lm" else affine.inverse()
    expected = used(point[None, ::-1] * 1e3)[0, ::-1] / 1e3
    np.testing.assert_allclose((matrix @ [*point, 1])[:3], expected)
    again = read_ecclem_matrix(tmp_path / "m.xml", source=source)
    np.testing.assert_allclose(again.matrix, affine.matrix, rtol=1e-12, atol=1e-9)
    if source == "lm":
        np.testing.assert_allclose(read_transform(tmp_path / "m.xml").matrix, again.matrix)


BOMB = '<!DOCTYPE a [<!ENTITY b "bbb"><!ENTITY c "&b;&b;">]><root>&c;</root>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "trusted"),
        ("<root", "trusted"),
        ("<root/>", "no ec-CLEM"),
        ("<MatrixTransformation m00='1'/>", "m01"),
        ("<root><transformation type='X'/></root>", "unknown ec-CLEM transformation 'X'"),
        ("<root><transformation type='RIGID'/></root>", "no 3-D points"),
    ],
)
def test_bad_xml(tmp_path, text, words):
    (tmp_path / "t.xml").write_text(text)
    with pytest.raises(FormatError, match=words):
        read_transform(tmp_path / "t.xml")


def test_damaged_points_and_matrices(tmp_path):
    path = tmp_path / "t.xml"
    write_ecclem(marks(), path, (LM, EM))
    whole = path.read_text()
    for old, new, words in (
        ('<point id="0">', '<point id="9">', "do not pair"),
        ('<coordinate dimension="2">', '<coordinate dimension="3">', "damaged"),
        ('<coordinate dimension="0">', '<coordinate dimension="0">nan', "damaged"),
    ):
        path.write_text(whole.replace(old, new, 1))
        with pytest.raises(FormatError, match=words):
            read_ecclem(path)
    entries = " ".join(f'm{i}{j}="0"' for i in range(4) for j in range(4))
    path.write_text(f"<MatrixTransformation {entries}/>")
    with pytest.raises(FormatError, match="no affine"):
        read_ecclem_matrix(path)
    with pytest.raises(MissingError):
        read_ecclem(tmp_path / "none.xml")


def test_what_ecclem_cannot_hold(tmp_path):
    with pytest.raises(DataError, match="'WARP'"):
        write_ecclem(marks(), tmp_path / "t.xml", (LM, EM), kind="WARP")
    empty = Landmarks((), np.empty((0, 3)), np.empty((0, 3)))
    with pytest.raises(DataError, match="no landmark pair"):
        write_ecclem(empty, tmp_path / "t.xml", (LM, EM))
    assert not list(tmp_path.iterdir())
