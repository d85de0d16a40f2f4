"""BigWarp files: what clemreg writes, read back by hand as BigWarp reads it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import tifffile
from scipy.interpolate import RBFInterpolator

from clemreg.cli.app import run_app
from clemreg.errors import DataError, FormatError
from clemreg.io.bigwarp import read_bigwarp, write_bigwarp
from clemreg.io.points import read_landmarks
from clemreg.io.tiff import write_tiff
from clemreg.io.transforms import read_transform, write_transform
from clemreg.io.volumes import write_volume
from clemreg.space import Grid
from clemreg.space.landmarks import Landmarks
from clemreg.testing import random_affine
from clemreg.volume import Volume

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


# ---- landmarks that were placed in TIFF images, which BigWarp shows without clemreg's origin


EM_GRID = Grid((4, 5, 6), (5.24, 4.0, 4.0), (3210.5, -987.25, 65536.75), "em")
LM_GRID = Grid((5, 6, 7), (104.0, 52.0, 52.0), (-400.0, 900.0, -1200.5), "lm")


def tiff_in_bigwarp(path, grid, **calibration_origin):
    """Write a TIFF; return where BigWarp shows a voxel of it: x, y, z in the unit of the file."""
    write_tiff(path, Volume(np.ones(grid.shape, "u1"), grid))
    if calibration_origin:  # as ImageJ saves an image whose origin was set
        with tifffile.TiffFile(path) as file:
            notes = file.imagej_metadata
            size = 1 / np.array([file.pages[0].tags[t].value[0] / file.pages[0].tags[t].value[1]
                                 for t in ("XResolution", "YResolution")])  # fmt: skip
        keep = {k: notes[k] for k in ("unit", "spacing", "Info")}
        tifffile.imwrite(
            path,
            np.ones(grid.shape, "u1"),
            imagej=True,
            resolution=tuple(1 / size),
            metadata={"axes": "ZYX", **keep, **calibration_origin},
        )
    added = np.array([calibration_origin.get(f"{a}origin", 0.0) for a in "xyz"])
    return lambda index: (
        np.asarray(index)[:, ::-1] * (np.array(grid.spacing_nm[::-1]) / 1e3) + added
    )


def session(folder, **lm_origin):
    """A user's project in BigWarp on two TIFF files, and the voxels that were clicked."""
    rng = np.random.default_rng(5)
    em_index, lm_index = (rng.uniform(0, g.shape, (7, 3)) for g in (EM_GRID, LM_GRID))
    moving = tiff_in_bigwarp(folder / "e m.tif", EM_GRID)(em_index)
    fixed = tiff_in_bigwarp(folder / "lm.tif", LM_GRID, **lm_origin)(lm_index)
    project = {
        "Sources": {
            "0": {"uri": (folder / "e m.tif").as_uri(), "name": "EM", "isMoving": True},
            "1": {"uri": str(folder / "lm.tif"), "name": "LM", "isMoving": False},
        },
        "Transform": {
            "type": "Thin Plate Spline",
            "landmarks": {
                "type": "BigWarpLandmarks",
                "numDimensions": 3,
                "movingPoints": moving.tolist(),
                "fixedPoints": fixed.tolist(),
                "active": [True] * 7,
                "names": [f"Pt-{i}" for i in range(7)],
            },
        },
    }
    (folder / "project.json").write_text(json.dumps(project))
    rows = np.concatenate([moving, fixed], axis=1)
    table = "".join(f'"Pt-{i}","true",' + ",".join(map(str, r)) + "\n" for i, r in enumerate(rows))
    (folder / "table.csv").write_text(table)
    return EM_GRID.to_world(em_index), LM_GRID.to_world(lm_index)


@pytest.mark.parametrize("lm_origin", [{}, {"xorigin": 17.0, "yorigin": -3.5, "zorigin": 2.0}])
def test_a_project_on_tiff_files_lands_in_the_world(tmp_path, lm_origin):
    em, lm = session(tmp_path, **lm_origin)
    found = read_landmarks(tmp_path / "project.json")
    np.testing.assert_allclose(found.em_nm, em, atol=1e-3)
    np.testing.assert_allclose(found.lm_nm, lm, atol=1e-3)
    spline = read_transform(tmp_path / "project.json")
    np.testing.assert_allclose(spline(lm), em, atol=1e-2)


def test_a_table_lands_in_the_world_when_its_images_are_named(tmp_path):
    em, lm = session(tmp_path)
    words = ["export", "bigwarp", f"--landmarks={tmp_path / 'table.csv'}"]
    words += [f"--em={tmp_path / 'e m.tif'}", f"--grid-of={tmp_path / 'lm.tif'}"]
    assert run_app([*words, "--read-from-zero", f"--out={tmp_path / 'world.csv'}"]) == 0
    found = read_landmarks(tmp_path / "world.csv")
    np.testing.assert_allclose(found.em_nm, em, atol=1e-3)
    np.testing.assert_allclose(found.lm_nm, lm, atol=1e-3)
    back = ["export", "bigwarp", f"--landmarks={tmp_path / 'world.csv'}", *words[3:]]
    assert run_app([*back, "--write-from-zero", f"--out={tmp_path / 'again.csv'}"]) == 0
    given, again = (read_landmarks(tmp_path / f"{n}.csv") for n in ("table", "again"))
    np.testing.assert_allclose(again.em_nm, given.em_nm, atol=1e-6)
    np.testing.assert_allclose(again.lm_nm, given.lm_nm, atol=1e-6)


