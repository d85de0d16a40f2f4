from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from clemreg.cli.app import app, run_app
from clemreg.cli.console import progress_bar
from clemreg.io.bigwarp import write_bigwarp
from clemreg.io.points import read_point_names, read_points
from clemreg.io.transforms import read_fixed_grid, read_transform, write_transform
from clemreg.io.volumes import open_volume, write_volume
from clemreg.register.orientation import Orientation
from clemreg.register.registration import RegistrationResult, affine_of
from clemreg.space import Affine, Grid, Landmarks
from clemreg.testing import hostile_grid, random_affine, random_bspline
from clemreg.volume import Volume

COMMANDS = [
    "demo", "run", "init", "info", "doctor", "simulate clem", "segment", "train", "score",
    "model list", "model info", "register", "apply", "evaluate landmarks", "evaluate jacobian",
    "evaluate compare", "report", "export bdv", "export bigwarp", "export elastix", "export itk",
    "export mobie", "export dfield", "export ngff", "export omezarr", "export imagej",
    "export ecclem", "export neuroglancer", "model import", "model export", "ab start", "ab read",
    "results import", "results export", "results best", "results converged", "results compare",
    "results report", "refine", "refine-scan", "measure", "contacts", "interactions",
    "skeletonize", "planarity", "mesh", "holdout", "ribosomes", "microtubules", "render",
    "evaluate uncertainty", "organelles", "validate", "validate-training",
]  # fmt: skip
LM = Grid((9, 30, 34), (104.0, 52.0, 52.0), (10.0, 20.0, 30.0), "lm")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    transform = random_affine(rng, "lm", "lm").then(random_bspline(rng, LM, target="em"))
    write_transform(transform, tmp_path / "t.json")
    write_volume(tmp_path / "lm.zarr", Volume(rng.integers(1, 99, LM.shape).astype("u1"), LM))
    em = hostile_grid("em")
    write_volume(tmp_path / "em.zarr", Volume(rng.integers(1, 99, em.shape).astype("u1"), em))
    return tmp_path, transform


def test_info_prints_and_writes_the_voxel_size(files, capsys):
    folder, _ = files
    for _ in range(2):  # its own report is replaced
        assert run_app(["info", str(folder / "em.zarr"), "--json", str(folder / "i.json")]) == 0
    assert "5.24, 4, 4" in capsys.readouterr().out
    assert json.loads((folder / "i.json").read_text())["spacing_nm"] == [5.24, 4.0, 4.0]


def test_jacobian_and_compare_write_their_json(files):
    folder, transform = files
    t, lm = str(folder / "t.json"), str(folder / "lm.zarr")
    out = str(folder / "j.json")
    assert run_app(["evaluate", "jacobian", "--transform", t, "--grid-of", lm, "--json", out]) == 0
    stats = json.loads((folder / "j.json").read_text())["jacobian"]["with_affine"]
    voxels = LM.points_nm().reshape(-1, 3)
    assert stats["mean"] == pytest.approx(transform.determinant(voxels).mean(), rel=1e-6)
    assert run_app(["evaluate", "compare", t, t, "--grid-of", lm, "--json", out]) == 0
    assert json.loads((folder / "j.json").read_text())["compare"]["max_nm"] == 0
    assert run_app(["evaluate", "jacobian", "--transform", t, "--remove-affine", "--mask", lm]) == 0


def test_a_mask_without_origin_or_size_lies_on_the_grid_of_the_transform(files):
    """ImageJ's TIFFs know no origin; NaN outside is not inside."""
    folder, transform = files
    start = affine_of(transform)
    pose = Orientation(start, 0.6, 0.1, 0.5, False, 300.0)
    RegistrationResult(transform, start, pose, {}, {}).save(folder / "r", LM)
    assert any(LM.origin_nm)
    inside = np.full(LM.shape, np.nan, np.float32)
    inside[3:8, 4:10, 5:] = 1
    write_volume(folder / "mask.zarr", Volume(inside, LM))
    write_volume(folder / "far.zarr", Volume(inside, replace(LM, origin_nm=(0.0, 0.0, 0.0))))
    tifffile.imwrite(folder / "mask.tif", inside)
    figures = []
    for name in ("mask.zarr", "far.zarr", "mask.tif"):
        words = ["--transform", str(folder / "r/transform.json"), "--mask", str(folder / name)]
        assert run_app(["evaluate", "jacobian", *words, "--json", str(folder / "j.json")]) == 0
        figures.append(json.loads((folder / "j.json").read_text())["jacobian"]["with_affine"])
    voxels = LM.points_nm()[inside == 1]
    assert figures[0]["mean"] == pytest.approx(transform.determinant(voxels).mean(), rel=1e-6)
    assert figures[0] == figures[1] == figures[2]


