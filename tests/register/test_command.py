"""What `clemreg register` makes of its options, before anything is registered."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import tifffile

from clemreg.cli.app import run_app
from clemreg.errors import ConfigError, DataError, FormatError, MissingError, VoxelSizeError
from clemreg.io.transforms import read_transform
from clemreg.io.volumes import write_volume
from clemreg.pipeline import register as register_module
from clemreg.pipeline.light import light_channel
from clemreg.pipeline.overlap import OverlapCommand, overlap_files
from clemreg.pipeline.register import (
    GuideFiles,
    RegisterCommand,
    StageChoice,
    prepare_files,
    psf_sigma_nm,
)
from clemreg.pipeline.voxels import suspicious_voxels
from clemreg.register.features import prepare_fixed
from clemreg.register.orientation import Orientation
from clemreg.register.registration import RegistrationResult
from clemreg.space import Affine, Grid
from clemreg.space.tps import ThinPlateSpline
from clemreg.volume import Volume

LM = Grid((9, 30, 34), (104.0, 60.0, 60.0), (300.0, -200.0, 70.0), "lm")
EM = Grid((40, 50, 54), (32.0, 28.0, 28.0), (900.0, 5000.0, -70.0), "em")


def light(seed):
    rng = np.random.default_rng(seed)
    image = rng.poisson(2.0, LM.shape).astype(np.uint16)
    image[3:6, 8:20, 5:25] += 30
    return image


def mask():
    marked = np.zeros(EM.shape, np.uint8)
    marked[8:30, 10:40, 5:45] = 1
    return marked


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    both = Volume(np.stack([light(1), light(2)]), LM, channels=("mito", "er"))
    write_volume(folder / "lm.zarr", both)
    write_volume(folder / "one.zarr", Volume(light(1), LM))
    write_volume(folder / "em.zarr", Volume(mask(), EM))
    tifffile.imwrite(folder / "lm.tif", light(1))
    tifffile.imwrite(folder / "em.tif", mask())
    return folder


def prepared(folder, fixed="lm.zarr", moving="em.zarr", **options):
    return prepare_files(
        RegisterCommand(str(folder / fixed), str(folder / moving), folder / "out", **options)
    )


def test_a_chromatic_shift_moves_the_channel_and_nothing_else(folder):
    """Of the mitochondria, by name or number, and of a further channel."""
    guides = GuideFiles(also=(f"er={folder / 'em.zarr'}",))
    plain = prepared(folder, guides=guides)
    by_name = prepared(folder, guides=guides, shifts_nm={"mito": (30.0, -5.0, 12.0)})
    by_number = prepared(folder, channel="0", guides=guides, shifts_nm={"0": (30.0, -5.0, 12.0)})
    for ready in (by_name, by_number):
        assert ready.fixed.grid.origin_nm == (330.0, -205.0, 82.0)
        assert ready.fixed.grid.spacing_nm == LM.spacing_nm
        np.testing.assert_array_equal(ready.fixed.read(), plain.fixed.read())
        assert ready.guides.channels[0].fixed.grid == LM
    er = prepared(folder, guides=guides, shifts_nm={"er": (30.0, -5.0, 12.0)})
    assert er.fixed.grid == LM
    assert er.guides.channels[0].fixed.grid.origin_nm == (330.0, -205.0, 82.0)
    with pytest.raises(ConfigError, match="shift is given for 'golgi'"):
        prepared(folder, shifts_nm={"golgi": (0.0, 0.0, 1.0)})


def test_a_channel_of_a_volume_without_channels_is_refused(folder):
    assert prepared(folder, "one.zarr", channel="0").fixed.grid == LM
    with pytest.raises(MissingError, match="no channels, so none called 'er'"):
        prepared(folder, "one.zarr", channel="er")


def test_of_several_light_channels_one_is_named_mito_or_asked_for(folder):
    """The first one was taken before, whatever it showed."""
    for name in ("mito", "Halo-TOMM20"):
        lm = Volume(np.stack([light(1), light(2)]), LM, channels=("er", name))
        write_volume(folder / f"er_{name}.zarr", lm)
        found = prepared(folder, f"er_{name}.zarr").fixed
        np.testing.assert_array_equal(found.read(), prepare_fixed(lm.channel(name)).read())
    write_volume(folder / "lines.zarr", replace(lm, channels=("488", "561")))
    with pytest.raises(ConfigError, match="has channels 488, 561: which one") as error:
        prepared(folder, "lines.zarr")
    assert "--channel" in error.value.hint
    assert prepared(folder, "lines.zarr", channel="561").fixed.name == "561"
    with pytest.raises(ConfigError, match="which one"):
        overlap_files(OverlapCommand("t.json", str(folder / "lm.zarr"), str(folder / "em.zarr")))


def test_voxel_sizes_are_given_where_the_files_have_none(folder, capsys):
    sizes = {"fixed_spacing_nm": (104.0, 60.0, 60.0), "moving_spacing_nm": (32.0, 28.0, 28.0)}
    ready = prepared(folder, "lm.tif", "em.tif", **sizes)
    assert ready.fixed.grid.spacing_nm == (104.0, 60.0, 60.0)
    np.testing.assert_array_equal(ready.fixed.read(), prepared(folder).fixed.read())
    np.testing.assert_array_equal(ready.moving.read(), prepared(folder).moving.read())
    words = ["register", "--out", str(folder / "out"), "--moving", str(folder / "em.tif")]
    assert run_app([*words, "--fixed", str(folder / "lm.tif")]) == 1
    assert '--fixed-spacing "x, y, z nm"' in capsys.readouterr().err
    words += ["--fixed", str(folder / "lm.tif"), "--fixed-spacing", "60, 60, 104 nm"]
    assert run_app(words) == 1
    assert '--moving-spacing "x, y, z nm"' in capsys.readouterr().err


def test_a_point_spread_is_a_name_or_three_widths():
    assert psf_sigma_nm("sim") == pytest.approx(psf_sigma_nm("110, 110, 300 nm"))
    z, y, x = psf_sigma_nm("0.2, 0.1, 0.5 um")
    assert (z, y, x) == pytest.approx(np.array([500.0, 100.0, 200.0]) / np.sqrt(8 * np.log(2)))
    with pytest.raises(ConfigError, match="no point spread 'sted'"):
        psf_sigma_nm("sted")
    for wrong in ("0.11, 0.11, 0.3 nm", "110, 110, 300 um"):
        with pytest.raises(ConfigError, match="cannot be right") as error:
            psf_sigma_nm(wrong)
        assert "is the unit right?" in error.value.hint


@pytest.mark.parametrize("wrong_um", [1600.0, 0.001, 0.0, -1.0, float("nan")])
def test_a_control_grid_in_nanometres_is_refused(wrong_um):
    """It would leave the affine alone, with the verdict pass."""
    for engine in ("newton", "elastix"):
        StageChoice(engine, grid_spacing_um=1.6).stages()
        with pytest.raises(ConfigError, match="um apart make no sense"):
            StageChoice(engine, grid_spacing_um=wrong_um).stages()


def test_channels_may_be_called_by_numbers():
    """Confocal channels often have the names of laser lines, and one may be called 0 or 1."""
    image = np.stack([light(1), light(2)])
    for names, asked, index in ((("488", "561"), "561", 1), (("1", "0"), "1", 0)):
        for name in (asked, int(asked)):  # as a configuration may have it
            found = light_channel(Volume(image, LM, channels=names), name, {})
            np.testing.assert_array_equal(found.read(), image[index])
    assert light_channel(Volume(image, LM, channels=("a", "b")), "1", {}).name == "b"


@pytest.mark.parametrize(
    ("lm_nm", "em_nm", "words"),
    [
        ((60.0, 104.0, 60.0), (32.0, 28.0, 28.0), "LM: .*pixels are usually square"),
        ((104.0, 60.0, 60.0), (28.0, 28.0, 32.0), "EM: .*pixels are usually square"),
        ((104.0, 60.0, 60.0), (3.2, 28.0, 28.0), "EM: .*0.11 times as thick"),
    ],
)
def test_swapped_axes_are_said_beforehand(lm_nm, em_nm, words):
    lm = Volume(light(1), Grid(LM.shape, lm_nm, LM.origin_nm, "lm"))
    em = Volume(mask(), Grid(EM.shape, em_nm, EM.origin_nm, "em"))
    (found,) = suspicious_voxels(em, lm)
    assert re.match(words, found)
    assert "were the axes read in the right order?" in found


def test_volumes_in_each_others_place_are_said_beforehand():
    lm, em = Volume(light(1), LM), Volume(mask(), EM)
    assert suspicious_voxels(em, lm) == ()
    (found,) = suspicious_voxels(Volume(light(1), replace(LM, frame="em")), em)
    assert found == (
        "EM and LM: the voxels of the EM are 14.9 times as large as the LM's; "
        "were the two volumes given in each other's place?"
    )
    stack = np.stack([mask(), mask()])
    prediction = Volume(stack, EM, channels=("mito", "mito_mem"))
    (found,) = suspicious_voxels(em, prediction)
    assert "has the channels mito, mito_mem of a prediction" in found
    two = Volume(stack, EM, channels=("mito", "er"))
    assert suspicious_voxels(em, two) == ()


def test_usual_voxels_are_not_remarked_and_a_wrong_unit_is_refused(folder):
    assert prepared(folder).warnings == ()
    assert "square" in prepared(folder, fixed_spacing_nm=(60.0, 104.0, 60.0)).warnings[0]
    with pytest.raises(VoxelSizeError, match="usual for EM"):
        prepared(folder, moving_spacing_nm=(32e3, 28e3, 28e3))
    with pytest.raises(VoxelSizeError, match="they differ 33 times"):
        prepared(folder, fixed_spacing_nm=(1500.0, 1500.0, 1500.0))


def test_what_is_unusual_stands_in_the_verdict(folder, tmp_path, monkeypatch):
    """The registration itself is left out: it would not mind."""
    start = Affine.translation(EM.centre_nm - LM.centre_nm, "lm", "em")
    pose = Orientation(start, 0.6, 0.1, 0.5, False, 300.0)
    found = RegistrationResult(start, start, pose, {"final": 0.6}, {}, warnings=("As found.",))
    monkeypatch.setattr(register_module, "register", lambda *_, **__: found)
    words = ["register", "--fixed", str(folder / "lm.zarr"), "--moving", str(folder / "em.zarr")]
    words += ["--out", str(tmp_path), "--fixed-spacing", "60, 104, 60 nm"]
    assert run_app([*words, "--json", str(tmp_path / "out.json")]) == 0
    verdict = json.loads((tmp_path / "out.json").read_text())["verdict"]
    assert verdict["status"] == "warn"
    reasons = "\n".join(verdict["reasons"])
    assert "pixels are usually square" in reasons
    assert "As found." in reasons
    kept = json.loads((tmp_path / "registration.json").read_text())["affine"]["warnings"]
    assert len(kept) == 2


def test_the_extracellular_space_is_read_from_its_own_file(folder):
    """On its own grid: it ends 150 nm before what it leaves of the mitochondrion."""
    grid = Grid((14, 17, 20), (100.0, 90.0, 80.0), (880.0, 4990.0, -60.0), "em")
    outside = np.zeros(grid.shape, np.uint8)
    outside[..., :8] = 1
    write_volume(folder / "ecs.zarr", Volume(outside, grid))
    whole = prepared(folder).moving
    left = prepared(folder, ecs=str(folder / "ecs.zarr")).moving
    assert left.grid == whole.grid
    x = left.grid.points_nm()[0, 0, :, 2]
    end = -60.0 + 7.5 * 80.0 + 150.0
    profile, before = left.read()[6, 12], whole.read()[6, 12]
    assert profile[(x > -60.0) & (x < end - 200)].max() < 0.02
    assert before[(x > 150.0) & (x < end - 200)].min() > 0.5
    assert profile[(x > end + 200) & (x < 1050.0)].min() > 0.5
    with pytest.raises(MissingError, match="none"):
        prepared(folder, ecs=str(folder / "none.zarr"))


def test_the_grey_values_of_the_em_are_refused_before_a_search(folder):
    rng = np.random.default_rng(3)
    grey = np.clip(rng.normal(140, 30, EM.shape) - 60 * mask(), 0, 255).astype(np.uint8)
    write_volume(folder / "grey.zarr", Volume(grey, EM))
    with pytest.raises(DataError, match=r"grey.zarr looks like the EM itself") as error:
        prepared(folder, moving="grey.zarr")
    assert "clemreg segment" in error.value.hint
    assert prepared(folder, moving="grey.zarr", kind="probability").moving.read().any()
    probability = np.clip(rng.normal(10, 5, EM.shape) + 200 * mask(), 0, 255).astype(np.uint8)
    write_volume(folder / "p.zarr", Volume(probability, EM))
    assert prepared(folder, moving="p.zarr").moving.read().any()


@pytest.mark.parametrize("option", ["fixed_mask", "moving_mask", "also", "ecs"])
def test_a_further_volume_without_voxel_size_is_refused_with_what_to_do(folder, option):
    path = str(folder / "em.tif")
    given = {"ecs": path} if option == "ecs" else {}
    guide = {option: (f"er={path}",) if option == "also" else path} if not given else {}
    with pytest.raises(VoxelSizeError, match=r"em.tif does not say its voxel size") as error:
        prepared(folder, guides=GuideFiles(**guide), **given)
    assert "save it as OME-Zarr" in error.value.hint


def test_a_localisation_table_is_to_be_rendered_first(folder):
    heads = {
        "storm.csv": "x [nm],y [nm],z [nm],uncertainty [nm]\n1,2,3,10\n4,5,6,11\n",
        "peaks.txt": "X Position\tY Position\tSigma X Pos Full\tSigma Y Pos Full\n1\t2\t3\t4\n",
    }
    for name, text in heads.items():
        (folder / name).write_text(text)
    locs = np.zeros(3, [(n, "f4") for n in ("x", "y", "z", "lpx", "lpy")])
    with h5py.File(folder / "picasso.hdf5", "w") as file:
        file["locs"] = locs
    for name in (*heads, "picasso.hdf5"):
        with pytest.raises(FormatError, match=f"{name} is a table of localisations") as error:
            prepared(folder, name)
        assert "clemreg render" in error.value.hint
    (folder / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="format not known"):
        prepared(folder, "other.csv")


def test_a_result_replaces_all_of_the_one_before(tmp_path):
    """A thin-plate spline at the end has no elastix files: those of the result before must go."""
    start = Affine.translation(EM.centre_nm - LM.centre_nm, "lm", "em")
    pose = Orientation(start, 0.6, 0.1, 0.5, False, 300.0)
    found = RegistrationResult(start, start, pose, {"final": 0.6}, {}, repeats=(start, start))
    found.save(tmp_path, LM)
    (tmp_path / "elastix" / "mine.txt").write_text("stays")
    assert {path.name for path in (tmp_path / "elastix").iterdir()} == {
        "mine.txt",
        "TransformParameters.0.txt",
    }
    corners = EM.corners_nm()
    bent = start.then(ThinPlateSpline(corners, corners + corners[::-1] * 1e-3, "em", "em"))
    replace(found, transform=bent, repeats=(bent,)).save(tmp_path, LM)
    assert [path.name for path in (tmp_path / "elastix").iterdir()] == ["mine.txt"]
    assert [path.name for path in tmp_path.glob("repeat-*.json")] == ["repeat-0.json"]
    kept = read_transform(tmp_path / "transform.json")
    np.testing.assert_allclose(kept(LM.corners_nm()), bent(LM.corners_nm()))


def test_an_output_that_cannot_be_written_is_told_before_the_search(
    folder, tmp_path, monkeypatch, capsys
):
    def searched(*_, **__):
        raise AssertionError("the search began")

    monkeypatch.setattr(register_module, "register", searched)
    (tmp_path / "file").write_text("no folder")
    words = ["register", "--fixed", str(folder / "lm.zarr"), "--moving", str(folder / "em.zarr")]
    words += ["--channel", "mito", "--out", str(tmp_path / "file" / "out")]
    assert run_app(words) == 1
    assert "cannot make the folder" in capsys.readouterr().err


def test_held_out_landmarks_without_a_scan_are_not_passed_over(folder, tmp_path, capsys):
    words = ["register", "--fixed", str(folder / "lm.zarr"), "--moving", str(folder / "em.zarr")]
    words += ["--channel", "mito", "--out", str(tmp_path / "o"), "--held-out", "marks.csv"]
    assert run_app(words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "--held-out judges a scan" in said
    assert "clemreg evaluate landmarks" in said
