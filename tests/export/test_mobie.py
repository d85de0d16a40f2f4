"""MoBIE tables, followed by hand as MoBIE follows them: from a point of the world to the image."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import ome_zarr_models
import pytest
import zarr
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

from clemreg.cli.app import run_app
from clemreg.errors import DataError, StorageError
from clemreg.export.mobie import MobieCollection, MobieImage, MobieSpots, write_mobie
from clemreg.io.points import write_landmarks, write_points
from clemreg.io.transforms import write_transform
from clemreg.io.volumes import write_tiff, write_volume
from clemreg.space import Affine, BSpline, Chain, Grid
from clemreg.space.landmarks import Landmarks
from clemreg.space.tps import ThinPlateSpline
from clemreg.testing import hostile_grid, random_affine, random_bspline, random_rotation
from clemreg.volume import Labels, Volume

RNG = np.random.default_rng(6)
LM = Grid((9, 14, 8), (104.0, 52.0, 60.0), (40.0, 30.0, -20.0), "lm")
EM = hostile_grid("em")
AFFINE = random_affine(RNG, "lm", "lm:affine", mirror=True)
WIDE = Grid(
    LM.shape, (300.0, 200.0, 200.0), tuple(AFFINE(LM.centre_nm[None])[0] - 900), "lm:affine"
)
BEND = random_bspline(RNG, WIDE, amplitude_nm=60, target="em")
POINTS = RNG.uniform(*LM.corners_nm()[[0, -1]], (100, 3))
EM_IMAGE = MobieImage("EM", "em.ome.zarr", in_em=True)


def table(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def numbers(text):
    return np.array(re.sub("[()]", "", text).split(","), float)


def through_affine(cell, points):
    """MoBIE puts the image at M y, so a world point x looks it up at M^-1 x."""
    matrix = np.vstack([numbers(cell).reshape(3, 4), [0, 0, 0, 1]])
    inverse = np.linalg.inv(matrix)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def through_bspline(path, points):
    """The keys that MoBIE reads: GridSize, GridSpacing, GridOrigin, TransformParameters."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    matches = [re.fullmatch(r"\((\S+)\s(.+)(\))", line) for line in lines]
    keys = {match[1]: match[2] for match in matches if match}
    for key in ("FixedImageDimension", "MovingImageDimension", "NumberOfParameters"):
        assert re.fullmatch(r"[0-9]+", keys[key].strip())
    assert keys["BSplineTransformSplineOrder"].strip() == "3"
    assert keys["Transform"] == '"BSplineTransform"'
    assert keys["InitialTransformParameterFileName"] == '"NoInitialTransform"'
    size = np.array(keys["GridSize"].split(), int)
    spacing, origin = (np.array(keys[k].split(), float) for k in ("GridSpacing", "GridOrigin"))
    coefficients = np.array(keys["TransformParameters"].split(), float).reshape(3, *size[::-1])
    index = ((points - origin) / spacing)[:, ::-1].T
    moved = [map_coordinates(k, index, order=3, prefilter=False) for k in coefficients]
    return points + np.stack(moved, -1)


def through_spline(path, points):
    marks = json.loads(Path(path).read_text())["landmarks"]
    fixed, moving = np.array(marks["fixedPoints"]), np.array(marks["movingPoints"])
    return RBFInterpolator(fixed, moving, kernel="thin_plate_spline", degree=1)(points)


def through_field(path, points):
    record = json.loads(Path(path).read_text())
    assert (record["numDimensions"], record["componentAxis"]) == (3, 0)
    raw = Path(path).with_name(record["rawPath"])
    values = np.fromfile(raw, ">f4").reshape(*record["size"][::-1], 3).astype(float)
    index = ((points - record["origin"]) / record["spacing"])[:, ::-1].T
    moved = [map_coordinates(values[..., c], index, order=1, mode="nearest") for c in range(3)]
    return points + np.stack(moved, -1)


