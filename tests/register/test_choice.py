from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clemreg.cli.app import app, run_app
from clemreg.config import RegisterConfig
from clemreg.errors import ConfigError, DependencyError, RegistrationError
from clemreg.io.points import write_landmarks
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import write_volume
from clemreg.pipeline import register_scan
from clemreg.pipeline.register import (
    GuideFiles,
    RegisterCommand,
    StageChoice,
    _further,
    _mask,
    guide_landmarks,
)
from clemreg.pipeline.register_scan import parse_axis
from clemreg.pipeline.registration import register_options
from clemreg.register import registration
from clemreg.register.engines import ElastixStages, NewtonStages, check_stages, footprint
from clemreg.register.features import MovingOptions
from clemreg.register.guides import Guides
from clemreg.register.matching import Channel, Masks
from clemreg.register.orientation import Orientation
from clemreg.register.registration import RegisterOptions, register
from clemreg.register.stages import preset_parameters
from clemreg.simulate.tubes import TubeOptions, simulate_tubes
from clemreg.space import Affine, Grid, Landmarks
from clemreg.volume import Volume


def test_the_choice_of_engine_gives_its_stages():
    newton = StageChoice(grid_spacing_um=2.5, bending_weight=7.0).stages()
    assert isinstance(newton, NewtonStages)
    assert newton.deformation.grid_spacing_um == (2.5, 2.5, 2.5)
    assert newton.deformation.bending_weight == 7.0
    assert newton.stiffer(2).deformation.bending_weight == pytest.approx(63.0)
    elastix = StageChoice(engine="elastix", grid_spacing_um=2.0).stages()
    assert isinstance(elastix, ElastixStages)
    assert elastix.stiffer(1).bspline.grid_spacing_um == pytest.approx((2.8, 2.8, 2.8))
    assert StageChoice(preset="heinrich2021").stages().parameters == preset_parameters(
        "heinrich2021"
    )


def test_every_try_is_stiffer_than_the_one_before():
    """Gauss-Newton by the weight, from a tenth on where it was 0; elastix by the grid."""
    newton = StageChoice(bending_weight=2.0).stages()
    assert [newton.stiffer(n).deformation.bending_weight for n in (1, 2)] == [6.0, 18.0]
    loose = StageChoice(bending_weight=0.0).stages()
    assert [loose.stiffer(n).deformation.bending_weight for n in (1, 2)] == pytest.approx(
        [0.3, 0.9]
    )
    elastix = StageChoice(engine="elastix", grid_spacing_um=2.0).stages()
    for n in (1, 2):
        assert elastix.stiffer(n).bspline.grid_spacing_um == pytest.approx((2.0 * 1.4**n,) * 3)


def test_choices_that_exclude_each_other_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no engine 'ants'"):
        StageChoice(engine="ants").stages()
    with pytest.raises(ConfigError, match="not both"):
        StageChoice(preset="heinrich2021", params=(tmp_path / "a.txt",)).stages()
    with pytest.raises(ConfigError, match="stand in the elastix parameters"):
        StageChoice(preset="heinrich2021", bending_weight=1.0).stages()
    for weight in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match="makes no sense"):
            StageChoice(bending_weight=weight).stages()


def test_a_misspelt_parameter_file_is_refused_with_a_suggestion(tmp_path):
    path = tmp_path / "affine.txt"
    path.write_text('(Transform "AffineTransform")\n(MaximumNumberOfIteration 200)\n')
    with pytest.raises(ConfigError) as error:
        StageChoice(params=(path,)).stages()
    assert "MaximumNumberOfIteration" in error.value.message
    assert "MaximumNumberOfIterations" in error.value.hint


def test_the_configuration_says_the_same(tmp_path):
    config = RegisterConfig(engine="elastix", grid_spacing_um=2.0, allow_mirror=True)
    options = register_options(config, tmp_path)
    assert options.stages == StageChoice(engine="elastix", grid_spacing_um=2.0).stages()
    assert options.orientation.allow_mirror
    (tmp_path / "p.txt").write_text('(Transform "AffineTransform")\n(RandomSeed 5)\n')
    files = register_options(RegisterConfig(params=("p.txt",)), tmp_path)
    assert files.stages.parameters[0]["Transform"] == ("AffineTransform",)


def test_elastix_is_not_asked_for_several_channels():
    grid = Grid((5, 6, 7), (50.0, 50.0, 50.0), frame="lm")
    volume = Volume(np.random.default_rng(0).random(grid.shape), grid)
    two = (Channel(volume, volume),) * 2
    with pytest.raises(ConfigError, match="several channels"):
        check_stages(ElastixStages(), 2, landmarks=False)
    with pytest.raises(ConfigError, match="several channels"):
        register(volume, volume, RegisterOptions(stages=ElastixStages()), guides=Guides(two[:1]))
    check_stages(NewtonStages(), 2, landmarks=False)


