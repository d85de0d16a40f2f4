"""Every script of the menu runs from its #@ parameters to its result, with the real clemreg."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET

import h5py
import numpy as np
import pytest
from imagej_process import RUN_SECONDS, SCRIPTS
from scipy.ndimage import affine_transform, gaussian_filter
from script_runs import LM, applying, dialogs, run, texts

from clemreg.cli.app import run_app
from clemreg.evaluate.landmarks import evaluate_landmarks
from clemreg.fiji.locate import chosen_python
from clemreg.io.points import read_landmarks, read_points, write_points
from clemreg.io.tiff import write_tiff
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.register.apply import covering_box, warped_volume
from clemreg.space import Box
from clemreg.testing import hostile_grid
from clemreg.volume import Volume

pytestmark = pytest.mark.xdist_group("imagej")

CORNER = Box((36, 100, 110), (108, 276, 286))
ALL = sorted(path.name for path in SCRIPTS.glob("*.groovy"))
MENU = {
    "Apply_Transform.groovy",
    "Export_to_BigDataViewer_or_MoBIE.groovy",
    "Jacobian_Map.groovy",
    "Landmark_Accuracy_Report.groovy",
    "Open_Result_in_BigDataViewer.groovy",
    "Register_EM_to_LM.groovy",
    "Segment_Mitochondria.groovy",
    "Setup_and_Doctor.groovy",
}


def test_the_menu_is_complete():
    assert set(ALL) >= MENU
    for name in ALL:
        assert re.fullmatch(r"[A-Za-z_]+\.groovy", name)


@pytest.mark.parametrize("path", sorted(SCRIPTS.rglob("*.*")), ids=lambda path: path.name)
def test_scripts_are_plain_ascii(path):
    """Java on Windows may read them in another encoding."""
    assert path.read_bytes().isascii()


def test_setup_reports_and_remembers(imagej, clemreg):
    setup = SCRIPTS / "Setup_and_Doctor.groovy"
    answer = imagej.script(setup, {"interpreter": str(clemreg)})
    assert answer["error"] is None
    report = answer["outputs"]["report"]
    assert report.startswith("clemreg 0.")
    assert "torch" in report
    assert dialogs(answer) == [report]
    again = imagej.script(setup, {})
    assert again["outputs"]["report"].startswith("clemreg 0.")
    prefs = imagej.macro('call("ij.Prefs.set", "clemreg.python", "");')
    assert prefs["error"] is None


def test_setup_remembers_the_python_of_an_environment(imagej, clemreg, tmp_path, monkeypatch):
    """Macros start what is remembered, and a folder cannot be started."""
    program = tmp_path / "my env, ü" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nshift 2\nexec "{clemreg}" "$@"\n')
    program.chmod(0o755)
    setup = SCRIPTS / "Setup_and_Doctor.groovy"
    answer = imagej.script(setup, {"interpreter": str(program.parents[1])})
    assert answer["error"] is None
    remembered = imagej.macro('return call("ij.Prefs.get", "clemreg.python", "");')
    assert remembered["value"] == str(program)
    monkeypatch.setenv("HOME", imagej.macro('return getDirectory("home");')["value"])
    assert chosen_python() == program
    assert imagej.macro('call("ij.Prefs.set", "clemreg.python", "");')["error"] is None


def told(folder):
    """A program in the place of clemreg that only says how it was called."""
    program = folder / "clemreg-told"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    return program


MASK = {"kind": "a mitochondria mask or prediction"}
REPLACED = {
    "Segment_Mitochondria": {"em": "em", "out": "p"},
    "Register_EM_to_LM": {"em": "em", "lm": "lm", "out": "p"} | MASK,
    "Apply_Transform": {"transform": "t", "subject": "em", "out": "p"},
    "Jacobian_Map": {"transform": "t", "lm": "lm", "out": "p"},
    "Export_to_BigDataViewer_or_MoBIE": {"run": "r", "out": "p"},
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_is_there_is_replaced_only_if_asked(name, imagej, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "q").write_text("mine")
    places = {k: v if " " in v else tmp_path / v for k, v in REPLACED[name].items()}
    parameters = places | {"python": told(tmp_path)}
    refused = imagej.script(SCRIPTS / f"{name}.groovy", texts(parameters))
    assert f"{tmp_path / 'p'} exists already" in dialogs(refused)[0]
    empty = tmp_path / "seen by Finder"
    empty.mkdir()
    (empty / ".DS_Store").touch()
    run(imagej, name, parameters | {"out": empty})
    answer = run(imagej, name, parameters | {"replace": True})
    (said,) = [event[1] for event in answer["events"] if str(event[1]).startswith("> ")]
    assert said.endswith(" --overwrite")
    assert f" {tmp_path / 'p'} " in said


def test_a_folder_for_another_volume_is_not_gone_on_with(imagej, tmp_path):
    """The volumes of the dialog would be passed over in silence."""
    volumes = {"em": tmp_path / 'my "em" \\ü.zarr', "lm": tmp_path / "lm, $HOME.zarr"}
    for place in (*volumes.values(), tmp_path / "other.zarr"):
        place.mkdir()
        (place / "zarr.json").write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    names = {
        key: json.dumps(f"../{place.name}", ensure_ascii=False) for key, place in volumes.items()
    }
    (out / "clemreg.toml").write_text(
        f"[em]\npath = {names['em']}\n\n[lm]\nchannel = 0\npath = {names['lm']}\n"
    )
    parameters = volumes | {"out": out, "replace": True, "python": told(tmp_path)}
    parameters |= {"channel": "er", "lmSpacing": "50, 50, 50 nm", "landmarks": tmp_path / "l.csv"}
    answer = run(imagej, "Register_EM_to_LM", parameters)
    words = [event[1] for event in answer["events"] if event[0] == "info"]
    assert "init" not in words
    settings = [word for word, before in zip(words[1:], words, strict=False) if before == "--set"]
    assert settings == [
        "register.psf=palm",
        "lm.channel=er",
        "lm.voxel_size=50, 50, 50 nm",
        f"proof.landmarks={tmp_path / 'l.csv'}",
    ]
    for name in volumes:
        changed = parameters | {name: tmp_path / "other.zarr" / "zarr.json"}
        other = imagej.script(SCRIPTS / "Register_EM_to_LM.groovy", texts(changed))
        (text,) = dialogs(other)
        assert f"clemreg.toml is for another volume: {volumes[name]}" in text


def test_apply_resamples_an_image(imagej, clemreg, files):
    folder, transform = files
    out = folder / "warped.tif"
    parameters = applying(folder, clemreg, "em.zarr/zarr.json", out, onto=folder / "lm.zarr")
    answer = run(imagej, "Apply_Transform", parameters)
    assert answer["outputs"]["result"] == str(out)
    em = open_volume(folder / "em.zarr", frame="em")
    truth = warped_volume(transform, em, LM).read()
    assert truth.any()
    np.testing.assert_array_equal(open_volume(out).read(), truth)
    shown = imagej.macro("t = getTitle(); getVoxelSize(w, h, d, u); close(); return t + w + u;")
    assert shown["value"].startswith("warped.tif0.052")
    again = imagej.script(SCRIPTS / "Apply_Transform.groovy", texts(parameters))
    assert "exists already" in dialogs(again)[0]
    run(imagej, "Apply_Transform", parameters | {"replace": True, "open": False})


def test_apply_maps_points_and_back(imagej, clemreg, files):
    folder, transform = files
    points = LM.points_nm().reshape(-1, 3)[::900]
    write_points(points, folder / "p.csv")
    parameters = applying(folder, clemreg, "p.csv", "q.csv")
    run(imagej, "Apply_Transform", parameters)
    np.testing.assert_allclose(read_points(folder / "q.csv"), transform(points), atol=1e-6)
    back = parameters | {
        "subject": folder / "q.csv",
        "out": folder / "r.csv",
        "direction": "light image onto the EM grid, or EM points to light",
    }
    run(imagej, "Apply_Transform", back)
    np.testing.assert_allclose(read_points(folder / "r.csv"), points, atol=1e-3)


def test_an_image_without_grid_gets_clemregs_own_words(imagej, clemreg, files):
    folder, _ = files
    parameters = applying(folder, clemreg, "em.zarr", "x.tif")
    answer = imagej.script(SCRIPTS / "Apply_Transform.groovy", texts(parameters))
    (text,) = dialogs(answer)
    assert text.startswith("error: an image needs a grid")
    assert "hint: add --onto IMAGE" in text


def test_jacobian_map_is_the_determinant(imagej, clemreg, files):
    folder, transform = files
    parameters = {
        "transform": folder / "t.json",
        "lm": folder / "lm.zarr" / "zarr.json",
        "out": folder / "j.tif",
        "replace": True,
        "python": clemreg,
    }
    (folder / "j.tif").write_bytes(b"an old map")
    refused = imagej.script(SCRIPTS / "Jacobian_Map.groovy", texts(parameters | {"replace": False}))
    assert "exists already" in dialogs(refused)[0]
    assert (folder / "j.tif").read_bytes() == b"an old map"
    answer = run(imagej, "Jacobian_Map", parameters)
    assert "fold_fraction" in answer["outputs"]["report"]
    seen = open_volume(folder / "j.tif")
    truth = transform.determinant(LM.points_nm().reshape(-1, 3)).reshape(LM.shape)
    np.testing.assert_allclose(seen.read(), truth, rtol=1e-5)
    np.testing.assert_allclose(seen.grid.spacing_nm, LM.spacing_nm, rtol=1e-6)
    window = imagej.macro("getMinAndMax(a, b); close(); return d2s(a, 2) + ' ' + d2s(b, 2);")
    assert window["value"] == "0.50 1.50"


BDV = [
    "package bdv.viewer\nclass ViewerOptions { static Object options() { new ViewerOptions() } }",
    "package bdv.export\nclass ProgressWriterConsole { }",
    "package bdv\nclass BigDataViewer {\n"
    "  static Object open(String path, String title, bdv.export.ProgressWriterConsole p, "
    "bdv.viewer.ViewerOptions o) {\n"
    "    throw new RuntimeException('opened ' + path + ' as ' + title)\n"
    "  }\n"
    "}",
]


def test_bigdataviewer_gets_the_dataset_of_a_run(imagej, tmp_path):
    script = SCRIPTS / "Open_Result_in_BigDataViewer.groovy"
    absent = imagej.script(script, {"result": str(tmp_path)})
    assert "There is no BigDataViewer dataset" in dialogs(absent)[0]
    xml = tmp_path / "run, ü" / "export" / "bdv.xml"
    xml.parent.mkdir(parents=True)
    xml.write_text("<SpimData/>")
    without = imagej.script(script, {"result": str(xml.parents[1])})
    assert "it is part of Fiji" in dialogs(without)[0]
    (xml.parents[1] / "report.html").write_text("")
    for place in (xml, xml.parents[1], xml.parents[1] / "report.html"):
        opened = imagej.script(script, {"result": str(place)}, stubs=BDV)
        assert opened["error"] == f"opened {xml} as bdv.xml"


@pytest.mark.slow
@pytest.mark.torch
def test_segment_a_corner_of_the_sample(imagej, clemreg, sample_data, tmp_path):
    em = open_volume(sample_data / "em.zarr")
    corner = Box((40, 100, 100), (72, 148, 148))
    write_volume(tmp_path / "em.zarr", Volume(em.read(corner), em.grid.crop(corner)))
    parameters = {
        "em": tmp_path / "em.zarr" / "zarr.json",
        "out": tmp_path / "p.zarr",
        "python": clemreg,
    }
    answer = run(imagej, "Segment_Mitochondria", parameters)
    assert [event for event in answer["events"] if event[0] == "progress"]
    prediction = open_volume(tmp_path / "p.zarr")
    assert prediction.shape == corner.shape
    assert prediction.grid.origin_nm == em.grid.crop(corner).origin_nm


@pytest.mark.slow
def test_accuracy_and_volume_change_of_the_sample(imagej, clemreg, sample_data, tmp_path):
    """The truth on the sample pair: the raters' own noise is left, and no fold."""
    truth = {"transform": sample_data / "truth.json", "python": clemreg}
    table = truth | {"table": sample_data / "landmarks.csv", "raters": "AW"}
    run(imagej, "Landmark_Accuracy_Report", table | {"json": tmp_path / "l.json"})
    marks = json.loads((tmp_path / "l.json").read_text())["landmarks"]
    assert marks["n"] == 40
    transform = read_transform(sample_data / "truth.json")
    landmarks = read_landmarks(sample_data / "landmarks.csv")
    expected = evaluate_landmarks(transform, landmarks, raters=("AW",)).to_json()["mean_nm"]
    assert marks["mean_nm"] == pytest.approx(expected, abs=1e-6)
    assert 10 < expected < 60
    lm = sample_data / "lm.zarr" / "s1" / "zarr.json"
    run(imagej, "Jacobian_Map", truth | {"lm": lm, "out": tmp_path / "j.tif", "open": False})
    volume_change = open_volume(tmp_path / "j.tif").read()
    assert volume_change.shape == open_volume(lm.parent).shape
    assert 0.5 < volume_change.min() < volume_change.max() < 1.8


