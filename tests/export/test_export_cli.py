"""``clemreg export`` from the command line, on images and a transform that are no run."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import h5py
import numpy as np
import pytest

from clemreg.cli.app import run_app
from clemreg.io.bigwarp import write_bigwarp
from clemreg.io.ecclem import read_fiducials
from clemreg.io.points import read_landmarks, write_landmarks
from clemreg.io.transforms import read_transform, write_transform
from clemreg.io.volumes import write_volume
from clemreg.space import Affine, Grid
from clemreg.space.landmarks import Landmarks
from clemreg.testing import random_affine, random_bspline
from clemreg.volume import Labels, Volume

RNG = np.random.default_rng(3)
LM = Grid((9, 30, 34), (104.0, 52.0, 52.0), (10.0, 20.0, 30.0), "lm")
EM = Grid((40, 44, 50), (16.0, 12.0, 12.0), (400.0, 900.0, -200.0), "em")


@pytest.fixture
def files(tmp_path):
    move = Affine.translation(EM.centre_nm - LM.centre_nm, "lm", "lm:affine")
    bend = random_bspline(
        RNG,
        Grid(LM.shape, LM.spacing_nm, (400.0, 500.0, -300.0), "lm:affine"),
        amplitude_nm=15,
        target="em",
    )
    transform = move.then(bend)
    write_transform(transform, tmp_path / "t.json", fixed_grid=LM)
    lm = RNG.integers(1, 99, (2, *LM.shape)).astype("u2")
    write_volume(tmp_path / "lm.zarr", Volume(lm, LM, ("mito", "er")))
    em = Volume(RNG.integers(1, 99, EM.shape).astype("u1"), EM)
    write_volume(tmp_path / "em.zarr", em)
    write_volume(tmp_path / "ids.zarr", Labels((em.read() > 50).astype("u4") * 70000, EM))
    words = [
        f"--{name}={tmp_path / file}"
        for name, file in (("em", "em.zarr"), ("lm", "lm.zarr"), ("transform", "t.json"))
    ]
    return tmp_path, transform, words


def test_bdv_of_images_and_a_transform(files, capsys):
    folder, _, words = files
    out = folder / "b" / "it's.xml"
    labels = f"--labels={folder / 'ids.zarr'}"
    assert (
        run_app(
            [
                "export",
                "bdv",
                *words,
                labels,
                "--warp-spacing",
                "30 30 40 nm",
                "--out",
                str(out),
                "--unit",
                "nm",
            ]
        )
        == 0
    )
    xml = ET.parse(out)
    names = [v.findtext("name") for v in xml.findall(".//ViewSetup")]
    assert names == ["EM (affine)", "ids.zarr", "LM mito", "LM er", "EM warped"]
    sizes = [v.findtext("voxelSize/size") for v in xml.findall(".//ViewSetup")]
    assert sizes[-1] == "30.0 30.0 40.0"
    with h5py.File(out.with_suffix(".h5")) as file:
        assert {file[f"s{i:02d}"].attrs["dataType"] for i in range(5)} == {
            "uint8",
            "uint16",
            "uint32",
        }
        assert file["t00000/s04/0/cells"][:].max() > 0
    assert run_app(["export", "bdv", *words, "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert run_app(["export", "bdv", *words, "--out", str(out), "--append"]) == 0
    assert len(ET.parse(out).findall(".//ViewSetup")) == 9
    n5 = ["export", "bdv", *words, "--storage", "n5", "--out", str(folder / "n.xml")]
    assert run_app(n5) == 0
    assert (folder / "n.n5" / "setup3" / "timepoint0" / "s0").is_dir()
    legacy = ["export", "bdv", *words, "--legacy", "--out", str(folder / "o.xml")]
    assert run_app(legacy) == 0
    with h5py.File(folder / "o.h5") as file:
        assert "dataType" not in file["s00"].attrs


def test_what_to_export_must_be_said(files, capsys):
    folder, _, words = files
    assert run_app(["export", "bdv", *words[:2], "--out", str(folder / "x.xml")]) == 1
    assert "belong together" in capsys.readouterr().err
    assert run_app(["export", "bdv", "--out", str(folder / "x.xml")]) == 1
    assert "either the folder of a run" in capsys.readouterr().err
    assert run_app(["export", "bdv", *words]) == 1
    assert "--out NAME.xml" in capsys.readouterr().err
    assert run_app(["export", "bdv", *words, "--storage", "zarr", "--out", "x.xml"]) == 1
    assert "cannot store as 'zarr'" in capsys.readouterr().err


def test_bigwarp_table_transform_file_and_project(files, capsys):
    folder, transform, words = files
    t, lm = str(folder / "t.json"), str(folder / "lm.zarr")
    bigwarp = ["export", "bigwarp", t, f"--grid-of={lm}", "--spacing", "0.3 um", "--unit=nm"]
    stated = folder / "error.json"
    assert run_app([*bigwarp, f"--out={folder / 'b.csv'}", f"--json={stated}"]) == 0
    assert "thin-plate spline against transform" in capsys.readouterr().out
    # OME-Zarr of clemreg says nanometer, so BigWarp shows nanometres.
    points = RNG.uniform(*LM.corners_nm()[[0, -1]], (200, 3))
    by_table = read_transform(folder / "b.csv", unit="nm")(points)
    worst = json.loads(stated.read_text())["spline_error"]["max_nm"]
    assert np.linalg.norm(by_table - transform(points), axis=1).max() < 2 * worst + 0.1
    project = [f"--project={folder / 'p.json'}", words[0]]
    assert run_app([*bigwarp, f"--out={folder / 'b.json'}", *project]) == 0
    for name in ("b.json", "p.json"):
        mapped = read_transform(folder / name, unit="nm")(points)
        np.testing.assert_allclose(mapped, by_table, atol=1e-9 * 1e4)
    sources = json.loads((folder / "p.json").read_text())["Sources"]
    assert [s["isMoving"] for s in sources.values()] == [True, False]
    assert sources["0"]["uri"] == (folder / "em.zarr").resolve().as_posix()
    assert sources["1"]["name"] == "lm.zarr"
    project[0] = f"--project={folder / 'q.json'}"
    assert run_app([*bigwarp, f"--out={folder / 'c.csv'}", project[0]]) == 1
    assert "needs both images" in capsys.readouterr().err
    assert run_app([*bigwarp, f"--out={folder / 'c.csv'}", *project, "--unit=um"]) == 1
    assert "does not convert units" in capsys.readouterr().err
    assert not (folder / "c.csv").exists()


def voxel_to_world(path, setup):
    """Matrix (x, y, z) of a BigDataViewer dataset: the transform listed last is applied first."""
    total = np.eye(4)
    for rows in ET.parse(path).findall(f".//ViewRegistration[@setup='{setup}']//affine"):
        total = total @ np.vstack([np.array(rows.text.split(), float).reshape(3, 4), [0, 0, 0, 1]])
    return total


def test_a_bigwarp_project_of_exact_copies(files, capsys):
    """Voxel of the LM, through its XML and the project's landmarks, to the voxel of the EM."""
    folder, transform, words = files
    project = folder / "p q.json"
    bigwarp = ["export", "bigwarp", str(folder / "t.json"), f"--grid-of={folder / 'lm.zarr'}"]
    bigwarp += [words[0], "--spacing=0.15 um", f"--project={project}"]
    assert run_app([*bigwarp, f"--out={folder / 'c.csv'}", "--unit=nm"]) == 0
    assert "note: BigWarp may leave out the origin" in capsys.readouterr().err
    bigwarp += ["--bdv", "--overwrite"]
    assert run_app([*bigwarp, f"--out={folder / 'c.csv'}"]) == 0
    assert "note:" not in capsys.readouterr().err
    sources = json.loads(project.read_text())["Sources"]
    assert [s["isMoving"] for s in sources.values()] == [True, False]
    em, lm = (sources[key]["uri"] for key in "01")
    assert [v.findtext("name") for v in ET.parse(lm).findall(".//ViewSetup")] == ["mito", "er"]
    index = np.array([3, 11, 20])
    found = voxel_to_world(lm, 1) @ [*index[::-1], 1]
    spline = read_transform(project)  # micrometres, as BigWarp has them
    mapped = spline(found[None, 2::-1] * 1e3)[0] / 1e3
    at = np.linalg.inv(voxel_to_world(em, 0)) @ [*mapped[::-1], 1]
    expected = EM.to_index(transform(LM.to_world(index)[None]))[0]
    np.testing.assert_allclose(at[2::-1], expected, atol=0.3)
    assert np.linalg.norm(expected) > 3
    mine = folder / "p q-em.xml"
    mine.write_text("mine")
    bigwarp.remove("--overwrite")
    assert run_app([*bigwarp, f"--out={folder / 'd.csv'}", f"--project={folder / 'p q.json'}"]) == 1
    assert mine.read_text() == "mine"