FOLLOW = {
    "affine": through_affine,
    "elastix_bspline_uri": through_bspline,
    "thin_plate_spline_uri": through_spline,
    "displacement_field_uri": through_field,
}


def looked_up(folder, points_nm):
    """Where MoBIE looks up the EM: the first row is next to the image, so it comes last."""
    (cell,) = (row["affine"] for row in table(folder / "collection.csv") if row["name"] == "EM")
    points = points_nm[:, ::-1]
    if cell.startswith("("):
        return through_affine(cell, points)[:, ::-1]
    for row in reversed(table(folder / cell)):
        assert row["invert"] == ""
        points = FOLLOW[row["type"]](row["value"], points)
    return points[:, ::-1]


def spline():
    lm = RNG.uniform(*LM.corners_nm()[[0, -1]], (15, 3))
    return ThinPlateSpline(
        lm, lm @ random_rotation(RNG).T + RNG.normal(0, 30, lm.shape), "lm", "em"
    )


@pytest.mark.interop
@pytest.mark.parametrize(
    ("transform", "kinds"),
    [
        (Affine(AFFINE.matrix, "lm", "em"), []),
        (AFFINE.then(BEND), ["elastix_bspline_uri", "affine"]),
        (spline(), ["thin_plate_spline_uri"]),
    ],
)
def test_every_transform_looks_up_the_em_where_it_maps(tmp_path, transform, kinds):
    folder = tmp_path / "m o,b"
    assert write_mobie(folder, MobieCollection((EM_IMAGE,), transform, LM)) is None
    np.testing.assert_allclose(looked_up(folder, POINTS), transform(POINTS), atol=1e-5)
    if kinds:
        assert [row["type"] for row in table(folder / "em-transforms.csv")] == kinds
    assert not list(tmp_path.glob(".*"))


def test_a_turned_bspline_becomes_a_field_with_a_stated_error(tmp_path):
    turn = random_rotation(RNG)
    corner = AFFINE(LM.centre_nm[None])[0] - turn @ np.full(3, 900.0)
    bend = BSpline(RNG.normal(0, 20, (3, 9, 9, 9)), corner, (225.0,) * 3, "lm:affine", "em", turn)
    transform = AFFINE.then(bend)
    stated = write_mobie(tmp_path / "m", MobieCollection((EM_IMAGE,), transform, LM))
    distance = np.linalg.norm(looked_up(tmp_path / "m", POINTS) - transform(POINTS), axis=1)
    assert distance.max() < 1.2 * stated.max_nm
    voxels = LM.points_nm().reshape(-1, 3)
    np.testing.assert_allclose(looked_up(tmp_path / "m", voxels), transform(voxels), atol=1e-3)
    record = json.loads((tmp_path / "m" / "em-field.json").read_text())
    assert record["size"] == [8, 14, 9]
    assert record["spacing"] == [60.0, 52.0, 104.0]


def test_colours_windows_channels_and_names(tmp_path):
    name = 'mito ",;\n(x)'
    images = (
        MobieImage(name, "lm.zarr", 1, colour=(255, 0, 255), window=(0.5, 1e4)),
        MobieImage("ids", "ids.zarr", kind="labels", in_em=True),
        EM_IMAGE,
    )
    transform = AFFINE.then(BEND)
    write_mobie(tmp_path / "m", MobieCollection(images, transform, LM))
    mito, ids, em = table(tmp_path / "m" / "collection.csv")
    in_one_line = 'mito ",; (x)'
    assert (mito["name"], mito["channel"], mito["type"]) == (in_one_line, "1", "intensities")
    assert mito["color"] == "r(255)-g(0)-b(255)-a(255)"
    assert mito["contrast_limits"] == "(0.5,10000.0)"
    assert mito["affine"] == ""
    assert (ids["type"], ids["color"], ids["affine"]) == ("labels", "", "em-transforms.csv")
    assert em["affine"] == "em-transforms.csv"
    assert {row["format"] for row in (mito, ids, em)} == {"OmeZarr"}