@pytest.mark.slow
@pytest.mark.elastix
def test_register_the_sample_with_a_mask(imagej, clemreg, sample_data, tmp_path):
    """The mask is the light volume in the EM frame, so the truth must come back."""
    mask = {
        "transform": sample_data / "truth.json",
        "subject": sample_data / "lm.zarr" / "zarr.json",
        "onto": sample_data / "em.zarr" / "s2" / "zarr.json",
        "direction": "light image onto the EM grid, or EM points to light",
        "out": tmp_path / "in em.zarr",
        "python": clemreg,
    }
    run(imagej, "Apply_Transform", mask)
    light = open_volume(tmp_path / "in em.zarr").channel("mito")
    inside = gaussian_filter(light.read().astype("f4"), 1.5)
    inside = (inside > np.quantile(inside, 0.9)).astype("u1")
    write_volume(tmp_path / "mask.zarr", Volume(inside, light.grid))
    parameters = {
        "em": tmp_path / "mask.zarr",
        "kind": "a mitochondria mask or prediction",
        "lm": sample_data / "lm.zarr",
        "channel": "mito",
        "landmarks": sample_data / "landmarks.csv",
        "out": tmp_path / "out",
        "python": clemreg,
    }
    sizes = texts(parameters | {"emSpacing": "8, 8, 8 nm"})
    refused = imagej.script(SCRIPTS / "Register_EM_to_LM.groovy", sizes)
    assert "leave both sizes empty" in dialogs(refused)[0]
    answer = run(imagej, "Register_EM_to_LM", parameters, RUN_SECONDS)
    assert answer["outputs"]["transform"] == str(tmp_path / "out" / "transform.json")
    assert answer["outputs"]["verdict"] in ("pass", "warn")
    (said,) = dialogs(answer)
    assert said.startswith(f"Verdict: {answer['outputs']['verdict']}\n  - ")
    assert f"Transform: {tmp_path / 'out' / 'transform.json'}" in said
    assert "mean_nm" in said
    found = read_transform(tmp_path / "out" / "transform.json")
    truth = read_transform(sample_data / "truth.json")
    points = read_landmarks(sample_data / "landmarks.csv").select(rater="truth").lm_nm
    assert np.median(np.linalg.norm(found(points) - truth(points), axis=1)) < 300