def test_a_transform_without_grid_asks_for_one(files, capsys):
    folder, _ = files
    assert run_app(["evaluate", "jacobian", "--transform", str(folder / "t.json")]) == 1
    assert "--grid-of" in capsys.readouterr().err


def test_what_register_wrote_says_its_grid(files):
    folder, transform = files
    start = affine_of(transform)
    pose = Orientation(start, 0.6, 0.1, 0.5, False, 300.0)
    found = RegistrationResult(transform, start, pose, {}, {}, repeats=(start,))
    found.save(folder / "r", LM)
    where = ["--grid-of", str(folder / "lm.zarr")]
    figures = []
    for name, more in (("r/transform.json", []), ("t.json", where)):
        words = ["evaluate", "jacobian", "--transform", str(folder / name), *more]
        assert run_app([*words, "--json", str(folder / "j.json")]) == 0
        figures.append(json.loads((folder / "j.json").read_text()))
    assert figures[0] == figures[1]
    for name in ("repeat-0.json", "orientation.json", "elastix/TransformParameters.1.txt"):
        assert read_fixed_grid(folder / "r" / name) == LM
    pair = [str(folder / "t.json"), str(folder / "r" / "repeat-0.json")]
    assert run_app(["evaluate", "compare", *pair]) == 0


@pytest.mark.parametrize("direction", [[], ["--inverse"]])
def test_an_image_brought_the_wrong_way_is_told(tmp_path, capsys, direction):
    """The EM lies 3 um beside the LM; moved the wrong way it would come to lie 6 um beside."""
    shift = Affine.from_linear(np.eye(3), (0.0, 3000.0, -3000.0), "lm", "em")
    write_transform(shift, tmp_path / "t.json")
    em = replace(hostile_grid("em"), origin_nm=(300.0, 3600.0, -2500.0))
    write_volume(tmp_path / "lm.zarr", Volume(np.ones(LM.shape, "u1"), LM))
    write_volume(tmp_path / "em.zarr", Volume(np.ones(em.shape, "u1"), em))
    names = ["em.zarr", "lm.zarr"] if not direction else ["lm.zarr", "em.zarr"]
    where = [str(tmp_path / name) for name in names]
    wrong = [] if direction else ["--inverse"]
    told = {"right": [], "wrong": ["--inverse?"]}
    for name, way in (("right", direction), ("wrong", wrong)):
        out, figures = tmp_path / f"{name}.zarr", tmp_path / f"{name}.json"
        words = ["apply", str(tmp_path / "t.json"), where[0], "--onto", where[1], *way]
        assert run_app([*words, "--out", str(out), "--json", str(figures)]) == 0
        report = json.loads(figures.read_text())["apply"]
        assert report["out"] == str(out)
        assert [note.split()[-1] for note in report["notes"]] == told[name]
        assert ("the other way round" in capsys.readouterr().err) is (name == "wrong")
        assert open_volume(out).read().any() == (name == "right")


def test_a_transform_without_inverse_is_applied_all_the_same(tmp_path):
    """A projection onto one plane of the EM has no other way round."""
    plane_nm = LM.origin_nm[0] + 3 * LM.spacing_nm[0]
    flat = Affine.from_linear(np.diag([0.0, 1.0, 1.0]), (plane_nm, 0.0, 0.0), "lm", "em")
    write_transform(flat, tmp_path / "t.json")
    write_volume(tmp_path / "lm.zarr", Volume(np.ones(LM.shape, "u1"), LM))
    em = replace(LM, frame="em")
    write_volume(tmp_path / "em.zarr", Volume(np.full(em.shape, 7, "u1"), em))
    words = ["apply", str(tmp_path / "t.json"), str(tmp_path / "em.zarr")]
    out = tmp_path / "out.zarr"
    assert run_app([*words, "--onto", str(tmp_path / "lm.zarr"), "--out", str(out)]) == 0
    assert (open_volume(out).read() == 7).all()


def test_a_transform_from_em_to_lm_is_refused(files, capsys):
    folder, transform = files
    write_transform(affine_of(transform).inverse(), folder / "back.json")
    words = ["evaluate", "jacobian", "--transform", str(folder / "back.json")]
    assert run_app([*words, "--grid-of", str(folder / "lm.zarr")]) == 1
    assert "maps em to lm, expected lm to em" in capsys.readouterr().err
    back = read_transform(folder / "back.json", source="em", target="lm").inverse()
    np.testing.assert_allclose(back([[1.0, 2.0, 3.0]]), affine_of(transform)([[1.0, 2.0, 3.0]]))