def guessed_type(cells):
    """Of a column, as MoBIE's reader of tables does: empty cells, na, none and nan do not count."""
    there = [cell for cell in cells if cell not in ("", "na", "none", "nan")]
    for kind, like in (
        ("boolean", "true|false|[TtFfYyNn]|TRUE|FALSE"),
        ("integer", "[+-]?[0-9]+"),
        ("double", r"[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?"),
    ):
        if there and all(re.fullmatch(like, cell) for cell in there):
            return kind
    return "string"


@pytest.mark.parametrize("names", [("1", "2"), ("a", "a"), ("", "none"), ("2020", "2.5")])
def test_columns_have_the_types_that_mobie_asks_them_for(tmp_path, names):
    """It reads names as text and shows what shares a display in one colour, whatever the row."""
    first, second = names
    images = (
        MobieImage(first, "em.zarr", in_em=True),
        MobieImage(second, "lm.zarr", 0, colour=(255, 0, 0)),
    )
    spots = (MobieSpots(first, POINTS + 1e4), MobieSpots(second, POINTS + 1e4, labels=("x",) * 100))
    write_mobie(tmp_path / "m", MobieCollection(images, AFFINE.then(BEND), LM, spots))
    rows = table(tmp_path / "m" / "collection.csv")
    types = {column: guessed_type([row[column] for row in rows]) for column in rows[0]}
    texts = ("uri", "name", "type", "color", "blend", "affine", "view", "contrast_limits")
    for column in (*texts, "display", "format", "bounding_box"):
        assert types[column] == "string", column
    assert (types["channel"], types["spot_radius"]) == ("integer", "double")
    assert types["exclusive"] == "boolean"
    assert len({row["display"] for row in rows}) == 4
    assert [row["display"] for row in rows] == [row["name"] for row in rows]
    placed = table(tmp_path / "m" / "em-transforms.csv")
    assert {guessed_type([row[c] for row in placed]) for c in placed[0]} == {"string"}
    points = table(tmp_path / "m" / rows[2]["uri"])
    assert guessed_type([row["spot_id"] for row in points]) == "integer"
    assert {guessed_type([row[axis] for row in points]) for axis in "xyz"} == {"double"}


def test_labels_under_a_spline_are_refused(tmp_path):
    images = (EM_IMAGE, MobieImage("ids", "ids.zarr", kind="labels", in_em=True))
    with pytest.raises(DataError, match=r"cannot bend labels \(ids\)"):
        write_mobie(tmp_path / "m", MobieCollection(images, spline(), LM))
    write_mobie(tmp_path / "m", MobieCollection((EM_IMAGE,), spline(), LM))
    with pytest.raises(StorageError, match="exists"):
        write_mobie(tmp_path / "m", MobieCollection((EM_IMAGE,), spline(), LM))


def test_spots_stay_in_the_folder_whatever_they_are_called(tmp_path):
    spots = (MobieSpots("../../e v/il", POINTS, 25.0), MobieSpots("positive", POINTS + 1e4))
    transform = Affine(AFFINE.matrix, "lm", "em")
    write_mobie(tmp_path / "m", MobieCollection((EM_IMAGE,), transform, LM, spots))
    rows = table(tmp_path / "m" / "collection.csv")[1:]
    assert [row["type"] for row in rows] == ["spots", "spots"]
    assert (rows[0]["spot_radius"], rows[0]["name"]) == ("25.0", "../../e v/il")
    assert {p.parent for p in tmp_path.rglob("*.csv")} == {tmp_path / "m"}
    points = table(tmp_path / "m" / rows[0]["uri"])
    xyz = np.array([[float(row[a]) for a in "xyz"] for row in points])
    np.testing.assert_array_equal(xyz[:, ::-1], POINTS)
    assert [row["spot_id"] for row in points[:2]] == ["1", "2"]
    assert rows[0]["bounding_box"] == ""  # a minus sign would split it
    low, high = (numbers(part) for part in rows[1]["bounding_box"].split("-"))
    assert (low < xyz.min(axis=0) + 1e4).all()
    assert (high > xyz.max(axis=0) + 1e4).all()
    tiny = (MobieSpots("tiny", np.full((1, 3), 0.2 + 1e-5), 0.1),)  # the box starts at 1e-05
    write_mobie(tmp_path / "t", MobieCollection((EM_IMAGE,), transform, LM, tiny))
    (box,) = (row["bounding_box"] for row in table(tmp_path / "t" / "collection.csv")[1:])
    assert box == "" or box.count("-") == 1
    for points in (np.empty((0, 3)), np.full((1, 3), np.nan)):
        with pytest.raises(DataError, match="no points"):
            spots = (MobieSpots("x", points),)
            write_mobie(tmp_path / "n", MobieCollection((EM_IMAGE,), transform, LM, spots))
    assert not (tmp_path / "n").exists()