def placed(xml, name):
    """Pixels of a volume of the dataset, and its matrix from voxel to world (z, y, x)."""
    root = ET.parse(xml)
    names = [view.findtext("name") for view in root.findall(".//ViewSetup")]
    setup, matrix = names.index(name), np.eye(4)
    for rows in root.findall(f".//ViewRegistration[@setup='{setup}']//affine"):
        step = np.array(rows.text.split(), float).reshape(3, 4)
        matrix = matrix @ np.vstack([step, [0, 0, 0, 1]])
    with h5py.File(xml.with_suffix(".h5")) as file:
        pixels = file[f"t00000/s{setup:02d}/0/cells"][:].astype("f4")
    order = [2, 1, 0, 3]
    return pixels, matrix[np.ix_(order, order)]


def check_placement(xml):
    """The EM through its affine in the XML lies where the warped EM is: not a voxel beside."""
    em, em_to_world = placed(xml, "EM (affine)")
    warped, warped_to_world = placed(xml, "EM warped")
    matrix = np.linalg.inv(em_to_world) @ warped_to_world
    shown = affine_transform(em, matrix[:3, :3], matrix[:3, 3], warped.shape, order=1)

    def likeness(other):
        both = (warped > 0) & (other > 0)
        return np.corrcoef(warped[both], other[both])[0, 1]

    right = likeness(shown)
    assert right > 0.8
    assert max(likeness(np.flip(shown, axis)) for axis in range(3)) < 0.5
    for axis in range(3):
        beside = [likeness(np.roll(shown, step, axis)) for step in (1, -1)]
        assert max(beside) < right - 0.1
        assert abs(beside[0] - beside[1]) < 0.1  # nor half a voxel