def test_bigwarp_in_nm_is_read_in_its_unit(tmp_path, capsys):
    """Landmarks of OME-Zarr are in nm, of ImageJ's files mostly in um."""
    rng = np.random.default_rng(4)
    move = random_affine(rng, "lm", "em")
    lm = LM.to_world(rng.uniform(0, 1, (12, 3)) * np.asarray(LM.shape))
    marks = Landmarks(tuple(f"Pt-{i}" for i in range(12)), lm, move(lm))
    write_bigwarp(marks, tmp_path / "nm.csv", unit="nm")
    words = ["evaluate", "landmarks", "--landmarks", str(tmp_path / "nm.csv")]
    words += ["--transform", str(tmp_path / "nm.csv"), "--json", str(tmp_path / "e.json")]

    def figures(*units):
        assert run_app([*words, *units]) == 0
        return json.loads((tmp_path / "e.json").read_text())["landmarks"]

    right = figures("--unit", "nm", "--transform-unit", "nm")
    assert right["max_nm"] < 1e-3
    assert not any("more than a cell" in note for note in right["notes"])
    wrong = figures("--unit", "nm")
    assert wrong["median_nm"] > 2e4
    assert any("--transform-unit" in note for note in wrong["notes"])
    capsys.readouterr()
    (tmp_path / "p.csv").write_text(
        "name,x_nm,y_nm,z_nm\nb,{2},{1},{0}\na,{2},{1},{0}\n".format(*lm[0])
    )
    words = ["apply", str(tmp_path / "nm.csv"), str(tmp_path / "p.csv")]
    assert run_app([*words, "--transform-unit", "nm", "--out", str(tmp_path / "q.csv")]) == 0
    np.testing.assert_allclose(read_points(tmp_path / "q.csv")[0], move(lm)[0], atol=1e-2)
    assert read_point_names(tmp_path / "q.csv") == ("b", "a")
    assert run_app([*words, "--out", str(tmp_path / "q.zarr")]) == 1
    assert "is no image and cannot be written" in capsys.readouterr().err


def test_points_there_and_back(files):
    folder, transform = files
    (folder / "p.csv").write_text("x-um,y-um,z-um\n0.5,0.6,0.3\n0.9,0.8,0.4\n")
    t = str(folder / "t.json")
    assert run_app(["apply", t, str(folder / "p.csv"), "--out", str(folder / "q.csv")]) == 0
    given = read_points(folder / "p.csv")
    assert given[0].tolist() == pytest.approx([300.0, 600.0, 500.0])
    np.testing.assert_allclose(read_points(folder / "q.csv"), transform(given), atol=1e-6)
    back = ["apply", t, str(folder / "q.csv"), "--out", str(folder / "r.csv"), "--inverse"]
    assert run_app(back) == 0
    np.testing.assert_allclose(read_points(folder / "r.csv"), given, atol=1e-3)


@pytest.mark.parametrize("suffix", [".zarr", ".tif"])
def test_an_image_needs_a_grid(files, capsys, suffix):
    folder, _ = files
    words = ["apply", str(folder / "t.json"), str(folder / "em.zarr")]
    out = folder / f"w{suffix}"
    assert run_app([*words, "--out", str(out)]) == 1
    assert "--onto" in capsys.readouterr().err
    assert run_app([*words, "--out", str(out), "--onto", str(folder / "lm.zarr")]) == 0
    assert open_volume(out).shape == LM.shape


def test_exports_of_a_transform(files, capsys):
    folder, transform = files
    t, lm = str(folder / "t.json"), str(folder / "lm.zarr")
    assert run_app(["export", "elastix", t, "--grid-of", lm, "--out", str(folder / "e")]) == 0
    assert run_app(["export", "itk", t, "--out", str(folder / "t.h5")]) == 0
    bigwarp = ["export", "bigwarp", t, "--grid-of", lm, "--out", str(folder / "b.csv")]
    assert run_app([*bigwarp, "--spacing", "0.3 um"]) == 0
    assert "thin-plate spline" in capsys.readouterr().out
    points = LM.points_nm().reshape(-1, 3)[::97]
    last = sorted((folder / "e").glob("TransformParameters.*.txt"))[-1]
    for path, error in ((last, 1e-3), (folder / "t.h5", 1e-3), (folder / "b.csv", 1.0)):
        np.testing.assert_allclose(read_transform(path)(points), transform(points), atol=error)