def test_bigwarp_shows_a_tiff_from_zero(files, capsys):
    folder, _, _ = files
    for name in ("em", "lm"):
        image = ["export", "imagej", str(folder / f"{name}.zarr")]
        assert run_app([*image, f"--out={folder / f'{name}.tif'}"]) == 0
    bigwarp = ["export", "bigwarp", str(folder / "t.json"), f"--grid-of={folder / 'lm.tif'}"]
    bigwarp += [f"--em={folder / 'em.tif'}", f"--project={folder / 'p.json'}"]
    assert run_app([*bigwarp, f"--out={folder / 'c.csv'}"]) == 1
    said = capsys.readouterr().err
    assert "(-200.0, 900.0, 400.0) nm, but BigWarp shows it from 0" in said
    assert "hint: add --bdv" in said
    assert not (folder / "c.csv").exists()


def test_bigwarp_landmarks_as_hold_out_set(files):
    """Landmarks that a user set in BigWarp, off by a known vector, give that error."""
    folder, transform, _ = files
    lm = RNG.uniform(*LM.corners_nm()[[0, -1]], (12, 3))
    em = transform(lm) + np.array([30.0, 0.0, 40.0])
    write_bigwarp(Landmarks(tuple("abcdefghijkl"), lm, em), folder / "user.csv")
    words = ["evaluate", "landmarks", f"--transform={folder / 't.json'}"]
    words += [f"--landmarks={folder / 'user.csv'}", f"--json={folder / 'e.json'}"]
    assert run_app(words) == 0
    found = json.loads((folder / "e.json").read_text())["landmarks"]
    assert found["mean_nm"] == pytest.approx(50.0, abs=1e-3)