@pytest.mark.slow
@pytest.mark.torch
def test_register_a_corner_of_the_sample_from_raw_em(imagej, clemreg, sample_data, tmp_path):
    """No mask, no configuration: init, the bundled network, registration, report, export."""
    folder = tmp_path / "my cell"
    truth = read_transform(sample_data / "truth.json")
    whole = open_volume(sample_data / "em.zarr", frame="em")
    em = Volume(whole.read(CORNER), whole.grid.crop(CORNER))
    light = open_volume(sample_data / "lm.zarr", frame="lm")
    around = covering_box(truth, em.grid, light.grid, 500.0)
    lm = light.grid.crop(around)
    write_volume(folder / "em.zarr", em)
    write_volume(folder / "lm.zarr", Volume(light.read(around), lm, light.channels))
    parameters = {
        "em": folder / "em.zarr" / "zarr.json",
        "lm": folder / "lm.zarr" / "zarr.json",
        "landmarks": sample_data / "landmarks.csv",
        "out": folder / "result",
        "python": clemreg,
    }
    (folder / "result").mkdir()
    answer = run(imagej, "Register_EM_to_LM", parameters, RUN_SECONDS)
    assert answer["outputs"]["verdict"] in ("pass", "warn")
    stages = " ".join(event[-1] for event in answer["events"] if event[0] == "progress")
    assert all(stage in stages for stage in ("segment", "register", "export"))
    found = read_transform(answer["outputs"]["transform"])
    points = em.grid.to_world(np.random.default_rng(0).uniform(0, em.shape, (500, 3)))
    points = truth.inverse()(points)
    assert np.median(np.linalg.norm(found(points) - truth(points), axis=1)) < 200
    made = folder / "result" / "run"
    assert (made / "report.html").is_file()
    check_placement(made / "export" / "bdv.xml")
    prediction = open_volume(next(made.glob("prediction*")))
    inside = prediction.read().astype("f4").reshape(-1, *em.shape)[0] >= 127
    assert 0.02 < inside.mean() < 0.6
    assert em.read()[inside].mean() < em.read()[~inside].mean() - 10  # mitochondria are dark
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*.json")}
    refused = imagej.script(SCRIPTS / "Register_EM_to_LM.groovy", texts(parameters))
    assert "exists already" in dialogs(refused)[0]
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*.json")} == before