def test_exit_codes(tmp_path, capsys):
    assert run_app(["info", str(tmp_path / "nothing.tif")]) == 1
    assert "error: there is no" in capsys.readouterr().err
    assert run_app(["nonsense"]) == 2
    assert run_app(["info"]) == 2
    assert run_app(["--version"]) == 0
    assert run_app(["simulate", "clem", "--out", str(tmp_path), "--microscope", "x"]) == 1
    assert "palm or sim" in capsys.readouterr().err


def test_interruption_is_130(monkeypatch, capsys):
    import clemreg.io.volumes

    def interrupt(_uri):
        raise KeyboardInterrupt

    monkeypatch.setattr(clemreg.io.volumes, "describe", interrupt)
    assert run_app(["info", "x"]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


def test_init_looks_before_it_writes(files, capsys):
    folder, _ = files
    words = ["init", str(folder / "run"), "--em", str(folder / "em.zarr")]
    words += ["--em-spacing", "40,40,52.4 nm"]
    assert run_app([*words, "--lm", str(folder / "lm.zarr")]) == 0
    assert (folder / "run" / "clemreg.toml").is_file()
    assert run_app(["doctor", str(folder / "run" / "clemreg.toml")]) == 0
    assert "voxel x, y, z = 40 nm, 40 nm, 52.4 nm" in capsys.readouterr().out
    assert run_app([*words, "--lm", str(folder / "lm.zarr")]) == 1
    wrong = ["init", str(folder / "other"), *words[2:4], "--lm", str(folder / "lm.zarr")]
    assert run_app([*wrong, "--em-spacing", "8,8,8 um"]) == 1
    assert "unit may be wrong" in capsys.readouterr().err
    assert not (folder / "other").exists()


def test_landmarks_that_cannot_be_read_are_named_by_init_and_doctor(files, capsys):
    folder, _ = files
    words = ["init", str(folder / "new"), "--em", str(folder / "em.zarr"), "--lm"]
    words += [str(folder / "lm.zarr"), "--em-spacing", "40,40,52.4 nm"]
    assert run_app([*words, "--landmarks", str(folder / "absent.csv")]) == 1
    assert "absent.csv is not there" in capsys.readouterr().err
    assert not (folder / "new").exists()
    assert run_app(words) == 0
    config = folder / "new" / "clemreg.toml"
    config.write_text(config.read_text() + '[proof]\nlandmarks = "absent.csv"\n')
    assert run_app(["doctor", str(config)]) == 1
    assert "absent.csv is not there" in capsys.readouterr().out


def test_the_published_registration_from_the_command_line(shared_data, tmp_path):
    data = shared_data / "cosem-clem"
    words = ["evaluate", "landmarks", "--transform", str(data / "palm_def_TransformParameters.txt")]
    words += ["--landmarks", str(data / "clem-landmarks.csv"), "--raters", "AW,JB"]
    words += ["--fixed-offset", "43.94,21.84,4.42", "--json", str(tmp_path / "out.json")]
    assert run_app(words) == 0
    report = json.loads((tmp_path / "out.json").read_text())["landmarks"]
    assert report["auto_reproduction"]["max_nm"] < 0.1
    assert report["by_rater"]["AW"]["mean_nm"] == pytest.approx(110.8, abs=0.1)
    assert report["by_rater"]["JB"]["mean_nm"] == pytest.approx(104.1, abs=0.1)
    assert report["between_raters"]["mean_nm"] == pytest.approx(31.6, abs=0.1)
    assert report["affine_only"]["mean_nm"] == pytest.approx(225, abs=1)
    assert report["leave_one_out_affine"]["mean_nm"] == pytest.approx(56.5, abs=0.1)


def test_progress_in_a_log_has_a_line_for_every_new_count(monkeypatch, capsys):
    monkeypatch.setenv("CLEMREG_PROGRESS", "lines")
    with progress_bar("trace") as report:
        for done, total, message in [
            (1, 3, "a"),
            (2, 3, "a"),
            (3, 3, "a"),
            (0, 9, "b"),
            (1, 9, "b"),
        ]:
            report(done, total, message)
    assert capsys.readouterr().err == "PROGRESS 3/3 trace: a\nPROGRESS 0/9 trace: b\n"


def test_other_libraries_do_not_chat_unless_asked_to():
    """A subprocess, since pytest has handlers of its own."""
    code = (
        "import logging; logging.getLogger('loud').setLevel(logging.INFO);"
        "from clemreg.cli.app import run_app; run_app({words});"
        "logging.getLogger('loud').info('chat'); logging.getLogger('loud').warning('heard')"
    )
    for words, expected in ((["model", "list"], False), (["-v", "model", "list"], True)):
        command = [sys.executable, "-c", code.replace("{words}", repr(words))]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        assert "WARNING loud: heard" in shown
        assert ("INFO loud: chat" in shown) == expected