def test_missing_elastix_is_said_before_a_pose_is_searched(monkeypatch):
    volume = Volume(
        np.random.default_rng(0).random((5, 6, 7)), Grid((5, 6, 7), (50.0,) * 3, frame="lm")
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(registration, "search_orientation", None)
    with pytest.raises(DependencyError, match="needs elastix"):
        register(volume, volume, RegisterOptions(stages=ElastixStages()))


def test_elastix_draws_samples_where_both_masks_trust_the_images():
    """The EM's mask as the start pose shows it: mirrored and anisotropic."""
    lm = Grid((9, 12, 14), (104.0, 60.0, 52.0), (300.0, -200.0, 70.0), "lm")
    em = Grid((30, 25, 24), (33.0, 30.0, 28.0), (900.0, 5000.0, -70.0), "em")
    linear = np.diag([1.02, -0.97, 1.05])
    start = Affine.from_linear(linear, em.centre_nm - linear @ lm.centre_nm, "lm", "em")
    trusted = np.zeros(em.shape, bool)
    trusted[:20, 9:, 4:] = True
    known = np.ones(lm.shape, bool)
    known[:, :, 11:] = False
    there = start(lm.points_nm().reshape(-1, 3))
    index = np.rint(em.to_index(there)).astype(int)
    inside = em.contains(there)
    assert not inside.all()
    index = np.clip(index, 0, np.array(em.shape) - 1)
    expected = (inside & trusted[tuple(index.T)]).reshape(lm.shape) & known
    assert expected.any()
    found = footprint(lm, em, start, Masks(known, trusted))
    np.testing.assert_array_equal(found, expected)
    assert found.sum() < footprint(lm, em, start).sum() / 2
    with pytest.raises(RegistrationError, match="hardly overlap"):
        footprint(lm, em, start, Masks(None, np.zeros(em.shape, bool)))


def test_further_channels_are_named_with_file_and_weight():
    lm = Volume(np.zeros((2, 5, 6, 7)), Grid((5, 6, 7), (50.0,) * 3), channels=("mito", "er"))
    for wrong in ("er", "er=", "er=em.zarr@much", "er=em.zarr@-1"):
        with pytest.raises(ConfigError, match="--also"):
            _further(lm, wrong, MovingOptions(), {})


def test_landmarks_need_a_use_that_exists(tmp_path):
    with pytest.raises(ConfigError, match="'end'"):
        guide_landmarks(GuideFiles(uses=("end",)))
    with pytest.raises(ConfigError, match="needs --landmarks"):
        guide_landmarks(GuideFiles(uses=("start",)))
    marks = Landmarks(("a", "b"), np.eye(3)[:2], np.eye(3)[1:])
    write_landmarks(marks, tmp_path / "marks.csv")
    moved, _ = guide_landmarks(
        GuideFiles(landmarks=tmp_path / "marks.csv", fixed_offset_nm=(3.0, 50.0, -7.0))
    )
    table, uses = guide_landmarks(GuideFiles(landmarks=tmp_path / "marks.csv"))
    np.testing.assert_allclose(moved.lm_nm - table.lm_nm, [[3.0, 50.0, -7.0]] * len(table.names))
    np.testing.assert_array_equal(moved.em_nm, table.em_nm)
    assert uses == ("metric",)
    assert table.names == ("a", "b")


def test_a_mask_is_brought_onto_the_grid_of_the_image(tmp_path):
    coarse = Grid((4, 6, 5), (100.0, 80.0, 60.0), (30.0, -50.0, 10.0), "lm")
    marked = np.zeros(coarse.shape, np.uint8)
    marked[:, 3:, :] = 7
    write_volume(tmp_path / "mask.zarr", Volume(marked, coarse))
    fine = Grid((9, 20, 13), (40.0, 22.0, 21.0), (35.0, -45.0, 12.0), "lm")
    mask = _mask(str(tmp_path / "mask.zarr"), fine)
    y = coarse.origin_nm[1] + 2.5 * coarse.spacing_nm[1]  # the border between two voxels
    expected = fine.points_nm()[..., 1] > y
    inside = coarse.contains(fine.points_nm().reshape(-1, 3)).reshape(fine.shape)
    np.testing.assert_array_equal(mask, expected & inside)
    away = Grid(fine.shape, fine.spacing_nm, (9e6, 0.0, 0.0), "lm")
    with pytest.raises(ConfigError, match="empty"):
        _mask(str(tmp_path / "mask.zarr"), away)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid=1,2", "cannot scan 'grid'"),
        ("bending_weight=a", "not of the form"),
        ("bending_weight", "not of the form"),
        ("seed=1.5", "whole numbers"),
        ("seed=nan", "not finite"),
        ("bending_weight=1,inf", "not finite"),
        ("bending_weight=1,1.0", "gives a value twice"),
    ],
)
def test_impossible_scans_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_axis(text)
    assert parse_axis("grid_spacing_um=1,1.6,2.5").values == (1.0, 1.6, 2.5)