def test_mobie_from_the_command_line(tmp_path):
    """OME-Zarr in nm is named where it is; a TIFF is written as OME-Zarr 0.4 beside the tables."""
    lm = RNG.integers(1, 99, (2, *LM.shape)).astype("u2")
    at_zero = Grid(LM.shape, LM.spacing_nm, frame="lm")
    write_tiff(tmp_path / "lm.tif", Volume(lm, at_zero, ("mito", "er")))
    write_volume(tmp_path / "em.zarr", Volume(RNG.integers(1, 99, EM.shape).astype("u1"), EM))
    write_volume(tmp_path / "ids.zarr", Labels(RNG.integers(0, 3, EM.shape).astype("u4"), EM))
    transform = AFFINE.then(BEND)
    write_transform(transform, tmp_path / "t.json")
    write_points(POINTS, tmp_path / "palm.csv")
    marks = Landmarks(("a", "b"), POINTS[:2], transform(POINTS[:2]))
    write_landmarks(marks, tmp_path / "marks.csv")
    words = ["export", "mobie", f"--out={tmp_path / 'm'}", f"--em={tmp_path / 'em.zarr'}",
             f"--lm={tmp_path / 'lm.tif'}", f"--transform={tmp_path / 't.json'}",
             f"--labels={tmp_path / 'ids.zarr'}", f"--spots={tmp_path / 'palm.csv'}",
             f"--landmarks={tmp_path / 'marks.csv'}"]  # fmt: skip
    assert run_app(words) == 0
    rows = {row["name"]: row for row in table(tmp_path / "m" / "collection.csv")}
    assert set(rows) == {
        "LM mito",
        "LM er",
        "EM",
        "ids.zarr",
        "palm",
        "landmarks LM",
        "landmarks EM",
    }
    assert rows["EM"]["uri"] == (tmp_path / "em.zarr").as_posix()
    assert (rows["LM er"]["uri"], rows["LM er"]["channel"]) == ("lm.ome.zarr", "1")
    copy = zarr.open_group(tmp_path / "m" / "lm.ome.zarr", mode="r")
    assert copy.metadata.zarr_format == 2
    assert ome_zarr_models.open_ome_zarr(copy).ome_zarr_version == "0.4"
    np.testing.assert_array_equal(copy["s0"][:], lm)
    np.testing.assert_allclose(looked_up(tmp_path / "m", POINTS), transform(POINTS), atol=1e-5)
    both = [table(tmp_path / "m" / rows[f"landmarks {side}"]["uri"]) for side in ("LM", "EM")]
    for one, other in zip(*both, strict=True):
        assert one["label"] == other["label"]
        assert float(one["x"]) == pytest.approx(float(other["x"]), abs=1e-3)


def test_a_chain_of_two_bends_keeps_both_in_order(tmp_path):
    first = random_bspline(RNG, LM, amplitude_nm=20)
    chain = Chain((first, AFFINE, BEND))
    write_mobie(tmp_path / "m", MobieCollection((EM_IMAGE,), chain, LM))
    np.testing.assert_allclose(looked_up(tmp_path / "m", POINTS), chain(POINTS), atol=1e-5)