def test_dfield_states_its_error(files, capsys):
    folder, transform, _ = files
    words = ["export", "dfield", str(folder / "t.json"), f"--grid-of={folder / 'lm.zarr'}"]
    fine = [*words, f"--out={folder / 'f.n5'}", "--spacing=0.1 um", f"--json={folder / 'e.json'}"]
    assert run_app([*fine, "--quantise=0.2 nm", "--unit=nm"]) == 0
    assert "against transform: mean" in capsys.readouterr().out
    stated = json.loads((folder / "e.json").read_text())["field_error"]["max_nm"]
    points = RNG.uniform(*LM.corners_nm()[[0, -1]], (200, 3))
    distance = np.linalg.norm(read_transform(folder / "f.n5")(points) - transform(points), axis=1)
    assert distance.max() < 1.3 * stated + 0.4
    report = folder / "c.json"
    compare = ["evaluate", "compare", str(folder / "f.n5"), str(folder / "t.json")]
    assert run_app([*compare, f"--grid-of={folder / 'lm.zarr'}", f"--json={report}"]) == 0
    assert json.loads(report.read_text())["compare"]["max_nm"] < 1.3 * stated + 0.4
    assert run_app(fine) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.interop
def test_itk_of_a_spline_is_sampled(files, capsys):
    """SimpleITK maps voxel centres (um, x, y, z) where BigWarp's spline does."""
    import SimpleITK as sitk

    folder, _, _ = files
    lm = f"--grid-of={folder / 'lm.zarr'}"
    assert (
        run_app(
            [
                "export",
                "bigwarp",
                str(folder / "t.json"),
                lm,
                f"--out={folder / 'b.csv'}",
                "--spacing=0.5 um",
            ]
        )
        == 0
    )
    itk = ["export", "itk", str(folder / "b.csv"), f"--out={folder / 'b.h5'}"]
    assert run_app(itk) == 1
    assert "--grid-of LM_IMAGE" in capsys.readouterr().err
    assert run_app([*itk, lm]) == 0
    read = sitk.ReadTransform(str(folder / "b.h5"))
    spline = read_transform(folder / "b.csv")
    for index in ([2, 3, 4], [6, 20, 11]):
        point = LM.to_world(index)
        found = np.array(read.TransformPoint((point[::-1] / 1e3).tolist()))[::-1] * 1e3
        np.testing.assert_allclose(found, spline(point[None])[0], atol=1e-3)


def test_no_file_of_a_longer_chain_stays_beside_a_shorter_one(files):
    """The last file is given to transformix: it must not be an old one."""
    folder, _, _ = files
    out, grid = f"--out={folder / 'e'}", f"--grid-of={folder / 'lm.zarr'}"
    assert run_app(["export", "elastix", str(folder / "t.json"), grid, out]) == 0
    (folder / "e" / "notes.txt").touch()
    affine = random_affine(RNG, "lm", "em")
    write_transform(affine, folder / "a.json")
    again = ["export", "elastix", str(folder / "a.json"), grid, out]
    assert run_app(again) == 1
    assert run_app([*again, "--overwrite"]) == 0
    found = sorted(path.name for path in (folder / "e").iterdir())
    assert found == ["TransformParameters.0.txt", "notes.txt"]
    back = read_transform(folder / "e" / "TransformParameters.0.txt")
    points = LM.corners_nm()
    np.testing.assert_allclose(back(points), affine(points), atol=1e-6)