def test_values_that_agree_in_six_digits_have_folders_of_their_own():
    first, second = parse_axis("seed=20240101,20240102").values
    assert (first, second) == (20240101, 20240102)
    assert len({register_scan._text(v) for v in (first, second, 0.1, 0.1 + 1e-9)}) == 4


def test_keys_of_elastix_are_scanned_where_the_parameters_have_them():
    assert parse_axis("FinalGridSpacingInVoxels=8,16").key == "FinalGridSpacingInVoxels"
    command = RegisterCommand("lm", "em", Path(), stages=StageChoice(preset="heinrich2021"))
    changed = register_scan._changed(command, {"FinalGridSpacingInVoxels": 8.0, "seed": 3.0})
    affine, elastic = changed.stages.stages().parameters
    published = preset_parameters("heinrich2021")
    assert affine == published[0]
    assert elastic == {**published[1], "FinalGridSpacingInVoxels": ("8",)}
    assert changed.seed == 3
    both = register_scan._changed(command, {"NumberOfSpatialSamples": 4096.0}).stages.stages()
    assert [one["NumberOfSpatialSamples"] for one in both.parameters] == [("4096",)] * 2
    absent = register_scan._changed(command, {"MaximumDeformation": 1.0}).stages
    with pytest.raises(ConfigError, match="parameter maps has MaximumDeformation"):
        absent.stages()
    newton = RegisterCommand("lm", "em", Path())
    alone = register_scan._changed(newton, {"FinalGridSpacingInVoxels": 8.0}).stages
    with pytest.raises(ConfigError, match="key of elastix's parameters"):
        alone.stages()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(4)
    lm = Grid((26, 80, 80), (104.0, 52.0, 52.0), (500.0, -300.0, 90.0), "lm")
    linear = np.diag([0.98, 1.05, 1.02])
    linear[1, 2], linear[2, 1] = -0.1, 0.1
    truth = Affine.from_linear(linear, [800.0, 4000.0, -700.0], "lm", "em")
    pair = simulate_tubes(
        rng, truth, lm, (1.8, 3.2, 3.2), TubeOptions(spacing_um=0.9, missing=0.0, spurious=0.0)
    )
    write_volume(folder / "lm.zarr", pair.lm)
    write_volume(folder / "em.zarr", pair.prediction)
    marks = pair.points_nm[:12] + rng.normal(size=(12, 3)) * 40
    names = tuple(map(str, range(12)))
    write_landmarks(Landmarks(names, marks, truth(marks)), folder / "marks.csv")
    roles = ("fit",) * 6 + ("held_out",) * 6
    write_landmarks(Landmarks(names, marks, truth(marks), role=roles), folder / "parts.csv")
    return folder, pair


@pytest.mark.slow
def test_a_scan_from_landmarks_writes_its_table_and_picture(files, tmp_path):
    folder, _ = files
    words = [
        "register", "--fixed", str(folder / "lm.zarr"), "--moving", str(folder / "em.zarr"),
        "--out", str(tmp_path), "--landmarks", str(folder / "parts.csv"),
        "--use-landmarks", "start", "--scan", "bending_weight=1,50",
        "--held-out", str(folder / "parts.csv"), "--json", str(tmp_path / "out.json"),
    ]  # fmt: skip
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["bending_weight"] for row in rows] == [1.0, 50.0]
    assert all(row["tre_mean_nm"] < 60 for row in rows)
    width = [row["volume_change_max"] - row["volume_change_min"] for row in rows]
    assert width[1] < width[0]
    assert (tmp_path / "scan.csv").read_text().splitlines()[0].startswith("bending_weight,tre_mean")
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")


def test_a_scan_is_not_judged_by_what_it_fits(files, tmp_path, capsys):
    folder, _ = files
    words = scan_words(folder, tmp_path)
    words += ["--landmarks", str(folder / ".." / folder.name / "marks.csv")]
    assert run_app(words) == 1
    assert "is fitted and held out: what is fitted proves nothing" in " ".join(
        capsys.readouterr().err.split()
    )