def test_from_zero_is_from_the_origin_of_any_image(tmp_path):
    """Of an OME-Zarr too, for readers that take its voxel size and not its origin."""
    em, lm = session(tmp_path)
    images = []
    for option, grid in (("em", EM_GRID), ("grid-of", LM_GRID)):
        write_volume(tmp_path / f"{option}.zarr", Volume(np.ones(grid.shape, "u1"), grid))
        images.append(f"--{option}={tmp_path / f'{option}.zarr'}")
    words = ["export", "bigwarp", f"--landmarks={tmp_path / 'table.csv'}", *images]
    assert run_app([*words, "--read-from-zero", f"--out={tmp_path / 'world.csv'}"]) == 0
    found = read_landmarks(tmp_path / "world.csv")
    np.testing.assert_allclose(found.em_nm, em, atol=1e-3)
    np.testing.assert_allclose(found.lm_nm, lm, atol=1e-3)


def test_a_hand_over_of_tiff_files_there_and_back(tmp_path, capsys):
    """clemreg writes landmarks for the TIFF files as BigWarp shows them, and reads them right."""
    session(tmp_path)
    transform = random_affine(np.random.default_rng(1), "lm", "em")
    write_transform(transform, tmp_path / "t.json")
    words = ["export", "bigwarp", str(tmp_path / "t.json"), f"--grid-of={tmp_path / 'lm.tif'}"]
    words += [f"--em={tmp_path / 'e m.tif'}", "--spacing=0.1 um"]
    assert run_app([*words, f"--out={tmp_path / 'w.csv'}"]) == 0
    assert "--write-from-zero leaves its origin out" in capsys.readouterr().err
    project = [f"--project={tmp_path / 'p.json'}", f"--out={tmp_path / 'z.csv'}"]
    assert run_app([*words, *project]) == 1
    assert "--write-from-zero" in capsys.readouterr().err
    assert run_app([*words, *project, "--write-from-zero"]) == 0
    assert "note:" not in capsys.readouterr().err
    points = LM_GRID.points_nm().reshape(-1, 3)[::7]
    np.testing.assert_allclose(
        read_transform(tmp_path / "p.json")(points), transform(points), atol=0.01
    )
    shown = json.loads((tmp_path / "p.json").read_text())["Transform"]["landmarks"]
    corner = np.array(shown["fixedPoints"]).min(axis=0)
    np.testing.assert_allclose(corner, [-0.026, -0.026, -0.052], atol=1e-6)  # half a voxel out
    assert run_app([*words, f"--out={tmp_path / 'y.csv'}", "--write-from-zero", "--bdv"]) == 1
    assert "--bdv opens copies" in capsys.readouterr().err
    alone = ["export", "bigwarp", f"--landmarks={tmp_path / 'w.csv'}", "--read-from-zero"]
    assert run_app([*alone, f"--out={tmp_path / 'x.csv'}"]) == 1
    assert "it takes both images" in capsys.readouterr().err


def test_images_of_one_side_at_two_places_are_refused(tmp_path):
    session(tmp_path)
    record = json.loads((tmp_path / "project.json").read_text())
    record["Sources"]["2"] = {"uri": str(tmp_path / "e m.tif"), "isMoving": False}
    (tmp_path / "project.json").write_text(json.dumps(record))
    with pytest.raises(FormatError, match="start at different places"):
        read_landmarks(tmp_path / "project.json")


def test_a_project_on_a_cropped_tiff_is_refused(tmp_path):
    session(tmp_path)
    with tifffile.TiffFile(tmp_path / "e m.tif") as tiff:
        notes, pixels = tiff.imagej_metadata["Info"], tiff.asarray()
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 0.00524, "Info": notes}
    cut = pixels[:, 2:, 3:]
    tifffile.imwrite(
        tmp_path / "e m.tif", cut, imagej=True, resolution=(250, 250), metadata=metadata
    )
    with pytest.raises(FormatError, match="cropped"):
        read_landmarks(tmp_path / "project.json")


@pytest.mark.parametrize(
    "sources",
    [[], None, {"0": 5}, {"0": {"uri": 7}}, {"0": {"uri": "imagej:///em.tif", "isMoving": True}},
     {"0": {"uri": "/none/there.tif", "isMoving": True}}, {"0": {"isMoving": True}}],
)  # fmt: skip
def test_projects_whose_images_say_nothing(tmp_path, sources):
    session(tmp_path)
    record = json.loads((tmp_path / "project.json").read_text())
    record["Sources"] = sources
    (tmp_path / "project.json").write_text(json.dumps(record))
    found = read_landmarks(tmp_path / "project.json")
    given = np.array(record["Transform"]["landmarks"]["movingPoints"])
    np.testing.assert_allclose(found.em_nm, given[:, ::-1] * 1e3)