@pytest.mark.slow
@pytest.mark.elastix
def test_a_whole_run_then_bigdataviewer(imagej, clemreg, tmp_path):
    """A small pair whose true labels stand in for the prediction."""
    words = ["simulate", "clem", "--out", str(tmp_path / "my run"), "--seed", "3"]
    assert run_app([*words, "--em-shape", "160,150,72", "--em-spacing", "26,26,26 nm"]) == 0
    config = (tmp_path / "my run" / "config.toml").read_text()
    quick = config.replace("[register]", "[register]\nstability_seeds = 0\nthreads = 2")
    assert quick != config
    (tmp_path / "my run" / "clemreg.toml").write_text(quick)
    parameters = {
        "em": tmp_path / "my run" / "em.zarr",
        "lm": tmp_path / "my run" / "lm.zarr",
        "out": tmp_path / "my run",
        "python": clemreg,
    }
    refused = imagej.script(SCRIPTS / "Register_EM_to_LM.groovy", texts(parameters))
    assert "exists already" in dialogs(refused)[0]
    answer = run(imagej, "Register_EM_to_LM", parameters | {"replace": True}, RUN_SECONDS)
    assert answer["outputs"]["verdict"] in ("pass", "warn")
    transform = tmp_path / "my run" / "run" / "registration" / "transform.json"
    assert answer["outputs"]["transform"] == str(transform)
    assert transform.is_file()
    export = {"run": tmp_path / "my run" / "run", "out": tmp_path / "x, y.xml", "python": clemreg}
    run(imagej, "Export_to_BigDataViewer_or_MoBIE", export)
    run(imagej, "Export_to_BigDataViewer_or_MoBIE", export | {"replace": True})
    mobie = export | {"target": "MoBIE", "out": tmp_path / "mobie, ü"}
    run(imagej, "Export_to_BigDataViewer_or_MoBIE", mobie)
    with (tmp_path / "mobie, ü" / "collection.csv").open(newline="", encoding="utf-8") as stream:
        listed = [row["name"] for row in csv.DictReader(stream)]
    assert listed == ["LM mito", "LM er", "EM"]
    opened = imagej.script(
        SCRIPTS / "Open_Result_in_BigDataViewer.groovy",
        {"result": str(tmp_path / "x, y.xml")},
        stubs=BDV,
    )
    assert "as x, y.xml" in opened["error"]


def test_setup_of_hostile_volume_is_refused_by_name(imagej, clemreg, tmp_path):
    grid = hostile_grid()
    write_tiff(tmp_path / "em.tif", Volume(np.ones(grid.shape, "u1"), grid))
    parameters = {
        "em": tmp_path / "em.tif",
        "lm": tmp_path / "none.tif",
        "out": tmp_path / "out",
        "python": clemreg,
    }
    answer = imagej.script(SCRIPTS / "Register_EM_to_LM.groovy", texts(parameters))
    assert dialogs(answer)[0].startswith("error: there is no")
    assert not (tmp_path / "out").exists()