def scan_words(folder, out):
    return [
        "register", "--fixed", str(folder / "lm.zarr"), "--moving", str(folder / "em.zarr"),
        "--out", str(out), "--scan", "grid_spacing_um=1.6", "--scan", "bending_weight=1,50",
        "--held-out", str(folder / "marks.csv"),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_stopped_scan_goes_on_from_the_same_pose(files, tmp_path, monkeypatch):
    """The pose is searched once, and what was registered is not registered again."""
    folder, pair = files
    searched, done = [], []

    def search(_fixed, _moving, _options, _masks):
        searched.append(1)
        return Orientation(pair.truth, 0.6, 0.5, 0.1, False, 300.0)

    def counted(fixed, moving, options, *, guides):
        done.append(options.stages.deformation.bending_weight)
        if len(done) == 4:
            raise KeyboardInterrupt
        return register(fixed, moving, options, guides=guides)

    monkeypatch.setattr(registration, "search_orientation", search)
    monkeypatch.setattr(register_scan, "register", counted)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_app(scan_words(folder, whole)) == 0
    assert run_app(scan_words(folder, stopped)) == 130
    assert not (stopped / "scan.csv").exists()
    assert run_app(scan_words(folder, stopped)) == 0
    assert len(searched) == 2  # once a folder
    assert done == [1.0, 50.0, 1.0, 50.0, 50.0]
    rows = [json.loads((out / "scan.json").read_text())["rows"] for out in (whole, stopped)]
    assert all("They are too close to be sure" in row["suspicions"] for row in rows[0])
    points = pair.points_nm[:50]
    for row, other in zip(*rows, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
        one, two = (read_transform(out / row["transform"]) for out in (whole, stopped))
        np.testing.assert_allclose(two(points), one(points), atol=1e-9)
    again = [*scan_words(folder, stopped), "--overwrite"]
    assert run_app(again) == 0
    assert len(done) == 5
    assert run_app([*again, "--psf", "sim"]) == 0
    assert len(done) == 7
    assert len(searched) == 3


@pytest.mark.slow
def test_register_gives_a_verdict_with_its_reasons(files, tmp_path):
    folder, _ = files
    words = ["register", "--fixed", str(folder / "lm.zarr"), "--moving", str(folder / "em.zarr"),
             "--out", str(tmp_path), "--landmarks", str(folder / "marks.csv"),
             "--use-landmarks", "start", "--json", str(tmp_path / "out.json")]  # fmt: skip
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["verdict"]["status"] == "pass"
    assert found["jacobian"]["without_affine"]["fold_fraction"] == 0
    assert "verdict: pass\n" in answer.stdout
    for reason in found["verdict"]["reasons"]:
        assert f"  - {reason}\n" in answer.stdout


@pytest.mark.slow
def test_register_names_a_z_spacing_that_the_affine_has_absorbed(files, tmp_path):
    """The file says 1.5 times too little."""
    folder, pair = files
    z, y, x = pair.prediction.grid.spacing_nm
    said = replace(pair.prediction.grid, spacing_nm=(z / 1.5, y, x))
    wrong = Volume(pair.prediction.read(), said, channels=pair.prediction.channels)
    write_volume(tmp_path / "em.zarr", wrong)
    words = ["register", "--fixed", str(folder / "lm.zarr"), "--moving", str(tmp_path / "em.zarr"),
             "--out", str(tmp_path / "out"), "--json", str(tmp_path / "out.json")]  # fmt: skip
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    assert "verdict: warn\n" in answer.stdout
    reasons = json.loads((tmp_path / "out.json").read_text())["verdict"]["reasons"]
    named = re.search(r"EM z voxel size is probably ([\d.]+) times too small", "\n".join(reasons))
    assert float(named[1]) == pytest.approx(1.5, rel=0.08)


@pytest.mark.slow
@pytest.mark.elastix
@pytest.mark.xdist_group("elastix")
def test_the_published_parameters_run_from_the_command_line(files, tmp_path):
    folder, pair = files
    words = [
        "register", "--fixed", str(folder / "lm.zarr"), "--moving", str(folder / "em.zarr"),
        "--out", str(tmp_path), "--landmarks", str(folder / "marks.csv"),
        "--use-landmarks", "start", "--preset", "heinrich2021",
    ]  # fmt: skip
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    error = pair.errors_nm(read_transform(tmp_path / "transform.json"))
    assert np.median(error) < 150