@pytest.mark.interop
def test_elastix_text_read_by_hand(files):
    """Affine and B-spline text, evaluated with SciPy from the numbers alone."""
    from scipy.ndimage import map_coordinates

    folder, transform, _ = files
    words = ["export", "elastix", str(folder / "t.json"), f"--grid-of={folder / 'lm.zarr'}"]
    assert run_app([*words, f"--out={folder / 'e'}"]) == 0

    def keys(name):
        lines = (folder / "e" / name).read_text().splitlines()
        words = [line.strip("()").split(" ", 1) for line in lines if line]
        return {key: value.replace('"', "") for key, value in words}

    def numbers(record, key):
        return np.array(record[key].split(), float)

    points = RNG.uniform(*LM.corners_nm()[[0, -1]], (50, 3))
    affine = keys("TransformParameters.0.txt")
    p, c = numbers(affine, "TransformParameters"), numbers(affine, "CenterOfRotationPoint")
    x = points[:, ::-1] / 1e3
    x = (x - c) @ p[:9].reshape(3, 3).T + p[9:] + c
    bend = keys("TransformParameters.1.txt")
    assert bend["InitialTransformParameterFileName"] == "TransformParameters.0.txt"
    assert bend["HowToCombineTransforms"] == "Compose"
    size = numbers(bend, "GridSize").astype(int)
    coefficients = numbers(bend, "TransformParameters").reshape(3, *size[::-1])
    index = (x - numbers(bend, "GridOrigin")) / numbers(bend, "GridSpacing")
    moved = [
        map_coordinates(k, index[:, ::-1].T, order=3, prefilter=False, mode="constant")
        for k in coefficients
    ]
    found = (x + np.stack(moved, -1))[:, ::-1] * 1e3
    np.testing.assert_allclose(found, transform(points), atol=1e-6)


def test_landmark_tables_for_bigwarp_and_ecclem(files, capsys):
    folder, transform, words = files
    lm = RNG.uniform(*LM.corners_nm()[[0, -1]], (3, 3))
    marks = Landmarks(
        tuple("abc") * 2,
        np.tile(lm, (2, 1)),
        np.tile(transform(lm), (2, 1)),
        rater=("AW",) * 3 + ("JB",) * 3,
    )
    write_landmarks(marks, folder / "l.csv")
    table = ["export", "bigwarp", f"--landmarks={folder / 'l.csv'}", f"--out={folder / 'b.csv'}"]
    assert run_app(table) == 1
    assert "no raters" in capsys.readouterr().err
    assert run_app([*table, "--rater=JB"]) == 0
    found = read_landmarks(folder / "b.csv")
    assert found.names == ("a", "b", "c")
    np.testing.assert_allclose(found.em_nm, transform(lm), rtol=1e-12)
    assert run_app(["export", "bigwarp", f"--out={folder / 'c.csv'}"]) == 1
    assert "or --landmarks TABLE" in capsys.readouterr().err
    ecclem = ["export", "ecclem", str(folder / "l.csv")]
    assert run_app([*ecclem, f"--out={folder / 'e.xml'}", *words[:2]]) == 1
    assert "no raters" in capsys.readouterr().err
    assert run_app([*ecclem, f"--out={folder / 'e.xml'}", *words[:2], "--rater=AW"]) == 0
    np.testing.assert_allclose(read_landmarks(folder / "e.xml").lm_nm, lm, rtol=1e-12)
    assert run_app([*ecclem, f"--out={folder / 'f.csv'}", "--rater=AW"]) == 0
    pairs = read_fiducials(folder / "f-lm.csv", folder / "f-em.csv")
    np.testing.assert_allclose(pairs.em_nm, transform(lm), rtol=1e-12)
    assert run_app([*ecclem, f"--out={folder / 'g.xml'}", "--rater=AW"]) == 1
    assert "needs both images" in capsys.readouterr().err
    matrix = ["export", "ecclem", str(folder / "t.json"), "--matrix", f"--out={folder / 'm.xml'}"]
    assert run_app(matrix) == 1
    assert "--lm IMAGE" in capsys.readouterr().err
    assert run_app([*matrix, words[1]]) == 0
    affine = read_transform(folder / "m.xml")
    np.testing.assert_allclose(affine.matrix, transform.parts[0].matrix, atol=1e-9)
